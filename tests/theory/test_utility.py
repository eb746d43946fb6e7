"""The utilities against sums written out, and what tells them apart."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapleycam import UTILITIES, explain
from theory.games import Head, images, network

LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=6)


def softmax(z: list[float]) -> list[float]:
    return [exp(value) / sum(exp(other) for other in z) for value in z]


def of_side(y: float, s: int) -> float:
    return s * y + log(1 / (1 + exp(-s * y)))


def slope_of_side(y: float, s: int) -> float:
    return s + s * (1 - 1 / (1 + exp(-s * y)))


# Of one image's logits z and its target c.
ORACLES = {
    "pre-softmax": lambda z, c: z[c],
    "post-softmax": lambda z, c: softmax(z)[c],
    "log-softmax": lambda z, c: log(softmax(z)[c]),
    "rest": lambda z, c: z[c] + log(softmax(z)[c]),
    "rest-sigmoid": lambda z, c: of_side(z[c], 1 if z[c] > 0 else -1),
    "rest-sigmoid-positive": lambda z, c: of_side(z[c], 1),
    "rest-sigmoid-negative": lambda z, c: of_side(z[c], -1),
}

# Their derivatives with respect to the logit z_k.
SLOPES = {
    "pre-softmax": lambda z, c, k: k == c,
    "post-softmax": lambda z, c, k: softmax(z)[c] * ((k == c) - softmax(z)[k]),
    "log-softmax": lambda z, c, k: (k == c) - softmax(z)[k],
    "rest": lambda z, c, k: 2 * (k == c) - softmax(z)[k],
    "rest-sigmoid": lambda z, c, k: (k == c) * slope_of_side(z[c], 1 if z[c] > 0 else -1),
    "rest-sigmoid-positive": lambda z, c, k: (k == c) * slope_of_side(z[c], 1),
    "rest-sigmoid-negative": lambda z, c, k: (k == c) * slope_of_side(z[c], -1),
}


@pytest.mark.parametrize("name", UTILITIES)
@given(z=LOGITS, data=st.data())
def test_utility_is_its_equation(name, z, data):
    c = data.draw(st.integers(0, len(z) - 1))
    got = UTILITIES[name](torch.tensor([z], dtype=torch.float64), torch.tensor([c]))
    assert got.item() == pytest.approx(ORACLES[name](z, c), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", UTILITIES)
@given(z=LOGITS, data=st.data())
def test_derivative_of_the_utility_is_its_equation(name, z, data):
    c = data.draw(st.integers(0, len(z) - 1))
    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(UTILITIES[name](logits, torch.tensor([c])).sum(), logits)
    wanted = [SLOPES[name](z, c, k) for k in range(len(z))]
    torch.testing.assert_close(slope[0], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", UTILITIES)
def test_utility_of_an_image_does_not_depend_on_the_rest_of_its_batch(name):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([3, 0, 6, 3, 1])
    together = UTILITIES[name](logits, targets)
    for image in range(5):
        alone = UTILITIES[name](logits[image : image + 1], targets[image : image + 1])
        torch.testing.assert_close(together[image : image + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "moves"), [("pre-softmax", 1), ("rest", 1), ("post-softmax", 0), ("log-softmax", 0)])
@given(z=LOGITS, constant=st.floats(-20, 20))
def test_only_utilities_with_a_bare_logit_see_what_all_classes_gain_alike(name, moves, z, constant):
    logits = torch.tensor([z], dtype=torch.float64)
    gained = UTILITIES[name](logits + constant, torch.tensor([0])) - UTILITIES[name](logits, torch.tensor([0]))
    assert gained.item() == pytest.approx(moves * constant, abs=1e-9)


def test_rest_has_a_slope_where_the_softmax_is_saturated():
    """In float32 a probability rounds to 1: post-softmax has no slope at all, ReST keeps that of the logit."""
    slopes = {}
    for name, utility in UTILITIES.items():
        logits = torch.tensor([[200.0, 0.0, -5.0]], requires_grad=True)
        (slopes[name],) = torch.autograd.grad(utility(logits, torch.tensor([0])).sum(), logits)
    assert slopes["post-softmax"].count_nonzero() == 0
    assert slopes["log-softmax"].count_nonzero() == 0
    assert slopes["rest"].tolist() == slopes["pre-softmax"].tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", UTILITIES)
def test_utility_stays_finite_where_exponentials_overflow(name):
    got = UTILITIES[name](torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 0]))
    wanted = {"pre-softmax": [1e4, 0], "post-softmax": [1, 0], "log-softmax": [0, -1e4], "rest": [1e4, -1e4]}
    half = log(0.5)
    wanted |= {"rest-sigmoid": [1e4, half], "rest-sigmoid-positive": [1e4, half], "rest-sigmoid-negative": [-2e4, half]}
    assert got.tolist() == pytest.approx(wanted[name], rel=1e-6)


def test_misspelt_utility_is_refused_with_the_nearest_name():
    net = network(Head(), seed=0)
    with pytest.raises(
        ValueError, match=r"unknown utility 'pre_softmax'; did you mean .*pre-softmax.*or pass a function"
    ):
        explain(net, images(seed=1), layer="maps", utility="pre_softmax")
