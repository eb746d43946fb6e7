"""What the head of a cut network handed out, as tensors that stand for one row an image, or for several."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_leaves, tree_map_only

Way = Callable[[Tensor, int, list[Any]], Tensor]
"""How what the head handed out is given to k rows of maps for each of its images."""


class Recorded(Tensor):
    """A tensor of b images that the head handed out, where k b rows of maps are under way.

    It keeps its b rows. Where it meets the maps and the operation insists, it becomes k copies of them, or as soon as it is
    touched; before anything writes into it, it gets a storage of its own.
    """

    times: int
    own: bool
    lazy: bool
    seen: list[Any]
    """Told of every operation that is done with it."""

    @classmethod
    def of(cls, tensor: Tensor, times: int, own: bool, lazy: bool, seen: list[Any]) -> Tensor:
        # Handed out it is no view, or writes that have a graph would give one to what is recorded.
        recorded = tensor.as_subclass(cls) if own else Tensor._make_subclass(cls, tensor)
        recorded.times, recorded.own, recorded.lazy, recorded.seen = times, own, lazy, seen
        return recorded

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        # A graph for what hangs on the maps alone: one to parameters has the recorded number of rows.
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors if not isinstance(t, nn.Parameter))
        with DisableTorchFunctionSubclass(), torch.set_grad_enabled(graph):
            mine = [t for t in tensors if isinstance(t, cls)]
            mine[0].seen.append(func)
            if not all(t.lazy for t in mine):
                _repeat(mine)
            if _may_write(func, args, kwargs):
                _own(mine)
            times, lazy = max(t.times for t in mine), all(t.lazy for t in mine)
            met = any(_are_rows(t, mine) for t in tensors if not isinstance(t, cls | nn.Parameter))
            try:
                output = func(*args, **kwargs)
            except RuntimeError:
                if not met:
                    raise
                _repeat(mine)
                output = func(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if any(_storage(t) == _storage(new) for t in mine if not t.own for new in made if new is not t):
                _own(mine)  # for nobody knows what will be written into a view
                output = func(*args, **kwargs)
            if met:
                return output
            return tree_map_only(
                Tensor, lambda t: t if isinstance(t, cls) else cls.of(t, times, True, lazy, mine[0].seen), output
            )


def broadcast(tensor: Tensor, times: int, seen: list[Any]) -> Tensor:
    return Recorded.of(tensor, times, False, True, seen)


def repeated_when_touched(tensor: Tensor, times: int, seen: list[Any]) -> Tensor:
    return Recorded.of(tensor, times, False, False, seen)


def repeated(tensor: Tensor, times: int, seen: Any = None) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor.clone()


def _repeat(recorded: Iterable[Recorded]) -> None:
    for t in recorded:
        if t.times > 1 and t.ndim:
            t.data, t.times, t.own = repeated(t.detach(), t.times), 1, True


def _own(recorded: Iterable[Recorded]) -> None:
    for t in recorded:
        if not t.own:
            t.data, t.own = t.detach().clone(), True


def _are_rows(tensor: Tensor, recorded: Iterable[Recorded]) -> bool:
    return tensor.ndim > 1 and any(t.ndim > 0 and len(tensor) == t.times * len(t) for t in recorded)


def _may_write(func: Any, args: Any, kwargs: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (
        (name.endswith("_") and not name.endswith("__"))
        or name.startswith(("__i", "__set"))
        or any(value is True for value in (*args, *kwargs.values()))  # inplace, most of all
        or "out" in kwargs
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
