"""What callers of the library ask for, checked at the door: images, a layer, targets, a utility."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..theory.axes import Logits, Targets
from ..theory.cams import nearest
from ..theory.draws import checksums, key
from ..theory.utility import UTILITIES, Utility
from .cut import CutNetwork, Layout, Pass
from .zoo import Model


def check_images(model: Model | nn.Module, images: Tensor) -> None:
    """Raise ValueError or TypeError unless `images` is a finite floating-point batch that the model can take."""
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is a {type(images).__name__}, expected a tensor (b, channels, H, W); a model of load_model makes one "
            "of pictures: model.preprocess(pictures)"
        )
    if images.ndim != 4 or 0 in images.shape:
        hint = "; use images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images has shape {tuple(images.shape)}, expected a batch (b, channels, H, W){hint}")
    module = model.module if isinstance(model, Model) else model
    parameter = next((p for p in module.parameters() if p.is_floating_point()), images)
    if isinstance(model, Model) and images.shape[1] != 3:
        raise ValueError(f"images has {images.shape[1]} channels, shape {tuple(images.shape)}; {model.name} takes 3")
    if images.dtype != parameter.dtype:
        raise ValueError(
            f"images are {images.dtype}, the model's parameters {parameter.dtype}; use images.to({parameter.dtype})"
        )
    if images.device != parameter.device:
        raise ValueError(
            f"images are on {images.device}, the model on {parameter.device}; use images.to({str(parameter.device)!r})"
        )
    if not images.sum(dtype=torch.float64 if images.dtype == torch.float64 else torch.float32).isfinite():
        bad = [i for i, image in enumerate(images) if not image.isfinite().all()]
    else:
        bad = []
    if bad:
        raise ValueError(f"images {bad} hold NaN or infinity; expected finite values")


def cut_network(model: Model | nn.Module, layer: str | nn.Module | None, layout: Layout | None) -> CutNetwork:
    """The model cut at a layer given as in `explain`."""
    if isinstance(model, Model):
        layer = "gap" if layer is None else layer
        if isinstance(layer, str) and layer in ("gap", "conv"):
            if layer not in model.layers:
                raise ValueError(
                    f"{model.name} has no layer known as {layer!r}; name one that `shapleycam layers {model.name}` lists"
                )
            layer = model.layers[layer]
        return CutNetwork(model.module, layer, layout)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected what load_model gives or a torch.nn.Module")
    if layer is None:
        last = "; candidates are the names in dict(model.named_modules())"
        raise ValueError(f"layer is missing: name the layer whose activation maps are explained{last}")
    return CutNetwork(model, layer, layout)


def run(cut: CutNetwork, images: Tensor, *, second_order: bool = False, replay: bool = False) -> Pass:
    """One forward pass; an error that the network raises gets a note of what it was given."""
    try:
        return cut(images, second_order=second_order, replay=replay)
    except (RuntimeError, AssertionError) as error:
        error.add_note(
            f"shapleycam ran {type(cut.module).__name__} on images of shape {tuple(images.shape)}, {images.dtype}"
        )
        raise


@torch.inference_mode(False)  # autograd saves them with the utility
def resolve_targets(targets: int | str | Sequence[int] | Tensor | None, logits: Logits) -> Targets:
    """The class of each image, (b,) int64, given as in `explain`."""
    b, c = logits.shape
    if targets is None:
        return logits.argmax(1)
    if isinstance(targets, str):
        if targets != "least":
            raise ValueError(f'targets is {targets!r}, expected None, "least", a class index, or one index an image')
        return logits.argmin(1)
    try:
        given = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets is {targets!r}, expected class indices as integers") from error
    if given.ndim > 1 or (given.ndim == 1 and len(given) != b):
        raise ValueError(f"targets have shape {tuple(given.shape)}, expected one index, or one for each of {b} images")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"targets are {given.dtype}, expected class indices as integers")
    if given.min() < 0 or given.max() >= c:
        raise ValueError(f"targets {given.tolist()} are out of range; the network has classes 0 to {c - 1}")
    return given.to(logits.device, torch.int64).expand(b).clone()


@torch.inference_mode(False)
def opposite(logits: Logits, targets: Targets) -> Targets:
    """The least likely class of each image; the most likely one where that is the target."""
    least = logits.argmin(1)
    return torch.where(targets == least, logits.argmax(1), least)


def resolve_utility(utility: str | Utility) -> tuple[str, Utility]:
    if callable(utility):
        return getattr(utility, "__name__", type(utility).__name__), utility
    if not isinstance(utility, str):
        raise TypeError(
            f"utility is a {type(utility).__name__}, expected a name or a function (logits, targets) -> (b,)"
        )
    if utility not in UTILITIES:
        raise ValueError(f"unknown utility {utility!r}; {nearest(utility, UTILITIES)} (in Python, or pass a function)")
    return utility, UTILITIES[utility]


def resolve_keys(keys: Sequence[str] | None, images: Tensor) -> Callable[[], Tensor]:
    """A key for each image, (b,) int64, from its name or else its values; worked out when asked for."""
    if keys is not None and len(keys) != len(images):
        raise ValueError(f"keys has {len(keys)} names, expected one for each of {len(images)} images")
    return lambda: checksums(images) if keys is None else torch.tensor([key(k) for k in keys], device=images.device)
