"""A network run once: its layers in the order in which they end, and those of them that can be a target."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .facts import Facts, told
from .inputs import Given, call, size_of
from .layout import AmbiguousError, TargetLayer, place
from .twin import twin, unwrap


@dataclass(frozen=True)
class End:
    """A layer that ended in a dry run."""

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None
    """Of the tensor that it put out; None for anything else."""
    output: Tensor | None
    """That tensor, where the run has a graph that goes through it."""


def ends(module: nn.Module, given: Given) -> tuple[Any, list[End]]:
    """What a private copy of a network puts out, and every end of a layer on the way, in order; in the caller's modes."""
    ended: list[End] = []

    def record(name: str, layer: nn.Module) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(copied: nn.Module, given: Any, output: Any) -> Any:
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            kept = output if shape is not None and output.is_floating_point() and output.requires_grad else None
            ended.append(End(name, layer, shape, kept))
            return None if kept is None else kept.clone()  # what follows may write into it

        return hook

    cuttable = {n: m for n, m in named_layers(module).items() if not isinstance(m, torch.jit.ScriptModule)}
    return call(twin(module, {layer: record(name, layer) for name, layer in cuttable.items()}), given), ended


def once(ended: Sequence[End]) -> list[End]:
    """Those that ended once, and put out a tensor."""
    runs = Counter(each.name for each in ended)
    return [each for each in ended if runs[each.name] == 1 and each.shape]


def until(ended: Sequence[End], layer: nn.Module) -> list[nn.Module]:
    """What had ended by the first time that `layer` ended, and it."""
    modules = [each.module for each in ended]
    return modules[: modules.index(layer) + 1] if layer in modules else []


def layers(module: nn.Module, images: Given) -> list[TargetLayer]:
    """All layers of a module that can be a target: they run once and put out maps; in the order in which they end."""
    module = unwrap(module)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        _, ended = ends(module, images.clone())
    found = []
    for each in once(ended):
        with suppress(AmbiguousError):
            found += [layer] if (layer := placed_at(each, ended, module, images)) is not None else []
    return found


def placed_at(end: End, ended: Sequence[End], module: nn.Module, images: Given) -> TargetLayer | None:
    """How to read what a layer put out; None where it puts out no maps.

    Raises
    ------
    AmbiguousError
        When nothing tells how.
    """
    if not end.shape or end.shape[0] != len(images):
        return None
    try:
        facts = Facts.of(module, end.module)
        layer = place(end.name, end.shape, size_of(images), facts, lambda: told(until(ended, end.module)))
    except AmbiguousError:
        raise
    except ValueError:
        return None
    return layer if prod(layer.positions) > 1 else None


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """All submodules by the dotted names that they have without torch.compile's wrappers."""
    return {uncompiled(name): unwrap(each) for name, each in module.named_modules() if uncompiled(name)}


def uncompiled(name: str) -> str:
    """The dotted name of a layer without torch.compile's wrappers."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
