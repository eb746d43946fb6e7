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
from torch.utils._pytree import tree_map_only

from ..theory.axes import Logits, Maps
from .inputs import Given, Inputs, Output, call, logits_of
from .layout import TargetLayer
from .recorded import Recorded, Way, broadcast, repeated, repeated_when_touched, tensors_in
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
        def called(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if not self._open:
                return run(*args, **kwargs)
            self._running.append([])
            given = tensors_in((args, kwargs))
            versions = [tensor._version for tensor in given]
            output = run(*args, **kwargs)
            self._running.pop()
            if not self._open:  # the target was in it
                return output
            written = [(i, t.clone()) for i, (t, v) in enumerate(zip(given, versions, strict=True)) if t._version != v]
            same = next((i for i, t in enumerate(given) if t is output), None)
            self._running[-1].append((module, (None if same is not None else output, written, same)))
            return output if same is not None else tree_map_only(Tensor, Tensor.clone, output)

        return called

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
        images: Given,
        layer: TargetLayer,
        output: Tensor | None,
        mode: Callable[[], Any],
        logits: Output | None,
        attached: bool = False,
    ) -> None:
        """`attached` says that what is recorded has a graph, which a replay keeps."""
        self._root, self._target, self._ended = root, target, ended
        self._images, self._layer, self._output, self._mode, self._logits = images, layer, output, mode, logits
        self._idle: list[_Replay] = []
        self._ways: list[Way] = [repeated] if attached else [broadcast, repeated_when_touched, repeated]
        self._sure: set[Way] = set()

    def __call__(self, maps: Maps) -> Logits:
        """Logits (k b, c) for maps (k b, n, h, w): row i is of image i modulo b. With a graph where `maps` has one.

        Raises
        ------
        ValueError
            When there are not as many rows for each image.
        """
        shape = (self._layer.maps, *self._layer.positions)
        b, wanted = len(self._images), "x".join(map(str, shape))
        if maps.shape[1:] != shape or not len(maps) or len(maps) % b:
            raise ValueError(
                f"got maps of shape {tuple(maps.shape)}, expected rows of {wanted}, as many for each of {b} images"
            )
        return self.of(maps.clone)

    def of(self, maps: Callable[[], Tensor]) -> Tensor:
        """As a call, for what `maps` gives, which the tail may write into; it is asked again where that was in vain."""
        grad, autocast = torch.is_grad_enabled(), torch.autocast(self._images.device.type, enabled=False)
        try:
            replay = self._idle.pop()
        except IndexError:  # all are at work in other threads
            replay = _Replay(self._root, self._target, self._ended)
        with torch.inference_mode(False), torch.set_grad_enabled(grad), autocast, self._mode():
            for way in self._ways:
                given = maps()
                times = len(given) // len(self._images)
                try:
                    logits = self._once(replay, given, times, way)
                    fits = len(logits) == len(given)
                    if way is repeated or (fits and (times == 1 or not replay.seen or self._agrees(replay, way, maps))):
                        break
                except (RuntimeError, ValueError, LookupError, AssertionError, TypeError, AttributeError) as error:
                    if way is not repeated:
                        continue
                    if times == 1:
                        raise
                    raise ValueError(
                        f"the network behind layer {self._layer.name!r} cannot run on {times} rows of maps for each image "
                        f"({error}); games, the path row and methods that replay need that; first and second order do not"
                    ) from error
        self._ways = self._ways[self._ways.index(way) :] if way in self._ways else self._ways  # if no thread went on
        self._idle.append(replay)
        return logits

    def _once(self, replay: "_Replay", given: Tensor, times: int, way: Way) -> Tensor:
        output = given if self._output is None else self._output
        logits = logits_of(
            replay(self._images, self._layer.put_back(given, output), times, way), len(given), self._logits
        )
        return logits.as_subclass(Tensor) if isinstance(logits, Recorded) else logits

    def _agrees(self, replay: "_Replay", way: Way, maps: Callable[[], Tensor]) -> bool:
        """Whether two rows an image give the same with tensors that are repeated at once: asked once of each way.

        Code that counts the images of what the head handed out could mix rows, or leave some out.
        """
        if way not in self._sure:
            with torch.no_grad():
                some = maps()[: 2 * len(self._images)].detach()
                tried, true = (self._once(replay, some.clone(), 2, each) for each in (way, repeated))
                if not float((tried - true).abs().amax()) <= 1e-4 * float(true.abs().amax()):
                    return False
            self._sure.add(way)
        return True


class _Replay:
    """A copy of the network whose modules hand out what is recorded of them; for one thread at a time."""

    def __init__(self, root: nn.Module, target: nn.Module, ended: list[tuple[nn.Module, Any]]) -> None:
        self.ended = ended
        self.left: dict[nn.Module, deque[Any]] = {module: deque() for module, _ in self.ended}
        self.hand_out: Callable[[Any], Any]
        calls = {module: self._stub(module, left) for module, left in self.left.items()} | {target: self._stand_in}
        # PyTorch's encoder layers run past their parts, unless one of these has a hook.
        self.network = twin(root, {target: lambda module, given, output: None}, calls, closed=calls)
        self.running: dict[nn.Module, nn.Module] = {}

    def __call__(self, images: Given, output: Tensor, times: int, way: Way) -> Any:
        self.seen: list[Any] = []

        def hand_out(value: Any) -> Any:
            return tree_map_only(Tensor, lambda tensor: way(tensor, times, self.seen), value)

        for left in self.left.values():
            left.clear()
        for module, value in self.ended:
            self.left[module].append(value)
        self.output, self.hand_out = output, hand_out
        try:
            return call(self.network, images.rows(hand_out, times) if isinstance(images, Inputs) else hand_out(images))
        finally:
            del self.output, self.hand_out

    def _stub(self, module: nn.Module, left: deque[Any]) -> Call:
        def called(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if left:
                output, written, same = left.popleft()
                given = tensors_in((args, kwargs))
                with DisableTorchFunctionSubclass():
                    for i, value in written:
                        given[i].data = self.hand_out(value)
                        if isinstance(given[i], Recorded):
                            given[i].own = False
                return self.hand_out(output) if same is None else given[same]
            if module not in self.running:  # in the tail too
                self.running[module] = twin(module, {})
            return self.running[module](*args, **kwargs)

        return called

    def _stand_in(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        return self.output


def _path(root: nn.Module, name: str) -> list[nn.Module]:
    at, path = root, [root]
    for part in name.split("."):
        inner = unwrap(at)  # the name of a data-parallel part goes on with "module"
        at = getattr(inner if hasattr(inner, part) else at, part)
        path.append(unwrap(at))
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
