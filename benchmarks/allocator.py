"""What keeping freed memory is worth on Linux: `python -m benchmarks.allocator`.

Seconds of plain forward passes of eight images in a process that hands memory back, as glibc does by default, over those in one
that keeps it, as `shapleycam bench` does. Medians over rounds in which the two, processes of their own, take turns.
"""

import subprocess
import sys
from statistics import median
from time import perf_counter

import torch

import shapleycam as sc
from shapleycam.bench.allocator import keep_freed

NETWORKS = ("efficientnet_lite0", "mobilenet_v2", "resnet50", "swin_t")
PASSES, ROUNDS = 10, 5


def seconds(network: str) -> float:
    """The median time of a pass, after two that warm up."""
    model = sc.load_model(network, weights="random")
    images = torch.randn(8, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        for _ in range(PASSES + 2):
            start = perf_counter()
            model.module(images)
            times.append(perf_counter() - start)
    return median(times[2:])


def main() -> None:
    """Print the ratios."""
    if sys.argv[1:]:
        if sys.argv[2] == "kept":
            keep_freed()
        print(seconds(sys.argv[1]))
        return
    for network in NETWORKS:
        rounds = []
        for _ in range(ROUNDS):
            handed_back, kept = (
                float(subprocess.check_output([sys.executable, "-m", "benchmarks.allocator", network, how]))
                for how in ("handed back", "kept")
            )
            rounds.append(handed_back / kept)
        print(f"{network}: {median(rounds):.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
