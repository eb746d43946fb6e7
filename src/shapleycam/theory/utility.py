"""What a coalition is worth: a utility of the logits, one number an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import logsigmoid

from .axes import Logits, Targets, Utilities, wide

Utility = Callable[[Tensor, Tensor], Tensor]


def pre_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's logit y_c; linear in the logits, so that HX = 0 behind a linear tail."""
    return logits.gather(1, targets[:, None])[:, 0]


def post_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's probability p_c, in [0, 1]; its gradient vanishes where the softmax saturates."""
    return pre_softmax(_of_several(logits).softmax(1), targets)


def shares(logits: Logits, utility: str = "rest") -> Logits:
    """The probability of each class, (b, c): by the softmax, or where logits stand each for itself by the sigmoid.

    They do where they are explained by "rest-sigmoid" and its kin, and where there is one alone.
    """
    return logits.sigmoid() if logits.shape[1] == 1 or utility.startswith("rest-sigmoid") else logits.softmax(1)


def log_softmax(logits: Logits, targets: Targets) -> Utilities:
    """The target's log-probability ln p_c, in (-inf, 0]."""
    return pre_softmax(_of_several(logits).log_softmax(1), targets)


def rest(logits: Logits, targets: Targets) -> Utilities:
    """Residual Softmax Target-Class utility y_c + ln p_c, Eq. (16)."""
    return pre_softmax(logits + _of_several(logits).log_softmax(1), targets)


@dataclass(frozen=True)
class Settled:
    """A utility that looks at the prediction for the whole image once, and keeps to that for every coalition."""

    name: str
    look: Callable[[Logits, Targets], Tensor]
    """What is settled, from the logits for the whole images: (b, ...)."""
    worth: Callable[[Logits, Targets, Tensor], Utilities]
    target: int | None = None
    """The class that it is about, where it is about one whatever is predicted."""
    against: tuple[int, ...] = ()
    """Classes that the target cannot be."""

    @property
    def __name__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def __call__(self, logits: Logits, targets: Targets) -> Utilities:
        """The utility of whole images."""
        return self.worth(logits, targets, self.look(logits.detach(), targets))


def settled(utility: Utility, logits: Logits, targets: Targets, images: Int64[Tensor, " k"] | None = None) -> Utility:
    """The utility that keeps to what it sees in the logits for whole images, where it looks at them.

    Row i of what it is then given is of image `images[i]`; of image i modulo b without them.
    """
    if not isinstance(utility, Settled):
        return utility
    seen = utility.look(logits.detach(), targets)

    def worth(logits: Logits, targets: Targets) -> Utilities:
        which = torch.arange(len(logits), device=seen.device) % len(seen) if images is None else images
        return utility.worth(logits, targets, seen[which])

    return worth


def fixed(utility: Utility, logits: Logits, targets: Targets) -> Utility:
    """The utility that sees in noisy copies of the images what it sees in these logits for the images themselves."""
    if not isinstance(utility, Settled):
        return utility
    seen = utility.look(logits.detach(), targets)
    return replace(utility, look=lambda logits, targets: seen)


rest_sigmoid = Settled(
    "rest-sigmoid",
    lambda logits, targets: torch.where(pre_softmax(logits, targets) > 0, 1, -1),
    lambda logits, targets, side: _rest_of_side(pre_softmax(logits, targets), side),
)
"""s y_c + ln sigmoid(s y_c) with s = 1 where y_c is positive on the whole image, else -1: Eq. (16) of logits by themselves.

For multi-label and single-logit networks: evidence for the side that is predicted.
"""


def rest_sigmoid_positive(logits: Logits, targets: Targets) -> Utilities:
    """y_c + ln sigmoid(y_c): evidence that the class is there."""
    return _rest_of_side(pre_softmax(logits, targets), 1)


def rest_sigmoid_negative(logits: Logits, targets: Targets) -> Utilities:
    """-y_c + ln sigmoid(-y_c): evidence that the class is not there."""
    return _rest_of_side(pre_softmax(logits, targets), -1)


def confidence(
    utility: Utility, logits: Logits, targets: Targets
) -> Callable[[Logits, Int64[Tensor, " k"]], Utilities]:
    """The probability that a utility is about, (k,) in float32 or wider, of logits (k, c) of the images at k places.

    By the sigmoid for the side that `rest_sigmoid` and its kin speak of, settled in the logits for whole images; by the softmax
    for all others.
    """
    sides = {id(rest_sigmoid_positive): torch.ones_like(targets), id(rest_sigmoid_negative): -torch.ones_like(targets)}
    side = rest_sigmoid.look(logits, targets) if utility is rest_sigmoid else sides.get(id(utility))

    def share(logits: Logits, images: Int64[Tensor, " k"]) -> Utilities:
        if side is None:
            return post_softmax(wide(logits), targets[images])
        return (side[images] * pre_softmax(wide(logits), targets[images])).sigmoid()

    return share


def contrast(a: int | None = None, b: int | Sequence[int] | None = None, gamma: float = 0.6) -> Utility:
    """Why class a and not b: y_a - gamma times the mean of y_b, as in Finer-CAM (Zhang et al. 2025).

    `a` is then the target, which may be left out; None takes the target that is given. `b` None is the likeliest other class;
    `gamma` in [0, 1], 0 for a alone.
    """
    if not (a is None or isinstance(a, int)) or not (b is None or isinstance(b, int | Sequence)) or isinstance(b, str):
        raise TypeError(f"contrast is of {a!r} and {b!r}, expected class indices")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}, expected a share from 0 (class a alone) to 1 (the plain difference)")
    others = () if b is None else (b,) if isinstance(b, int) else tuple(b)
    if b is not None and (not others or a in others):
        raise ValueError(f"b is {b!r}, expected one or more classes other than a, {a}")

    def look(logits: Logits, targets: Targets) -> Tensor:
        wanted = targets[:, None]
        if max(0, *others, a or 0) >= logits.shape[1] or min(0, *others, a or 0) < 0 or logits.shape[1] < 2:
            raise ValueError(f"contrast of classes {a} and {b}; the network has classes 0 to {logits.shape[1] - 1}")
        likeliest = logits.scatter(1, wanted, -torch.inf).argmax(1, keepdim=True)
        rest = torch.tensor(others, device=logits.device).expand(len(logits), -1) if others else likeliest
        return torch.cat(
            [wanted, torch.where(rest == wanted, likeliest, rest)], 1
        )  # what b is measured against is no b

    def worth(logits: Logits, targets: Targets, classes: Tensor) -> Utilities:
        scores = logits.gather(1, classes)
        return scores[:, 0] - gamma * scores[:, 1:].mean(1)

    return Settled(f"contrast({a}, {b}, {gamma})", look, worth, a, others)


UTILITIES: Mapping[str, Utility] = MappingProxyType(
    {
        "rest": rest,
        "pre-softmax": pre_softmax,
        "post-softmax": post_softmax,
        "log-softmax": log_softmax,
        "rest-sigmoid": rest_sigmoid,
        "rest-sigmoid-positive": rest_sigmoid_positive,
        "rest-sigmoid-negative": rest_sigmoid_negative,
    }
)


def _rest_of_side(y: Utilities, side: Tensor | int) -> Utilities:
    return side * y + logsigmoid(side * y)


def _of_several(logits: Logits) -> Logits:
    if logits.shape[1] == 1:
        raise ValueError(
            "the network has a single logit, of which a softmax makes 1 whatever it is; use "
            'utility="rest-sigmoid" for a yes or no, "pre-softmax" for a regression'
        )
    return logits
