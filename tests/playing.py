"""Playgrounds on networks with a few hundred parameters."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from shapleycam.network.weights import randomise
from shapleycam.playground import Playground
from shapleycam.theory.utility import UTILITIES


def images(b: int = 3, h: int = 12, w: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def network(act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Five classes; conv 0, norm 1, act 2, conv 3, act 4 (before pooling), pool 5, flatten 6, linear 7; nothing in place."""
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), act(), nn.Conv2d(6, 9, 3, padding=1), act(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(9, 5),
    )  # fmt: skip
    randomise(made, 0)
    with torch.no_grad():
        made[7].weight *= 4
        made[7].bias += 4  # so that logits are positive
    return made.eval()


class Residual(nn.Module):
    """One ReLU, used three times, as in torchvision's blocks, another called as a function, max pooling, and two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.pool(self.relu(self.norm(self.conv(x)) + self.side(x)))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def residual() -> Residual:
    made = Residual()
    randomise(made, 0)
    return made.eval()


def shapleycam(module: str) -> Any:
    """A module of the library."""
    return import_module(f"shapleycam.{module}")


def play(
    net: nn.Module,
    layer: str,
    x: Tensor,
    targets: list[int],
    utility: str = "pre-softmax",
    layout: Any = "bnhw",
    part: Callable[[str], Any] = shapleycam,
    **options: Any,
) -> Playground:
    cut = part("network.cut").CutNetwork(net, layer, layout)
    return part("playground").play_with(
        cut, cut(x, replay=True), x, torch.tensor(targets), UTILITIES[utility], **options
    )
