"""RefineCAM: heatmaps of several layers as one, as fine as the first and as sure as the last."""

from collections.abc import Sequence

import torch

from .axes import Heatmaps
from .heatmap import rescale


def refine(heatmaps: Sequence[Heatmaps]) -> Heatmaps:
    """The product of the layers' heatmaps, scaled to [0, 1]: RefineCAM (Domeniconi et al. 2026), for any method's heatmaps.

    A pixel counts if it does at every layer. The source takes those of GradCAM++.

    Raises
    ------
    ValueError
        For fewer than two layers, or heatmaps of different sizes.
    """
    shapes = {tuple(each.shape) for each in heatmaps}
    if len(heatmaps) < 2 or len(shapes) > 1:
        raise ValueError(
            f"got {len(heatmaps)} layers' heatmaps of shapes {sorted(shapes)}, expected two or more of one shape; "
            "explain the same images at each layer"
        )
    return rescale(torch.stack(list(heatmaps)).prod(0))
