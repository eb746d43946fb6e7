"""Which layer to explain: the one that feeds the last spatial reduction, found by running the network once."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..theory.utility import UTILITIES
from .derived import Derived
from .ends import End, ends, once, placed_at
from .facts import Facts
from .inputs import Given, Inputs, Output, logits_of, size_of
from .layout import AmbiguousError, TargetLayer, fits
from .recorded import tensors_in
from .twin import replaced, unwrap

FEW = 32
"""Positions up to which tokens may lie on no grid at all."""
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
    seen, ended, logits, of_pixels = _dry_run(module, images, output)
    placed, doubtful = [], []
    for each in seen:
        try:
            placed += [(each, layer)] if (layer := _placed(each, ended, module, images)) is not None else []
        except AmbiguousError as error:  # without a traceback, which would keep the whole run
            doubtful += [(each, error.with_traceback(None))] if len(each.shape or ()) != 4 else []
    ranked = _ranked(placed, logits, of_pixels)
    _refuse_doubtful(doubtful, ended, ranked, logits)
    if not ranked or not ranked[0].gradient:
        often = [
            name for name, runs in Counter(each.name for each in ended if each.output is not None).items() if runs > 1
        ]
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


def _refuse_doubtful(
    doubtful: list[tuple[End, AmbiguousError]], ended: list[End], ranked: list[Suggestion], logits: Tensor
) -> None:
    """Raise what was said of the last layer that can be read in several ways, if it ends behind the best and counts.

    A few tokens that lie on no grid, such as a decoder's queries, may look like several small ones: these are passed over.
    """
    names = [each.name for each in ended]
    best = ranked[0].layer if ranked and ranked[0].gradient else None
    later = [
        (each, error)
        for each, error in doubtful
        if best is None
        or (
            names.index(each.name) > names.index(best.name)
            and any(one.positions == best.positions or prod(one.positions) > FEW for one in error.candidates)
        )
    ]
    slopes = _slopes([each for each, _ in later], logits)
    if errors := [error for (_, error), slope in zip(later, slopes, strict=True) if slope is not None and slope.any()]:
        raise errors[-1]


def _dry_run(module: nn.Module, images: Given, output: Output | None) -> tuple[list[End], list[End], Tensor, bool]:
    """The layers that run once and put out what is made of the images, every end of a layer, and the logits.

    And whether these are made of class scores at every position.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        Derived(second_order=True, trained=True),
    ):
        given, leaf = _tracked(images)
        put_out, ended = ends(module, given)
        logits = logits_of(put_out, len(images), output)
        tracked = [each for each in once(ended) if each.output is not None]
        made = _made_of([each.output for each in tracked if each.output is not None], leaf)
    of_pixels = output is not None and any(t.ndim == 4 and t.shape[1] == logits.shape[1] for t in tensors_in(put_out))
    return [each for each, is_made in zip(tracked, made, strict=True) if is_made], ended, logits, of_pixels


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


def _placed(end: End, ended: list[End], module: nn.Module, images: Given) -> TargetLayer | None:
    if (layer := placed_at(end, ended, module, images)) is None:
        return None
    size, facts = size_of(images), Facts.of(module, end.module)
    signal = layer.layout == "bnt" and len(size) > 1  # a detector's boxes, and their classes
    # Convolutions that do not pad, and pooling along one axis, leave the proportions of an oblong image.
    fitting = fits(layer.positions, size) or (layer.layout == "bnhw" and facts.first)
    return layer if fitting and not signal else None


def _slopes(some: list[End], logits: Tensor) -> list[Tensor | None]:
    """U' of the predicted class at what each layer put out; None where it does not depend on that."""
    outputs = [each.output for each in some if each.output is not None]
    if not outputs or not logits.requires_grad:
        return [None] * len(some)
    with torch.inference_mode(False), torch.enable_grad():
        predicted = logits.detach().argmax(1)
        utility = UTILITIES["rest" if logits.shape[1] > 1 else "pre-softmax"](logits, predicted).sum()
        return [*torch.autograd.grad(utility, outputs, allow_unused=True, retain_graph=True)]


def _ranked(placed: list[tuple[End, TargetLayer]], logits: Tensor, of_pixels: bool) -> list[Suggestion]:
    """`of_pixels` says that the logits are made of class scores at every position."""
    if not placed or not logits.requires_grad:
        return []
    slopes = _slopes([seen for seen, _ in placed], logits)
    found = [
        (seen, layer, 0.0 if slope is None else float(layer.maps_of(slope).abs().mean()))
        for (seen, layer), slope in zip(placed, slopes, strict=True)
    ]
    found.reverse()
    width = next((layer.maps for seen, layer, _ in found if not isinstance(seen.module, nn.Linear)), 0)
    blind = [layer.name for _, layer, size in found if not size]

    def inner(each: tuple[End, TargetLayer, float]) -> bool:
        # The residual stream is as wide as the last maps; queries, hidden layers and class scores are not. Values are: no Linear.
        seen, layer, _ = each
        inside = layer.layout == "btn" and (layer.maps != width or isinstance(seen.module, nn.Linear))
        scores = of_pixels and layer.maps == logits.shape[1]  # a segmentation's, which have little to explain
        return (
            inside or scores or layer.maps == 1 or isinstance(seen.module, nn.Softmax)
        )  # attention, as wide as it is high

    found.sort(key=lambda each: (not each[2], inner(each), isinstance(each[0].module, _PASSIVE)))
    best = found[0][1]
    return [Suggestion(each[1], _why(each[1], each[2], best, blind, inner(each)), each[2]) for each in found]


def _why(layer: TargetLayer, size: float, best: TargetLayer, blind: list[str], inner: bool) -> str:
    if not size:
        reads = "a class token alone is read behind it" if layer.prefix else "nothing behind it reads its positions"
        return f"its gradient is zero at every position: {reads}, so every heatmap is blank"
    if layer is not best:
        return "inside a block, or class scores: not as wide as the last maps" if inner else "ends earlier"
    if blind:
        return f"the last layer whose positions the prediction depends on; at {blind[0]}, which ends later, U' is zero"
    return "feeds the last spatial reduction"
