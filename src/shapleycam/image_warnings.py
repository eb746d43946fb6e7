"""Why a heatmap is blank, or must not be trusted: what `Explanation.warnings` says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .theory.cams import Method, mean
from .theory.crg import INGREDIENTS, Expansion, efficiency_gap
from .theory.utility import log_softmax, post_softmax

if TYPE_CHECKING:
    from .batch import Explanation

GAP = 0.05
"""An efficiency gap of the path row above which its nodes count as too few."""
SATURATED = 1e-6
"""A distance from probability 1 below which the gradient through a softmax counts as vanished."""
DIM = 1e-12
"""A largest share below which the heatmap's scale, see `theory.heatmap.rescale`, no longer reaches 1."""


@dataclass(frozen=True)
class ImageWarning:
    """A reason not to trust the heatmaps of one image."""

    image: int
    """Its place in the batch."""
    method: str | None
    """The method concerned; None for all."""
    reason: Literal["blank", "constant", "saturated", "non-finite", "linear", "path"]
    message: str

    def __str__(self) -> str:
        return f"image {self.image}{f', {self.method}' if self.method else ''}: {self.message}"


def signs_of(expansion: Expansion, rows: Sequence[Method], limit: float) -> dict[str, Tensor]:
    """For each image: whether all is finite, whether U' and HX are zero throughout, and how true the path row is.

    For each Type II method among the rows, also whether W is the same at all positions of each map, so that Type I is the same.
    """
    named = {"maps": expansion.maps, "gradient": expansion.gradient, "hvp": expansion.hvp, "path": expansion.path}
    ranges = {name: _range(each) for name, each in named.items() if each is not None}
    signs = {"finite": torch.stack([end for ends in ranges.values() for end in ends]).isfinite().all(0)}
    signs |= {f"{name} is zero": (low == 0) & (high == 0) for name, (low, high) in ranges.items()}
    for row in rows:
        if row.weights is mean and row.order != "none":
            parts = (getattr(expansion, each).flatten(2) for each in INGREDIENTS[row.order])
            signs[f"{row.name} is flat"] = torch.stack([_level(part) for part in parts]).all(0)
    if expansion.path is not None and expansion.full is not None and expansion.empty is not None:
        shared = (expansion.path * expansion.maps).flatten(1).sum(1)
        signs["path gap"] = efficiency_gap(shared, expansion.full, expansion.empty)
        signs["path limit"] = torch.full_like(expansion.full, limit)
    return signs


def _range(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number of each image; either is NaN where one is. Norms and comparisons take far longer."""
    flat = maps.detach().flatten(1)
    return flat.amin(1), flat.amax(1)


def _level(part: Tensor) -> Tensor:
    """Whether (b, n, positions) is the same at all positions but for rounding, an image each."""
    spread = (part.amax(2) - part.amin(2)).amax(1)
    return spread <= 32 * torch.finfo(part.dtype).eps * part.abs().amax((1, 2))


def find_warnings(out: "Explanation") -> Iterator[ImageWarning]:
    """Every reason, method by method; `Explanation.warnings` has them in the order of the images."""
    signs = {name: values.tolist() for name, values in out.signs.items()}
    own = out.logits.gather(1, out.targets[:, None])[:, 0]
    answered = own.isfinite() & ~(out.logits.isnan() | out.logits.isposinf()).any(1)  # others may be ruled out by -inf
    signs["finite"] = (out.signs["finite"] & answered).tolist()
    softmax = _saturates(out)
    confident = out.logits.cpu().double().softmax(1).gather(1, out.targets.cpu()[:, None])[:, 0].tolist()
    for image, (finite, target) in enumerate(zip(signs["finite"], out.targets.tolist(), strict=True)):
        if not finite:
            yield ImageWarning(
                image,
                None,
                "non-finite",
                f"NaN or infinity in the maps or gradients of {out.layer.name}, or in the logits",
            )
        elif softmax and 1 - confident[image] < SATURATED:
            yield ImageWarning(
                image,
                None,
                "saturated",
                f"class {target} has a probability of {confident[image]:.8f}, where the softmax is flat and the gradient of "
                f'{out.utility} vanishes; utility="rest" does not saturate',
            )
        if "hvp is zero" in signs and signs["hvp is zero"][image]:
            flat = signs["maps is zero"][image] or signs["gradient is zero"][image]
            why = "" if flat else ": the utility is linear in the maps"
            yield ImageWarning(image, None, "linear", f"HX is zero{why}, so second order equals first order")
        if "path gap" in signs and not (gap := signs["path gap"][image]) <= signs["path limit"][image]:
            yield ImageWarning(
                image,
                None,
                "path",
                f"the path row misses {gap:.1%} of the utility, so its nodes are too few (a normalisation right behind the "
                "target makes the utility steep near zero); in explain, tolerance=0.01 doubles them up to max_nodes",
            )
    for method, explanations in out.explanations.items():
        low, high = (reduce(explanations.flatten(1), 1).tolist() for reduce in (torch.amin, torch.amax))
        for image, finite in enumerate(signs["finite"]):
            if finite and not isfinite(high[image] - low[image]):
                yield ImageWarning(
                    image, method, "non-finite", "NaN or infinity in the map, made of finite maps and gradients"
                )
            elif finite and high[image] <= 0:
                yield ImageWarning(image, method, "blank", _blank(out, image, low[image], high[image]))
            elif finite and high[image] - max(low[image], 0) <= 32 * torch.finfo(explanations.dtype).eps * high[image]:
                yield ImageWarning(
                    image, method, "constant", f"the map has the same value, {high[image]:.3g}, at every position"
                )
            elif finite and high[image] - max(low[image], 0) < DIM:
                yield ImageWarning(image, method, "blank", _dim(out, high[image]))


def _saturates(out: "Explanation") -> bool:
    return out.nobody.utility in (post_softmax, log_softmax)


def _dim(out: "Explanation", high: float) -> str:
    softmax = '; utility="rest" does not saturate' if _saturates(out) else ""
    return (
        f"the map is blank or dim: its largest share is {high:.3g}, so {out.utility} hardly changes with the maps of "
        f"{out.layer.name}{softmax}"
    )


def _blank(out: "Explanation", image: int, low: float, high: float) -> str:
    if low == high == 0:
        return (
            f"the map is zero throughout: {out.layer.name} puts out zeros, or {out.utility} does not change with them"
            + (", since a class token alone is read behind it; take a layer before" if out.layer.prefix else "")
        )
    return (
        f"the map is blank: it ranges from {low:.3g} to {high:.3g}, so every position speaks against class "
        f"{int(out.targets[image])}, and the ReLU leaves nothing; see `explanations` for the signed map"
    )
