"""What a network is given, if that is more than one tensor of images; and what it puts out, as logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..theory.axes import Images, Logits

Output = Callable[[Any], Tensor]
"""From what a network puts out to logits (b, c)."""
_FAST = (torch.float32, torch.bfloat16)
"""In these precisions depthwise convolutions are faster with channels last; in float64 they are slower."""


class Inputs:
    """A network's positional and keyword arguments: `Inputs(images, mask=m)` is explained as `network(images, mask=m)`.

    Maps lie on the first floating-point tensor in them, the images; every tensor (b, ...) in them belongs to the batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not tensors:
            raise ValueError("the inputs hold no tensor; expected at least one, of images (b, channels, H, W)")
        self.images: Tensor = next((t for t in tensors if t.is_floating_point() and t.ndim > 1), tensors[0])
        first = args[0] if args and isinstance(args[0], list | tuple) else ()
        self._list = len(first) > 0 and self.images is first[0]
        """Images one by one, as torchvision's detectors take them."""
        self._count = len(first) if self._list else len(self.images)

    @property
    def each(self) -> Sequence[Tensor] | Tensor:
        """The images, one by one."""
        return self.args[0] if self._list else self.images

    @property
    def shape(self) -> torch.Size:
        """Of the images, (b, channels, ...)."""
        return torch.Size((self._count, *self.images.shape)) if self._list else self.images.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def _version(self) -> int:
        return sum(t._version for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor))

    def is_inference(self) -> bool:
        """Whether a tensor in them has no version."""
        return any(t.is_inference() for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice) -> "Inputs":
        """Some images of the batch."""
        if self._list:
            return Inputs(self.args[0][rows], *self.args[1:], **self.kwargs)
        return self.map(lambda t: t[rows] if t.ndim and len(t) == self._count else t)

    def clone(self, *, memory_format: torch.memory_format = torch.preserve_format) -> "Inputs":
        """A copy of every tensor."""
        return self.map(lambda t: t.clone(memory_format=memory_format))

    def detach(self) -> "Inputs":
        """The same without a graph."""
        return self.map(Tensor.detach)

    def rows(self, hand_out: Callable[[Any], Any], times: int) -> "Inputs":
        """The inputs for `times` rows an image, which `hand_out` makes of each tensor that belongs to the batch."""
        if self._list:
            return Inputs([*self.args[0]] * times, *self.args[1:], **self.kwargs)
        return self.map(lambda t: hand_out(t) if t.ndim and len(t) == self._count else t.clone())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The inputs with `change` done to each tensor."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Inputs(*args, **kwargs)


Given = Images | Inputs
"""Images, or all that a network is given."""


def as_inputs(given: Any) -> Tensor | Inputs:
    """A tensor as it is, `Inputs` for a tuple (positional arguments) or a mapping (keyword arguments)."""
    if isinstance(given, Tensor | Inputs):
        return given
    if isinstance(given, tuple) and type(given) is tuple:
        return Inputs(*given)
    if isinstance(given, Mapping):
        return Inputs(**given)
    raise TypeError(
        f"images is a {type(given).__name__}, expected a tensor (b, channels, H, W), or a tuple or mapping of a network's "
        "inputs; a model of load_model makes a tensor of pictures: model.preprocess(pictures)"
    )


def size_of(images: Given) -> tuple[int, ...]:
    """The spatial axes of images (b, channels, *size); of tokens (b, t) their number."""
    return tuple(images.shape[2:]) if images.ndim > 2 else tuple(images.shape[1:])


def likely_faster_last(module: nn.Module, images: Images | Inputs) -> bool:
    """Whether a network runs faster with channels last, by a rule of thumb: on the CPU, if it has depthwise convolutions."""
    if images.device.type != "cpu" or images.dtype not in _FAST:
        return False
    return any(isinstance(each, nn.Conv2d) and 1 < each.groups == each.in_channels for each in module.modules())


def call(network: nn.Module | Callable[..., Any], images: Given) -> Any:
    """The network run on images, or on all its inputs."""
    return network(*images.args, **images.kwargs) if isinstance(images, Inputs) else network(images)


def logits_of(output: Any, images: int, function: Output | None = None) -> Logits:
    """The logits (b, c) in what a network put out: a tensor, the one such in a tuple, a mapping's or object's `logits`.

    Raises
    ------
    TypeError
        When there are none to be found.
    ValueError
        When their shape is another.
    """
    if function is not None and not callable(function):
        raise TypeError(f"output is a {type(function).__name__}, expected a function of what the network puts out")
    logits = function(output) if function is not None else _logits_in(output)
    if not isinstance(logits, Tensor):
        what = "output= gave" if function is not None else "the network puts out"
        raise TypeError(
            f"{what} a {type(logits).__name__}, expected a tensor of logits (b, c); pass output=function, which takes what the "
            "network puts out and gives them"
        )
    if logits.ndim != 2 or logits.shape[0] != images:
        raise ValueError(
            f"the network puts out {tuple(logits.shape)} for {images} images, expected logits (b, c); pass output=function, "
            + (
                "such as lambda y: y[:, None] for one logit an image"
                if logits.ndim == 1
                else "which makes them of it (sc.outputs has some for segmentation, detection and embeddings)"
            )
        )
    return logits


def _logits_in(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Mapping):
        return next((output[key] for key in ("logits", "out", "output") if isinstance(output.get(key), Tensor)), output)
    if isinstance(output, tuple | list):
        tensors = [each for each in output if isinstance(each, Tensor)]
        flat = [each for each in tensors if each.ndim == 2]
        if len({each.shape for each in flat}) > 1:
            shapes = ", ".join(str(tuple(each.shape)) for each in flat)
            raise ValueError(
                f"the network puts out several tensors that may be the logits, {shapes}; pass output=function, lambda y: y[0] say"
            )
        return next(iter(flat), tensors[0] if tensors else output)
    return output
