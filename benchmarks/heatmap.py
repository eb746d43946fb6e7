"""What a heatmap costs beside plain inference, here and in grad-cam: `python -m benchmarks.heatmap [--quick]`.

Times are medians over rounds of the ratio to `model(images)` under `torch.inference_mode()` in the same round. Memory is
the peak of the tensors that a call holds, as a ratio to the same of inference.
"""

import sys
from collections.abc import Callable

import torch

import shapleycam as sc

from .clock import peak, ratios

NETWORKS = ("resnet50", "efficientnet_lite0", "swin_t")
OURS = {"GradCAM": "GradCAM", "ShapleyCAM": "ShapleyCAM", "all ten": "paper"}
THEIRS = ("GradCAM", "ShapleyCAM")


def contestant(network: str, layer: str, batch: int, name: str) -> Callable[[], object]:
    """One call to be timed: inference, one of ours, or one of grad-cam's."""
    model = sc.load_model(network, weights=None if network == "efficientnet_lite0" else "random")
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    if name == "inference":

        def infer() -> object:
            with torch.inference_mode():
                return model.module(images)

        return infer
    if name in OURS:
        return lambda: sc.explain(model, images, methods=OURS[name], layer=layer)
    import pytorch_grad_cam as rival

    reshape = (lambda t: t.permute(0, 3, 1, 2)) if network == "swin_t" else None
    target = model.module.get_submodule(model.layers[layer])
    cam = getattr(rival, name.split()[-1])(model=model.module, target_layers=[target], reshape_transform=reshape)
    return lambda: cam(input_tensor=images, targets=None)


def main() -> None:
    """Print the table of the README."""
    runs = 3 if "--quick" in sys.argv else 9
    names = ["inference", *OURS, *(f"grad-cam {name}" for name in THEIRS)]
    print("| network | layer | batch | " + " | ".join(names[1:]) + " | memory, all ten |")
    print("|---|---|--:|" + "--:|" * len(names))
    for network in NETWORKS:
        for layer in ("gap", "conv"):
            for batch in (1, 8):
                calls, cells = {}, {}
                for name in names:
                    calls[name] = contestant(network, layer, batch, name)
                    try:
                        calls[name]()
                    except Exception as error:
                        if name in OURS or name == "inference":
                            raise
                        cells[name] = f"crashes ({type(error).__name__})"
                        del calls[name]
                cells |= {
                    name: f"{ratio:.2f}" for name, ratio in ratios(calls, runs if batch == 8 else 3 * runs).items()
                }
                memory = peak(calls["all ten"]) / peak(calls["inference"])
                row = " | ".join(cells[name] for name in names[1:])
                print(f"| {network} | {layer} | {batch} | {row} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
