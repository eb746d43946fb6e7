"""Runs of classifiers with a few hundred parameters, which `shapleycam bench --models` knows as tiny:network, tiny:fragile."""

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor, nn

from shapleycam.bench.planned import Plan
from shapleycam.bench.run import measured
from shapleycam.bench.store import read_rows
from shapleycam.network.preprocess import Preprocess
from shapleycam.network.weights import randomise
from shapleycam.network.zoo import Model


class Fragile(nn.Sequential):
    """Gives NaN for pictures that are rather red."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        red = images[:, 0].mean((1, 2)) > 0.9
        return torch.where(red[:, None], torch.nan, logits)


def network(kind: type[nn.Sequential] = nn.Sequential) -> Model:
    """Two convolutions with ReLUs that write in place, global pooling, five classes; images of 16 x 16."""
    module = kind(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    randomise(module, 0)
    with torch.no_grad():  # so that noise is not all of one class
        module[-1].bias -= torch.tensor([0.35, -0.51, -0.37, 0.56, 0.42])
    preprocess = Preprocess((16, 16), 16, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    names = ("axolotl", "boxer", "crane", "crane", "dipper")
    return Model("tiny", module.eval(), preprocess, names, None, {"gap": "4", "conv": "3"}, "drawn")


def fragile() -> Model:
    """The same, but NaN for red pictures."""
    return network(Fragile)


Planned = Callable[..., Plan]


def finish(plan: Plan) -> pa.Table:
    """The rows of a run that nothing disturbs."""
    for _ in measured(plan):
        pass
    return read_rows(plan.run)
