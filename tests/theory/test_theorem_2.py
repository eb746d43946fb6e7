"""Theorem 2: to second order, the Shapley values of the positions are ShapleyCAM-H, Eq. (14).

The paper's words were not at hand. Tested is this: let X be the activation maps, X_S the maps with every position outside
S set to zero, v(S) = U(X_S) the game, U' and H gradient and Hessian of U at X. If U is quadratic in X, then the Shapley
value of position j is exactly phi_j = sum_i A_ij (U' - HX / 2)_ij. The minus comes of expanding at X, where all play.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shapleycam import METHODS, UTILITIES
from shapleycam.theory.cams import explanation
from shapleycam.theory.crg import Expansion
from theory.games import Curved, explained, images, keep, network, played, shapley_values

SIZES = st.tuples(st.integers(1, 3), st.integers(2, 6))
SEEDS = st.integers(0, 2**31)


def quadratic(n: int, d: int, seed: int, cubic: float = 0) -> tuple[Expansion, Tensor]:
    """A random U(X) = c + <b, X> + X^T Q X / 2 + cubic * sum(X)^3 expanded by hand at random maps, and its Shapley values."""
    generator = torch.Generator().manual_seed(seed)
    maps, b = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    q = torch.randn(n * d, n * d, generator=generator, dtype=torch.float64)
    q = q + q.T

    def utility(coalition: frozenset[int]) -> float:
        x = keep(maps, coalition).flatten()
        return (0.7 + b.flatten() @ x + x @ q @ x / 2 + cubic * x.sum() ** 3).item()

    total = maps.sum()
    gradient = b + (q @ maps.flatten()).view(n, d) + 3 * cubic * total**2
    hvp = (q @ maps.flatten()).view(n, d) + 6 * cubic * total**2
    return Expansion(maps[None], gradient[None], hvp[None]), shapley_values(utility, d)


def distance(method: str, expansion: Expansion, phi: Tensor) -> float:
    return ((explanation(METHODS[method], expansion)[0] - phi).norm() / phi.norm()).item()


@given(size=SIZES, seed=SEEDS)
def test_shapleycam_h_is_the_shapley_value_of_a_quadratic_utility(size, seed):
    e, phi = quadratic(*size, seed)
    torch.testing.assert_close(explanation(METHODS["ShapleyCAM-H"], e)[0], phi, rtol=0, atol=1e-10)


@given(seed=SEEDS)
def test_hirescam_is_not_the_shapley_value_of_a_quadratic_utility(seed):
    e, phi = quadratic(2, 4, seed)
    assert distance("HiResCAM", e, phi) > 1e-3


@given(seed=SEEDS)
def test_shapleycam_h_is_not_the_shapley_value_of_a_cubic_utility(seed):
    e, phi = quadratic(2, 4, seed, cubic=1)
    assert distance("ShapleyCAM-H", e, phi) > 1e-3


@given(size=SIZES, seed=SEEDS)
def test_shapleycam_h_shares_out_all_that_a_quadratic_utility_gains(size, seed):
    """Efficiency: sum_j E_j = U(X) - U(0) = <b, X> + X^T Q X / 2."""
    e, _ = quadratic(*size, seed)
    gained = (e.maps * (e.gradient - e.hvp)).sum() + (e.maps * e.hvp).sum() / 2
    torch.testing.assert_close(explanation(METHODS["ShapleyCAM-H"], e).sum(), gained, rtol=1e-9, atol=1e-9)


class Product(nn.Module):
    """A tail whose logits are quadratic in the maps: products of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5 * 6, 4)
        self.right = nn.Linear(5 * 6, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.left(maps.flatten(1)) * self.right(maps.flatten(1))


@pytest.mark.parametrize("target", range(4))
def test_shapleycam_h_is_the_shapley_value_of_a_network_with_quadratic_logits(target):
    """The network's own game, cut and differentiated twice by the library."""
    net = network(Product(), seed=0)
    x = images(seed=1, size=(4, 6))
    e, first = (explained(net, x, method, UTILITIES["pre-softmax"], target) for method in ("ShapleyCAM-H", "HiResCAM"))
    for image in range(2):
        phi = played(net, x[image], UTILITIES["pre-softmax"], target)
        torch.testing.assert_close(e[image], phi, rtol=0, atol=1e-12)
        assert (first[image] - phi).norm() > 0.1 * phi.norm()


def test_shapleycam_h_gives_nothing_to_a_position_whose_maps_are_zero():
    """The axiom of the null player, on a network and a utility that are not quadratic."""
    net = network(Curved(), seed=0)
    net.maps.bias.data.zero_()
    x = images(seed=1, b=1)
    x[..., 2:4, 4:6] = 0  # the position in row 1, column 2
    assert played(net, x[0], UTILITIES["rest"], target=2)[1, 2] == 0
    assert explained(net, x, "ShapleyCAM-H", UTILITIES["rest"], target=2)[0, 1, 2] == 0


def test_shapleycam_h_of_a_sum_of_utilities_is_the_sum_of_both():
    """The axiom of linearity: U = 2 y_c + 3 ln p_c."""
    net = network(Curved(), seed=0)
    x = images(seed=1)

    def mixed(logits: Tensor, targets: Tensor) -> Tensor:
        return 2 * UTILITIES["pre-softmax"](logits, targets) + 3 * UTILITIES["log-softmax"](logits, targets)

    one, other = (explained(net, x, "ShapleyCAM-H", UTILITIES[u], target=2) for u in ("pre-softmax", "log-softmax"))
    both = explained(net, x, "ShapleyCAM-H", mixed, target=2)
    torch.testing.assert_close(both, 2 * one + 3 * other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("utility", UTILITIES)
def test_error_of_shapleycam_h_falls_as_the_cube_of_the_maps(utility):
    """Maps tX for small t, behind a smooth tail: half of t leaves an eighth of the distance to the Shapley values."""
    net = network(Curved(), seed=0)
    net.maps.bias.data.zero_()
    errors = []
    for t in (0.02, 0.01):
        x = t * images(seed=1, b=1, size=(4, 6))
        phi = played(net, x[0], UTILITIES[utility], target=2)
        errors.append((explained(net, x, "ShapleyCAM-H", UTILITIES[utility], target=2)[0] - phi).norm().item())
    assert errors[0] / errors[1] == pytest.approx(8, abs=0.5)
