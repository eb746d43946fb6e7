"""Normalisation behind the cut: PyTorch's own values, and its derivatives by one factor a map."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from shapleycam.network.cut import CutNetwork
from shapleycam.network.derived import Derived
from shapleycam.network.weights import randomise

NORMS = {
    "affine": nn.BatchNorm2d(5),
    "plain": nn.BatchNorm2d(5, affine=False),
    "whole numbers": nn.BatchNorm2d(5, momentum=1, eps=1),
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


@pytest.mark.parametrize("statistics", [torch.float32, torch.bfloat16])
def test_maps_of_half_precision_keep_it(statistics: torch.dtype) -> None:
    norm, x = living(NORMS["affine"], statistics), maps("affine", torch.bfloat16)
    wanted = norm(x)
    with Derived(second_order=False):
        found = norm(x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    norm.double()
    exact = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.equal(found, wanted)
    assert slope.dtype == torch.bfloat16
    torch.testing.assert_close(slope[0, :, 0, 0].double(), exact, rtol=2**-8, atol=0)


def test_a_map_that_never_varied_has_its_slope_in_half_precision() -> None:
    norm = nn.BatchNorm2d(1, eps=1e-8).half().eval()
    norm.running_var.zero_()
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float16, requires_grad=True)
    with Derived(second_order=False):
        (slope,) = torch.autograd.grad(norm(x).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, 1e4))


class Conditional(nn.Module):
    """A norm whose parameters, or statistics, are made of the maps."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which, self.shift = which, torch.linspace(-1, 1, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        made = x.mean((0, 2, 3)).sigmoid()
        given = {name: self.shift.exp() for name in ("running_mean", "running_var", "weight", "bias")}
        return batch_norm(x, **given | {self.which: made})


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_parameters_that_are_made_of_the_maps_are_derived_too(which: str) -> None:
    norm, x = Conditional(which), maps("affine")
    wanted = derived(norm, x)
    with Derived(second_order=True):
        torch.testing.assert_close(derived(norm, x), wanted)


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_statistics_that_are_made_of_the_maps_are_left_to_pytorch_which_refuses_them(which: str) -> None:
    norm, x = Conditional(which), maps("affine")
    with Derived(second_order=True), pytest.raises(RuntimeError, match="not differentiable"):
        derived(norm, x)


@pytest.mark.parametrize("of", ["grad", "jvp", "vmap", "jvp of grad", "vmap of grad"])
def test_networks_may_call_torch_func_themselves(of: str) -> None:
    norm, x = living(NORMS["affine"]), maps("affine")
    slope = torch.func.grad(lambda each: (norm(each) ** 3).sum())

    def run() -> Tensor:
        function = slope if of.endswith("grad") else lambda each: norm(each) ** 3
        if of == "grad":
            return function(x)
        if of.startswith("jvp"):
            return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
        return torch.func.vmap(lambda each: function(each[None])[0])(x)

    wanted = run()
    with Derived(second_order=True):
        found = run()
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(each.sum(), x)[0] for each in (found, wanted)]
    torch.testing.assert_close(*slopes)


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
