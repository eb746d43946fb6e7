"""The Content Reserved Game-theoretic explainer: the utility expanded around the whole coalition.

Every position of the activation maps A is a player, and a coalition keeps its own positions and sets the rest to zero.
The Shapley value of a player is approximated from the derivatives of the utility U at A, where all play:
E = sum_i W^i * A^i with the coefficients W of one of the orders below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .axes import Maps, Weights

Order = Literal["none", "first", "second"]


@dataclass(frozen=True)
class Expansion:
    """All that a gradient-based method may look at; an ingredient that no method asked for is None.

    All tensors are (b, n, *positions), in float32 or wider, and carry no graph.
    """

    maps: Maps
    """A, the target layer's own output."""
    gradient: Maps | None = None
    """U', the derivative of each image's utility with respect to its A."""
    hvp: Maps | None = None
    """HX, the Hessian of the utility times A itself."""
    noise: Weights | None = None
    """One number in [-1, 1) an image and map, (b, n, 1, ...): RandomCAM's weights."""


def first_order(expansion: Expansion) -> Maps:
    """W = U', Eq. (10): exact Shapley values where the utility is linear in the players."""
    return _asked(expansion.gradient)


def second_order(expansion: Expansion) -> Maps:
    """W = U' - HX / 2, Eq. (14): exact Shapley values where the utility is quadratic in the players."""
    return _asked(expansion.gradient) - _asked(expansion.hvp) / 2


def no_order(expansion: Expansion) -> Weights:
    """W drawn at random: a baseline that knows nothing of the utility."""
    return _asked(expansion.noise)


COEFFICIENTS: Mapping[Order, Callable[[Expansion], Weights]] = MappingProxyType(
    {"none": no_order, "first": first_order, "second": second_order}
)

INGREDIENTS: Mapping[Order, frozenset[str]] = MappingProxyType(
    {"none": frozenset({"noise"}), "first": frozenset({"gradient"}), "second": frozenset({"gradient", "hvp"})}
)
"""What each order needs of an `Expansion` beside the maps."""


def _asked(ingredient: Weights | None) -> Weights:
    if ingredient is None:
        raise ValueError("the expansion lacks an ingredient of this order; see INGREDIENTS")
    return ingredient
