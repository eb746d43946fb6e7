"""Where the published code's second-order methods look, against that code's way of taking maps and derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from shapleycam import explain, load_model
from shapleycam.bench.published import overwriting_layer
from shapleycam.theory.utility import rest


def published(module: nn.Module, layer: str, images: Tensor, targets: Tensor) -> Tensor:
    """E of ShapleyCAM-H: a hook keeps the output's tensor, and both derivatives are taken with respect to it."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        kept.append(output)

    handle = module.get_submodule(layer).register_forward_hook(keep)
    worth = rest(module(images), targets)
    handle.remove()
    (maps,) = kept
    (slope,) = torch.autograd.grad(worth.sum(), maps, create_graph=True)
    (hvp,) = torch.autograd.grad(slope, maps, maps.detach())
    return ((slope - hvp / 2) * maps).sum(1).detach()


@pytest.mark.parametrize(("layer", "written"), [("3", "4"), ("0", "1"), ("2", "2"), ("4", "4")])
def test_explaining_the_layer_that_writes_last_is_what_the_published_code_does(layer: str, written: str) -> None:
    module = tiny.network().module
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert overwriting_layer(module, layer, images) == written
    out = explain(module, images, layer=written, methods="ShapleyCAM-H")
    theirs = published(module, layer, images, out.targets)
    torch.testing.assert_close(out.explanations["ShapleyCAM-H"], theirs)


def test_without_the_in_place_write_nothing_changes() -> None:
    module = tiny.network().module
    for each in module:
        if isinstance(each, nn.ReLU):
            each.inplace = False
    assert overwriting_layer(module, "3", torch.randn(2, 3, 16, 16)) == "3"


@pytest.mark.large
def test_only_vgg_of_the_paper_has_a_target_layer_that_is_written_into() -> None:
    found = {}
    for name in ("resnet18", "vgg16", "mobilenet_v2", "efficientnet_b0"):
        model = load_model(name, weights="random")
        for layer in model.layers.values():
            found[name, layer] = overwriting_layer(model.module, layer, torch.zeros(1, 3, 64, 64))
    assert {where: written for where, written in found.items() if where[1] != written} == {
        ("vgg16", "features.28"): "features.29"
    }
