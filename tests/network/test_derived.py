"""Normalisation behind the cut: PyTorch's own values, and its derivatives by one factor a map."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from shapleycam.network.cut import CutNetwork
from shapleycam.network.derived import Derived
from shapleycam.network.weights import randomise

NORMS = {
    "affine": nn.BatchNorm2d(5),
    "plain": nn.BatchNorm2d(5, affine=False),
    "by the batch": nn.BatchNorm2d(5, track_running_stats=False),
    "in training": nn.BatchNorm2d(5),
    "of signals": nn.BatchNorm1d(5),
    "of volumes": nn.BatchNorm3d(5),
}
SHAPES = {"of signals": (3, 5, 4), "of volumes": (3, 5, 2, 3, 4)}


def living(norm: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    norm = deepcopy(norm)
    randomise(norm, 0)
    return norm.to(dtype).eval()


def maps(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(SHAPES.get(kind, (3, 5, 4, 4)), generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def derived(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm puts out, the slope of the sum of its cubes, and the slope of that one's square."""
    normalised = norm(x)
    (slope,) = torch.autograd.grad((normalised**3).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad((slope**2).sum(), x)
    return normalised.detach(), slope.detach(), curvature


@pytest.mark.parametrize("kind", NORMS)
def test_normalisation_is_pytorchs_and_so_are_its_derivatives(kind: str) -> None:
    norm, x = living(NORMS[kind]).train(kind == "in training"), maps(kind)
    wanted = derived(norm, x)
    with Derived(second_order=False):
        values, *derivatives = derived(norm, x)
    assert torch.equal(values, wanted[0])
    torch.testing.assert_close(derivatives, [*wanted[1:]], rtol=1e-9, atol=1e-12)
    assert all(each.abs().min() > 0 for each in derivatives)


def test_maps_of_half_precision_keep_it_beside_statistics_in_single() -> None:
    norm, x = living(NORMS["affine"], torch.float32), maps("affine", torch.bfloat16)
    wanted = norm(x)
    with Derived(second_order=False):
        found = norm(x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(found, wanted)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope, torch.autograd.grad(wanted.sum(), x)[0])


@pytest.mark.parametrize("second_order", [False, True])
def test_the_tail_has_no_normalisation_that_reads_the_maps_again(second_order: bool) -> None:
    network = living(
        nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
        ),
        torch.float32,
    )
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    seen, queue = set[object](), [CutNetwork(network, "0")(x, second_order=second_order).logits.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [before for before, _ in node.next_functions]
    kinds = {type(node).__name__ for node in seen}
    assert "_NormalisedBackward" in kinds
    assert not any("BatchNorm" in kind for kind in kinds)


def test_parameters_of_a_trained_network_have_their_gradients() -> None:
    norm, x = living(NORMS["affine"]), maps("affine")
    wanted = torch.autograd.grad((norm(x) ** 3).sum(), [*norm.parameters()])
    with Derived(second_order=True, trained=True):
        found = torch.autograd.grad((norm(x) ** 3).sum(), [*norm.parameters()])
    torch.testing.assert_close(found, wanted)
