"""FullGrad: a network's output shared out among its inputs and its biases, completely where it is piecewise linear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from .network.layout import fits
from .playground import Playground, undisturbed
from .theory.axes import Heatmaps, Images, Utilities, wide
from .theory.heatmap import MODES


@dataclass(frozen=True)
class FullGradients:
    """The full-gradient representation of the utility, Srinivas and Fleuret 2019; in units of the utility."""

    inputs: Images
    """dU/dx * x."""
    biases: tuple[Float[Tensor, "..."], ...]
    """dU/db * b for each layer that adds one, in the order of the calls: (b, channels, *positions) where it lies on maps,
    (windows of b images, ...) where it lies on parts of them."""

    @property
    def total(self) -> Utilities:
        """Their sum: the logit itself, if that is the utility and all else is ReLUs, pooling and sums."""
        total: Tensor = sum(
            (each.reshape(len(self.inputs), -1).sum(1) for each in self.biases), self.inputs.flatten(1).sum(1)
        )
        return total


@undisturbed
def full_gradients(play: Playground) -> FullGradients:
    """One forward and one backward pass of the whole network.

    A batch norm's bias is what it adds in all, beta - gamma mean / sqrt(var + eps). Biases are found where they are used, so
    parameters that a network adds by itself (`x + self.bias`) are not among them.
    """
    images = play.images.clone().requires_grad_()
    with torch.enable_grad():
        with _Added() as added:
            logits = play.network(images)
        total = play.worth(logits, play.each).sum()
    outputs = [output for output, _ in added.found]
    slopes = torch.autograd.grad(total, [images, *outputs], materialize_grads=True)
    shares = [wide(slope * bias).detach() for slope, (_, bias) in zip(slopes[1:], added.found, strict=True)]
    # What is added along the last axis of maps: channels last.
    turned = [
        each.movedim(-1, 1) if bias.ndim == 1 and each.ndim == images.ndim else each
        for each, (_, bias) in zip(shares, added.found, strict=True)
    ]
    return FullGradients(wide(slopes[0] * images).detach(), tuple(turned))


@undisturbed
def full_grad(play: Playground) -> Heatmaps:
    """FullGrad, Srinivas and Fleuret 2019, on the image: the sum of psi over the input's and the biases' channels; >= 0.

    psi takes absolute values, scales each channel to [0, 1] and enlarges it. Biases that lie nowhere on the image, a
    classifier's or those of tokens and windows, are left out.
    """
    found, size = full_gradients(play), play.images.shape[2:]
    total = _scaled(found.inputs).sum(1)
    for share in found.biases:
        if (
            len(share) == len(play.images)
            and share.ndim == play.images.ndim
            and fits(tuple(share.shape[2:]), tuple(size))
        ):
            coarse = _scaled(share).sum(1, keepdim=True)  # to enlarge is linear, and one channel is cheaper than all
            total = total + interpolate(coarse, size, mode=MODES[len(size)], align_corners=False)[:, 0]
    return total


def _scaled(shares: Tensor) -> Tensor:
    sizes, axes = shares.abs(), tuple(range(2, shares.ndim))
    lifted = sizes - sizes.amin(axes, keepdim=True)
    return lifted / (lifted.amax(axes, keepdim=True) + 1e-7)


class _Added(TorchFunctionMode):
    """Finds each output that a bias was added to, and the bias, shaped to fit it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func not in _PLACES or not output.requires_grad:
            return output
        bias = _bias(func, args, kwargs)
        if bias is None:
            return output
        behind = (
            0 if func in (F.linear, F.layer_norm) else output.ndim - 2
        )  # axes behind those that the bias lies along
        self.found.append((output, bias.detach().view(*bias.shape, *[1] * behind)))
        return output.clone()  # what follows may write into it


_PLACES = {
    torch.conv1d: 2,
    torch.conv2d: 2,
    torch.conv3d: 2,
    torch.conv_transpose1d: 2,
    torch.conv_transpose2d: 2,
    torch.conv_transpose3d: 2,
    F.linear: 2,
    F.layer_norm: 3,
    F.group_norm: 3,
    F.batch_norm: 4,
}
"""Functions that add a bias, and its place among their arguments."""


def _bias(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    def argument(name: str, place: int) -> Any:
        return args[place] if len(args) > place else kwargs.get(name)

    bias: Tensor | None = argument("bias", _PLACES[func])
    names = ("running_mean", "running_var", "weight")
    mean, variance, weight = (argument(name, i) for i, name in enumerate(names, 1))
    if func is not F.batch_norm or mean is None:  # the mean of the batch is no constant
        return bias
    eps = argument("eps", 7)
    shift: Tensor = -mean / (variance + (1e-5 if eps is None else eps)).sqrt() * (1 if weight is None else weight)
    return shift if bias is None else shift + bias
