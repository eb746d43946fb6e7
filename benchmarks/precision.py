"""What each speed mode of `shapleycam bench` changes: `python -m benchmarks.precision PICTURES [MODEL] [COUNT] [--times]`.

Changes are those of the table's columns in percentage points, the largest over nine methods; XGradCAM's ADCC for itself, since
its divisor may come near zero; and the number of pictures whose predicted class is another one. Times are medians over rounds of
the ratio to fp32 in the same round.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from shapleycam import Measurements, measure
from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.datasets import Item, find_pictures
from shapleycam.bench.loaded import Loaded, load
from shapleycam.network.pictures import pixels

from .clock import ratios

MODES = {
    "fp32": (Configuration(), False),
    "channels-last": (Configuration(), True),
    "compile": (Configuration(compile=True), False),
    "bf16": (Configuration(precision="bf16"), False),
    "bf16, channels-last": (Configuration(precision="bf16"), True),
    "fp16": (Configuration(precision="fp16"), False),
}


def columns(found: Measurements) -> torch.Tensor:
    """AD, Coh, Com, ADCC, IC and ADD of each method, in percent."""
    scores = (
        found.average_drop,
        found.coherency,
        found.complexity,
        found.increase_in_confidence,
        found.average_drop_in_deletion,
    )
    drop, coherency, complexity, increase, deletion = (each.double().mean(0) for each in scores)
    adcc = found.adcc.double()
    return 100 * torch.stack([drop, coherency, complexity, adcc, increase, deletion])


def called(loaded: Loaded, items: tuple[Item, ...], layer: str) -> Callable[[], Measurements]:
    """One batch of all pictures to be measured."""
    images = loaded.images([pixels(loaded.model.preprocess.crop(item.open())) for item in items])
    names = [item.name for item in items]
    return lambda: measure(loaded.model, images, layer=layer, keys=names, infer=loaded.infer)


def main() -> None:
    """Print a row for each mode and layer, and with --times what each takes."""
    given = [each for each in sys.argv[1:] if each != "--times"]
    name = given[1] if len(given) > 1 else "efficientnet_lite0"
    items = find_pictures(Path(given[0]))[: int(given[2]) if len(given) > 2 else 16]
    modes = {mode: load(name, configuration, Machine(), last) for mode, (configuration, last) in MODES.items()}
    print(f"{name}, {len(items)} pictures, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| mode | layer | AD | Coh | Com | ADCC | IC | ADD | ADCC of XGradCAM | other class |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for layer in ("gap", "conv"):
        calls = {mode: called(loaded, items, layer) for mode, loaded in modes.items()}
        exact = calls["fp32"]()
        for mode, call in calls.items():
            found = call()
            change = (columns(found) - columns(exact)).abs()
            place = found.methods.index("XGradCAM")
            cells = [*change[:, torch.arange(change.shape[1]) != place].amax(1).tolist(), float(change[3, place])]
            other = int((found.targets != exact.targets).sum())
            print(f"| {mode} | {layer} | {' | '.join(f'{each:.3f}' for each in cells)} | {other} |", flush=True)
        if "--times" in sys.argv:
            times = ratios(calls, 3)
            print(
                f"time over fp32, {layer}: {', '.join(f'{mode} {time:.2f}' for mode, time in times.items())}",
                flush=True,
            )


if __name__ == "__main__":
    main()
