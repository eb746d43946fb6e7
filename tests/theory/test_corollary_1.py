"""Corollary 1: behind global average pooling and a linear layer, GradCAM, HiResCAM and CAM are the Shapley values.

The paper's words were not at hand. Tested is this: let the logits be y_k = b_k + (1/d) sum_i w_ki sum_j A_ij and U = y_c.
Then GradCAM = HiResCAM = CAM / d, where CAM is sum_i w_ci A^i (Zhou et al. 2016), and its value at j is exactly the Shapley
value of position j in the game v(S) = U(X_S). HX is zero, so ShapleyCAM is the same map.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shapleycam import UTILITIES
from theory.games import Head, explained, images, network, played

METHODS = ["GradCAM", "HiResCAM", "ShapleyCAM", "ShapleyCAM-H"]


def cam(net: nn.Sequential, x: Tensor, target: int) -> Tensor:
    """Zhou et al. 2016, Eq. (2): the weights of the class, no gradient."""
    with torch.no_grad():
        maps, weights = net.maps(x), net.tail[2].weight[target]
        return sum(weights[i] * maps[:, i] for i in range(len(weights)))


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 2**31), target=st.integers(0, 3))
def test_method_is_cam_up_to_the_number_of_positions(method, seed, target):
    net = network(Head(), seed)
    x = images(seed + 1)
    wanted = cam(net, x, target) / 9
    torch.testing.assert_close(explained(net, x, method, UTILITIES["pre-softmax"], target), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_method_is_the_shapley_value_of_every_position(method):
    net = network(Head(), seed=0)
    x = images(seed=1, size=(4, 8))
    e = explained(net, x, method, UTILITIES["pre-softmax"], target=1)
    for image in range(2):
        phi = played(net, x[image], UTILITIES["pre-softmax"], target=1)
        torch.testing.assert_close(e[image], phi, rtol=0, atol=1e-12)


def test_map_and_bias_add_up_to_the_logit():
    net = network(Head(), seed=0)
    x = images(seed=1)
    e = explained(net, x, "GradCAM", UTILITIES["pre-softmax"], target=1)
    torch.testing.assert_close(e.sum((1, 2)) + net.tail[2].bias[1].detach(), net(x)[:, 1].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("utility", ["rest", "post-softmax", "log-softmax"])
def test_no_method_is_the_shapley_value_of_a_utility_with_a_softmax(utility):
    """The methods agree with each other there too (see test_cams), but the softmax bends the game."""
    net = network(Head(), seed=0)
    x = images(seed=1, size=(4, 8))
    phi = played(net, x[0], UTILITIES[utility], target=1)
    for method in METHODS:
        e = explained(net, x, method, UTILITIES[utility], target=1)[0]
        assert (e - phi).norm() > 1e-3 * phi.norm()
