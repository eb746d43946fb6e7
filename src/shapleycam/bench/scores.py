"""Rows of a run as scores: one unit's pictures and methods in one array, with means, intervals and comparisons."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..theory import metrics

Floats = NDArray[np.float64]

METRICS = ("AD", "Coh", "Com", "ADCC", "IC", "ADD")
"""The columns of the paper's tables, in percent."""
MORE = {"insertion": "Ins", "deletion": "Del", "road": "ROAD", "randomisation": "MPRT"}
"""Metrics beside them, by their columns of the rows: those of them that a run has follow METRICS, in percent."""
LOWER = frozenset({"AD", "Com", "Del", "MPRT"})
"""Metrics of which less is better."""
BASELINES = ("FakeCAM", "Gaussian")
ORDER = (
    "RandomCAM", "GradCAM++", "XGradCAM", "LayerCAM", "GradCAM-E", "ShapleyCAM-E", "HiResCAM", "ShapleyCAM-H", "GradCAM",
    "ShapleyCAM", "AumannCAM-E", "AumannCAM-H", "AumannCAM",
)  # fmt: skip
"""The order of the paper's rows, and the path row behind them."""
GAME = ("error", "pearson", "spearman", "sign", "discrimination", "noise")
"""What rows say of a method and the game: see `Fidelity`, and `Measurements.discrimination`."""
DRAWS = 2000
COLUMNS = (
    "model", "layer", "utility", "method", "picture", "label", "predicted", "full", "kept", "deleted", "coherency",
    "complexity", "status", *GAME, *MORE,
)  # fmt: skip
"""What tables need of a run's rows: all but the maps."""

_MEANS = ("AD", "Coh", "Com", "IC", "ADD")


@dataclass(frozen=True, eq=False)
class Scores:
    """All that a run says of one network, target layer and utility."""

    model: str
    layer: str
    utility: str
    metrics: tuple[str, ...]
    """METRICS, and those of MORE that the run has."""
    methods: tuple[str, ...]
    pictures: tuple[str, ...]
    """Those that were measured with some method; sorted, so that neither the order of rows nor of parts changes a digit."""
    values: Floats
    """`metrics` but ADCC, fractions, (pictures, methods, 5 or more); NaN where a picture and method have no "ok" row."""
    game: Floats
    """The columns GAME, (pictures, methods, 6); NaN where a row does not say."""
    top1: float | None
    """Share of the labelled pictures whose predicted class is the label; None without labels."""
    labelled: int
    """The number of these."""
    failed: Mapping[str, int]
    """Rows that count in no mean, by their reason."""
    seen: int
    """The number of pictures that have rows, measured or not."""

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """Whether a picture has all scores of a method, (pictures, methods)."""
        return np.asarray(np.isfinite(self.values).all(-1))

    @property
    def means(self) -> Floats:
        """Each method's `metrics` over the pictures, in percent, (methods, metrics)."""
        return np.asarray(self._summary(np.ones((1, len(self.pictures))))[0])

    @property
    def interval(self) -> Floats:
        """The 95 % bootstrap interval of `means`, (2, methods, metrics), of the samples in which a method was measured."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a method without any row has the ends NaN
            return np.asarray(np.nanpercentile(self.resample(), (2.5, 97.5), axis=0))

    @property
    def adcc_per_image(self) -> Floats:
        """Eq. (21) of each picture by itself, in percent, (pictures, methods): for finding pictures, not for tables."""
        return _adcc(self.values) * 100

    def resample(self, draws: int = DRAWS, seed: int = 0) -> Floats:
        """`means` of `draws` bootstrap samples of the pictures, (draws, methods, metrics); all methods share the samples."""
        rng = np.random.default_rng(seed)
        n = len(self.pictures)
        return np.concatenate(
            [
                self._summary(
                    np.array([np.bincount(rng.integers(max(n, 1), size=n), minlength=n) for _ in range(some)], float)
                )
                for some in (min(32, draws - start) for start in range(0, draws, 32))
            ]
        )

    @cached_property
    def _columns(self) -> tuple[Floats, Floats]:
        """1 where a picture was measured with a method, else 0; and its scores, else 0, a column each."""
        values = np.where(self.measured[..., None], self.values, 0)
        return self.measured.astype(float), values.reshape(len(values), np.prod(values.shape[1:]))

    def _summary(self, counts: Floats) -> Floats:
        """Column means of pictures that occur `counts` times, (samples, pictures), then Eq. (21)."""
        known, values = self._columns
        sums = (counts @ values).reshape(len(counts), *self.values.shape[1:])
        with np.errstate(invalid="ignore"):  # a method without any row has the mean NaN
            means = sums / (counts @ known)[..., None]
        return np.insert(means, METRICS.index("ADCC"), _adcc(means), axis=-1) * 100

    def select(self, methods: Sequence[str]) -> "Scores":
        """The same with these methods only, in this order."""
        places = [self.methods.index(name) for name in methods]
        return replace(self, methods=tuple(methods), values=self.values[:, places], game=self.game[:, places])

    def complete(self) -> "Scores":
        """The same with only the pictures that were measured with every method."""
        whole = np.asarray(self.measured.all(1))
        pictures = tuple(name for name, good in zip(self.pictures, whole, strict=True) if good)
        return replace(self, pictures=pictures, values=self.values[whole], game=self.game[whole])


def score_rows(rows: pa.Table, measured: Sequence[str] = ()) -> tuple[Scores, ...]:
    """The scores of each network, target layer and utility of a run, in the order in which its rows begin.

    They have the metrics of MORE that some row has, and those `measured` where no row has them.

    Raises
    ------
    ValueError
        When there are no rows, or a picture has two of one method.
    """
    if not len(rows):
        raise ValueError("the run has no rows yet; let `shapleycam bench` write a part first")
    names = ("model", "layer", "utility", "method", "picture", "status")
    codes = {name: _codes(rows[name]) for name in names}
    key = np.ravel_multi_index([codes[name][0] for name in names[:3]], [len(codes[name][1]) for name in names[:3]])
    _, begins = np.unique(key, return_index=True)
    more = [name for name in MORE if name in measured or rows[name].null_count < len(rows)]
    return tuple(_score(rows, codes, np.flatnonzero(key == key[begin]), more) for begin in sorted(begins))


def join(parts: Sequence[Scores]) -> Scores:
    """Scores that differ by their utility as one, whose methods are called METHOD/UTILITY: the rows of Table 5."""
    pictures = sorted({name for part in parts for name in part.pictures})
    where = {name: place for place, name in enumerate(pictures)}
    names = sort_methods({name for part in parts for name in part.methods})
    columns = [(name, part) for name in names for part in parts if name in part.methods]
    lengths = parts[0].values.shape[-1], len(GAME)
    values, game = (np.full((len(pictures), len(columns), each), np.nan) for each in lengths)
    for place, (name, part) in enumerate(columns):
        there, column = [where[each] for each in part.pictures], part.methods.index(name)
        values[there, place], game[there, place] = part.values[:, column], part.game[:, column]
    failed: Counter[str] = Counter()
    for part in parts:
        failed.update(part.failed)
    return replace(
        parts[0],
        utility=", ".join(part.utility for part in parts),
        methods=tuple(f"{name}/{part.utility}" for name, part in columns),
        pictures=tuple(pictures),
        values=values,
        game=game,
        failed=failed,
        seen=max(part.seen for part in parts),
    )


def sort_methods(names: Iterable[str]) -> list[str]:
    """The paper's order, then others by their names, baselines last."""
    return sorted(names, key=lambda name: (name in BASELINES, ORDER.index(name) if name in ORDER else len(ORDER), name))


def _score(
    rows: pa.Table, codes: Mapping[str, tuple[NDArray[Any], list[str]]], at: NDArray[np.intp], more: Sequence[str]
) -> Scores:
    model, layer, utility = (codes[name][1][codes[name][0][at[0]]] for name in ("model", "layer", "utility"))
    columns, method = _places(codes["method"], at, lambda names: ["", *sort_methods(names - {""})])
    pictures, picture = _places(codes["picture"], at, sorted)
    if np.bincount(picture * len(columns) + method).max() > 1:
        raise ValueError(f"{model}, {layer}, {utility} has two rows of one picture and method: two runs were mixed")
    mine = rows.take(pa.array(at))
    full, kept, deleted, coherency, complexity = (
        mine[name].to_numpy().astype(np.float64) for name in ("full", "kept", "deleted", "coherency", "complexity")
    )
    formulas: Any = metrics  # they take arrays as well as tensors
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "AD": formulas.average_drop(full, kept),
            "Coh": coherency,
            "Com": complexity,
            "IC": formulas.increase_in_confidence(full, kept),
            "ADD": formulas.average_drop_in_deletion(full, deleted),
        }
    values = np.stack([*(found[name] for name in _MEANS), *(mine[name].to_numpy() for name in more)], -1)
    status = np.array(codes["status"][1], dtype=object)[codes["status"][0][at]]
    status[(status == "ok") & ~np.isfinite(values).all(-1)] = "a score is not a number"
    good = (status == "ok") & (method > 0)
    table = np.full((len(pictures), len(columns), values.shape[-1]), np.nan)
    table[picture[good], method[good]] = values[good]
    game = np.full((len(pictures), len(columns), len(GAME)), np.nan)
    game[picture[good], method[good]] = np.stack([mine[name].to_numpy() for name in GAME], -1)[good]
    some = np.isfinite(table).any((1, 2))
    measured = tuple(name for name, there in zip(pictures, some, strict=True) if there)
    failed = Counter(status[status != "ok"].tolist())
    right = _right(mine, picture)
    top1 = sum(right) / len(right) if right else None
    return Scores(
        model, layer, utility, (*METRICS, *(MORE[name] for name in more)), tuple(columns[1:]), measured, table[some, 1:],
        game[some, 1:], top1, len(right), failed, len(pictures),
    )  # fmt: skip


def _right(rows: pa.Table, picture: NDArray[np.intp]) -> list[bool]:
    """Whether the predicted class is the label, of each picture that has one; NaN predicts nothing, whatever its argmax is."""
    label, predicted, full = (rows[name].to_numpy().astype(np.float64) for name in ("label", "predicted", "full"))
    known = np.isfinite(label) & np.isfinite(predicted) & np.isfinite(full)
    return list(dict(zip(picture[known].tolist(), (label == predicted)[known].tolist(), strict=True)).values())


def _adcc(scores: Floats) -> Floats:
    """Eq. (21) of AD, Coh, Com in the last axis."""
    formula: Any = metrics.adcc_per_image
    with np.errstate(divide="ignore"):  # one of the three at its worst gives 0
        found: Floats = formula(scores[..., 0], scores[..., 1], scores[..., 2])
    return found


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[Any], list[str]]:
    """Names as numbers: a place in the list for each row."""
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _places(
    codes: tuple[NDArray[Any], list[str]], at: NDArray[np.intp], order: Callable[[set[str]], list[str]]
) -> tuple[list[str], NDArray[np.intp]]:
    """The names that occur in some of the rows, ordered, and where in them each of those rows' name stands."""
    present, inverse = np.unique(codes[0][at], return_inverse=True)
    names = [codes[1][code] for code in present]
    ordered = order(set(names))
    where = {name: place for place, name in enumerate(ordered)}
    return ordered, np.array([where[name] for name in names])[inverse]
