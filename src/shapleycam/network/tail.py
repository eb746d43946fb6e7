"""The tail of a cut network, replayed: logits for other activation maps, without the layers in front of the target.

While the network runs, what each module hands out before the target begins is recorded; in a replay the outermost of these
modules hand that out again instead of running, and the target hands out the maps of the caller. Code between modules runs
again, so residual branches come out right.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_leaves, tree_map_only

from ..theory.axes import Logits, Maps
from .twin import Call, twin, unwrap

_FORWARD: Any = nn.Module.forward


class Log:
    """What ended before the target began: the outermost modules' outputs, in the order in which they ended."""

    def __init__(self, root: nn.Module, target: str) -> None:
        self.ended: list[tuple[nn.Module, Any]] = []
        self._running: list[list[tuple[nn.Module, Any]]] = [self.ended]
        self._open = True
        *above, last = _path(root, target)
        self.calls: dict[nn.Module, Call] = {module: self._record(module) for module in _beside(above, last)}
        """What the copies of modules do instead of running: run, and say so."""
        self.calls[last] = self._close

    def _record(self, module: nn.Module) -> Call:
        def call(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if not self._open:
                return run(*args, **kwargs)
            self._running.append([])
            output = run(*args, **kwargs)
            self._running.pop()
            if not self._open:  # the target was in it
                return output
            self._running[-1].append((module, output))
            return tree_map_only(Tensor, Tensor.clone, output)  # what follows may write into it

        return call

    def _close(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._open:
            self._open = False
            self.ended = [each for level in self._running for each in level]
        return run(*args, **kwargs)


class Tail:
    """Logits for other activation maps of b images; any number of threads may ask."""

    def __init__(
        self,
        root: nn.Module,
        target: nn.Module,
        ended: list[tuple[nn.Module, Any]],
        images: Tensor,
        layout: str,
        mode: Callable[[], Any],
    ) -> None:
        self._root, self._target, self._ended = root, target, ended
        self._images, self._layout, self._mode = images, layout, mode
        self._idle: list[_Replay] = []
        self._ways = [_broadcast, _repeated_when_touched, _repeated]

    def __call__(self, maps: Maps) -> Logits:
        """Logits (k b, c) for maps (k b, n, h, w): row i is of image i modulo b. With a graph where `maps` has one.

        Raises
        ------
        ValueError
            When there are not as many rows for each image.
        """
        if not len(maps) or len(maps) % len(self._images):
            raise ValueError(
                f"got maps of shape {tuple(maps.shape)}, expected as many rows for each of {len(self._images)} images"
            )
        return self.of(maps.clone)

    def of(self, maps: Callable[[], Tensor]) -> Tensor:
        """As a call, for what `maps` gives, which the tail may write into; it is asked again where that was in vain."""
        grad, autocast = torch.is_grad_enabled(), torch.autocast(self._images.device.type, enabled=False)
        replay = self._idle.pop() if self._idle else _Replay(self._root, self._target, self._ended)
        with torch.inference_mode(False), torch.set_grad_enabled(grad), autocast, self._mode():
            while True:
                given, way = maps(), self._ways[0]
                try:
                    logits = replay(self._images, self._as_put_out(given), len(given) // len(self._images), way)
                    if way is _repeated or (isinstance(logits, Tensor) and len(logits) == len(given)):
                        break
                except (RuntimeError, ValueError, IndexError, AssertionError):
                    if way is _repeated:
                        raise
                self._ways = self._ways[self._ways.index(way) + 1 :]
        self._idle.append(replay)
        return logits_of(logits.as_subclass(Tensor) if isinstance(logits, _Recorded) else logits, len(given))

    def _as_put_out(self, maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).contiguous() if self._layout == "bhwn" else maps


class _Replay:
    """A copy of the network whose modules hand out what is recorded of them; for one thread at a time."""

    def __init__(self, root: nn.Module, target: nn.Module, ended: list[tuple[nn.Module, Any]]) -> None:
        self.ended = ended
        self.left: dict[nn.Module, deque[Any]] = {module: deque() for module, _ in self.ended}
        self.hand_out: Callable[[Any], Any]
        calls = {module: self._stub(module, left) for module, left in self.left.items()} | {target: self._stand_in}
        self.network = twin(root, {}, calls, closed=calls)
        self.running: dict[nn.Module, nn.Module] = {}

    def __call__(self, images: Tensor, output: Tensor, times: int, way: Callable[[Tensor, int], Tensor]) -> Any:
        def hand_out(value: Any) -> Any:
            return tree_map_only(Tensor, lambda tensor: way(tensor, times), value)

        for left in self.left.values():
            left.clear()
        for module, value in self.ended:
            self.left[module].append(value)
        self.output, self.hand_out = output, hand_out
        try:
            return self.network(hand_out(images))
        finally:
            del self.output, self.hand_out

    def _stub(self, module: nn.Module, left: deque[Any]) -> Call:
        def call(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if left:
                return self.hand_out(left.popleft())
            if module not in self.running:  # in the tail too
                self.running[module] = twin(module, {})
            return self.running[module](*args, **kwargs)

        return call

    def _stand_in(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        return self.output


class _Recorded(Tensor):
    """A tensor of b images that the head handed out, where k b rows of maps are under way.

    It keeps its b rows. Where it meets the maps and the operation insists, it becomes k copies of them, or as soon as it is
    touched; before anything writes into it, it gets a storage of its own.
    """

    times: int
    own: bool
    lazy: bool

    @classmethod
    def of(cls, tensor: Tensor, times: int, own: bool, lazy: bool) -> Tensor:
        # Handed out it is no view, or writes that have a graph would give one to what is recorded.
        recorded = tensor.as_subclass(cls) if own else Tensor._make_subclass(cls, tensor)
        recorded.times, recorded.own, recorded.lazy = times, own, lazy
        return recorded

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with DisableTorchFunctionSubclass():
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            mine = [t for t in tensors if isinstance(t, cls)]
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
            return tree_map_only(Tensor, lambda t: t if isinstance(t, cls) else cls.of(t, times, True, lazy), output)


def _broadcast(tensor: Tensor, times: int) -> Tensor:
    return _Recorded.of(tensor, times, own=False, lazy=True)


def _repeated_when_touched(tensor: Tensor, times: int) -> Tensor:
    return _Recorded.of(tensor, times, own=False, lazy=False)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1)) if tensor.ndim else tensor.clone()


def _repeat(recorded: Iterable[_Recorded]) -> None:
    for t in recorded:
        if t.times > 1 and t.ndim:
            t.data, t.times, t.own = _repeated(t.detach(), t.times), 1, True


def _own(recorded: Iterable[_Recorded]) -> None:
    for t in recorded:
        if not t.own:
            t.data, t.own = t.detach().clone(), True


def _are_rows(tensor: Tensor, recorded: Iterable[_Recorded]) -> bool:
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


def _path(root: nn.Module, name: str) -> list[nn.Module]:
    path = [root]
    for part in name.split("."):
        path.append(unwrap(getattr(path[-1], part)))
    return path


def _beside(above: list[nn.Module], target: nn.Module) -> Iterable[nn.Module]:
    """The modules that the target's ancestors call: their other children, or those inside lists of such."""
    queue = [unwrap(child) for parent in above for child in parent.children()]
    while queue:
        module = queue.pop()
        if type(module).forward is _FORWARD:  # a list, say, which nobody calls
            queue += map(unwrap, module.children())
        elif module is not target and module not in above and not isinstance(module, torch.jit.ScriptModule):
            yield module


def logits_of(output: Any, images: int) -> Logits:
    """What a network put out, if that is logits of so many images."""
    if not isinstance(output, Tensor):
        raise TypeError(f"the network puts out a {type(output).__name__}, expected a tensor of logits (b, c)")
    if output.ndim != 2 or output.shape[0] != images:
        raise ValueError(f"the network puts out {tuple(output.shape)} for {images} images, expected logits (b, c)")
    return output
