"""What a coalition is worth: a utility of the logits, one number an image."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from .axes import Logits, Targets, Utilities

Utility = Callable[[Tensor, Tensor], Tensor]


def pre_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's logit y_c; linear in the logits, so that HX = 0 behind a linear tail."""
    return logits.gather(1, targets[:, None])[:, 0]


def post_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's probability p_c, in [0, 1]; its gradient vanishes where the softmax saturates."""
    return pre_softmax(logits.softmax(1), targets)


def log_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's log-probability ln p_c, in (-inf, 0]."""
    return pre_softmax(logits.log_softmax(1), targets)


def rest(logits: Logits, targets: Targets) -> Utilities:
    """Residual Softmax Target-Class utility y_c + ln p_c, Eq. (16)."""
    return pre_softmax(logits, targets) + log_softmax(logits, targets)


UTILITIES: Mapping[str, Utility] = MappingProxyType(
    {"rest": rest, "pre-softmax": pre_softmax, "post-softmax": post_softmax, "log-softmax": log_softmax}
)
