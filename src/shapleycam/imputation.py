"""`road`: the target's probability where pixels are not blacked out but painted over from their neighbours.

Rong et al. 2022 (ROAD, arXiv:2202.00449): a network could read the class off the shape of black pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from .curves import Curve, Share, checked, probabilities, ranked
from .network.inputs import Output
from .network.zoo import Model
from .theory.axes import Heatmaps, Images, Utilities
from .theory.utility import Utility

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
EXACT = 1e-6
"""Residual of the imputation, relative to what is known around, at which it is taken to be solved: on pictures of 224 x 224
pixels within 3e-5 of the solution, a three-hundredth of the noise."""
MOST = 500
COARSEST = 4
"""Pixels a side of the coarsest grid, whose equations are swept over `SWEEPS` times."""
SWEEPS = 8
Pixels = Float[Tensor, "channels H W"]
Hole = Float[Tensor, "H W"]


def road(
    model: Model | nn.Module,
    images: Images,
    heatmaps: Heatmaps,
    targets: int | str | Sequence[int] | Tensor | None = None,
    *,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
    utility: str | Utility = "rest",
    output: Output | None = None,
) -> Utilities:
    """How much more the target's probability suffers without the hottest pixels than without the coldest, (b,) in [-0.5, 0.5].

    Half the difference of the two, averaged over the percentiles (ROADCombined of grad-cam); higher is better. Costs two
    imputations and forward passes a percentile.

    Parameters
    ----------
    images, heatmaps, targets, utility, output
        As in `insertion`.
    percentiles
        How many pixels of a hundred are left, each in (0, 100).
    noise
        Standard deviation of what is added to painted pixels, in units of the images; drawn from the seed, alike for all images.

    Raises
    ------
    ValueError
        When heatmaps do not lie on the images, for no percentile or one that leaves nothing or all, and as `explain`.
    """
    share, images = checked(model, images, heatmaps, targets, utility, output)
    if not percentiles or not all(0 < percent < 100 for percent in percentiles):
        raise ValueError(f"percentiles is {list(percentiles)}, expected one or more between 0 and 100")
    hottest, coldest = (painted(share, images, some, percentiles, noise, seed) for some in (heatmaps, -heatmaps))
    return (coldest - hottest).mean(1) / 2


def painted(
    share: Share,
    images: Images,
    heatmaps: Heatmaps,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
) -> Curve:
    """The targets' probabilities where all but so many percent of the pixels are painted over, the hottest first."""
    pixels = heatmaps[0].numel()
    hottest = ranked(heatmaps).to(images.device)
    # At least one is left, to paint from.
    gone = torch.tensor([pixels - max(1, int(pixels * p / 100)) for p in percentiles], device=images.device)
    generator = torch.Generator().manual_seed(seed)
    grain = noise * torch.randn(images.shape[1:], generator=generator, dtype=torch.float64).to(images)

    def version(image: Tensor, step: Tensor) -> Images:
        missing = hottest[image] < gone[step, None, None]
        return imputed(images[image], missing) + grain * missing[:, None]

    return probabilities(share, version, images, len(percentiles))


def imputed(images: Images, missing: Bool[Tensor, "b H W"]) -> Images:
    """Images whose missing pixels are the weighted means of their neighbours; those beyond the edge do not count.

    One after the other, so that each fits into caches and none changes another.
    """
    work = torch.promote_types(images.dtype, torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        found = [_imputed(image.to(work), hole.to(work)) for image, hole in zip(images, missing, strict=True)]
    return torch.stack(found).to(images)


def _imputed(image: Pixels, hole: Hole) -> Pixels:
    """Symmetric and positive definite where a pixel is known, the system is solved by conjugate gradients.

    A multigrid cycle goes before each (Tatebe 1993), so that some twenty-five of them do, however large the hole.
    """
    grids = _grids(hole)
    known = image * (1 - hole)
    rest = _around(known) * hole
    scale = _squares(rest).sqrt() * EXACT
    found, step, before = torch.zeros_like(rest), torch.zeros_like(rest), torch.ones_like(scale)
    for _ in range(MOST):
        if (_squares(rest).sqrt() <= scale).all():
            break
        ahead = _cycle(rest, grids)
        now = (rest * ahead).sum((-2, -1), keepdim=True)
        step, before = ahead + _ratio(now, before) * step, now
        bent = grids[0].bend(step)
        length = _ratio(now, (step * bent).sum((-2, -1), keepdim=True))
        found, rest = found + length * step, rest - length * bent
    return known + found


@dataclass(frozen=True)
class _Grid:
    """The equations on a grid of half as many pixels a side as the one before."""

    hole: Hole
    degree: Hole
    down: Float[Tensor, "h H"]
    """Takes rows to those of the next grid, and `right` columns; their transposes interpolate back."""
    right: Float[Tensor, "W w"]

    def bend(self, values: Pixels) -> Pixels:
        return (self.degree * values - _around(values)) * self.hole


def _grids(hole: Hole) -> list[_Grid]:
    """From the finest to one of `COARSEST` pixels a side or less; a coarse pixel is missing if all are that it stands for."""
    grids = []
    while True:
        down, across = (_halved(side, hole) for side in hole.shape)
        grids.append(_Grid(hole, _around(torch.ones_like(hole)[None])[0], down, across.mT))
        if max(hole.shape) <= COARSEST:
            return grids
        hole = -max_pool2d(-hole[None], 2, ceil_mode=True)[0]


def _halved(side: int, like: Tensor) -> Float[Tensor, "h H"]:
    """The transpose of linear interpolation from half as many pixels, which is 1/4 and 3/4 of the two that are nearest."""
    half = torch.eye((side + 1) // 2).to(like)[None]
    return interpolate(half, scale_factor=2, mode="linear")[0, :, :side]


def _cycle(rest: Pixels, grids: list[_Grid]) -> Pixels:
    """A V-cycle of one Jacobi step, the next grid, and another Jacobi step, so that it is symmetric."""
    grid, *coarser = grids
    found = rest / grid.degree
    if coarser:
        left = grid.down @ (rest - grid.bend(found)) @ grid.right
        more = _cycle(left * coarser[0].hole, coarser)
        found = found + grid.down.mT @ more @ grid.right.mT * grid.hole
    for _ in range(1 if coarser else SWEEPS):
        found = found + (rest - grid.bend(found)) / grid.degree
    return found


def _around(values: Pixels) -> Pixels:
    """Sums over the eight neighbours, a twelfth of each at a corner and two at a side: 1 2 1 both ways, but for the middle."""
    rows = 2 * values
    rows[:, 1:] += values[:, :-1]
    rows[:, :-1] += values[:, 1:]
    sums = 2 * rows
    sums[..., 1:] += rows[..., :-1]
    sums[..., :-1] += rows[..., 1:]
    return (sums - 4 * values) / 12


def _squares(values: Pixels) -> Float[Tensor, "channels 1 1"]:
    return values.square().sum((-2, -1), keepdim=True)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0, part / torch.where(whole == 0, 1, whole))
