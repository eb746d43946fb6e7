"""A network cut once, at its target layer: a head that runs without a graph, activation maps, and a tail behind them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..theory.axes import Logits, Maps
from ..theory.cams import nearest
from .derived import Derived
from .ends import ends, layers, named_layers, uncompiled, until
from .facts import Facts, Told, told
from .inputs import Given, Output, call, logits_of, size_of
from .layout import AmbiguousError, Axes, Layout, TargetLayer, as_layout, place
from .tail import Log, Tail
from .twin import replaced, twin, unwrap


@dataclass(frozen=True)
class Pass:
    """One forward pass through a cut network, its tail with a graph that begins at `leaf`."""

    layer: TargetLayer
    leaf: Maps
    """The target layer's own activation maps, (b, n, *positions): a tensor that the cut owns and nothing writes into."""
    logits: Logits
    tail: Tail | None = None
    """What gives the logits of other maps, if that was asked for."""


class CutNetwork:
    """A module and one of its layers, which is cut for the length of each pass, on a private copy of the module tree.

    The module itself is never written to: no hook, no mode, no flag. Any number of threads may run passes at once.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | nn.Module,
        layout: Axes | Layout | None = None,
        output: Output | None = None,
        reason: str = "",
        channels_last: bool = False,
        plain_last: bool = False,
    ) -> None:
        """`layer` is a dotted name or a submodule; `layout` None finds out; `output` makes logits of what the network puts out;
        `channels_last` gives it images (b, channels, H, W) in that memory format, not as they come; `plain_last` does where
        only logits are asked for.

        Raises
        ------
        ValueError
            When the module has no such layer, or `layout` is none.
        """
        self.module = unwrap(module)
        self.name, self.layer = _find(self.module, layer)
        self.layout, self.output, self.reason = as_layout(layout), output, reason
        self.facts = Facts.of(self.module, self.layer)
        self._kept: tuple[nn.Module, list[_Tap]] | None = None
        self._before: list[nn.Module] | None = None
        self._own = False
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._plain = torch.channels_last if plain_last else self._format

    def kept(self, *, own: bool = False) -> "CutNetwork":
        """The same cut with one copy of the module tree for all its passes: for one thread that changes nothing in between.

        `own` says that the network may write into the images that are given, for nobody needs them any more.
        """
        same = copy(self)
        same._own = own
        taps: list[_Tap] = []
        with torch.inference_mode(False):
            same._kept = twin(self.module, {self.layer: lambda *call: taps[-1](*call)}), taps
        return same

    def __call__(
        self, images: Given, *, second_order: bool = False, replay: bool = False, create_graph: bool = False
    ) -> Pass:
        """Run the network once; `second_order` makes the tail's attention twice differentiable.

        `replay` keeps what the head handed out, for a pass that has a `tail`. `create_graph` leaves the maps attached to the
        parameters and the images.

        Autocast is off: maps, logits and derivatives are what the parameters' own precision gives.

        Raises
        ------
        ValueError
            When the layer does not run exactly once, or puts out no map, or the network no (b, c) logits.
        """
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(create_graph),
            torch.autocast(images.device.type, enabled=False),
            ExitStack() as tail,
        ):
            mode = partial(Derived, second_order, trained=create_graph)
            tap = _Tap(lambda output: self._target_layer(output, images), tail, mode(), create_graph)
            if create_graph:  # the head is differentiated twice too
                tail.enter_context(mode())
            log = Log(self.module, self.name) if replay else None
            network = self._with(tap, log)
            own = self._own and not (replay or images.is_inference())
            given = images.detach() if own else images.clone(memory_format=self._format)
            logits = logits_of(call(network, given), len(images), self.output)
        if tap.runs != 1 or tap.layer is None or tap.leaf is None:
            raise ValueError(self._runs(tap.runs, images))
        if log is None:
            return Pass(tap.layer, tap.leaf, logits)
        kept = images.clone() if create_graph else images.detach().clone()
        composite = partial(Derived, second_order=True, trained=True) if second_order else nullcontext
        again = Tail(
            self.module, self.layer, log.ended, kept, tap.layer, tap.output, composite, self.output, create_graph
        )
        return Pass(tap.layer, tap.leaf, logits, again)

    def tail(self, images: Given) -> Tail:
        """What gives the logits of other activation maps of these images, from one pass."""
        found = self(images, replay=True).tail
        assert found is not None
        return found

    def inference(self) -> Callable[[Tensor], Tensor]:
        """What gives logits (b, c) of images without a cut or a graph, under the same conditions; for one thread."""
        infer = inference(self.module, self.output)
        return lambda images: infer(images.to(memory_format=self._plain))

    def formatted(self, images: Tensor) -> Tensor:
        """Images in the memory format in which the network takes them: what has it already is not copied again."""
        return images.to(memory_format=self._format)

    def _with(self, tap: "_Tap", log: Log | None) -> nn.Module:
        if self._kept is None or log is not None:
            return twin(self.module, {self.layer: tap}, log.calls if log else {})
        network, taps = self._kept
        taps[:] = [tap]
        return network

    def _target_layer(self, output: Any, images: Given) -> TargetLayer:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {self.name!r} puts out a {type(output).__name__}, expected one tensor of activation maps; "
                f"name a layer inside it, or behind it; {self._suitable(images)}"
            )
        shape, size = tuple(output.shape), size_of(images)
        if len(output) != len(images):
            raise ValueError(
                f"layer {self.name!r} puts out a tensor of shape {shape} for {len(images)} images, expected maps (b, ...); "
                f"{self._suitable(images)}"
            )
        try:
            layer = place(self.name, shape, size, self.facts, lambda: self._told(images[:1]), self.layout)
        except AmbiguousError:
            raise
        except ValueError as error:
            raise ValueError(f"{error}; {self._suitable(images)}") from None
        if prod(layer.positions) == 1:
            raise ValueError(
                f"layer {self.name!r} puts out maps of a single position, shape {shape}, so there is "
                f"nothing to compare; {self._suitable(images)}"
            )
        return replace(layer, reason=self.reason) if self.reason else layer

    def _told(self, image: Given) -> Told | None:
        own = self.facts.own() if len(size_of(image)) > 1 else told([self.layer])  # blocks end as they are registered
        if own is None and self._before is None:
            with torch.no_grad():
                self._before = until(ends(self.module, image.clone())[1], self.layer)
        return own or told(self._before or ())

    def _runs(self, runs: int, images: Given) -> str:
        if runs == 0:
            why = replaced(self.module) or self._suitable(images)
            return f"layer {self.name!r} did not run in a forward pass of the network; {why}"
        return (
            f"layer {self.name!r} ran {runs} times in one forward pass, so its activation maps are ambiguous; "
            f"name a layer that runs once, such as the block that holds it; {self._suitable(images)}"
        )

    def _suitable(self, images: Given) -> str:
        """Names of layers near the target that can be one, for the end of an error message."""
        found = [layer.name for layer in layers(self.module, images[:1])]
        parents = self.name.split(".")

        def apart(name: str) -> int:
            return -next((k for k in range(len(parents), 0, -1) if name.split(".")[:k] == parents[:k]), 0)

        found.reverse()
        near = sorted(found, key=apart)[:4]
        return f"suitable layers nearby: {', '.join(near)}" if near else "the network has no layer that puts out maps"


def inference(module: nn.Module, output: Output | None = None) -> Callable[[Tensor], Tensor]:
    """What gives logits (b, c) of images without a graph, in eval mode, autocast off; for one thread."""
    with torch.inference_mode(False):
        network = twin(unwrap(module), {})

    def infer(images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return logits_of(call(network, images), len(images), output)

    return infer


@dataclass
class _Tap:
    """The hook at the target layer: takes its maps as a leaf, and hands a copy on, from where on a graph is built."""

    read: Callable[[Any], TargetLayer]
    tail: ExitStack
    mode: AbstractContextManager[Any]
    """What the tail, from here on, runs under."""
    attached: bool = False
    """Whether the maps keep the graph that leads to them."""
    runs: int = 0
    layer: TargetLayer | None = None
    leaf: Tensor | None = None
    output: Tensor | None = None
    """What the layer put out, where it has more than the maps."""

    def __call__(self, module: nn.Module, given: Any, output: Any) -> Any:
        self.runs += 1
        if self.runs > 1:
            return output
        self.layer = self.read(output)
        put_out = output if self.attached else output.detach()
        self.output = put_out.clone() if self.layer.prefix else None
        self.leaf = self.layer.maps_of(put_out).clone()
        if not self.leaf.requires_grad:
            self.leaf.requires_grad_(self.leaf.is_floating_point())
        self.tail.enter_context(self.mode)
        torch.set_grad_enabled(True)
        return self.layer.put_back(self.leaf.clone(), put_out)


def _find(module: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    if isinstance(layer, str):
        for name in (layer, layer.removeprefix("_orig_mod."), layer.removeprefix("module.")):
            with suppress(
                AttributeError, RuntimeError
            ):  # the latter if it is a ScriptModule, which lacks get_submodule
                if name:
                    return uncompiled(name), unwrap(module.get_submodule(name))
        known = named_layers(module)
        if layer in known:
            return layer, known[layer]
        raise ValueError(f"the network has no layer {layer!r}; {nearest(layer, known)}")
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer is a {type(layer).__name__}, expected a dotted name or a submodule")
    for name, each in named_layers(module).items():
        if each is unwrap(layer):
            return name, each
    raise ValueError(f"layer is a {type(layer).__name__} that is not part of the network; pass one of its submodules")
