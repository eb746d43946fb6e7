"""What measuring costs beside the forward passes that it needs: `python -m benchmarks.measure [--quick] [NETWORK]`.

Times are medians over rounds of the ratio, in the same round, of one measured batch to 1 + 2M plain forward passes of that
batch under `torch.inference_mode()`, M being the mean number of distinct heatmaps an image; both keep what tensors free, as
`shapleycam bench` does. Memory is the peak of the tensors held above what was there before the call, in MiB.
"""

import sys
from collections.abc import Callable

import torch

import shapleycam as sc
from shapleycam.bench.allocator import keep_freed

from .clock import peak, ratios

NETWORKS = ("efficientnet_lite0", "resnet50")
FEW = ("GradCAM", "XGradCAM", "ShapleyCAM")


def measured(network: str, layer: str, batch: int, methods: tuple[str, ...]) -> Callable[[], sc.Measurements]:
    """One batch to be measured."""
    model = sc.load_model(network, weights="random")
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    return lambda: sc.measure(model, images, methods=methods, layer=layer)


def plain(network: str, images: int, batch: int) -> Callable[[], object]:
    """Forward passes of so many images, in batches: nothing but the network."""
    model = sc.load_model(network, weights="random")
    given = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))

    def infer() -> None:
        with torch.inference_mode():
            for start in range(0, images, batch):
                model.module(given[: images - start])

    return infer


def passes(network: str, layer: str, batch: int) -> int:
    """How many images one measured batch sends through the network."""
    model = sc.load_model(network, weights="random")
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    seen = []
    first = next(module for module in model.module.modules() if isinstance(module, torch.nn.Conv2d))
    handle = first.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    sc.measure(model, images, methods="paper", layer=layer)
    handle.remove()
    return sum(seen)


def main() -> None:
    """Print the table of the documentation."""
    keep_freed()
    quick = "--quick" in sys.argv
    batch, runs = (8, 5) if quick else (16, 9)
    print(f"batches of {batch}, {torch.get_num_threads()} threads")
    print("| network | layer | passes, ten methods | time over plain passes | MiB, 3 methods | MiB, 10 methods |")
    print("|---|---|--:|--:|--:|--:|")
    for network in [name for name in NETWORKS if name in sys.argv] or NETWORKS:
        for layer in ("gap", "conv"):
            images = passes(network, layer, batch)
            ten = measured(network, layer, batch, ("paper",))
            ratio = ratios({"plain": plain(network, images, batch), "ten": ten}, runs)["ten"]
            few, many = (peak(measured(network, layer, batch, methods)) for methods in (FEW, ("paper",)))
            print(f"| {network} | {layer} | {images / batch:.1f} | {ratio:.3f} | {few:.0f} | {many:.0f} |", flush=True)


if __name__ == "__main__":
    main()
