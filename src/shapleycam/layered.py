"""One batch explained at several layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .network.arguments import check_images
from .network.inputs import Inputs, Output, as_inputs
from .network.preprocess import Preprocess
from .network.suggest import Suggestion, suggest
from .network.zoo import Model
from .theory.axes import Heatmaps, Logits, Targets
from .theory.fusion import refine

if TYPE_CHECKING:
    from .batch import Explanation


@dataclass(frozen=True)
class Layered:
    """What `explain` found at each of several layers, by their names; one `Explanation` a layer."""

    layers: Mapping[str, "Explanation"]

    @cached_property
    def heatmaps(self) -> Mapping[str, Heatmaps]:
        """For each method the mean of the layers' heatmaps, (b, H, W) in [0, 1]."""
        return {name: torch.stack(each).mean(0) for name, each in self._by_method.items()}

    @cached_property
    def refined(self) -> Mapping[str, Heatmaps]:
        """For each method the product of the layers' heatmaps, RefineCAM: see `theory.fusion.refine`."""
        return {name: refine(each) for name, each in self._by_method.items()}

    @cached_property
    def _by_method(self) -> dict[str, list[Heatmaps]]:
        every = [each.heatmaps for each in self.layers.values()]
        if len({each[name].shape for each in every for name in each}) > 1:
            raise ValueError(
                "the layers' maps have several sizes and cannot be laid on the image, so they cannot be joined; see `layers`"
            )
        return {name: [each[name] for each in every] for name in every[0]}

    @property
    def preprocess(self) -> Preprocess | None:
        """How the model's pictures were made images."""
        return next(iter(self.layers.values())).preprocess

    @property
    def targets(self) -> Targets:
        """The class explained, an image each."""
        return next(iter(self.layers.values())).targets

    @property
    def logits(self) -> Logits:
        """The network's logits, (b, c)."""
        return next(iter(self.layers.values())).logits


def suggest_layers(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[object, ...] | Mapping[str, object],
    *,
    output: Output | None = None,
) -> list[Suggestion]:
    """Layers that can be explained, best first, each with the reason for its place; `explain` without a layer takes the first.

    The best is the last to end whose positions the prediction depends on. One forward and one backward pass of the first image.
    Parameters are those of `explain`.

    Raises
    ------
    ValueError
        When no layer puts out maps on which the prediction depends.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> network = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    ... )
    >>> print(sc.suggest_layers(network, torch.rand(1, 3, 32, 32))[0])
    1 (8 maps of 30 x 30, bnhw): feeds the last spatial reduction
    """
    given = as_inputs(images)
    check_images(model, given)
    return suggest(model.module if isinstance(model, Model) else model, given[:1], output)
