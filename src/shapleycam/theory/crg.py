"""The Content Reserved Game-theoretic explainer: the utility expanded around the whole coalition.

Every position of the activation maps A is a player, and a coalition keeps its own positions and sets the rest to zero.
The Shapley value of a player is approximated from the derivatives of the utility U at A, where all play:
E = sum_i W^i * A^i with the coefficients W of one of the orders below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .axes import Maps, Utilities, Weights

Order = Literal["none", "first", "second", "path"]


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
    path: Maps | None = None
    """The mean of U'(tA) over t from 0 to 1."""
    full: Utilities | None = None
    """U(A), what all players are worth, (b,); None where noise is all that was asked for."""
    empty: Utilities | None = None
    """U(0), what no player is worth, (b,); known where `path` is."""
    noise: Weights | None = None
    """One number in [-1, 1) an image and map, (b, n, 1, ...): RandomCAM's weights."""

    @cached_property
    def reserved(self) -> Maps:
        """U' - HX / 2, which three methods look at."""
        return torch.sub(_asked(self.gradient), _asked(self.hvp), alpha=0.5)


def first_order(expansion: Expansion) -> Maps:
    """W = U', Eq. (10): exact Shapley values where the utility is linear in the players."""
    return _asked(expansion.gradient)


def second_order(expansion: Expansion) -> Maps:
    """W = U' - HX / 2, Eq. (14): exact Shapley values where the utility is quadratic in the players."""
    return expansion.reserved


def path_order(expansion: Expansion) -> Maps:
    """W = the integral of U'(tA) over t in [0, 1]: the Aumann-Shapley value (Aumann and Shapley 1974) of the game.

    It adds up to U(A) - U(0), and with K nodes it is the Shapley value where the utility is multilinear in up to 2K players
    (Owen 1972).
    """
    return _asked(expansion.path)


def no_order(expansion: Expansion) -> Weights:
    """W drawn at random: a baseline that knows nothing of the utility."""
    return _asked(expansion.noise)


COEFFICIENTS: Mapping[Order, Callable[[Expansion], Weights]] = MappingProxyType(
    {"none": no_order, "first": first_order, "second": second_order, "path": path_order}
)

INGREDIENTS: Mapping[Order, frozenset[str]] = MappingProxyType(
    {
        "none": frozenset({"noise"}),
        "first": frozenset({"gradient"}),
        "second": frozenset({"gradient", "hvp"}),
        "path": frozenset({"path"}),
    }
)
"""What each order needs of an `Expansion` beside the maps."""


def quadrature(nodes: int) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Nodes in (0, 1) and weights of Gauss-Legendre quadrature, exact for polynomials of degree below 2 `nodes`; float64.

    By the eigenvalues of the Jacobi matrix (Golub and Welsch 1969).
    """
    k = torch.arange(1, nodes, dtype=torch.float64)
    beside = k / (4 * k**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (points + 1) / 2, vectors[0] ** 2


def efficiency_gap(total: Utilities, full: Utilities, empty: Utilities) -> Utilities:
    """|total - (U(A) - U(0))| over |U(A) - U(0)|: how far shares are from adding up to what there is to share; 0 is best."""
    earned = full - empty
    return (total - earned).abs() / earned.abs().clamp(min=1e-6)


def _asked(ingredient: Weights | None) -> Weights:
    if ingredient is None:
        raise ValueError("the expansion lacks an ingredient of this order; see INGREDIENTS")
    return ingredient
