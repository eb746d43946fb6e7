"""Class activation maps as rows of one table: E = sum_i inside(g(W, A)^i * A^i)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

import torch
from torch import Tensor

from .axes import ExplanationMaps, Maps, Weights
from .crg import COEFFICIENTS, Expansion, Order


def identity(w: Weights, a: Maps) -> Weights:
    """Type I: each position keeps its own coefficient."""
    return w


def mean(w: Maps, a: Maps) -> Weights:
    """Type II: each map has one coefficient, the mean over its positions."""
    return w.mean(_positions(w), keepdim=True)


def positive(w: Maps, a: Maps) -> Maps:
    """LayerCAM's weights: the positive coefficients, position by position."""
    return w.relu()


def share(w: Maps, a: Maps) -> Weights:
    """XGradCAM's weights sum(W A) / (sum(A) + 1e-7), as in Fu et al. 2020; Eq. (6) as printed differs."""
    return (w * a).sum(_positions(w), keepdim=True) / (a.sum(_positions(a), keepdim=True) + 1e-7)


def plus_plus(w: Maps, a: Maps) -> Weights:
    """GradCAM++'s weights: Eq. (19) of Chattopadhyay et al. 2018, with 1e-6 in the divisor."""
    rising, total = w.relu(), a.sum(_positions(a), keepdim=True)
    square = rising * rising
    cube = square * rising
    return (cube / torch.addcmul(2 * square + 1e-6, total, cube)).sum(_positions(w), keepdim=True)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    equation: str
    order: Order
    source: str
    weights: Callable[[Tensor, Tensor], Tensor]
    """g: the weights of the maps, from the coefficients W and the maps A."""
    relu_inside: bool = False
    """Whether each product is rectified before the sum over the maps."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for row in (
            Method("RandomCAM", "weights uniform in [-1, 1)", "none", "Cai 2025, Section 4.1", identity),
            Method("GradCAM", "Eq. (2)", "first", "Selvaraju et al. 2017", mean),
            Method("HiResCAM", "Eq. (3)", "first", "Draelos and Carin 2020", identity),
            Method("GradCAM-E", "Eq. (4)", "first", "Gildenblat 2021 (grad-cam)", identity, relu_inside=True),
            Method("LayerCAM", "Eq. (5)", "first", "Jiang et al. 2021", positive),
            Method("XGradCAM", "Eq. (6)", "first", "Fu et al. 2020", share),
            Method("GradCAM++", "Eq. (19) of its source", "first", "Chattopadhyay et al. 2018", plus_plus),
            Method("ShapleyCAM", "Eq. (14), mean", "second", "Cai 2025", mean),
            Method("ShapleyCAM-H", "Eq. (14)", "second", "Cai 2025", identity),
            Method("ShapleyCAM-E", "Eq. (14), ReLU inside", "second", "Cai 2025", identity, relu_inside=True),
            Method("AumannCAM", "mean of U'(tA), mean", "path", "Aumann and Shapley 1974", mean),
            Method("AumannCAM-H", "mean of U'(tA)", "path", "Aumann and Shapley 1974", identity),
            Method(
                "AumannCAM-E",
                "mean of U'(tA), ReLU inside",
                "path",
                "Aumann and Shapley 1974",
                identity,
                relu_inside=True,
            ),
        )
    }
)

SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "paper": tuple(name for name, row in METHODS.items() if row.order != "path"),
        "path": tuple(name for name, row in METHODS.items() if row.order == "path"),
        "all": tuple(METHODS),
    }
)
"""Names for several methods: "paper" has the paper's ten, "all" those that cost no more than gradients behind the cut."""


def explanation(method: Method, expansion: Expansion) -> ExplanationMaps:
    """E = sum_i inside(g(W^i) * A^i): signed, before the last ReLU, in units of the utility."""
    return products(method, expansion).sum(1)


def products(method: Method, expansion: Expansion) -> Maps:
    """What E adds up, (b, n, *positions): inside(g(W^i) * A^i) of each map."""
    a = expansion.maps
    parts = method.weights(COEFFICIENTS[method.order](expansion), a) * a
    return parts.relu() if method.relu_inside else parts


def resolve_methods(methods: str | Iterable[str]) -> tuple[Method, ...]:
    """Rows of the table for a name, a set or a list of both: in order, each once.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest names; for an empty list.
    """
    return tuple(METHODS[name] for name in resolve_names(methods))


def resolve_names(methods: str | Iterable[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """The names in a name, a set or a list of both: in order, each once; `others` are known beside the table's rows.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest names; for an empty list.
    """
    given = [methods] if isinstance(methods, str) else list(methods) if isinstance(methods, Iterable) else [methods]
    if strange := [each for each in given if not isinstance(each, str)]:
        raise TypeError(f"methods is {methods!r}, expected names; {strange[0]!r} is a {type(strange[0]).__name__}")
    names = tuple(dict.fromkeys(name for each in given for name in SETS.get(each, (each,))))
    known = (*SETS, *METHODS, *others)
    if not names:
        raise ValueError("no method was given; name one or more of " + ", ".join(known))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown method {name!r}; {nearest(name, known)}")
    return names


def steady(names: Iterable[str]) -> bool:
    """Whether no method here divides by a sum that may be near zero, as XGradCAM does: last bits of the maps show there."""
    return all(METHODS[name].weights is not share for name in names if name in METHODS)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names nearest to a misspelt one, or the first twenty of them."""
    known = list(known)
    lower = {each.lower(): each for each in reversed(known)}
    near = [lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known[:20])}{more}"


def _positions(maps: Maps) -> tuple[int, ...]:
    return tuple(range(2, maps.ndim))
