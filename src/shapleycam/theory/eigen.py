"""EigenCAM and its kin: what the maps of a layer have in common, by their first principal component."""

import torch
from jaxtyping import Float
from torch import Tensor

from .axes import ExplanationMaps, Maps
from .crg import Expansion


def eigen_cam(expansion: Expansion) -> ExplanationMaps:
    """The maps on their first principal component, Muhammad and Yeasin 2020; asks about no class.

    The source takes the first singular vector of the maps as they are, grad-cam that of the centred maps, and so does this.
    """
    return component(expansion.maps)


def eigen_grad_cam(expansion: Expansion) -> ExplanationMaps:
    """The same of U' * A, position by position (Gildenblat 2021, grad-cam).

    Raises
    ------
    ValueError
        When the expansion has no gradient.
    """
    if expansion.gradient is None:
        raise ValueError("EigenGradCAM needs the gradient; expand with the ingredient 'gradient'")
    return component(expansion.gradient * expansion.maps)


def component(maps: Maps) -> ExplanationMaps:
    """Positions, each a point with n coordinates, on the first principal component; it sums to 0 over the positions.

    A component has no sign of its own: here it grows where the sum of the maps does, that is, its product with that sum is not
    negative. In grad-cam the sign is what LAPACK happens to give. NaN where an image's maps are not finite.
    """
    points = maps.flatten(2).mT
    finite = points.isfinite().all(2).all(1)
    points = torch.where(finite[:, None, None], points, 0)
    centred = points - points.mean(1, keepdim=True)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found: Float[Tensor, "b p"] = u[..., 0] * s[..., :1]
    along = (found * centred.sum(2)).sum(1, keepdim=True)
    found = torch.where(along < 0, -found, found)
    return torch.where(finite[:, None], found, torch.nan).view(len(maps), *maps.shape[2:])
