"""What a heatmap costs beside plain inference, here and in grad-cam: `python -m benchmarks.heatmap [--quick] [NETWORK]`.

`--operations` counts instead of timing: the multiplications of matrix products and convolutions over those of inference.

Times are medians over rounds of the ratio to `model(images)` under `torch.inference_mode()` right before and behind, and of
these the median over processes, for where tensors happen to lie in one favours some contestants; grad-cam's, far from 1, of the
first process and fewer rounds. GradCAM and ShapleyCAM by hand are plain PyTorch for one heatmap of images as they come, without
a check, a copy of the network or another method; ours is given the same images, and runs depthwise convolutions with channels
last unless XGradCAM is asked for, as all ten do. Memory is the peak of the tensors that a call holds, over that of inference.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

import shapleycam as sc

from .clock import peak, ratios

NETWORKS = ("resnet50", "efficientnet_lite0", "swin_t")
OURS = {"GradCAM": "GradCAM", "ShapleyCAM": "ShapleyCAM", "all ten": "paper"}
THEIRS = ("GradCAM", "ShapleyCAM")
PROCESSES, RUNS, LEAST = 3, 3, 30.0
"""How many of them a row takes, and in each the rounds, at least, and the seconds, for short calls need more rounds."""


def by_hand(module: nn.Module, layer: nn.Module, images: Tensor, last: bool, second: bool) -> Tensor:
    """GradCAM, or if `second` ShapleyCAM, of the predicted class under ReST, on the network itself; `last`: the maps are last."""
    kept: list[Tensor] = []

    def cut(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return kept[0].clone()

    handle = layer.register_forward_hook(cut)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH) if second else nullcontext():
            logits = module(images)
            utility = (logits + logits.log_softmax(1)).gather(1, logits.argmax(1, keepdim=True)).sum()
            (slope,) = torch.autograd.grad(utility, kept, create_graph=second)
            if second:
                slope = slope.detach() - torch.autograd.grad(slope, kept, kept[0].detach())[0] / 2
    finally:
        handle.remove()
    maps, slope = (each.movedim(-1, 1) if last else each for each in (kept[0].detach(), slope))
    shares = (maps * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    return rescale(interpolate(rescale(shares), images.shape[-2:], mode="bilinear")[:, 0])


def rescale(maps: Tensor) -> Tensor:
    """Each map's minimum to 0 and its maximum to 1."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def contestants(network: str, layer: str, batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed: inference, ours and grad-cam's, all of one network."""
    model = sc.load_model(network, weights=None if network == "efficientnet_lite0" else "random")
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    module, target, last = model.module, model.module.get_submodule(model.layers[layer]), network == "swin_t"

    def infer() -> object:
        with torch.inference_mode():
            return module(images)

    def ours(methods: str) -> Callable[[], Mapping[str, Tensor]]:
        return lambda: sc.explain(model, images, methods=methods, layer=layer).heatmaps

    def theirs(name: str) -> Callable[[], object]:
        import pytorch_grad_cam as rival

        reshape = (lambda t: t.permute(0, 3, 1, 2)) if last else None

        def call() -> object:  # with its hooks taken away behind it, or they would slow down all the others
            cam = getattr(rival, name)(model=module, target_layers=[target], reshape_transform=reshape)
            try:
                return cam(input_tensor=images, targets=None)
            finally:
                cam.activations_and_grads.release()

        return call

    calls: dict[str, Callable[[], Any]] = {
        "inference": infer,
        "GradCAM by hand": lambda: by_hand(module, target, images, last, second=False),
        "ShapleyCAM by hand": lambda: by_hand(module, target, images, last, second=True),
    }
    calls |= {name: ours(methods) for name, methods in OURS.items()}
    return calls | {f"grad-cam {name}": theirs(name) for name in THEIRS}


def cells(network: str, layer: str, batch: int, least: float, rivals: bool) -> dict[str, float | str]:
    """What one process finds of a row: ratios of times, errors of `rivals`, and the ratio of memory."""
    calls, found = contestants(network, layer, batch), dict[str, float | str]()
    theirs = {name: calls.pop(name) for name in [*calls] if name.startswith("grad-cam")}
    for name in THEIRS:
        mine = calls[name]()[name]
        torch.testing.assert_close(mine, calls[f"{name} by hand"](), rtol=0, atol=1e-3)
    for name, call in theirs.items() if rivals else ():
        try:
            found |= ratios({"inference": calls["inference"], name: call}, RUNS)
        except Exception as error:  # noqa: BLE001 - whatever it raises goes into the table
            found[name] = f"crashes ({type(error).__name__})"
    found |= ratios(calls, RUNS, least)
    return found | {"memory, all ten": peak(calls["all ten"]) / peak(calls["inference"])}


def operations(call: Callable[[], object]) -> int:
    """How many a call takes, by PyTorch's own count."""
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def row(network: str, layer: str, batch: int, processes: int) -> dict[str, str]:
    """The medians over processes."""
    rows = []
    for number in range(processes):
        asked = [network, layer, str(batch), str(LEAST * (processes > 1)), "rivals" * (number == 0)]
        output = subprocess.check_output([sys.executable, "-m", "benchmarks.heatmap", "--row", *asked])
        rows.append(json.loads(output))
    return {
        name: first if isinstance(first, str) else f"{median(each[name] for each in rows if name in each):.2f}"
        for name, first in rows[0].items()
    }


def main() -> None:
    """Print the table of the README."""
    if "--row" in sys.argv:
        network, layer, batch, least, rivals = sys.argv[2:]
        print(json.dumps(cells(network, layer, int(batch), float(least), bool(rivals))))
        return
    chosen = [name for name in NETWORKS if name in sys.argv] or NETWORKS
    if "--operations" in sys.argv:
        print("| network | layer | " + " | ".join(OURS) + " |")
        print("|---|---|" + "--:|" * len(OURS))
        for network, layer in product(chosen, ("gap", "conv")):
            calls = contestants(network, layer, batch=1)
            times = (operations(calls[name]) / operations(calls["inference"]) for name in OURS)
            print(f"| {network} | {layer} | " + " | ".join(f"{each:.3f}" for each in times) + " |")
        return
    processes = 1 if "--quick" in sys.argv else PROCESSES
    names = [
        *(f"{name} by hand" for name in THEIRS),
        *OURS,
        *(f"grad-cam {name}" for name in THEIRS),
        "memory, all ten",
    ]
    print("| network | layer | batch | " + " | ".join(names) + " |")
    print("|---|---|--:|" + "--:|" * len(names))
    for network, layer, batch in product(chosen, ("gap", "conv"), (1, 8)):
        found = row(network, layer, batch, processes)
        print(f"| {network} | {layer} | {batch} | " + " | ".join(found[name] for name in names) + " |", flush=True)


if __name__ == "__main__":
    main()
