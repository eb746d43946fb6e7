"""Operations behind the cut in forms that can be derived, and quickly: attention and normalisation."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..theory.axes import wide

_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda tracing: ())
"""Those around an operation; PyTorch before 2.8 does not tell."""


class Derived(TorchFunctionMode):
    """Normalisation in eval mode with its derivative as one factor a map; with `second_order`, attention in its composite form.

    Fused attention has no second derivative. `trained` leaves normalisation alone, for its parameters have derivatives too.

    A mode belongs to the thread that entered it; `torch.nn.attention.sdpa_kernel` sets flags of the whole process.
    """

    def __init__(self, second_order: bool, trained: bool = False) -> None:
        super().__init__()
        self._second_order, self._trained = second_order, trained

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is batch_norm and not self._trained:
            return _normalised(*args, **kwargs)
        if self._second_order and func is scaled_dot_product_attention:
            return _composite(*args, **kwargs)
        if self._second_order and func is multi_head_attention_forward:
            # What it calls is out of the mode's sight; it takes the composite form where it must hand out the weights.
            output, weights = func(*args, **{**kwargs, "need_weights": True})
            return output, weights if kwargs.get("need_weights", True) else None
        return func(*args, **kwargs)


def _composite(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # else it would be added as 0 and 1
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    attended: Tensor
    attended, _ = torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)
    return attended


def _normalised(
    maps: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,  # these two are PyTorch's to judge
    eps: Any = 1e-5,
) -> Tensor:
    given = running_mean, running_var, weight, bias
    made = any(each is not None and each.grad_fn is not None for each in given)  # of the maps, perhaps
    hooked = _saved_tensors_hooks(True) is not None  # a checkpointed block, which will run again without this mode
    if training or running_var is None or made or hooked or not maps.requires_grad:
        return batch_norm(maps, *given, training, momentum, eps)
    with torch.no_grad():
        factor = (wide(running_var) + eps).rsqrt()
        factor = (factor if weight is None else factor * weight).to(maps.dtype)
    normalised: Tensor = _Normalised.apply(maps, factor.view(-1, *[1] * (maps.ndim - 2)), *given, eps)
    return normalised


class _Normalised(torch.autograd.Function):
    """What PyTorch derives with three passes over the maps, and twice by a formula of some twenty operations."""

    generate_vmap_rule = True  # for networks that call torch.func themselves

    @staticmethod
    def forward(maps: Tensor, factor: Tensor, mean: Any, variance: Any, weight: Any, bias: Any, eps: Any) -> Tensor:
        return batch_norm(maps, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (factor,) = ctx.saved_tensors
        return slope * factor, *[None] * 6

    @staticmethod
    def jvp(ctx: Any, change: Tensor, *others: Any) -> Tensor:
        factor: Tensor = ctx.saved_tensors[0]
        return change * factor
