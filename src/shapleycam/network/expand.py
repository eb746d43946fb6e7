"""The utility expanded around the whole coalition: the only place where networks are differentiated."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..theory.axes import Maps, Targets, Utilities
from ..theory.crg import Expansion
from ..theory.utility import Utility
from .cut import Pass


def expand(
    forward: Pass, targets: Targets, utility: Utility, ingredients: frozenset[str], noise: Callable[[], Maps]
) -> Expansion:
    """U' and, if asked for, HX of each image's utility, by one or two backward passes over the tail.

    `noise` is called if asked for. A utility that is linear in the maps has HX = 0.

    Raises
    ------
    ValueError
        When the utility does not give one number an image, or does not depend on the maps.
    """
    gradient = hvp = None
    if "gradient" in ingredients:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(forward.leaf.device.type, enabled=False):
            slope = _slope(forward, worth(forward, targets, utility), create_graph="hvp" in ingredients)
            gradient = _wide(forward.maps(slope.detach()))
            if "hvp" in ingredients:
                hvp = _wide(forward.maps(_curvature(forward, slope)))
    return Expansion(
        maps=_wide(forward.maps(forward.leaf.detach())),
        gradient=gradient,
        hvp=hvp,
        noise=noise() if "noise" in ingredients else None,
    )


def worth(forward: Pass, targets: Targets, utility: Utility) -> Utilities:
    """U of each image, with the graph of the tail.

    Raises
    ------
    ValueError
        When the utility does not give one number an image.
    """
    utilities = utility(_wide(forward.logits), targets)
    if not isinstance(utilities, Tensor) or utilities.shape != targets.shape:
        got = f"shape {tuple(utilities.shape)}" if isinstance(utilities, Tensor) else f"a {type(utilities).__name__}"
        raise ValueError(
            f"the utility gave {got} for logits {tuple(forward.logits.shape)}, expected one number an image, "
            f"{tuple(targets.shape)}"
        )
    return utilities


def _slope(forward: Pass, utilities: Tensor, create_graph: bool) -> Tensor:
    slope = None
    if utilities.requires_grad:
        (slope,) = torch.autograd.grad(utilities.sum(), forward.leaf, create_graph=create_graph, allow_unused=True)
    if slope is None:
        raise ValueError(
            f"the utility does not depend on layer {forward.layer.name!r}: no gradient path leads from the logits to its "
            "output; name a layer that the logits are made of, and no torch.no_grad() or detach() behind it"
        )
    return slope


def _curvature(forward: Pass, slope: Tensor) -> Tensor:
    hvp = None
    if slope.requires_grad:
        (hvp,) = torch.autograd.grad(slope, forward.leaf, forward.leaf.detach(), allow_unused=True)
    return torch.zeros_like(slope) if hvp is None else hvp


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
