"""Which modules write nothing to themselves, so that a copy of a network may run them as they are."""

from collections.abc import Container
from operator import itemgetter

from torch import nn
from torch.nn.modules import activation, batchnorm, container, conv, dropout, flatten, linear, normalization, pooling

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_BUSY = itemgetter("training", "_backward_hooks", "_backward_pre_hooks", *HOOKS)
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
    if (answer := known.get(module)) is None:
        answer = known[module] = module not in changed and _is_pure(module, changed, known)
    return answer


def _is_pure(module: nn.Module, changed: Container[nn.Module], known: dict[nn.Module, bool]) -> bool:
    kind, state = type(module), vars(module)
    if (kind not in _PURE and kind.__module__ not in _PURE_FILES) or kind.__name__ in _WRITING or any(_BUSY(state)):
        return False
    if "forward" in state or "_compiled_call_impl" in state or state.get("grad_checkpointing"):
        return False
    for tensors in (state["_parameters"], state["_buffers"]):
        for tensor in tensors.values():
            if tensor is not None and tensor.is_inference():
                return False
    return all(shared(part, changed, known) for part in state["_modules"].values() if part is not None)
