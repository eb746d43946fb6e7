"""Runs of classifiers with a few hundred parameters, which `shapleycam bench --models` knows as tiny:network and so on."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

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


_PASSES = count(1)  # of the process: the library runs copies of a network


class Mortal(nn.Sequential):
    """Kills its process as kill -9 does, once, at the fifth pass that it makes: where the file named by $DIES can be made."""

    def forward(self, images: Tensor) -> Tensor:
        if next(_PASSES) == 5 and "DIES" in os.environ:
            with suppress(FileExistsError), Path(os.environ["DIES"]).open("x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class Slow(nn.Sequential):
    """Says in the file named by $TRACE which rank makes a pass; the second rank's passes are slow."""

    def forward(self, images: Tensor) -> Tensor:
        rank = os.environ["RANK"]
        with Path(os.environ["TRACE"]).open("a") as trace:
            trace.write(f"{rank}\n")
        time.sleep(0.02 + 0.1 * int(rank))
        return super().forward(images)


class Asleep(nn.Sequential):
    """Gives no logits for an hour from the pass of its process on that $SLEEPS names."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(3600 * (next(_PASSES) >= float(os.environ.get("SLEEPS", "inf"))))
        return super().forward(images)


class Raising(nn.Sequential):
    """Raises where $RAISES is set."""

    def forward(self, images: Tensor) -> Tensor:
        if "RAISES" in os.environ:
            raise ValueError("this network has no idea")
        return super().forward(images)


class Once(nn.Sequential):
    """Looks its logits up, each where it is, and of that PyTorch has no second derivative."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return functional.embedding_bag(torch.arange(len(logits))[:, None], logits)


def once() -> Model:
    """The same, but without second derivatives."""
    return network(Once)


def raising() -> Model:
    """The same, but raises."""
    return network(Raising)


def mortal() -> Model:
    """The same, but dies once."""
    return network(Mortal)


def slow() -> Model:
    """The same, but the second rank is slow."""
    return network(Slow)


def asleep() -> Model:
    """The same, but hangs."""
    return network(Asleep)


Planned = Callable[..., Plan]


def finish(plan: Plan) -> pa.Table:
    """The rows of a run that nothing disturbs."""
    for _ in measured(plan):
        pass
    return read_rows(plan.run)
