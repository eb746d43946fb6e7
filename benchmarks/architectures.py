"""Every family of classifiers, explained without an argument: `python -m benchmarks.architectures > docs/architectures.md`.

Weights are random (drawn as `weights="random"` does), images are noise. A network works if its ShapleyCAM is not blank and the
gradient at the layer that was chosen is not zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import shapleycam as sc
from shapleycam.network.weights import draw

TIMM = [
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "eva02_tiny_patch14_336", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny",
    "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "hieradet_small", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "ens_adv_inception_resnet_v2", "adv_inception_v3", "inception_v4",
    "lcnetv2_small", "levit_128s", "lowformer_b0", "test_mambaout", "test_coatnet", "poolformerv2_s12",
    "gmlp_ti16_224", "mobilenetv3_small_050", "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "jx_nest_tiny", "nextvit_small", "test_nfnet",
    "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1",
    "res2next50", "resnest14d", "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18",
    "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window16_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception",
    "xception41p", "xcit_nano_12_p8_224", "mixer_s32_224", "resmlp_12_224",
]  # fmt: skip
"""The smallest classifier of each family, that is of each file of timm.models, by parameters times pixels; and two more that
share a file with gMLP."""
NO_CLASSIFIER = ("deepseek_vit", "gemma4_vit", "qwen3_vit")
"""Families of timm that have no classifier, only towers of vision-language models."""
TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
]  # fmt: skip
"""The smallest classifier of each family of torchvision."""


@dataclass(frozen=True)
class Row:
    """What became of one network."""

    network: str
    layer: str
    layout: str
    maps: str
    positions: str
    works: str
    """"works", or what is wrong."""

    def __str__(self) -> str:
        return f"| {self.network} | {self.works} | {self.layer} | {self.layout} | {self.maps} | {self.positions} |"


def explained(name: str, module: nn.Module, images: Any) -> Row:
    """The network explained with no argument but itself."""
    try:
        out = sc.explain(module, images)
    except (ValueError, TypeError) as error:
        return Row(name, "", "", "", "", str(error))
    layer, hottest = out.layer, float(out.heatmaps["ShapleyCAM"].flatten(1).amax(1).min())
    flat = bool(out.signs["gradient is zero"].any())
    works = "the gradient is zero" if flat else "works" if hottest > 0 else f"blank: {out.warnings[0]}"
    prefix = f" behind {layer.prefix}" if layer.prefix else ""
    positions = " x ".join(map(str, layer.positions)) + prefix
    return Row(name, f"`{layer.name}`", layer.layout, str(layer.maps), positions, works)


def noise(*shape: int) -> torch.Tensor:
    """Images that are the same each time."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def of_the_zoo(name: str) -> Row:
    """A network of timm or torchvision."""
    model = sc.load_model(name, weights="random")
    return explained(name, model.module, noise(3, *model.input_size))


def _video(name: str, frames: int, side: int) -> Row:
    from torchvision.models import video

    shape = 3, frames, side, side
    return explained(f"torchvision {name} (volumes)", _drawn(getattr(video, name), shape), noise(*shape))


def _signal() -> Row:
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(2, 16, 7, stride=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 5), nn.BatchNorm1d(32), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip

    return explained("convolutions in 1-D (signals)", _drawn(network, (2, 400)), noise(2, 400))


def _hugging_face(kind: str) -> Row:
    import transformers

    options: Mapping[str, dict[str, Any]] = {
        "ViT": {
            "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64,
            "patch_size": 8,
        },
        "Swin": {"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64},
        "ConvNext": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "image_size": 64},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**options[kind], num_labels=7)
    network = getattr(transformers, f"{kind}ForImageClassification")
    images = {"pixel_values": noise(3, 64, 64)}
    return explained(f"transformers {kind}ForImageClassification", _drawn(lambda: network(config), (3, 64, 64)), images)


def _drawn(make: Callable[[], nn.Module], shape: Sequence[int]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        module = make()
    draw(module, shape, 0)
    return module


OTHERS: Mapping[str, Callable[[], Row]] = {
    "ViT": lambda: _hugging_face("ViT"),
    "Swin": lambda: _hugging_face("Swin"),
    "ConvNext": lambda: _hugging_face("ConvNext"),
    "volumes": lambda: _video("r3d_18", 8, 64),
    "separable volumes": lambda: _video("s3d", 16, 224),
    "windows of volumes": lambda: _video("swin3d_t", 8, 64),
    "multiscale volumes": lambda: _video("mvit_v1_b", 16, 224),
    "signals": _signal,
}
SLOW = ("separable volumes", "multiscale volumes")
"""Half a minute each: on the page, not in the tests."""
NAMES = (*TIMM, *(f"torchvision/{name}" for name in TORCHVISION), *OTHERS)


def row(name: str) -> Row:
    """The row of a network in `NAMES`."""
    return OTHERS[name]() if name in OTHERS else of_the_zoo(name)


def main() -> None:
    """Print the page of the documentation."""
    rows = [row(name) for name in NAMES]
    works = sum(each.works == "works" for each in rows)
    print("# Networks that are explained without an argument\n")
    print(
        f"{works} of {len(rows)}: `sc.explain(module, images)` finds the layer and how to read it. One network, the smallest, of"
    )
    print(
        "every family in timm and torchvision, three of Hugging Face's, volumes and signals; weights random, images noise. A"
    )
    print("network works if its ShapleyCAM is not blank and the gradient at the chosen layer is not zero.\n")
    print(
        f"timm's families {', '.join(NO_CLASSIFIER)} have no classifier. Made by `python -m benchmarks.architectures`.\n"
    )
    print("| network | | layer | layout | maps | positions |\n|---|---|---|---|--:|---|")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
