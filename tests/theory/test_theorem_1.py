"""Theorem 1: to first order, the Shapley values of the positions are HiResCAM.

The paper's words were not at hand. Tested is this: let X be the activation maps, X_S the maps with every position outside
S set to zero, and v(S) = U(X_S) the game. If U is affine in X, then the Shapley value of position j is exactly
phi_j = sum_i U'_ij A_ij, which is Eq. (10) and HiResCAM. If U is smooth, Eq. (10) is what remains of it to first order.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shapleycam import METHODS, UTILITIES
from shapleycam.theory.cams import explanation
from shapleycam.theory.crg import Expansion
from theory.games import Curved, explained, images, keep, network, played, shapley_values

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 6))


@given(size=SIZES, seed=st.integers(0, 2**31))
def test_hirescam_is_the_shapley_value_of_a_linear_utility(size, seed):
    generator = torch.Generator().manual_seed(seed)
    maps, slope = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    phi = shapley_values(lambda coalition: 0.7 + (slope * keep(maps, coalition)).sum().item(), size[1])
    e = explanation(METHODS["HiResCAM"], Expansion(maps[None], slope[None]))[0]
    torch.testing.assert_close(e, phi, rtol=0, atol=1e-12)


def test_hirescam_is_the_shapley_value_of_the_logit_behind_a_linear_tail():
    """As VGG's would be without its hidden layers; the network's own game, with biases, cut and differentiated."""
    net = network(nn.Sequential(nn.Flatten(), nn.Linear(5 * 9, 4)), seed=0)
    x = images(seed=1)
    e = explained(net, x, "HiResCAM", UTILITIES["pre-softmax"], target=2)
    for image in range(2):
        phi = played(net, x[image], UTILITIES["pre-softmax"], target=2)
        torch.testing.assert_close(e[image], phi, rtol=0, atol=1e-12)


def test_hirescam_is_the_shapley_value_of_a_utility_replaced_by_its_tangent():
    """Any network: play the game whose worth is U(X) + <U'(X), X_S - X>, the tangent taken by central differences."""
    net = network(Curved(), seed=0)
    x = images(seed=1, b=1)
    maps = net.maps(x).detach()[0]
    step = 1e-5 * torch.eye(maps.numel(), dtype=torch.float64).view(-1, *maps.shape)
    target = torch.full((len(step),), 2)
    slope = (UTILITIES["rest"](net.tail(maps + step), target) - UTILITIES["rest"](net.tail(maps - step), target)) / 2e-5
    slope = slope.detach().view(maps.shape)
    phi = shapley_values(lambda coalition: (slope * (keep(maps, coalition) - maps)).sum().item(), 9)
    e = explained(net, x, "HiResCAM", UTILITIES["rest"], target=2)[0]
    torch.testing.assert_close(e.flatten(), phi, rtol=0, atol=1e-8)


@pytest.mark.parametrize("utility", UTILITIES)
def test_error_of_hirescam_falls_as_the_square_of_the_maps(utility):
    """Maps tX for small t, behind a smooth tail: half of t leaves a quarter of the distance to the Shapley values."""
    net = network(Curved(), seed=0)
    net.maps.bias.data.zero_()
    errors = []
    for t in (0.02, 0.01):
        x = t * images(seed=1, b=1, size=(4, 6))
        phi = played(net, x[0], UTILITIES[utility], target=2)
        errors.append((explained(net, x, "HiResCAM", UTILITIES[utility], target=2)[0] - phi).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.2)
