"""The table of methods that play with the network: what a call leaves behind, what surrounds it, its memory, and its rows."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from benchmarks.clock import peak
from torch import Tensor, nn

from playing import play, shapleycam
from shapleycam.gradient_free import score_cam
from shapleycam.network.weights import randomise
from shapleycam.playground import Playground
from shapleycam.searches import SEARCHES
from shapleycam.theory.cams import METHODS
from test_contract import NETWORKS, SURROUNDINGS, Left, images
from unchecked import library

Explain = Callable[[Playground], Tensor]


def unchecked(module: str) -> Any:
    """A module of the library as users run it: type checks draw from Python's generator."""
    return import_module(f"{library.__name__}.{module}")


def quick(part: Callable[[str], Any]) -> dict[str, Explain]:
    """All of them, with few masks and superpixels."""
    return {
        **{name: row.explain for name, row in part("searches").SEARCHES.items()},
        "RISE": partial(part("references").rise, masks=20),
        "KernelSHAP": partial(part("references").kernel_shap, superpixels=2),
    }


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "CAM"])
@pytest.mark.parametrize("network", NETWORKS)
def test_call_leaves_nothing_behind_and_its_surroundings_change_no_number(
    network: str, name: str, surrounding: str
) -> None:
    make, layer = NETWORKS[network]

    def explained(net: nn.Module, given: Tensor) -> Tensor:
        return quick(unchecked)[name](play(net, layer, given, [1, 4], "rest", None, unchecked))

    refused = name == "LIFT-CAM" and network != "cnn"  # attention multiplies
    expected = torch.empty(0) if refused else explained(make(), images())
    net, given = make(), images().requires_grad_()
    net.train()
    left = Left(net, given)
    with SURROUNDINGS[surrounding]():
        if refused:
            with pytest.raises(ValueError, match="the tail multiplies what it computes"):
                explained(net, given)
        else:
            found = explained(net, given)
    left.check()
    if not refused:
        assert torch.equal(found, expected)
        assert not found.requires_grad
        assert not found.is_inference()
        assert float(expected.std()) > 1e-4


def test_scorecam_with_2048_maps_at_224_x_224_holds_less_than_1_gb_beyond_inference() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 2, 32, 32), nn.Conv2d(2, 2048, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 3)
    ).eval()  # fmt: skip
    randomise(net, 0)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ground = play(net, "2", x, [1])
    assert ground.maps.shape == (1, 2048, 7, 7)
    held = peak(lambda: score_cam(ground)) - peak(lambda: ground.infer(x))
    assert 1 < held < 100  # MiB; the masks alone would be 392 MiB


def test_no_row_is_in_the_other_table_and_each_says_what_it_costs() -> None:
    assert not SEARCHES.keys() & METHODS.keys()
    for name, row in SEARCHES.items():
        assert row.name == name
        assert row.equation
        assert row.source
        assert row.cost


@pytest.mark.parametrize("name", SEARCHES)
def test_an_image_of_nan_spoils_no_other(name: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).eval()  # fmt: skip
    randomise(net, 0)

    def explained(x: Tensor) -> Tensor:
        return quick(shapleycam)[name](play(net, "1", x, [1, 4, 0], keys=lambda: torch.tensor([1, 2, 3])))

    x = images(3)
    expected = explained(x)
    x[1, 0, 4, 4] = torch.nan
    torch.testing.assert_close(explained(x)[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-6)
