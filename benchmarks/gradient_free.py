"""What asking instead of deriving costs: `python -m benchmarks.gradient_free [--quick]`.

Pictures/s of GradCAM, ShapleyCAM and ScoreCAM on resnet50 (random weights, layer "gap", 2,048 maps of 7 x 7), ScoreCAM beside
grad-cam's in the same rounds, and the memory that ScoreCAM holds at its peak beyond that of inference on one picture.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import pytorch_grad_cam as rival
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import shapleycam as sc
from shapleycam.gradient_free import score_cam
from shapleycam.network.cut import CutNetwork
from shapleycam.playground import play_with
from shapleycam.theory.utility import pre_softmax

from .clock import peak

NETWORK = "resnet50"
QUICK = "resnet18"


def contestants(network: str) -> dict[str, Callable[[], object]]:
    """Calls on one picture, the first of which the others are compared with."""
    model = sc.load_model(network, weights="random")
    images = torch.randn(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    layer = model.layers["gap"]

    def ours() -> object:
        cut = CutNetwork(model.module, layer)
        forward = cut(images, replay=True)
        targets = forward.logits.detach().argmax(1)
        return score_cam(play_with(cut, forward, images, targets, pre_softmax))

    theirs = rival.ScoreCAM(model=model.module, target_layers=[model.module.get_submodule(layer)])

    def quietly() -> object:
        with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():  # it draws a bar
            target = int(model.module(images).argmax())
            return theirs(input_tensor=images, targets=[ClassifierOutputTarget(target)])

    def infer() -> object:
        with torch.inference_mode():
            return model.module(images)

    return {
        "inference": infer,
        "GradCAM": lambda: sc.explain(model, images, methods="GradCAM", utility="pre-softmax").heatmaps["GradCAM"],
        "ShapleyCAM": lambda: sc.explain(model, images, methods="ShapleyCAM").heatmaps["ShapleyCAM"],
        "ScoreCAM": ours,
        "grad-cam's ScoreCAM": quietly,
    }


def seconds(run: Callable[[], object], runs: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return median(times)


def main() -> None:
    """Print a table of pictures/s, and ScoreCAM's cost as a multiple of grad-cam's."""
    quick = "--quick" in sys.argv
    network = QUICK if quick else NETWORK
    calls = contestants(network)
    slow = {"grad-cam's ScoreCAM": calls["grad-cam's ScoreCAM"], "ScoreCAM": calls["ScoreCAM"]}
    print(f"| {network}, batch of 1 | pictures/s |\n|---|--:|")
    for name in ("inference", "GradCAM", "ShapleyCAM"):
        calls[name]()
        print(f"| {name} | {1 / seconds(calls[name], 5 if quick else 21):.3g} |", flush=True)
    rounds = [{name: seconds(run, 1) for name, run in slow.items()} for _ in range(1 if quick else 3)]
    for name in slow:
        print(f"| {name} | {1 / median(times[name] for times in rounds):.3g} |", flush=True)
    ratio = median(times["ScoreCAM"] / times["grad-cam's ScoreCAM"] for times in rounds)
    print(f"ScoreCAM takes {ratio:.2f} of grad-cam's time, median of {len(rounds)} rounds")
    if not quick:
        print(f"and {peak(calls['ScoreCAM']) - peak(calls['inference']):.0f} MiB more than inference")


if __name__ == "__main__":
    main()
