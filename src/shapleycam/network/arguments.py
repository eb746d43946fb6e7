"""What callers of the library ask for, checked at the door: images, a layer, targets, a utility."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor, nn

from ..theory.axes import Logits, Targets
from ..theory.cams import nearest, steady
from ..theory.draws import checksums, key
from ..theory.utility import UTILITIES, Settled, Utility
from .cut import CutNetwork, Pass
from .ends import named_layers
from .inputs import Given, Inputs, Output, as_inputs, likely_faster_last
from .layout import Axes, Layout
from .suggest import suggest
from .zoo import Model

_BATCHES = {3: "(b, channels, t)", 4: "(b, channels, H, W)", 5: "(b, channels, D, H, W)"}


def check_images(model: Model | nn.Module, images: Given) -> None:
    """Raise ValueError or TypeError unless `images` is a finite floating-point batch that the model can take."""
    as_inputs(images)
    module = model.module if isinstance(model, Model) else model
    axes = _axes(model)
    every = images.each if isinstance(images, Inputs) else images
    if isinstance(images, Inputs) and len({each.shape for each in every}) > 1:
        raise ValueError(
            f"images have the shapes {', '.join(str(tuple(each.shape)) for each in every)}, expected one for all: a detector "
            "fills the smaller ones up, so that maps would lie on none of them; explain them one by one"
        )
    if images.ndim == 5 and images.shape[1] > 4 and images.shape[2] == 3 and _volumes(module) != images.shape[1]:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, frames before channels; wrap the network in a module that takes "
            "(b, channels, frames, H, W) and moves the axes: images.movedim(2, 1)"
        )
    if 0 in images.shape or (isinstance(images, Tensor) and images.ndim not in axes):
        expected = " or ".join(_BATCHES[each] for each in axes)
        hint = "; use images[None]" if images.ndim + 1 in axes else ""
        if hint and images.shape[0] not in (1, 3):  # a batch of signals, for a network that makes pictures of them
            hint += " for one image, or sc.Inputs(images) and layout= where the network takes such a batch"
        raise ValueError(f"images has shape {tuple(images.shape)}, expected a batch {expected}{hint}")
    parameter = next((p for p in module.parameters() if p.is_floating_point()), images)
    if isinstance(model, Model) and images.shape[1] != 3:
        raise ValueError(f"images has {images.shape[1]} channels, shape {tuple(images.shape)}; {model.name} takes 3")
    if images.dtype != parameter.dtype and (isinstance(images, Tensor) or images.dtype.is_floating_point):
        raise ValueError(
            f"images are {images.dtype}, the model's parameters {parameter.dtype}; use images.to({parameter.dtype})"
        )
    if images.device != parameter.device:
        raise ValueError(
            f"images are on {images.device}, the model on {parameter.device}; use images.to({str(parameter.device)!r})"
        )
    wide = torch.promote_types(images.dtype, torch.float32)
    totals = [some.sum(dtype=wide) for some in ([every] if isinstance(every, Tensor) else every)]
    if not all(isfinite(total.item()) for total in totals) and (
        bad := [i for i, x in enumerate(every) if not x.isfinite().all()]
    ):
        raise ValueError(f"images {bad} hold NaN or infinity; expected finite values")


def _volumes(module: nn.Module) -> int | None:
    """The channels of the volumes that a network takes, by its first convolution of such; None if it has none."""
    return next((each.in_channels for each in module.modules() if isinstance(each, nn.Conv3d)), None)


def check_pictures(model: Model | nn.Module, images: Given) -> None:
    """The same, and unless they are images (b, channels, H, W): signals and volumes are explained, but nothing masks them."""
    check_images(model, images)
    if images.ndim != 4:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, expected (b, channels, H, W): what is measured is masked"
        )


def batched(model: Model | nn.Module, image: Tensor | Inputs) -> Tensor | Inputs:
    """One image (channels, H, W) as a batch of one; anything else as it is."""
    if not isinstance(image, Tensor) or not isinstance(model, Model | nn.Module):
        return image
    axes = _axes(model)
    # Three axes may be a signal's batch, four an image's: of several channels, or of a network of volumes, they are one image.
    one = (axes[0] == 4 and len(image) != 1) or (axes[0] == 5 and image.ndim == 4)
    return image[None] if image.ndim + 1 in axes and (image.ndim not in axes or one) else image


def _axes(model: Model | nn.Module) -> tuple[int, ...]:
    """How many axes a network's batches may have."""
    return (4,) if isinstance(model, Model) else _axes_of(model)


def _axes_of(module: nn.Module) -> tuple[int, ...]:
    """How many axes a network's batches have, by its convolutions; images, signals or volumes if it has none."""
    found = None
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            return (4,)
        if found is None and isinstance(each, nn.Conv1d | nn.Conv3d):
            found = 3 if isinstance(each, nn.Conv1d) else 5
    return (4, 3, 5) if found is None else (found, 4)


def cut_network(
    model: Model | nn.Module,
    layer: str | nn.Module | None,
    layout: Axes | Layout | None,
    images: Given,
    output: Output | None = None,
    names: Iterable[str] | None = None,
) -> CutNetwork:
    """The model cut at a layer given as in `explain`, once the images are checked.

    Without one, cut at the layer that `suggest_layers` puts first. The memory format is what `Model.channels_last` says, for the
    methods in `names`, or where only logits are asked for; images stay as they come where these are None.
    """
    if not isinstance(model, Model | nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected what load_model gives or a torch.nn.Module")
    check_images(model, images)
    known: Mapping[str, str] = model.layers if isinstance(model, Model) else {}
    module = model.module if isinstance(model, Model) else model
    last = isinstance(model, Model) and names is not None and isinstance(images, Tensor) and model.channels_last
    faster = last is None and likely_faster_last(module, images)
    last = bool(last) or (faster and steady(names or ()))
    if layer is None and "gap" not in known:
        with _said(module, images):
            best, *_ = suggest(module, images[:1], output)
        return CutNetwork(module, best.layer.name, layout or best.layer.as_layout, output, best.why, last, faster)
    layer = "gap" if layer is None else layer
    if isinstance(model, Model) and isinstance(layer, str) and layer in ("gap", "conv"):
        if layer not in known and layer not in named_layers(module):
            raise ValueError(
                f"{model.name} has no layer known as {layer!r}; name one that `shapleycam layers {model.name}` lists, or none "
                "for the one that feeds the last spatial reduction"
            )
        layer = known.get(layer, layer)
    return CutNetwork(module, layer, layout, output, channels_last=last, plain_last=faster)


def run(
    cut: CutNetwork, images: Given, *, second_order: bool = False, replay: bool = False, create_graph: bool = False
) -> Pass:
    """One forward pass; an error that the network raises says what it was given."""
    with _said(cut.module, images):
        return cut(images, second_order=second_order, replay=replay, create_graph=create_graph)


@contextmanager
def _said(module: nn.Module, images: Given) -> Iterator[None]:
    given = f"{type(module).__name__} on images of shape {tuple(images.shape)}, {images.dtype}"
    try:
        yield
    except AssertionError as error:  # of a network that takes one size alone, most likely
        raise ValueError(f"the network refuses what it was given, {given}: {error}") from error
    except RuntimeError as error:
        error.add_note(f"shapleycam ran {given}")
        raise


@torch.inference_mode(False)  # autograd saves them with the utility
def resolve_targets(
    targets: int | str | Sequence[int] | Tensor | None, logits: Logits, utility: Utility | None = None
) -> Targets:
    """The class of each image, (b,) int64, given as in `explain`; that of a utility which is about one class."""
    b, c = logits.shape
    about, against = (utility.target, utility.against) if isinstance(utility, Settled) else (None, ())
    if about is not None or against:
        found = resolve_targets(about if targets is None else targets, logits)
        if about is not None and bool((found != about).any()):
            raise ValueError(f"targets are {found.tolist()}, and {utility} is about class {about}; leave targets out")
        if bad := sorted({*found.tolist()} & {*against}):
            raise ValueError(f"{utility} of a class with itself, {bad[0]}; name other classes than the target as b")
        return found
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


def resolve_keys(keys: Sequence[str] | None, images: Given) -> Callable[[], Tensor]:
    """A key for each image, (b,) int64, from its name or else its values; worked out when asked for."""
    if keys is not None and len(keys) != len(images):
        raise ValueError(f"keys has {len(keys)} names, expected one for each of {len(images)} images")
    every = images.each if isinstance(images, Inputs) else images

    def named() -> Tensor:
        if keys is not None:
            return torch.tensor([key(k) for k in keys], device=images.device)
        return checksums(every) if isinstance(every, Tensor) else torch.cat([checksums(one[None]) for one in every])

    return named
