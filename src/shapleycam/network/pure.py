"""Which modules write nothing to themselves, so that a copy of a network may run them as they are."""

from collections.abc import Container
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules import activation, batchnorm, container, conv, dropout, flatten, linear, normalization, pooling

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_PURE = frozenset(
    kind
    for family in (activation, batchnorm, conv, dropout, flatten, linear, normalization, pooling)
    for kind in vars(family).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
) | {container.Sequential}
_PURE_FILES = {
    *(
        f"timm.layers.{name}"
        for name in ("activations", "adaptive_avgmax_pool", "conv2d_same", "drop", "mlp", "norm", "norm_act")
    ),
    *("timm.layers.squeeze_excite", "timm.models._efficientnet_blocks", "timm.models.resnet", "timm.models.vgg"),
    *("torchvision.models.mobilenetv2", "torchvision.models.resnet", "torchvision.models.vgg", "torchvision.ops.misc"),
}
"""PyTorch's, timm's and torchvision's own layers and blocks, which in eval mode write nothing to themselves."""

_WRITING = frozenset({"Conv2dSameExport"})


def shared(module: nn.Module, changed: Container[nn.Module], known: dict[nn.Module, bool]) -> bool:
    """Whether the copy may run the module itself, with all that is in it; `known` remembers the answers."""
    if (answer := known.get(module)) is None:  # most of a copy's time is spent here, on hundreds of small modules
        answer = known[module] = module not in changed and _keeps_still(type(module)) and _is_idle(module)  # type: ignore[arg-type]
        if answer and (parts := module._modules):
            for part in parts.values():
                if part is not None and not shared(part, changed, known):
                    answer = known[module] = False
                    break
    return answer


@lru_cache(4096)
def _keeps_still(kind: Any) -> bool:
    """Whether modules of a class, but for what they hold, write nothing to themselves in eval mode."""
    return (kind in _PURE or kind.__module__ in _PURE_FILES) and kind.__name__ not in _WRITING


def _is_idle(module: nn.Module) -> bool:
    """Whether a module is in eval mode, and has no hook, no forward of its own and no tensor of inference mode."""
    state = vars(module)
    if state["training"] or state["_forward_hooks"] or state["_forward_pre_hooks"]:
        return False
    if state["_backward_hooks"] or state["_backward_pre_hooks"] or state.get("grad_checkpointing"):
        return False
    if "forward" in state or "_compiled_call_impl" in state:
        return False
    for tensors in (state["_parameters"], state["_buffers"]):
        if tensors:
            for tensor in tensors.values():
                if tensor is not None and tensor.is_inference():
                    return False
    return True
