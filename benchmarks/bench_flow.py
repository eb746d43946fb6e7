"""What `shapleycam bench` costs beside its network: `python -m benchmarks.bench_flow PICTURES [COUNT] [--quick]`.

First: the time of a run over a folder of real pictures, decoding and writing with it, over that which its own forward passes
take in it, and over that of as many plain ones of the same batches, in the same process and in turn with it; medians of five
rounds, or of one. Batches are those that the command would choose. Then: 20,000 made-up pictures (or COUNT) through a tiny
network, the pictures/s of the last thousand over those of the first thousand, and the resident memory at these two places.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from shapleycam import Model, Preprocess
from shapleycam.bench import planned as bench
from shapleycam.bench.allocator import keep_freed
from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.loaded import load
from shapleycam.bench.planned import Plan, plan
from shapleycam.bench.run import measured
from shapleycam.network import cut
from shapleycam.network.weights import randomise


def tiny() -> Model:
    """Two convolutions and five classes, for images of 32 x 32."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    randomise(module, 0)
    preprocess = Preprocess((32, 32), 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    return Model("tiny", module.eval(), preprocess, tuple("abcde"), None, {"gap": "3", "conv": "2"}, "random")


def against_passes(pictures: Path, layer: str, folder: Path, turns: int) -> tuple[float, float, int]:
    """Time of a run over that of its own passes in it, and over that of plain ones in turn with it; and its batch."""
    configuration = Configuration(models=("efficientnet_lite0",), layers=(layer,))
    loaded, call, within = load("efficientnet_lite0", configuration, Machine()), cut.call, 0.0

    def timed(network: nn.Module, images: torch.Tensor) -> Any:
        nonlocal within
        start = perf_counter()
        put_out = call(network, images)
        within += perf_counter() - start
        return put_out

    with (
        patch.object(bench, "load", lambda *given: loaded),  # loading is not measured here
        patch.object(cut, "call", timed),
    ):
        counted = plan(pictures, folder / "counted", configuration, Machine(channels_last=loaded.channels_last))
        batch, sizes = counted.batch("efficientnet_lite0"), passes(counted)
        machine = replace(counted.machine, batch=str(batch))
        images, rounds = loaded.blank(batch).normal_(), []
        for turn in range(turns):
            steps = measured(plan(pictures, folder / f"run{turn}", configuration, machine))
            spent = plain = within = 0.0
            # Batch by batch, for the machine's speed drifts; what is decoded ahead is there long before a batch is done.
            for each in sizes:
                start = perf_counter()
                next(steps, None)
                done = perf_counter()
                with torch.inference_mode():
                    for size in each:
                        loaded.model.module(images[:size])
                spent, plain = spent + done - start, plain + perf_counter() - done
            rounds.append((spent / within, spent / plain))
    own, others = map(median, zip(*rounds, strict=True))
    return own, others, batch


def passes(run: Plan) -> list[list[int]]:
    """How many images each forward pass takes, for each step of a run and for what comes after the last."""
    seen: list[list[int]] = [[]]

    def count(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen[-1].append(len(given[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        for _ in measured(run):
            seen.append([])
    finally:
        handle.remove()
    return seen


def steadiness(count: int, folder: Path) -> tuple[float, float, float]:
    """Last over first thousand's pictures/s, and MiB of resident memory after the first two thousand and at the end."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:06}.png")
    for number in range(20, count):
        (pictures / f"{number:06}.png").hardlink_to(pictures / f"{number % 20:06}.png")
    configuration = Configuration(models=("benchmarks.bench_flow:tiny",), methods=("GradCAM,ShapleyCAM",))
    run = plan(pictures, folder / "tiny", configuration, Machine(batch="32", channels_last=False))
    marks: dict[int, tuple[float, float]] = {}
    done = 0
    for step in measured(run):
        done += step.pictures
        marks[done] = perf_counter(), _resident()

    def at(pictures: int) -> tuple[float, float]:
        return marks[min(mark for mark in marks if mark >= pictures)]

    first, last = at(1500)[0] - at(500)[0], at(count)[0] - at(count - 1000)[0]  # the first 500 warm everything up
    return first / last, at(2000)[1], at(count)[1]


def _resident() -> float:
    """MiB of resident memory of this process; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    """Print both results."""
    keep_freed()  # as the command does
    turns, asked = 1 if "--quick" in sys.argv else 5, [each for each in sys.argv[1:] if each != "--quick"]
    pictures, count = Path(asked[0]), int(asked[1]) if asked[1:] else 20_000
    with tempfile.TemporaryDirectory() as folder:
        for layer in ("gap", "conv"):
            own, plain, batch = against_passes(pictures, layer, Path(folder, layer), turns)
            print(
                f"efficientnet_lite0 {layer}, batches of {batch}: {own:.2f} of its own passes, {plain:.2f} of plain ones",
                flush=True,
            )
        speed, before, after = steadiness(count, Path(folder))
        print(
            f"{count} pictures: last over first thousand's pictures/s {speed:.2f}, memory {before:.0f} MiB, then {after:.0f}"
        )


if __name__ == "__main__":
    main()
