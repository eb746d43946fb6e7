"""What stands around the numbers of a table: titles, networks, which methods coincide, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .paper import NAMES, printed, table_number
from .scores import Floats, Scores

ALIKE = 1e-5
"""Methods whose scores differ by no more on any picture coincide: no table shows it."""
SIMPLEST = ("GradCAM", "ShapleyCAM", "GradCAM-E", "ShapleyCAM-E")
"""Which of some methods that coincide is listed: the first of these, else the first of the rows."""


def title(scores: Scores) -> str:
    """What a table is about: target layer, utility, and the paper's table of the same."""
    table = number(scores)
    like = f", as Table {table} of the paper" if table else ""
    return f"Target layer {scores.layer}, {'utilities' if joined(scores) else 'utility'} {scores.utility}{like}"


def name(scores: Scores) -> str:
    """The network, its top-1 accuracy and the number of pictures."""
    some = f" of {scores.labelled} labelled" if scores.labelled < len(scores.pictures) else ""
    top1 = "" if scores.top1 is None else f"top-1 {100 * scores.top1:.2f} %{some}, "
    return f"{NAMES.get(scores.model, scores.model)} ({top1}{_count(len(scores.pictures), 'picture')})"


def key(scores: Scores) -> tuple[tuple[str, str | float | None], ...]:
    """The columns that tell networks, layers and utilities apart in a CSV."""
    return (
        ("model", scores.model),
        ("layer", scores.layer),
        ("utility", scores.utility),
        ("pictures", str(len(scores.pictures))),
        ("top1", None if scores.top1 is None else 100 * scores.top1),
    )


def coinciding(scores: Scores) -> dict[str, tuple[str, ...]]:
    """For each method that is listed, in order, those that coincide with it on every picture."""
    left, found = list(scores.methods), {}
    while left:
        a = scores.values[:, scores.methods.index(left[0])]
        same = [name for name in left if _alike(a, scores.values[:, scores.methods.index(name)])] or left[:1]
        first = min(
            same, key=lambda name: (SIMPLEST.index(base(name)) if base(name) in SIMPLEST else 9, same.index(name))
        )
        found[first] = tuple(name for name in same if name != first)
        left = [name for name in left if name not in same]
    return {name: found[name] for name in scores.methods if name in found}


def same_notes(same: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Which methods coincide."""
    for first, others in same.items():
        if others:
            yield f"{' = '.join((first, *others))} on every picture."


def failure_notes(scores: Scores, expected: int | None) -> Iterator[str]:
    """What is missing: error rows, pictures of some methods only, pictures that are still to come."""
    if scores.failed:
        reasons = sorted(scores.failed.items(), key=lambda each: (-each[1], each[0]))
        said = "; ".join(f"{count} x {reason}" for reason, count in reasons[:5])
        more = f"; and {len(reasons) - 5} more reasons" if len(reasons) > 5 else ""
        yield f"{_count(sum(scores.failed.values()), 'error row')} left out of the means: {said}{more}."
    counts = scores.measured.sum(0)
    if counts.size and counts.min() < counts.max():
        yield f"Methods were measured on {counts.min()} to {counts.max()} pictures."
    if expected is not None and scores.seen < expected:
        yield f"The run is not finished: {scores.seen} of {expected} pictures."


def number(scores: Scores) -> int | None:
    """Which table of the paper has these numbers."""
    if joined(scores):
        return 5 if (5, scores.layer, scores.model, "", "top1") in printed() else None
    return table_number(scores.layer, scores.model) if scores.utility == "rest" else None


def joined(scores: Scores) -> bool:
    """Whether its methods are those of several utilities."""
    return any("/" in each for each in scores.methods)


def base(name: str) -> str:
    """The method without the utility that `join` set behind it."""
    return name.split("/")[0]


def expected(configuration: Mapping[str, Any]) -> int | None:
    """The number of pictures of the whole run, if known."""
    pictures = configuration.get("pictures")
    count = pictures.get("count") if isinstance(pictures, dict) else None
    return count if isinstance(count, int) else None


def _alike(a: Floats, b: Floats) -> bool:
    """Whether two methods have been measured on the same pictures, at least one, with the same scores."""
    known = np.isfinite(a).all(-1)
    alike = np.array_equal(known, np.isfinite(b).all(-1)) and known.any()
    return bool(alike and (np.abs(a[known] - b[known]) <= ALIKE).all())


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
