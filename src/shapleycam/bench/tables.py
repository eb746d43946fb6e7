"""From the rows of a run to the paper's tables. Needs neither a network nor torch, so any laptop will do."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from .agreements import TITLES, agreement, game_cells
from .captions import base, coinciding, expected, failure_notes, key, name, same_notes, title
from .comparisons import against, all_wins
from .formats import FORMATS, Cell, Grid
from .paper import NAMES, table_number
from .places import Place
from .scores import BASELINES, COLUMNS, LOWER, METRICS, Floats, Scores, join, score_rows, sort_methods
from .store import Where, parts, read_configuration, read_rows

View = Literal["scores", "published", "wins"]


def table(
    run: Place,
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
    whole = read_configuration(run)
    origins = {model: each.get("origin", "") for model, each in whole.get("weights", {}).items()}
    facts = {**whole.get("configuration", {}), "origins": origins}
    groups = read_groups(run)
    grids = make_grids(
        groups, facts, view=view, sort=sort, ci=ci, baselines=baselines,
        utilities=utilities, methods=methods, long=format == "csv",
    )  # fmt: skip
    if grids and (absent := absent_notes(groups, facts)):
        grids[-1] = replace(grids[-1], notes=(*grids[-1].notes, *absent))
    return FORMATS[format](grids)


Groups: TypeAlias = Mapping[Where, Callable[[], Scores]]
"""The scores of each model, layer and utility, made when they are asked for: a table of millions of rows keeps but one."""


def read_groups(run: Place) -> Groups:
    """The scores of a run on disk.

    Raises
    ------
    FileNotFoundError
        When there is no run, or no part in it yet.
    """
    found = parts(run)
    if not found:
        read_rows(run, COLUMNS)  # says what is missing

    asked = read_configuration(run).get("configuration", {}).get("metrics", ())

    def read(where: Where) -> Scores:
        (scores,) = score_rows(read_rows(run, COLUMNS, where), asked)
        return scores

    return {where: partial(read, where) for where in found}


def make_grids(
    rows: pa.Table | Groups,
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
    """The grids of `table`, of rows that are at hand or of groups; `long` for a line to each pair or method instead of notes."""
    groups = rows if isinstance(rows, Mapping) else _at_hand(rows)
    every = scores_in_order(groups, utilities)
    if view == "scores":
        return _all_scores(every, configuration, sort, ci, baselines, methods, long)
    found = (_chosen(scores, methods, baselines, sort) for scores in every)
    if view == "published":
        return against(found, configuration)
    return all_wins(found, long)


def _all_scores(
    every: Iterable[Scores], configuration: Mapping[str, Any], sort: str | None, ci: bool, baselines: bool,
    methods: Sequence[str], long: bool,
) -> list[Grid]:  # fmt: skip
    main, beside = [], []
    for all_scores in every:
        scores = _chosen(all_scores, methods, baselines, sort)
        beaten = _beaten(all_scores if baselines else scores)  # also by baselines that are not shown
        main.append(_grid(scores, ci, long, expected(configuration), beaten))
        beside.append(None if long else agreement(scores, title(scores), ci))
    return main + [grid for grid in beside if grid]


def absent_notes(groups: Groups, configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """Of which models, layers and utilities of a run nothing is on disk."""
    asked = product(*(configuration.get(each, ()) for each in ("models", "layers", "utilities")))
    absent = [" ".join(where) for where in asked if where not in groups]
    return (f"The run is not finished: nothing yet of {', '.join(absent)}.",) if absent else ()


def scores_in_order(groups: Groups, utilities: Sequence[str] = ()) -> Iterator[Scores]:
    """The scores that `make_grids` makes a grid of each, in its order; those of several utilities as one where named."""
    if missing := [each for each in utilities if each not in {utility for _, _, utility in groups}]:
        known = ", ".join(sorted({utility for _, _, utility in groups}))
        raise ValueError(f"the run has no utility {missing[0]!r}; it has {known}")
    if not utilities:
        for where in sorted(groups, key=_place):
            yield groups[where]()
        return
    for model, layer in sorted(dict.fromkeys(where[:2] for where in groups), key=lambda pair: _place((*pair, ""))):
        known_of = [(model, layer, each) for each in utilities if (model, layer, each) in groups]
        if known_of:
            yield join([groups[where]() for where in known_of])


def _at_hand(rows: pa.Table) -> Groups:
    return {(s.model, s.layer, s.utility): partial(_itself, s) for s in score_rows(rows)}


def _itself(scores: Scores) -> Scores:
    return scores


def _chosen(scores: Scores, methods: Sequence[str], baselines: bool, sort: str | None) -> Scores:
    known = {base(name) for name in scores.methods}
    if missing := [each for each in methods if each not in known]:
        raise ValueError(f"the run has no method {missing[0]!r}; it has {', '.join(sort_methods(known))}")
    wanted = [
        name
        for name in scores.methods
        if (not methods or base(name) in methods) and (baselines or base(name) not in BASELINES)
    ]
    if sort is None:
        return scores.select(wanted)
    known_metrics = [each.upper() for each in scores.metrics]
    if sort.upper() not in known_metrics:
        raise ValueError(f"sort is {sort!r}, expected one of {', '.join(scores.metrics)}")
    column = known_metrics.index(sort.upper())
    sign = 1 if scores.metrics[column] in LOWER else -1
    worse = dict(zip(scores.methods, np.nan_to_num(sign * scores.means[:, column], nan=np.inf), strict=True))
    return scores.select(sorted(wanted, key=worse.__getitem__))


def _place(where: Where) -> tuple[Any, ...]:
    """Tables as the paper orders them, and its networks in them; others behind, as the run has them."""
    model, layer, utility = where
    layers, networks = ("gap", "conv"), tuple(NAMES)
    return (
        utility not in ("rest", ""),
        utility,
        layers.index(layer) if layer in layers else 2,
        layer,
        table_number(layer, model) or 9,
        networks.index(model) if model in networks else len(networks),
    )


def _grid(scores: Scores, ci: bool, long: bool, expected: int | None, beaten: Mapping[str, tuple[str, ...]]) -> Grid:
    means = scores.means
    ends = scores.interval if ci else None
    same = coinciding(scores)
    listed = list(scores.methods if long else same)
    ranks = _ranks(scores, means, list(same))
    beaten = {each: better for each, better in beaten.items() if each in scores.methods}
    stands_for = {other: first for first, others in same.items() for other in others}
    game = game_cells(scores, ci) if long else {}
    rows: list[tuple[str | Cell, ...]] = []
    for each in listed:
        i = scores.methods.index(each)
        cells = [
            Cell(
                float(means[i, j]),
                None if ends is None or np.isnan(ends[0, i, j]) else (float(ends[0, i, j]), float(ends[1, i, j])),
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


def _beaten(scores: Scores) -> dict[str, tuple[str, ...]]:
    """For each method the baselines with a higher ADCC."""
    adcc = dict(zip(scores.methods, scores.means[:, METRICS.index("ADCC")], strict=True))
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
