"""From an explanation map to a heatmap that lies on the image."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from .axes import ExplanationMaps, Heatmaps

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""What `interpolate` calls it, by the number of axes."""


def heatmap(explanations: ExplanationMaps, size: tuple[int, ...]) -> Heatmaps:
    """H = ReLU(E) scaled to [0, 1], resized to (H, W) pixels, scaled again.

    Bilinear with `align_corners=False`; linear on a signal, trilinear in a volume. A map that is constant after the ReLU gives
    zeros. Where the image has another number of axes than the map, nothing is resized.
    """
    coarse = rescale(explanations.relu())
    if len(size) != explanations.ndim - 1:
        return coarse
    return rescale(interpolate(coarse[:, None], size, mode=MODES[len(size)], align_corners=False)[:, 0])


def rescale(maps: ExplanationMaps) -> ExplanationMaps:
    """Each map's minimum to 0 and its maximum to 1; 1e-7 in the divisor keeps constant maps at 0."""
    positions = tuple(range(1, maps.ndim))
    low, high = torch.amin(maps, positions, keepdim=True), torch.amax(maps, positions, keepdim=True)
    lifted, scale = maps - low, high - low + 1e-7
    return lifted / scale if lifted.requires_grad else lifted.div_(scale)


def coherency(one: ExplanationMaps, other: ExplanationMaps, size: tuple[int, int]) -> Float[Tensor, " b"]:
    """`metrics.coherency` of the heatmaps of two explanation maps, Eq. (19), in [0, 1], without making them; higher is better.

    Resizing is linear along each axis, so moments of heatmaps are bilinear forms of maps that are a thousand times smaller. 0
    where either is constant after the ReLU, NaN where either is not finite.
    """
    work = torch.float32 if one.device.type == "mps" else torch.float64
    x, y = (rescale(each.relu()).to(work) for each in (one, other))
    varied = (x.amax((1, 2)) > 0) & (y.amax((1, 2)) > 0)
    (rows, down), (columns, across) = (
        [each.to(x) for each in _moments(*pair)] for pair in zip(one.shape[1:], size, strict=True)
    )
    x, y = (each - (rows @ each @ columns)[:, None, None] for each in (x, y))
    covariance, of_x, of_y = ((a * (down @ b @ across)).sum((1, 2)) for a, b in ((x, y), (x, x), (y, y)))
    r = ((covariance / (of_x.sqrt() * of_y.sqrt())).clamp(-1, 1) + 1) / 2
    finite = (one + other).flatten(1).isfinite().all(1)
    return r.where(varied, 0).where(finite, torch.nan).to(torch.promote_types(one.dtype, torch.float32))


@cache
def _moments(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Of `count` positions resized to `side` pixels: what each counts in the mean, and each pair in the mean product."""
    spread = interpolate(torch.eye(count, dtype=torch.float64)[None], side, mode="linear", align_corners=False)[0]
    return spread.mean(1), spread @ spread.T / side
