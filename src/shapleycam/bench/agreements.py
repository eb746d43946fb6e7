"""What a run says of its methods and the game: agreement with Shapley values, and whether they tell classes apart."""

from collections.abc import Iterator, Sequence

import numpy as np

from .captions import key, name
from .formats import Cell, Grid
from .scores import DRAWS, GAME, Floats, Scores

TITLES = {
    "error": "Err ↓",
    "pearson": "Pearson ↑",
    "spearman": "Spearman ↑",
    "sign": "Sign ↑",
    "discrimination": "Disc ↓",
}
"""The columns, in percent, with the direction that is better."""


def medians(scores: Scores) -> Floats:
    """Each method's medians over the pictures, in percent, (methods, 6); NaN where no row says."""
    return _median(scores.game) * 100


def game_cells(scores: Scores, ci: bool) -> dict[str, tuple[Cell, ...]]:
    """The columns of TITLES for each method, with 95 % bootstrap intervals of the medians if asked for."""
    found = medians(scores)
    ends = _interval(scores) if ci else np.full((2, *found.shape), np.nan)

    def cell(i: int, j: int) -> Cell:
        known = ci and np.isfinite(found[i, j])
        return Cell(float(found[i, j]), (float(ends[0, i, j]), float(ends[1, i, j])) if known else None)

    return {method: tuple(cell(i, GAME.index(each)) for each in TITLES) for i, method in enumerate(scores.methods)}


def agreement(scores: Scores, title: str, ci: bool) -> Grid | None:
    """The grid of what is known; None if nothing is."""
    found = medians(scores)
    known = [each for each in TITLES if np.isfinite(found[:, GAME.index(each)]).any()]
    if not known:
        return None
    columns = [list(TITLES).index(each) for each in known]
    of = game_cells(scores, ci)
    rows: list[tuple[str | Cell, ...]] = [(method, *(of[method][j] for j in columns)) for method in scores.methods]
    head = ("Method", *(TITLES[each] for each in known))
    return Grid(
        f"{title}: agreement with the game", name(scores), head, tuple(rows), tuple(_notes(known, found)), key(scores)
    )


def _notes(known: Sequence[str], found: Floats) -> Iterator[str]:
    if "error" in known:
        noise = np.nanmax(found[:, GAME.index("noise")])
        yield (
            "Medians over the pictures. Err: |E - phi| / |phi|, phi the Shapley values of the game; their own sampling error is "
            f"{noise:.2f}. Pearson, Spearman: correlations of E and phi. Sign: share of positions with the right sign."
        )
    yield "Disc: correlation of a method's maps for the class explained and the least likely class; median, in percent."


def _interval(scores: Scores, seed: int = 0) -> Floats:
    """The 95 % bootstrap interval of `medians`, (2, methods, 6), of one sample after another; NaN where no row says."""
    rng, n = np.random.default_rng(seed), len(scores.pictures)
    known = np.isfinite(scores.game).any(0)
    ends = np.full((2, *known.shape), np.nan)
    if known.any():
        columns = scores.game[:, known]
        found = np.stack([_median(columns[rng.integers(n, size=n)]) for _ in range(DRAWS // 4)])
        ends[:, known] = np.nanpercentile(found, (2.5, 97.5), axis=0) * 100
    return ends


def _median(values: Floats) -> Floats:
    """Over the pictures; NaN where there is nothing, without NumPy's warning of that."""
    known = np.isfinite(values).any(0)
    found = np.full(known.shape, np.nan)
    found[known] = np.nanmedian(values[:, known], axis=0)
    return found
