"""The six metrics of Section 4: how well heatmaps hold what the class probability is made of.

`full`, `kept` and `deleted` are the target's probability on the image, on its explanation map x * H, and on its
anti-explanation map x * (1 - H). Scores are fractions, which the paper's tables print in percent.

But for those of heatmaps, the formulas consist of operators alone and take NumPy arrays as well: tables are made of rows on
disk, where there may be no torch. So torch is imported for type checkers only.
"""

from typing import TYPE_CHECKING, Any

from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

Probabilities = Float[Tensor, "..."]
Scores = Float[Tensor, "..."]


def average_drop(full: Probabilities, kept: Probabilities) -> Scores:
    """Share of confidence lost on the explanation map, Eq. (18), in [0, 1]; lower is better; NaN where there is none."""
    return (full - kept) * (full > kept) / full


def coherency(heatmaps: Float[Tensor, "*k H W"], again: Float[Tensor, "*k H W"]) -> Float[Tensor, "*k"]:
    """Pearson correlation of a heatmap and the explanation map's own heatmap, from [-1, 1] to [0, 1], Eq. (19).

    Higher is better. A constant or non-finite map gives 0.
    """
    x, y = heatmaps.flatten(-2), again.flatten(-2)
    a, b = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    r = (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
    varied = (x.amin(-1) < x.amax(-1)) & (y.amin(-1) < y.amax(-1))  # rounding gives a constant map a deviation too
    return ((r.clamp(-1, 1) + 1) / 2).where(varied & r.isfinite(), 0)


def complexity(heatmaps: Float[Tensor, "*k H W"]) -> Float[Tensor, "*k"]:
    """Mean of a heatmap over its pixels, Eq. (20), in [0, 1]; lower is better."""
    return heatmaps.abs().mean((-2, -1))


def adcc(
    average_drop: Float[Tensor, "b *k"], coherency: Float[Tensor, "b *k"], complexity: Float[Tensor, "b *k"]
) -> Scores:
    """Harmonic mean of 1 - average drop, coherency and 1 - complexity, Eq. (21), in [0, 1]; higher is better.

    Taken of the means over the images, the first axis, as in the paper's tables; never the mean of single ADCCs.
    """
    return adcc_per_image(average_drop.mean(0), coherency.mean(0), complexity.mean(0))


def adcc_per_image(average_drop: Scores, coherency: Scores, complexity: Scores) -> Scores:
    """Eq. (21) for each image by itself; 0 where one of the three is at its worst. Not what tables print: see `adcc`."""
    return 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - average_drop))


def increase_in_confidence(full: Probabilities, kept: Probabilities) -> Scores:
    """1 where the explanation map raises the confidence, else 0, Eq. (22); the mean is the rate, higher is better."""
    return (kept > full) + 0 * full  # a truth value in the type of `full`


def average_drop_in_deletion(full: Probabilities, deleted: Probabilities) -> Scores:
    """Share of confidence lost on the anti-explanation map, Eq. (23), in [0, 1]; higher is better; NaN where there is none."""
    return average_drop(full, deleted)
