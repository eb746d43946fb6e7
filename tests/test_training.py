"""`create_graph=True`: heatmaps through which one trains, and the contract that nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from shapleycam.network.weights import randomise
from unchecked import library

explain = library.explain


class Residual(nn.Module):
    """A tail that the target's block skips, so that what the head recorded has a graph too."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.maps, self.after = nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.before(x).tanh()
        out = F.gelu(self.maps(skip))
        out += skip
        return self.head(F.gelu(self.after(out)).mean((2, 3)))


def attending() -> nn.Module:
    return VisionTransformer(16, 4, num_classes=4, embed_dim=12, depth=2, num_heads=3)


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "LayerCAM", "XGradCAM", "AumannCAM", "AumannCAM-H"])
@pytest.mark.parametrize(("make", "layer"), [(Residual, "maps"), (attending, "blocks.0")])
def test_gradients_through_a_heatmap_are_central_differences(
    method: str, make: Callable[[], nn.Module], layer: str
) -> None:
    network, generator = make(), torch.Generator().manual_seed(2)
    randomise(network, 0)
    network = network.double().eval()
    x = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    plain = explain(network, x, layer=layer, methods=method).explanations[method]
    scale = plain.abs().max()
    share = torch.randn(plain.shape, generator=generator, dtype=torch.float64)

    smooth = make is Residual  # else the heatmap's own 1e-7 is felt

    def loss() -> Tensor:
        out = explain(network, x, layer=layer, methods=method, targets=1, create_graph=True)
        scaled = out.explanations[method] / scale
        return (scaled * share).sum() + out.logits.sum() + (out.heatmaps[method].square().mean() if smooth else 0)

    every = [p for p in network.parameters() if p.ndim]
    slopes = torch.autograd.grad(loss(), every, allow_unused=True)
    with torch.no_grad():
        for parameter, slope in list(zip(every, slopes, strict=True))[::3]:
            first, values = parameter.view(-1), []
            for step in (1e-5, -2e-5, 1e-5):
                first[0] += step
                values.append(float(loss().detach()))
            wanted = (values[0] - values[1]) / 2e-5
            found = 0.0 if slope is None else slope.flatten()[0].item()
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_attention_is_trained_towards_a_region() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip
        x, wanted = torch.rand(4, 3, 12, 12), torch.zeros(12, 12)
    x[:, 0, :6, :6] += 1
    wanted[:6, :6] = 1
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        out = explain(network, x, targets=0, methods="HiResCAM", create_graph=True)
        loss = (out.heatmaps["HiResCAM"] - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert network.training


def test_what_is_behind_a_frozen_head_is_trained_by_the_logits_too() -> None:
    network, x = Residual(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network.before.requires_grad_(False)
    network.maps.requires_grad_(False)
    out = explain(network, x, layer="maps", methods="GradCAM", create_graph=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(out.logits, torch.tensor([1, 2])), network.head.weight)
    assert slope.abs().max() > 0


def test_second_order_is_not_trained_on() -> None:
    with pytest.raises(
        ValueError, match=r"create_graph=True covers methods of first order and of the path, not ShapleyCAM:"
    ):
        explain(Residual().eval(), torch.rand(1, 3, 8, 8), layer="maps", create_graph=True)


def test_without_create_graph_nothing_has_a_graph() -> None:
    network = Residual().eval()
    out = explain(network, torch.rand(1, 3, 8, 8), layer="maps", methods="all")
    parts: list[Any] = [out.logits, out.full, *out.explanations.values(), *out.heatmaps.values()]
    assert not any(part.requires_grad for part in parts)
