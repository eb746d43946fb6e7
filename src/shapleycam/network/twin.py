"""A private copy of a module tree: the user's model gets no hook, no mode change and no lock."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType
from typing import Any
from weakref import ref

import torch
from torch import nn

from .pure import HOOKS, shared

Hook = Callable[[nn.Module, Any, Any], Any]
Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What a copy does when it is called: given what it would do, and with what."""

_NO_CALLS: Mapping[nn.Module, Call] = MappingProxyType({})
_STANDARD = list(vars(nn.Module()))
"""The attributes that every module has, and has first."""
_TRAINING = ("training", "grad_checkpointing", "gradient_checkpointing", "use_checkpoint", "with_cp")
"""Off in the copy; a block that is run again to save memory runs out of sight of what makes attention differentiable."""
_CACHES = frozenset({"attention_bias_cache"})
"""What timm's LeViT, EfficientFormer and TinyViT keep of their parameters once they are asked in eval mode."""
_COMPILED = "_torchdynamo_orig_callable"
_PLAIN = {bool, int, float, str, type(None), torch.Size}
_HOLDING_NOTHING = _PLAIN | {torch.Tensor, nn.Parameter}
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's and the data-parallel wrappers."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    return module


def twin(
    root: nn.Module,
    hooks: Mapping[nn.Module, Hook],
    calls: Mapping[nn.Module, Call] = _NO_CALLS,
    closed: Container[nn.Module] = (),
) -> nn.Module:
    """A copy of `root` in eval mode with `hooks` behind some of its modules, sharing all parameters and buffers.

    Some modules are not run when they are called, but what `calls` says of them. What is inside `closed` ones is not copied, for
    they will not run.

    Every module that a forward pass may write to is copied: all but PyTorch's, timm's and torchvision's own layers and blocks
    in eval mode, most of a network.
    Forward hooks are part of the model and stay; backward hooks, which wait for gradients of the user's own, are left out,
    and so are torch.compile's wrappers, for compiled code has no second derivative. ScriptModules, whose code cannot be
    reached, stay what they are.

    Raises
    ------
    TypeError
        When a ScriptModule would have to be copied, for a hook or for its training mode.
    """
    changed = {*hooks, *calls}
    copies, holding = _reached(root, changed, closed)
    for module in (*holding, *changed):
        if isinstance(module, torch.jit.ScriptModule) and (module in changed or module.training):
            raise TypeError(
                f"{type(module).__name__} is a ScriptModule, whose layers cannot be cut, nor its mode changed on a copy; "
                "explain the module that it was scripted from"
            )
    for old, names in holding.items():
        if (new := copies[old]) is old:
            continue
        state = vars(old).copy()  # takes a tenth of the time of filling another
        object.__setattr__(new, "__dict__", state)
        for kind in ("_parameters", "_buffers"):
            if mine := state[kind]:
                state[kind] = {name: t if t is None else _normal(t) for name, t in mine.items()}
            else:
                state[kind] = {}
        state["_modules"] = {name: copies.get(child, child) for name, child in state["_modules"].items()}
        for name in names:
            state[name] = _renewed(_normal(state[name]), copies)
        state["_backward_hooks"], state["_backward_pre_hooks"] = {}, {}
        state["_forward_hooks"] = state["_forward_hooks"].copy()
        for name in _TRAINING:
            if name in state:
                state[name] = False
        for name in _CACHES.intersection(state):
            state[name] = dict(state[name])
        state.pop("_compiled_call_impl", None)
    for old, hook in hooks.items():
        mine = vars(copies[old])["_forward_hooks"]
        mine[_hook_key(mine)] = hook
    for old, call in calls.items():
        vars(copies[old])["_compiled_call_impl"] = _called(ref(copies[old]), call)
    renewed: nn.Module = _renewed(root, copies)
    return renewed


def deep_copy(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, which keeps nothing that was made of the old ones."""
    caches = (vars(each).get(name) for each in module.modules() for name in _CACHES)
    return deepcopy(module, {id(cache): {} for cache in caches if cache is not None})


def _called(copy: ref[nn.Module], call: Call) -> Callable[..., Any]:
    """What PyTorch calls in place of a module; without a strong reference, or copies would wait for the collector."""

    def called(*args: Any, **kwargs: Any) -> Any:
        return call(vars(nn.Module)["_call_impl"].__get__(copy()), args, kwargs)

    return called


def _renewed(value: Any, copies: dict[nn.Module, nn.Module]) -> Any:
    """`value` with every module in it replaced by its copy; `value` itself where there is none."""
    if isinstance(value, nn.Module):
        return copies.get(inner := unwrap(value), inner)
    if not any(module in copies for module in _modules_in(value)):
        return value
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _renewed(value.__self__, copies))
    if isinstance(value, partial):
        return partial(_renewed(value.func, copies), *_renewed(value.args, copies), **_renewed(value.keywords, copies))
    if isinstance(value, FunctionType):
        return _function(value, copies)
    if isinstance(value, dict):
        renewed = value.copy()
        renewed.update((key, _renewed(each, copies)) for key, each in value.items())
        return renewed
    parts = [_renewed(each, copies) for each in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _function(value: FunctionType, copies: dict[nn.Module, nn.Module]) -> Any:
    """A function that captures copies where it captured modules; of a method that torch.compile wrapped, the method."""
    if (compiled := vars(value).get(_COMPILED)) is not None:
        return _renewed(compiled, copies)
    cells = []
    for cell in value.__closure__ or ():
        held = next(_held(cell), value)
        renewed = value if held is value else _renewed(held, copies)
        cells.append(cell if renewed is held else CellType(renewed))
    defaults = _renewed(value.__defaults__, copies)
    function = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, tuple(cells))
    function.__kwdefaults__ = _renewed(value.__kwdefaults__, copies)
    return function


def _captured(function: FunctionType) -> Iterator[Any]:
    if (compiled := vars(function).get(_COMPILED)) is not None:
        yield compiled
        return
    yield from (function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        yield from _held(cell)


def _held(cell: CellType) -> Iterator[Any]:
    with suppress(ValueError):  # it is empty
        yield cell.cell_contents


def replaced(root: nn.Module) -> str:
    """Which modules have a `forward` of their own that may still run the network instead of its copy; for an error message."""
    names = [
        f"{type(module).__name__} ({name})" if name else type(module).__name__
        for name, module in root.named_modules()
        if "forward" in vars(module) and not isinstance(vars(module)["forward"], MethodType)
    ]
    if not names:
        return ""
    return (
        f"the forward of {', '.join(names)} was replaced on the instance by something that runs the network itself, not the copy "
        "that is cut; take it away (del model.forward), or define it in a subclass"
    )


def _modules_in(value: Any) -> list[nn.Module]:
    found: list[nn.Module] = []
    queue, known = [value], set[int]()
    while queue:
        each = queue.pop()
        if type(each) in _HOLDING_NOTHING:
            continue
        if isinstance(each, nn.Module):
            found.append(each)
        elif isinstance(each, dict):
            queue.extend(each.values())
        elif isinstance(each, list | tuple | set):
            queue.extend(each)
        elif isinstance(each, MethodType):
            queue.append(each.__self__)
        elif isinstance(each, FunctionType) and id(each) not in known:
            known.add(id(each))
            queue.extend(_captured(each))
        elif isinstance(each, partial):
            queue.extend((each.func, each.args, each.keywords))
    return found


def _reached(
    root: nn.Module, changed: Container[nn.Module], closed: Container[nn.Module]
) -> tuple[dict[nn.Module, nn.Module], dict[nn.Module, list[str]]]:
    """What stands for each module that is not shared, still blank; and by which attributes each of them holds others.

    All that `root` holds is looked at: as a submodule, in a list, or by a bound method.
    """
    copies, holding = {root: _blank(root)}, {root: list[str]()}
    known: dict[nn.Module, bool] = {}
    queue = [root]
    while queue:
        holder = queue.pop()
        if holder in closed:
            continue
        reached = [child for child in holder._modules.values() if child is not None]
        for name, value in _candidates(holder):
            held = _modules_in(value)
            reached += held
            if held or isinstance(value, torch.Tensor):
                holding[holder].append(name)
        for child in reached:
            module = unwrap(child) if type(child).__name__ in _WRAPPERS else child
            if module not in copies and not shared(module, changed, known):
                copies[module], holding[module] = _blank(module), []
                queue.append(module)
            if module is not child:
                copies[child] = copies.get(module, module)
    return copies, holding


def _blank(module: nn.Module) -> nn.Module:
    return module if isinstance(module, torch.jit.ScriptModule) else object.__new__(type(module))


def _candidates(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module that may hold other modules, or tensors; all of a tree are asked, so quickly."""
    state = vars(module)
    names = [*state]
    if names[: len(_STANDARD)] == _STANDARD:
        del names[: len(_STANDARD)]
    found = []
    for name in names:
        kind = type(value := state[name])
        if kind not in _PLAIN and not (kind is tuple and _PLAIN.issuperset(map(type, value))):
            found.append((name, value))
    return found + [(name, state[name]) for name in HOOKS if state[name]]


def _normal(value: Any) -> Any:
    """A tensor that autograd may save: one made under inference mode is cloned."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


def _hook_key(hooks: dict[int, Any]) -> int:
    return max(hooks, default=-1) + 1
