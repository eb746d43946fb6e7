"""What channels last is worth on this machine's CPU: `python -m benchmarks.formats [NETWORK...]`.

Time of plain inference of images with channels last over that of the same images as they come, maps first; medians over rounds
in which each is timed between two of the other. `explain` gives images channels last where a network has depthwise convolutions.
"""

import sys
from collections.abc import Callable

import torch

import shapleycam as sc
from shapleycam.network.inputs import likely_faster_last

from .clock import ratios

NETWORKS = (
    *("efficientnet_lite0", "efficientnet_b0", "mobilenet_v2", "mobilenetv3_large_100", "mnasnet_100", "ghostnet_100"),
    *("mixnet_s", "efficientnetv2_rw_t", "fastvit_t8", "coatnet_0_rw_224", "pvt_v2_b0", "convnext_tiny"),
    *("resnet18", "resnet50", "resnext50", "swin_t"),
)
COLUMNS = ((1, torch.float32), (4, torch.float32), (1, torch.bfloat16), (1, torch.float64))
LEAST = 3.0
"""Seconds of a cell, at least."""


def ratio(network: str, batch: int, dtype: torch.dtype) -> tuple[bool, float]:
    """Whether `explain` gives the network channels last, and the time with these over that without."""
    model = sc.load_model(network, weights="random")
    module = model.module.to(dtype)
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(dtype)

    def infer(images: torch.Tensor) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return module(images)

        return run

    last = infer(images.contiguous(memory_format=torch.channels_last))
    times = ratios({"first": infer(images), "last": last}, 5, LEAST)
    return likely_faster_last(model.module, images.float()), times["last"]


def main() -> None:
    """Print a table."""
    names = [f"{str(dtype).removeprefix('torch.')}, {batch}" for batch, dtype in COLUMNS]
    print("| network | depthwise | " + " | ".join(names) + " |")
    print("|---|---|" + "--:|" * len(names))
    for network in sys.argv[1:] or NETWORKS:
        found = [ratio(network, *column) for column in COLUMNS]
        mark = "yes" if found[0][0] else "no"
        print(f"| {network} | {mark} | " + " | ".join(f"{each:.2f}" for _, each in found) + " |", flush=True)


if __name__ == "__main__":
    main()
