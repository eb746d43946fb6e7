"""Which layer to explain: the one that feeds the last spatial reduction, found by running the network once."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..theory.utility import UTILITIES
from .cut import CompositeAttention, named_layers
from .inputs import Given, Inputs, Output, call, logits_of, size_of
from .layout import Facts, TargetLayer, fits, maps_last, place
from .twin import replaced, twin, unwrap

_PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Suggestion:
    """A layer that can be explained, and why it stands where it does in the ranking."""

    layer: TargetLayer
    why: str
    gradient: float
    """Mean magnitude of U' at the layer, over its positions and maps; at 0 every heatmap is blank."""

    def __str__(self) -> str:
        return f"{self.layer}: {self.why}"


@dataclass
class _Seen:
    """What a layer put out in the dry run, as a tensor that the run's graph goes through."""

    name: str
    module: nn.Module
    output: Tensor


def suggest(module: nn.Module, images: Given, output: Output | None = None) -> list[Suggestion]:
    """Layers that can be a target, best first.

    One forward pass and one backward pass of the predicted class through the whole network. Layers rank by how late they
    end, those whose gradient vanishes at the positions behind all others.

    Raises
    ------
    ValueError
        When the network has no layer with maps on which its prediction depends.
    """
    module = unwrap(module)
    seen, logits, often = _dry_run(module, images, output)
    placed = [(each, layer) for each in seen if (layer := _placed(each, module, images)) is not None]
    ranked = _ranked(placed, logits)
    if not ranked or not ranked[0].gradient:
        raise ValueError(
            f"no layer of {type(module).__name__} puts out maps of more than one position on which the prediction depends, so "
            "there is nothing to explain by position; "
            + (
                replaced(module)
                or (often and f"{often[-1]!r} runs several times in a forward pass; explain a module that runs it once")
                or "name one with layer= and say how to read it with layout=sc.Layout(...). A head whose weights are all zero, "
                "as some networks have before they are trained, depends on nothing"
            )
        )
    return ranked


def _dry_run(module: nn.Module, images: Given, output: Output | None) -> tuple[list[_Seen], Tensor, list[str]]:
    """Every tensor that a layer which runs once puts out, in the order in which they end, the logits, and who runs often."""
    runs: dict[str, list[_Seen | None]] = {}

    def record(name: str, layer: nn.Module) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(copied: nn.Module, given: Any, put_out: Any) -> Any:
            known = runs.setdefault(name, [])
            if not isinstance(put_out, Tensor) or not put_out.is_floating_point() or not put_out.requires_grad:
                known.append(None)
                return None
            known.append(_Seen(name, layer, put_out))
            return put_out.clone()  # what follows may write into it

        return hook

    cuttable = {n: m for n, m in named_layers(module).items() if not isinstance(m, torch.jit.ScriptModule)}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        CompositeAttention(),
    ):
        network = twin(module, {layer: record(name, layer) for name, layer in cuttable.items()})
        given, leaf = _tracked(images)
        logits = logits_of(call(network, given), len(images), output)
        once = [each for (each, *more) in runs.values() if each is not None and not more]
        seen = _made_of([each.output for each in once], leaf)
    often = [name for name, outputs in runs.items() if len(outputs) > 1 and outputs[-1] is not None]
    return [each for each, made in zip(once, seen, strict=True) if made], logits, often


def _tracked(images: Given) -> tuple[Given, Tensor]:
    """The inputs with a graph that begins at the images, so that networks of frozen parameters have one too; and the images."""
    kept = images.images if isinstance(images, Inputs) else images
    leaf = kept.detach().clone().requires_grad_(kept.is_floating_point())
    if isinstance(images, Inputs):
        return images.map(lambda tensor: leaf * 1 if tensor is kept else tensor.detach().clone()), leaf
    return leaf * 1, leaf


def _made_of(outputs: list[Tensor], leaf: Tensor) -> list[bool]:
    """Whether each output's graph leads back to the images: positional embeddings and a text's tokens do not."""
    goal = (leaf * 1).grad_fn.next_functions[0][0] if leaf.requires_grad else None  # type: ignore[union-attr]
    known: dict[Any, bool] = {goal: True}
    for output in outputs:
        stack = [output.grad_fn]
        while stack:
            node = stack[-1]
            if node is None or node in known:
                stack.pop()
                continue
            before = [each for each, _ in node.next_functions if each is not None]
            waiting = [each for each in before if each not in known]
            if waiting and not any(known.get(each) for each in before):
                stack += waiting
            else:
                known[node] = any(known.get(each, False) for each in before)
                stack.pop()
    return [known.get(output.grad_fn, False) for output in outputs]


def _placed(seen: _Seen, module: nn.Module, images: Given) -> TargetLayer | None:
    shape, size = tuple(seen.output.shape), size_of(images)
    if shape[0] == len(images):
        with suppress(ValueError):
            facts = Facts.of(module, seen.module)
            layer = place(seen.name, shape, size, facts, partial(maps_last, module, seen.module))
            signal = layer.layout == "bnt" and len(size) > 1  # a detector's boxes, and their classes
            # Convolutions that do not pad, and pooling along one axis, leave the proportions of an oblong image.
            fitting = fits(layer.positions, size) or (layer.layout == "bnhw" and facts.first)
            return layer if prod(layer.positions) > 1 and fitting and not signal else None
    return None


def _ranked(placed: list[tuple[_Seen, TargetLayer]], logits: Tensor) -> list[Suggestion]:
    if not placed or not logits.requires_grad:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        predicted = logits.detach().argmax(1)
        utility = UTILITIES["rest" if logits.shape[1] > 1 else "pre-softmax"](logits, predicted).sum()
        slopes = torch.autograd.grad(utility, [seen.output for seen, _ in placed], allow_unused=True)
    found = [
        (seen, layer, 0.0 if slope is None else float(layer.maps_of(slope).abs().mean()))
        for (seen, layer), slope in zip(placed, slopes, strict=True)
    ]
    found.reverse()
    width = next((layer.maps for seen, layer, _ in found if not isinstance(seen.module, nn.Linear)), 0)
    blind = [layer.name for _, layer, size in found if not size]

    def inner(each: tuple[_Seen, TargetLayer, float]) -> bool:
        # The residual stream is as wide as the last maps; queries, hidden layers and class scores are not. Values are: no Linear.
        seen, layer, _ = each
        inside = layer.layout == "btn" and (layer.maps != width or isinstance(seen.module, nn.Linear))
        return inside or layer.maps == 1 or isinstance(seen.module, nn.Softmax)  # attention, as wide as it is high

    found.sort(key=lambda each: (not each[2], inner(each), isinstance(each[0].module, _PASSIVE)))
    best = found[0][1]
    return [Suggestion(each[1], _why(each[1], each[2], best, blind, inner(each)), each[2]) for each in found]


def _why(layer: TargetLayer, size: float, best: TargetLayer, blind: list[str], inner: bool) -> str:
    if not size:
        reads = "a class token alone is read behind it" if layer.prefix else "nothing behind it reads its positions"
        return f"its gradient is zero at every position: {reads}, so every heatmap is blank"
    if layer is not best:
        return "inside a block: not as wide as the last maps" if inner else "ends earlier"
    if blind:
        return f"the last layer whose positions the prediction depends on; at {blind[0]}, which ends later, U' is zero"
    return "feeds the last spatial reduction"
