"""Why a heatmap is blank, or must not be trusted: what `Explanation.warnings` says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .theory.cams import Method, mean
from .theory.crg import INGREDIENTS, Expansion, Order

if TYPE_CHECKING:
    from .batch import Explanation

GAP = 0.05
"""An efficiency gap of the path row above which its nodes count as too few."""
SATURATED = 1e-6
"""A distance from probability 1 below which the gradient through a softmax counts as vanished."""


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


def signs_of(expansion: Expansion) -> dict[str, Tensor]:
    """For each image: whether all is finite, whether U' and HX are zero throughout."""
    ingredients = {
        "maps": expansion.maps,
        "gradient": expansion.gradient,
        "hvp": expansion.hvp,
        "path": expansion.path,
    }
    # One pass each: a sum of magnitudes, in a type in which it cannot overflow.
    sizes = {
        name: vector_norm(each.detach().flatten(1), 1, 1, dtype=torch.float64)
        for name, each in ingredients.items()
        if each is not None
    }
    finite = torch.stack(list(sizes.values())).isfinite().all(0)
    return {"finite": finite} | {f"{name} is zero": size == 0 for name, size in sizes.items()}


def flatness(rows: Sequence[Method], expansion: Expansion) -> dict[str, Tensor]:
    """For each Type II method and image, whether W is the same at all positions of each map, so that Type I is the same."""
    flat: dict[Order, Tensor] = {}
    for order in {row.order for row in rows if row.weights is mean and row.order != "none"}:
        parts = (getattr(expansion, each).flatten(2) for each in INGREDIENTS[order])
        flat[order] = torch.stack([(part == part[..., :1]).flatten(1).all(1) for part in parts]).all(0)
    return {f"{row.name} is flat": flat[row.order] for row in rows if row.weights is mean and row.order in flat}


def find_warnings(out: "Explanation") -> Iterator[ImageWarning]:
    """Every reason, method by method; `Explanation.warnings` has them in the order of the images."""
    signs = {name: values.tolist() for name, values in out.signs.items()}
    confident = out.logits.to(torch.float64).softmax(1).gather(1, out.targets[:, None])[:, 0].tolist()
    for image, (finite, target) in enumerate(zip(signs["finite"], out.targets.tolist(), strict=True)):
        if not finite:
            yield ImageWarning(
                image, None, "non-finite", f"NaN or infinity in the maps or gradients of {out.layer.name}"
            )
        elif out.utility in ("post-softmax", "log-softmax") and 1 - confident[image] < SATURATED:
            yield ImageWarning(
                image,
                None,
                "saturated",
                f"class {target} has a probability of {confident[image]:.8f}, where the softmax is flat and the gradient of "
                f'{out.utility} vanishes; utility="rest" does not saturate',
            )
        if signs.get("hvp is zero", [False] * (image + 1))[image]:
            yield ImageWarning(
                image,
                None,
                "linear",
                "HX is zero: the utility is linear in the maps, so second order equals first order",
            )
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
            elif finite and high[image] == low[image]:
                yield ImageWarning(
                    image, method, "constant", f"the map has the same value, {high[image]:.3g}, at every position"
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
