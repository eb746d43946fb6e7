"""From the rows of a run to the paper's tables. Needs neither a network nor torch, so any laptop will do."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .agreements import TITLES, agreement, game_cells
from .captions import base, coinciding, expected, failure_notes, key, name, number, same_notes, title
from .comparisons import against, pairs, wins
from .formats import FORMATS, Cell, Grid
from .paper import NAMES
from .scores import BASELINES, COLUMNS, LOWER, METRICS, Floats, Scores, join, score_rows, sort_methods
from .store import read_configuration, read_rows

View = Literal["scores", "published", "wins"]


def table(
    run: Path,
    *,
    format: str = "text",
    view: View = "scores",
    sort: str | None = None,
    ci: bool = False,
    baselines: bool = True,
    utilities: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> str:
    """The tables of a run, in percent: Tables 1 to 4 of the paper, or with `utilities` Table 5.

    Parameters
    ----------
    format
        "text", "markdown", "latex" or "csv".
    view
        "scores" for the paper's layout; "published" for each printed number beside this run's; "wins" for the methods
        compared with each other, picture by picture.
    sort
        A metric to order the methods by, best first; the paper's order if None.
    ci
        Whether each number gets its 95 % bootstrap interval.
    baselines
        Whether FakeCAM and Gaussian are shown, and what they beat is marked.
    utilities, methods
        Which of the run's are shown; all methods if none is named.

    Raises
    ------
    ValueError
        For an unknown name, or when nothing of the run is in the paper's tables.
    OSError
        When there is no run.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    facts = read_configuration(run).get("configuration", {})
    grids = make_grids(
        read_rows(run, COLUMNS), facts, view=view, sort=sort, ci=ci, baselines=baselines,
        utilities=utilities, methods=methods, long=format == "csv",
    )  # fmt: skip
    return FORMATS[format](grids)


def make_grids(
    rows: pa.Table,
    configuration: Mapping[str, Any],
    *,
    view: View = "scores",
    sort: str | None = None,
    ci: bool = False,
    baselines: bool = True,
    utilities: Sequence[str] = (),
    methods: Sequence[str] = (),
    long: bool = False,
) -> list[Grid]:
    """The grids of `table`, of rows that are at hand; `long` for a line to each pair or method instead of notes."""
    found = [_chosen(scores, methods, baselines) for scores in scores_in_order(rows, utilities)]
    if sort is not None and sort.upper() not in {name.upper() for name in found[0].metrics}:
        raise ValueError(f"sort is {sort!r}, expected one of {', '.join(found[0].metrics)}")
    if view == "published":
        return against(found, configuration)
    if view == "wins":
        whole = [scores for scores in found if scores.complete().pictures]
        return [(pairs if long else wins)(scores) for scores in whole or found]
    main = [_grid(scores, sort, ci, long, expected(configuration)) for scores in found]
    beside = [] if long else [agreement(scores, title(scores), ci) for scores in found]
    return main + [grid for grid in beside if grid]


def scores_in_order(rows: pa.Table, utilities: Sequence[str] = ()) -> list[Scores]:
    """The scores that `make_grids` makes a grid of each, in its order."""
    return sorted(_by_utility(score_rows(rows), utilities), key=_place)


def _by_utility(found: Sequence[Scores], utilities: Sequence[str]) -> list[Scores]:
    if not utilities:
        return list(found)
    known = {scores.utility for scores in found}
    if missing := [each for each in utilities if each not in known]:
        raise ValueError(f"the run has no utility {missing[0]!r}; it has {', '.join(sorted(known))}")
    chosen = sorted(found, key=lambda scores: (scores.model, scores.layer))
    groups = (list(some) for _, some in groupby(chosen, key=lambda scores: (scores.model, scores.layer)))
    parts = ([s for each in utilities for s in some if s.utility == each] for some in groups)
    return [join(some) for some in parts if some]


def _chosen(scores: Scores, methods: Sequence[str], baselines: bool) -> Scores:
    known = {base(name) for name in scores.methods}
    if missing := [each for each in methods if each not in known]:
        raise ValueError(f"the run has no method {missing[0]!r}; it has {', '.join(sort_methods(known))}")
    wanted = [
        name
        for name in scores.methods
        if (not methods or base(name) in methods) and (baselines or base(name) not in BASELINES)
    ]
    return scores.select(wanted)


def _place(scores: Scores) -> tuple[Any, ...]:
    """Tables as the paper orders them, and its networks in them; others behind, as the run has them."""
    layers, networks = ("gap", "conv"), tuple(NAMES)
    return (
        scores.utility != "rest",
        scores.utility,
        layers.index(scores.layer) if scores.layer in layers else 2,
        scores.layer,
        number(scores) or 9,
        networks.index(scores.model) if scores.model in networks else len(networks),
    )


def _grid(scores: Scores, sort: str | None, ci: bool, long: bool, expected: int | None) -> Grid:
    means = scores.means
    ends = np.percentile(scores.resample(), (2.5, 97.5), axis=0) if ci else None
    same = coinciding(scores)
    listed = list(scores.methods if long else same)
    if sort is not None:
        column = [each.upper() for each in scores.metrics].index(sort.upper())
        sign = 1 if scores.metrics[column] in LOWER else -1
        listed.sort(key=lambda each: np.nan_to_num(sign * means[scores.methods.index(each), column], nan=np.inf))
    ranks = _ranks(scores, means, list(same))
    beaten = _beaten(scores, means)
    stands_for = {other: first for first, others in same.items() for other in others}
    game = game_cells(scores, ci) if long else {}
    rows: list[tuple[str | Cell, ...]] = []
    for each in listed:
        i = scores.methods.index(each)
        cells = [
            Cell(
                float(means[i, j]),
                None if ends is None else (float(ends[0, i, j]), float(ends[1, i, j])),
                int(ranks[i, j]),
                "†" if each in beaten and metric == "ADCC" else "",
            )
            for j, metric in enumerate(scores.metrics)
        ]
        tail: tuple[str | Cell, ...] = (
            (*game[each], stands_for.get(each, ""), " ".join(beaten.get(each, ()))) if long else ()
        )
        rows.append((each, *cells, *tail))
    shown = (f"{metric} {'↓' if metric in LOWER else '↑'}" for metric in scores.metrics)
    head = ("Method", *shown, *((*TITLES.values(), "same as", "beaten by") if long else ()))
    notes = (*same_notes(same), *_baseline_notes(scores, means, beaten), *failure_notes(scores, expected))
    return Grid(title(scores), name(scores), head, tuple(rows), notes, key(scores))


def _ranks(scores: Scores, means: Floats, listed: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int_]]:
    """1 for the best and 2 for the second of the numbers as printed; RandomCAM and baselines run out of competition."""
    ranks = np.zeros(means.shape, int)
    inside = [scores.methods.index(each) for each in listed if base(each) not in (*BASELINES, "RandomCAM")]
    for j, metric in enumerate(scores.metrics):
        shown = np.round(means[:, j], 2) * (1 if metric in LOWER else -1)
        order = sorted({shown[i] for i in inside if np.isfinite(shown[i])})
        for i in inside if len(inside) > 1 else ():
            ranks[i, j] = order.index(shown[i]) + 1 if shown[i] in order[:2] else 0
    return ranks


def _beaten(scores: Scores, means: Floats) -> dict[str, tuple[str, ...]]:
    """For each method the baselines with a higher ADCC."""
    adcc = dict(zip(scores.methods, means[:, METRICS.index("ADCC")], strict=True))
    rivals = [each for each in scores.methods if base(each) in BASELINES]
    found = {
        each: tuple(rival for rival in rivals if adcc[rival] > adcc[each])
        for each in scores.methods
        if base(each) not in BASELINES
    }
    return {each: better for each, better in found.items() if better}


def _baseline_notes(scores: Scores, means: Floats, beaten: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if beaten:
        which = sorted({rival for better in beaten.values() for rival in better})
        yield f"† ADCC below that of {' or '.join(which)}, which looks at neither network nor picture."
    others = [i for i, each in enumerate(scores.methods) if base(each) not in BASELINES]
    for i, each in enumerate(scores.methods):
        if base(each) in BASELINES and others:
            signs = [1 if metric in LOWER else -1 for metric in scores.metrics]
            best = [
                m for j, m in enumerate(scores.metrics) if (signs[j] * means[i, j] < signs[j] * means[others, j]).all()
            ]
            if best:
                yield f"{each} is better than every method in {', '.join(best)}."
