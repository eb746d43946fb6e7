"""LIFT-CAM: DeepLIFT of the tail, by captum, with everything that bends routed to modules where captum's hooks find it."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .gradient_free import MapWeights, weighed
from .network.tail import Tail
from .playground import Playground, undisturbed
from .theory.axes import ExplanationMaps, Logits
from .theory.crg import quadrature

INCOMPLETE = 1e-3
"""Share of the contributions' sizes by which their sum may miss U(A) - U(0), or what half precision leaves."""
NODES = 64


@undisturbed
def lift_cam(play: Playground) -> ExplanationMaps:
    """E = sum_i w_i A^i with `lift_weights`, Jung and Oh 2021; costs three replays of the tail, one with a graph.

    Raises
    ------
    ImportError
        Without captum.
    ValueError
        As `lift_weights`.
    """
    return weighed(lift_weights(play), play.maps)


@undisturbed
def lift_weights(play: Playground) -> MapWeights:
    """What each map adds to U(A) - U(0) by DeepLIFT's rescale rule from maps of zero: approximate SHAP values that add up.

    The source explains a logit. A utility that bends is replaced by its mean slope on the line between the logits of 0 and of A,
    so that contributions add up for it too.

    Raises
    ------
    ImportError
        Without captum.
    ValueError
        When they do not add up, for the tail multiplies what it computes, as attention, gates and norms over positions do.
    """
    try:
        from captum.attr import DeepLift  # type: ignore[import-untyped]
    except ImportError as error:
        raise ModuleNotFoundError('LIFT-CAM needs captum; pip install "shapleycam[lift]"', name="captum") from error
    maps = play.maps.clone()
    rows, bent = torch.cat([maps, torch.zeros_like(maps)]), nn.ModuleList()
    full, empty = play.tail(rows).split(len(maps))  # from here on a replay is a single run
    with torch.enable_grad(), _Routed(bent, None):
        play.tail(rows.requires_grad_())
    tail = _LinearTail(play.tail, _mean_slope(play, full, empty), bent)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it sets hooks; they are on modules of our own
        shares = DeepLift(tail).attribute(maps, torch.zeros_like(maps)).detach().flatten(2)
    earned = play.worth(full, play.each) - play.worth(empty, play.each)
    missed = (shares.sum((1, 2)) - earned).abs()
    exact = max(INCOMPLETE, 8 * torch.finfo(maps.dtype).eps)
    if bool((missed > exact * shares.abs().sum((1, 2)).clamp(min=1e-6)).any()):
        raise ValueError(
            f"DeepLIFT's contributions behind layer {play.forward.layer.name!r} miss U(A) - U(0) by up to "
            f"{float(missed.max()):.2g}: the tail multiplies what it computes, as attention and gates do, for which the "
            "rescale rule is not made, or pools maxima behind padding, where it is not exact; name a layer behind that, or "
            "use AblationCAM"
        )
    weights: Tensor = shares.sum(2)
    return weights


def _mean_slope(play: Playground, full: Logits, empty: Logits) -> Tensor:
    """The mean of dU/dy on the line from the one's logits to the other's, (b, c): theirs whom the utility is linear in."""
    points, weights = (each.to(full).repeat_interleave(len(full)) for each in quadrature(NODES))
    step = torch.zeros_like(full).requires_grad_()
    line = torch.lerp(empty.repeat(NODES, 1), full.repeat(NODES, 1), points[:, None])
    slope: Tensor
    with torch.enable_grad():
        utilities = play.worth(line + step.repeat(NODES, 1), play.each.repeat(NODES))
        (slope,) = torch.autograd.grad((utilities * weights).sum(), step)
    return slope


class _LinearTail(nn.Module):
    """A weighted sum of the logits of maps, (k b,), with what bends in it as modules."""

    def __init__(self, tail: Tail, slope: Tensor, bent: nn.ModuleList) -> None:
        super().__init__()
        self.tail, self.slope, self.bent = tail, slope, bent

    def forward(self, rows: Tensor) -> Tensor:
        with _Routed(self.bent, iter(self.bent)):
            logits = self.tail(rows)
        return (logits * self.slope.repeat(len(logits) // len(self.slope), 1)).sum(1)


class _Routed(TorchFunctionMode):
    """Sends calls of what bends to `bent` modules in their order; to new ones, which it adds, where none are left to take."""

    def __init__(self, bent: nn.ModuleList, left: Iterator[nn.Module] | None) -> None:
        super().__init__()
        self.bent, self.left = bent, left

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        make = _MADE.get(func)
        if make is None or not args or not args[0].requires_grad:
            return func(*args, **kwargs)
        if self.left is None:
            self.bent.append(make(func, *args[1:], **kwargs))
            return self.bent[-1](args[0])
        return next(self.left)(args[0])


def _elementwise(func: Callable[..., Tensor], *args: Any, inplace: bool = False, **kwargs: Any) -> nn.Module:
    # captum knows modules by their kind; its rule for a ReLU is that of every function of one number.
    module = nn.ReLU()
    vars(module)["forward"] = lambda x: func(x, *args, **kwargs)
    return module


def _pooling(kind: type[nn.Module], func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> nn.Module:
    return kind(*args, **{name: value for name, value in kwargs.items() if name != "return_indices"})


_ELEMENTWISE: tuple[Callable[..., Tensor], ...] = (
    torch.relu, torch.sigmoid, torch.tanh, torch.erf, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu,
    F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign, F.sigmoid, F.tanh, F.logsigmoid,
    Tensor.relu, Tensor.sigmoid, Tensor.tanh,
)  # fmt: skip
_MADE: MappingProxyType[Callable[..., Any], Callable[..., nn.Module]] = MappingProxyType(
    dict.fromkeys(_ELEMENTWISE, _elementwise)
    | {
        torch.max_pool1d: partial(_pooling, nn.MaxPool1d),
        torch.max_pool2d: partial(_pooling, nn.MaxPool2d),
        torch.max_pool3d: partial(_pooling, nn.MaxPool3d),
    }
)
