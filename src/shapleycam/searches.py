"""The methods that need more than an expansion of the utility, as rows of one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .full_gradient import full_grad
from .gradient_free import ablation_cam, cam, score_cam
from .lift import lift_cam
from .playground import Playground, undisturbed
from .references import integrated_gradients, kernel_shap, rise
from .theory.axes import ExplanationMaps, wide
from .theory.crg import Expansion
from .theory.eigen import eigen_cam, eigen_grad_cam


@dataclass(frozen=True)
class Search:
    """A row of the table."""

    name: str
    equation: str
    source: str
    cost: str
    """For n maps, beside one forward pass."""
    explain: Callable[[Playground], Float[Tensor, "b *p"]]
    """E of each image: signed, before the last ReLU."""
    place: Literal["layer", "image"] = "layer"
    """Where E lies: at the layer's positions or the image's pixels."""


@undisturbed
def _eigen(play: Playground) -> ExplanationMaps:
    return eigen_cam(Expansion(wide(play.maps)))


@undisturbed
def _eigen_grad(play: Playground) -> ExplanationMaps:
    rows = play.maps.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(play.worth(play.tail(rows), play.each).sum(), rows)
    return eigen_grad_cam(Expansion(wide(play.maps), wide(slope)))


SEARCHES: Mapping[str, Search] = MappingProxyType(
    {
        row.name: row
        for row in (
            Search("CAM", "Eq. (2) of its source", "Zhou et al. 2016", "a pass over the tail, and back", cam),
            Search("ScoreCAM", "Algorithm 1 of its source", "Wang et al. 2020", "n forward passes", score_cam),
            Search(
                "AblationCAM",
                "w_i = (U(A) - U(A without map i)) / |U(A)|",
                "Desai and Ramaswamy 2020",
                "n passes over the tail",
                ablation_cam,
            ),
            Search(
                "LIFT-CAM",
                "w_i = DeepLIFT's shares of map i",
                "Jung and Oh 2021",
                "6 passes over the tail, and back",
                lift_cam,
            ),
            Search("EigenCAM", "first principal component of A", "Muhammad and Yeasin 2020", "an SVD", _eigen),
            Search(
                "EigenGradCAM",
                "first principal component of U' A",
                "Gildenblat 2021 (grad-cam)",
                "a pass over the tail, and back, and an SVD",
                _eigen_grad,
            ),
            Search(
                "FullGrad",
                "sum of psi(dU/dx x) and psi(dU/db b)",
                "Srinivas and Fleuret 2019",
                "1 pass, and back",
                full_grad,
                "image",
            ),
            Search(
                "IntegratedGradients",
                "Eq. (1) of its source",
                "Sundararajan et al. 2017",
                "50 passes, and back",
                integrated_gradients,
                "image",
            ),
            Search(
                "RISE",
                "mean of U(x M) M / E[M]",
                "Petsiuk et al. 2018",
                "4,000 forward passes, or the budget",
                rise,
                "image",
            ),
            Search(
                "KernelSHAP",
                "Theorem 2 of its source",
                "Lundberg and Lee 2017",
                "about 4,000 forward passes, or the budget",
                kernel_shap,
                "image",
            ),
        )
    }
)
"""Methods that play with the network, by name; none is in `METHODS`."""


def on_image(name: str) -> bool:
    """Whether a method explains pixels, not the layer's positions."""
    return name in SEARCHES and SEARCHES[name].place == "image"
