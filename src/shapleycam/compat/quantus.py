"""Explanations for the metrics of Quantus; Quantus itself is needed only to run them."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..explanation import explain
from ..network.layout import Axes, Layout
from ..network.zoo import Model
from ..theory.utility import Utility


def explain_func(
    model: Model | nn.Module,
    inputs: Float[np.ndarray, "b channels H W"] | Float[Tensor, "b channels H W"],
    targets: NDArray[Any] | Tensor | int,
    *,
    method: str = "ShapleyCAM",
    layer: str | None = None,
    layout: Axes | Layout | None = None,
    utility: str | Utility = "rest",
    device: object = None,
) -> Float[np.ndarray, "b 1 H W"]:
    """Heatmaps in [0, 1] as Quantus asks for them: `metric(..., explain_func=explain_func, explain_func_kwargs={...})`.

    Parameters
    ----------
    model, layer, layout, utility
        As in `explain`; `layer` by its name, for metrics that randomise weights hand over copies of the model.
    inputs, targets
        Of any precision and on any device; they are moved to the model's.
    device
        What Quantus may pass along; the model's own counts.

    Examples
    --------
    >>> import numpy as np, shapleycam as sc
    >>> from shapleycam.compat.quantus import explain_func
    >>> model = sc.load_model("resnet18", weights="random").module
    >>> explain_func(model, np.zeros((2, 3, 64, 64), np.float32), np.array([3, 5]), method="GradCAM", layer="layer4").shape
    (2, 1, 64, 64)
    """
    module = model.module if isinstance(model, Model) else model
    parameter = next(module.parameters(), torch.zeros(0))
    images = torch.as_tensor(inputs).to(parameter)
    classes = torch.as_tensor(targets)
    out = explain(model, images, methods=method, layer=layer, layout=layout, targets=classes, utility=utility)
    heatmaps: NDArray[Any] = out.heatmaps[method][:, None].cpu().numpy()
    return heatmaps
