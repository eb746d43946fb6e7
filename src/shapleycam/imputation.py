"""`road`: the target's probability where pixels are not blacked out but painted over from their neighbours.

Rong et al. 2022 (ROAD, arXiv:2202.00449): a network could read the class off the shape of black pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .curves import Curve, Infer, checked, probabilities, ranked
from .network.zoo import Model
from .theory.axes import Heatmaps, Images, Targets, Utilities

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
EXACT = 1e-6
"""Residual of the imputation, relative to what is known around, at which it is taken to be solved."""
MOST = 10_000


def road(
    model: Model | nn.Module,
    images: Images,
    heatmaps: Heatmaps,
    targets: int | str | Sequence[int] | Tensor | None = None,
    *,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
) -> Utilities:
    """How much more the target's probability suffers without the hottest pixels than without the coldest, (b,) in [-0.5, 0.5].

    Half the difference of the two, averaged over the percentiles (ROADCombined of grad-cam); higher is better. Costs two
    imputations and forward passes a percentile.

    Parameters
    ----------
    images, heatmaps, targets
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
    infer, images, classes = checked(model, images, heatmaps, targets)
    if not percentiles or not all(0 < percent < 100 for percent in percentiles):
        raise ValueError(f"percentiles is {list(percentiles)}, expected one or more between 0 and 100")
    hottest, coldest = (
        painted(infer, images, some, classes, percentiles, noise, seed) for some in (heatmaps, -heatmaps)
    )
    return (coldest - hottest).mean(1) / 2


def painted(
    infer: Infer,
    images: Images,
    heatmaps: Heatmaps,
    targets: Targets,
    percentiles: Sequence[int | float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
) -> Curve:
    """The targets' probabilities where all but so many percent of the pixels are painted over, the hottest first."""
    pixels = heatmaps[0].numel()
    hottest = ranked(heatmaps)
    # At least one is left, to paint from.
    gone = torch.tensor([pixels - max(1, int(pixels * p / 100)) for p in percentiles], device=images.device)
    generator = torch.Generator().manual_seed(seed)
    grain = noise * torch.randn(images.shape[1:], generator=generator, dtype=torch.float64).to(images)

    def version(image: Tensor, step: Tensor) -> Images:
        missing = hottest[image] < gone[step, None, None]
        return imputed(images[image], missing) + grain * missing[:, None]

    return probabilities(infer, version, targets, len(percentiles), images[0].numel())


def imputed(images: Images, missing: Bool[Tensor, "b H W"]) -> Images:
    """Images whose missing pixels are the weighted means of their neighbours; those beyond the edge do not count.

    One after the other, so that each fits into caches and ends when it is solved.
    """
    return torch.stack(
        [_imputed(image.double(), hole.double()) for image, hole in zip(images, missing, strict=True)]
    ).to(images)


def _imputed(image: Float[Tensor, "channels H W"], hole: Float[Tensor, "H W"]) -> Float[Tensor, "channels H W"]:
    """The system is symmetric and positive definite where a pixel is known, so conjugate gradients solve it, in float64."""
    degree = _around(torch.ones_like(hole)[None])
    known = image * (1 - hole)
    right = _around(known) * hole
    found = torch.zeros_like(right)
    rest, scale = right, _squares(right).sqrt() * EXACT
    step = ahead = rest / degree
    for _ in range(MOST):
        if (_squares(rest).sqrt() <= scale).all():
            break
        bent = (degree * step - _around(step)) * hole
        before = (rest * ahead).sum((-2, -1), keepdim=True)
        length = _ratio(before, (step * bent).sum((-2, -1), keepdim=True))
        found, rest = found + length * step, rest - length * bent
        ahead = rest / degree
        step = ahead + _ratio((rest * ahead).sum((-2, -1), keepdim=True), before) * step
    return known + found


def _around(values: Float[Tensor, "channels H W"]) -> Float[Tensor, "channels H W"]:
    """Sums over the eight neighbours, a twelfth of each at a corner and two at a side: 1 2 1 both ways, but for the middle."""
    rows = 2 * values
    rows[:, 1:] += values[:, :-1]
    rows[:, :-1] += values[:, 1:]
    sums = 2 * rows
    sums[..., 1:] += rows[..., :-1]
    sums[..., :-1] += rows[..., 1:]
    return (sums - 4 * values) / 12


def _squares(values: Float[Tensor, "channels H W"]) -> Float[Tensor, "channels 1 1"]:
    return values.square().sum((-2, -1), keepdim=True)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0, part / torch.where(whole == 0, 1, whole))
