"""From an explanation map to a heatmap that lies on the image."""

import torch
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
    lifted = maps - torch.amin(maps, positions, keepdim=True)
    scaled: Tensor = lifted / (torch.amax(lifted, positions, keepdim=True) + 1e-7)
    return scaled
