"""From an explanation map to a heatmap that lies on the image."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from .axes import Heatmaps


def heatmap(explanations: Float[Tensor, "b h w"], size: tuple[int, int]) -> Heatmaps:
    """H = ReLU(E) scaled to [0, 1], resized to (H, W) pixels, scaled again.

    Bilinear with `align_corners=False`. A map that is constant after the ReLU gives zeros.
    """
    coarse = rescale(explanations.relu())
    return rescale(interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)[:, 0])


def rescale(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Each map's minimum to 0 and its maximum to 1; 1e-7 in the divisor keeps constant maps at 0."""
    lifted = maps - torch.amin(maps, (-2, -1), keepdim=True)
    return lifted / (torch.amax(lifted, (-2, -1), keepdim=True) + 1e-7)
