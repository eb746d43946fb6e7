"""What a network and the kinds of its layers say of what a layer puts out: proportions, tokens, where the maps are."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import nn

from .twin import unwrap

_LAST = nn.LayerNorm | nn.Linear | nn.Embedding | nn.RNNBase
_FIRST = (
    nn.modules.conv._ConvNd
    | nn.modules.batchnorm._NormBase
    | nn.GroupNorm
    | nn.modules.pooling._MaxPoolNd
    | nn.modules.pooling._AvgPoolNd
)

_TOKENS = re.compile(r"(cls|class|dist|distillation|reg|register)_?(tokens?|embedding)")
_WIDTHS = ("out_channels", "out_features", "num_features", "num_channels", "embedding_dim")


@dataclass(frozen=True)
class Facts:
    """What a network says of itself that helps to read its layers."""

    output_fmt: str | None = None
    prefix: int | None = None
    counted: Callable[[], int | None] = lambda: None
    """Counts its prefix tokens, where it has no number of them."""
    patch: int | None = None
    """Pixels a side of a patch."""
    rolled: Callable[[], frozenset[int]] = frozenset
    """Finds how many tokens lie window by window, not row by row."""
    first: bool = False
    """Whether the layer itself, not only something in it, is a convolution or the like, whose maps come first."""
    width: int | None = None
    """How many maps such a layer says that it puts out; None if it does not say."""
    own: "Callable[[], Told | None]" = lambda: None
    """What the kinds of the layer and all in it tell: see `told`."""

    @classmethod
    def of(cls, module: nn.Module, layer: nn.Module) -> "Facts":
        """The facts of a network and one of its layers."""
        prefix, patch = getattr(module, "num_prefix_tokens", None), _patch(module)
        inner = unwrap(layer)
        first = isinstance(inner, _FIRST)
        known = prefix if isinstance(prefix, int) else None
        width = _width(inner) if first else None
        counted, rolled, own = partial(_tokens, module), partial(_rolled, module), partial(_told_inside, inner)
        return cls(getattr(module, "output_fmt", None), known, counted, patch, rolled, first, width, own)


@dataclass(frozen=True)
class Told:
    """What the kind of a layer tells of what it puts out."""

    last: bool
    """Whether the maps are the last axis, not the first behind the images'."""
    maps: int | None = None
    """How many there are; None if it puts out as many as it is given."""
    along: tuple[int, ...] = ()
    """How long the last axis may be before and behind, where it runs along that, whatever it is."""


def told(ended: Iterable[nn.Module]) -> Told | None:
    """What the last of some layers tells that is of such a kind; they are in the order in which they end."""
    for layer in reversed([*ended]):
        several = len(getattr(layer, "normalized_shape", ())) > 1  # a norm over positions too
        if isinstance(layer, _LAST | _FIRST) and not several:
            along = (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()
            return Told(isinstance(layer, _LAST), _width(layer), along)
    return None


def _told_inside(layer: nn.Module) -> Told | None:
    return told(layer.modules())


def _width(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[0]
    if isinstance(layer, nn.RNNBase):
        return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    return next((getattr(layer, name) for name in _WIDTHS if hasattr(layer, name)), None)


def _patch(module: nn.Module) -> int | None:
    """Pixels a side of a patch, as torchvision, Hugging Face and timm call it."""
    for holder in (module, getattr(module, "config", None), getattr(module, "patch_embed", None)):
        patch = getattr(holder, "patch_size", None)
        sides = {*patch} if isinstance(patch, tuple | list) else {patch}
        if len(sides) == 1 and isinstance(side := sides.pop(), int) and side > 0:
            return side
    return None


def _rolled(module: nn.Module) -> frozenset[int]:
    """The numbers of tokens in those stages of timm's and Hugging Face's Hiera whose windows are yet to be pooled."""
    schedules = (vars(each).get("schedule") for each in module.modules())
    stages = (stage for schedule in schedules if isinstance(schedule, dict) for stage in schedule.values())
    pairs = (stage for stage in stages if isinstance(stage, tuple) and [*map(type, stage)] == [list, list])
    return frozenset(prod(grid) for strides, grid in pairs if strides)


def _tokens(module: nn.Module) -> int | None:
    """How many class, distillation and register tokens a network has, by the names of its parameters; None for none."""
    found = {name.rpartition(".")[2]: each for name, each in module.named_parameters()}
    return sum(each[..., 0].numel() for name, each in found.items() if _TOKENS.fullmatch(name)) or None
