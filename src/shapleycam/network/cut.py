"""A network cut once, at its target layer: a head that runs without a graph, activation maps, and a tail behind them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..theory.axes import Images, Logits, Maps
from ..theory.cams import nearest
from .tail import Log, Tail, logits_of
from .twin import twin, unwrap

Layout = Literal["bnhw", "bhwn"]


@dataclass(frozen=True)
class TargetLayer:
    """Where a network was cut."""

    name: str
    layout: Layout
    """Order of the axes of what the layer puts out: b images, n maps, h w positions."""
    maps: int
    positions: tuple[int, int]

    def __str__(self) -> str:
        h, w = self.positions
        return f"{self.name} ({self.maps} maps of {h} x {w}, {self.layout})"


@dataclass(frozen=True)
class Pass:
    """One forward pass through a cut network, its tail with a graph that begins at `leaf`."""

    layer: TargetLayer
    leaf: Tensor
    """The target layer's own output, in the layer's layout: a tensor that the cut owns and nothing writes into."""
    logits: Logits
    tail: Tail | None = None
    """What gives the logits of other maps, if that was asked for."""

    def maps(self, tensor: Tensor) -> Maps:
        """A tensor shaped like `leaf`, as (b, n, h, w)."""
        return tensor.movedim(-1, 1) if self.layer.layout == "bhwn" else tensor


class CutNetwork:
    """A module and one of its layers, which is cut for the length of each pass, on a private copy of the module tree.

    The module itself is never written to: no hook, no mode, no flag. Any number of threads may run passes at once.
    """

    def __init__(self, module: nn.Module, layer: str | nn.Module, layout: Layout | None = None) -> None:
        """`layer` is a dotted name or a submodule; `layout` None finds out.

        Raises
        ------
        ValueError
            When the module has no such layer, or `layout` is none.
        """
        if layout not in (None, "bnhw", "bhwn"):
            raise ValueError(f'layout is {layout!r}, expected "bnhw" (maps first), "bhwn" (channels last), or None')
        self.module = unwrap(module)
        self.name, self.layer = _find(self.module, layer)
        self.layout = layout

    def __call__(self, images: Images, *, second_order: bool = False, replay: bool = False) -> Pass:
        """Run the network once; `second_order` makes the tail's attention twice differentiable.

        `replay` keeps what the head handed out, for a pass that has a `tail`.

        Autocast is off: maps, logits and derivatives are what the parameters' own precision gives.

        Raises
        ------
        ValueError
            When the layer does not run exactly once, or puts out no map, or the network no (b, c) logits.
        """
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(images.device.type, enabled=False),
            ExitStack() as tail,
        ):
            mode = CompositeAttention if second_order else nullcontext
            tap = _Tap(self.name, tail, mode())
            log = Log(self.module, self.name) if replay else None
            logits = twin(self.module, {self.layer: tap}, log.calls if log else {})(images.clone())
        if len(tap.leaves) != 1:
            raise ValueError(self._runs(len(tap.leaves), images))
        layer = self._target_layer(tap.leaves[0], images)
        if log is None:
            return Pass(layer, tap.leaves[0], logits_of(logits, len(images)))
        shape, kept = (layer.maps, *layer.positions), images.detach().clone()
        again = Tail(self.module, self.layer, log.ended, kept, shape, layer.layout, mode)
        return Pass(layer, tap.leaves[0], logits_of(logits, len(images)), again)

    def tail(self, images: Images) -> Tail:
        """What gives the logits of other activation maps of these images, from one pass."""
        found = self(images, replay=True).tail
        assert found is not None
        return found

    def inference(self) -> Callable[[Tensor], Tensor]:
        """What gives logits (b, c) of images without a cut or a graph, under the same conditions; for one thread."""
        with torch.inference_mode(False):
            network = twin(self.module, {})

        def infer(images: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                return logits_of(network(images), len(images))

        return infer

    def _target_layer(self, output: Tensor, images: Tensor) -> TargetLayer:
        if output.ndim != 4 or len(output) != len(images):
            raise ValueError(
                f"layer {self.name!r} puts out a tensor of shape {tuple(output.shape)} for {len(images)} images, expected "
                f"activation maps (b, n, h, w) or (b, h, w, n); {self._suitable(images)}"
            )
        size = (images.shape[-2], images.shape[-1])
        layout = self.layout or find_layout(
            tuple(output.shape), size, getattr(self.module, "output_fmt", None), self.name
        )
        n, h, w = output.shape[1:] if layout == "bnhw" else (output.shape[3], *output.shape[1:3])
        if h * w == 1:
            raise ValueError(
                f"layer {self.name!r} puts out maps of a single position, shape {tuple(output.shape)}, so there is "
                f"nothing to compare; {self._suitable(images)}"
            )
        return TargetLayer(self.name, layout, n, (h, w))

    def _runs(self, runs: int, images: Tensor) -> str:
        if runs == 0:
            return f"layer {self.name!r} did not run in a forward pass of the network; {self._suitable(images)}"
        return (
            f"layer {self.name!r} ran {runs} times in one forward pass, so its activation maps are ambiguous; "
            f"name a layer that runs once, such as the block that holds it; {self._suitable(images)}"
        )

    def _suitable(self, images: Tensor) -> str:
        """Names of layers near the target that can be one, for the end of an error message."""
        found = [layer.name for layer in layers(self.module, images[:1])]
        parents = self.name.split(".")

        def apart(name: str) -> int:
            return -next((k for k in range(len(parents), 0, -1) if name.split(".")[:k] == parents[:k]), 0)

        found.reverse()
        near = sorted(found, key=apart)[:4]
        return f"suitable layers nearby: {', '.join(near)}" if near else "the network has no layer that puts out maps"


def layers(module: nn.Module, images: Images) -> list[TargetLayer]:
    """All layers of a module that can be a target: they run once and put out maps; in the order in which they end."""
    module = unwrap(module)
    outputs: dict[str, list[Any]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            outputs.setdefault(name, []).append(tuple(output.shape) if isinstance(output, Tensor) else None)

        return hook

    with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        cuttable = {name: m for name, m in named_layers(module).items() if not isinstance(m, torch.jit.ScriptModule)}
        twin(module, {m: record(name) for name, m in cuttable.items()})(images.clone())
    found = []
    for name, shapes in outputs.items():
        if len(shapes) == 1 and shapes[0] is not None and len(shapes[0]) == 4 and shapes[0][0] == len(images):
            try:
                layout = find_layout(
                    shapes[0], (images.shape[-2], images.shape[-1]), getattr(module, "output_fmt", None), name
                )
            except ValueError:
                continue
            n, h, w = shapes[0][1:] if layout == "bnhw" else (shapes[0][3], *shapes[0][1:3])
            if h * w > 1:
                found.append(TargetLayer(name, layout, n, (h, w)))
    return found


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules by the dotted names that they have without torch.compile's wrappers."""
    return {_uncompiled(name): unwrap(each) for name, each in module.named_modules() if _uncompiled(name)}


def _uncompiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def find_layout(shape: tuple[int, ...], size: tuple[int, int], output_fmt: str | None, name: str) -> Layout:
    """Which axes of a layer's output (b, ., ., .) are the positions, given the image's (H, W).

    The positions have the image's proportions, give or take one row or column. Where both readings or neither do,
    timm's `output_fmt` decides; without it, maps first, unless the last axis looks like the channels.

    Raises
    ------
    ValueError
        When that does not settle it.
    """
    first, last = _proportionate(shape[2:], size), _proportionate(shape[1:3], size)
    if first != last:
        return "bnhw" if first else "bhwn"
    if output_fmt in ("NHWC", "NCHW"):
        return "bhwn" if output_fmt == "NHWC" else "bnhw"
    if shape[3] > max(shape[1], shape[2]) or (first and last and shape[1] == shape[2] == shape[3]):
        raise ValueError(
            f"layer {name!r} puts out {shape}, which for an image of {size[0]} x {size[1]} may be (b, n, h, w) or "
            '(b, h, w, n); say which with layout="bnhw" or layout="bhwn"'
        )
    return "bnhw"


def _proportionate(positions: tuple[int, ...], size: tuple[int, int]) -> bool:
    return abs(positions[0] * size[1] - positions[1] * size[0]) < max(size)


class CompositeAttention(TorchFunctionMode):
    """Attention in its composite form: fused kernels have no second derivative.

    A mode belongs to the thread that entered it; `torch.nn.attention.sdpa_kernel` sets flags of the whole process.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _composite(*args, **(kwargs or {}))
        if func is multi_head_attention_forward:
            # What it calls is out of the mode's sight; it takes the composite form where it must hand out the weights.
            output, weights = func(*args, **{**(kwargs or {}), "need_weights": True})
            return output, weights if (kwargs or {}).get("need_weights", True) else None
        return func(*args, **(kwargs or {}))


def _composite(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # else it would be added as 0 and 1
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -torch.inf)
    attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(q, k, v, attn_mask, *args, **kwargs)[0]
    return attended


@dataclass
class _Tap:
    """The hook at the target layer: takes its output as a leaf, and hands a copy on, from where on a graph is built."""

    name: str
    tail: ExitStack
    mode: AbstractContextManager[Any]
    """What the tail, from here on, runs under."""
    leaves: list[Tensor] = field(default_factory=list)

    def __call__(self, module: nn.Module, given: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {self.name!r} puts out a {type(output).__name__}, expected one tensor of activation maps; "
                "name a layer inside it, or behind it"
            )
        leaf = output.detach().clone().requires_grad_(output.is_floating_point())
        if not self.leaves:
            self.tail.enter_context(self.mode)
        self.leaves.append(leaf)
        torch.set_grad_enabled(True)
        return leaf.clone()


def _find(module: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    if isinstance(layer, str):
        for name in (layer, layer.removeprefix("_orig_mod."), layer.removeprefix("module.")):
            with suppress(
                AttributeError, RuntimeError
            ):  # the latter if it is a ScriptModule, which lacks get_submodule
                if name:
                    return _uncompiled(name), unwrap(module.get_submodule(name))
        known = named_layers(module)
        if layer in known:
            return layer, known[layer]
        raise ValueError(f"the network has no layer {layer!r}; {nearest(layer, known)}")
    for name, each in named_layers(module).items():
        if each is unwrap(layer):
            return name, each
    raise ValueError(f"layer is a {type(layer).__name__} that is not part of the network; pass one of its submodules")
