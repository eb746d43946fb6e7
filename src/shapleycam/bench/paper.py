"""The numbers that the paper prints in Tables 1 to 5, and what must be known before trusting some of them."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

Key = tuple[int, str, str, str, str]
"""Table, target layer, network, method, metric; the method "" and the metric "top1" for a network's accuracy."""

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "resnet18": "ResNet-18",
        "resnet50": "ResNet-50",
        "resnet101": "ResNet-101",
        "resnet152": "ResNet-152",
        "resnext50": "ResNeXt-50",
        "mobilenet_v2": "MobileNet-V2",
        "vgg16": "VGG-16",
        "efficientnet_b0": "EfficientNet-B0",
        "swin_t": "Swin-T",
        "swin_s": "Swin-S",
        "swin_b": "Swin-B",
        "swin_l": "Swin-L",
    }
)
"""How the paper writes the networks, in its order."""

NOTES: Mapping[tuple[int, str, str], str] = MappingProxyType(
    {
        (3, "vgg16", "ShapleyCAM"): (
            "the printed row very likely comes from a ReLU that writes into the maps in place, so that ShapleyCAM saw them after "
            "it and GradCAM before it; `bench --as-published` repeats that."
        ),
        (5, "resnet18", "GradCAM/rest"): (
            "the printed row repeats ShapleyCAM's of Table 1 digit for digit; GradCAM's ADCC there is 77.10."
        ),
        (5, "resnet18", "GradCAM/post-softmax"): (
            "the printed row is, digit for digit, that of ShapleyCAM-E with the log-probability in the author's log, at the ReLU "
            "behind the first BatchNorm of the last block; it is not to be expected of GradCAM."
        ),
        (5, "resnet18", "GradCAM/pre-softmax"): (
            "the printed row is GradCAM's in the author's log, but very likely at the ReLU behind the first BatchNorm of the "
            "last block, not at the layer preceding global pooling."
        ),
    }
)
"""By table, network and method, where a printed row is not what its caption says."""


@cache
def printed() -> Mapping[Key, float]:
    """All of its numbers, in percent: the author's logged value where there is one, else the two decimals."""
    text = (files("shapleycam") / "data" / "published.csv").read_text(encoding="utf-8")
    return MappingProxyType(
        {
            (int(row["table"]), row["layer"], row["network"], row["method"], row["metric"]): float(row["value"])
            for row in csv.DictReader(text.splitlines())
        }
    )


def table_number(layer: str, network: str) -> int | None:
    """Which of the paper's Tables 1 to 4 has this network at this target layer."""
    return next((table for table in range(1, 5) if (table, layer, network, "", "top1") in printed()), None)
