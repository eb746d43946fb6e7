"""Theorem 3: an explanation of the softmax or of ReST is made of the explanations of the logits.

The paper's words were not at hand. Tested is this: write E(U) for the explanation of utility U before the last ReLU,
y_k for the logits, p for their softmax, c for the target. For a method that is linear in U', which GradCAM and HiResCAM are,

    Eq. (15)   E(p_c)           = p_c sum_k p_k (E(y_c) - E(y_k))
    Eq. (17)   E(y_c + ln p_c)  = E(y_c) + sum_k p_k (E(y_c) - E(y_k))

on any network, and ln p_c as in Eq. (15) without its first factor. LayerCAM rectifies U', so for it neither holds.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shapleycam import UTILITIES
from theory.games import Curved, explained, images, network

LINEAR = ["GradCAM", "HiResCAM"]
RECTIFIED = ["LayerCAM", "GradCAM-E", "GradCAM++"]
SEEDS = st.integers(0, 2**31)


def wanted(net: nn.Sequential, x: Tensor, method: str, target: int) -> dict[str, Tensor]:
    """The right-hand sides: from the explanations of all logits and the probabilities."""
    p = net(x).detach().softmax(1)
    of_logit = [explained(net, x, method, UTILITIES["pre-softmax"], target=k) for k in range(p.shape[1])]
    residual = torch.zeros_like(of_logit[0])
    for k, e in enumerate(of_logit):
        residual += p[:, k, None, None] * (of_logit[target] - e)
    return {
        "post-softmax": p[:, target, None, None] * residual,
        "log-softmax": residual,
        "rest": of_logit[target] + residual,
    }


@pytest.mark.parametrize("method", LINEAR)
@given(seed=SEEDS, target=st.integers(0, 3))
def test_equations_15_and_17_hold(method, seed, target):
    net = network(Curved(), seed)
    x = images(seed + 1)
    for utility, e in wanted(net, x, method, target).items():
        torch.testing.assert_close(explained(net, x, method, UTILITIES[utility], target), e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", RECTIFIED)
@pytest.mark.parametrize("utility", ["post-softmax", "rest"])
def test_equations_15_and_17_do_not_hold_for_methods_that_rectify(method, utility):
    net = network(Curved(), seed=0)
    x = images(seed=1)
    e = wanted(net, x, method, target=2)[utility]
    assert (explained(net, x, method, UTILITIES[utility], target=2) - e).norm() > 0.01 * e.norm()


@pytest.mark.parametrize("method", LINEAR)
def test_post_softmax_and_log_softmax_give_the_same_map_up_to_a_positive_factor(method):
    """Eq. (15) has p_c in front, so the heatmap does not see the difference, only the arithmetic does."""
    net = network(Curved(), seed=0)
    x = images(seed=1)
    factor = net(x).detach().softmax(1)[:, 2, None, None]
    logarithm, probability = (
        explained(net, x, method, UTILITIES[name], target=2) for name in ("log-softmax", "post-softmax")
    )
    torch.testing.assert_close(probability, factor * logarithm, rtol=1e-9, atol=1e-12)


class Raised(Curved):
    """`Curved` with the same number added to all its logits, one that depends on the maps."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) + 0.1 * maps.sin().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("method", LINEAR)
def test_what_raises_all_logits_alike_shows_in_the_logit_and_once_in_rest_but_not_in_the_softmax(method):
    """What is wrong with the bare logit, in the paper's argument for ReST; the probabilities do not change at all."""
    plain, raised = network(Curved(), seed=0), network(Raised(), seed=0)
    x = images(seed=1)
    change = {
        name: explained(raised, x, method, utility, target=2) - explained(plain, x, method, utility, target=2)
        for name, utility in UTILITIES.items()
    }
    for name in ("post-softmax", "log-softmax"):
        assert change[name].abs().max() < 1e-12
    assert change["pre-softmax"].abs().max() > 0.01
    torch.testing.assert_close(change["rest"], change["pre-softmax"], rtol=0, atol=1e-12)
