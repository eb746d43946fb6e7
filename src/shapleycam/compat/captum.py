"""An explainer that is called as captum's `LayerGradCam` is; captum itself is not needed."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..explanation import explain
from ..network.layout import Axes, Layout
from ..network.zoo import Model
from ..theory.axes import Images
from ..theory.utility import Utility

Attributions = Float[Tensor, "b 1 *p"]


class LayerExplainer:
    """A method at a layer of a model.

    `LayerExplainer(model, layer, "GradCAM", utility="pre-softmax")` gives what `captum.attr.LayerGradCam(model, layer)` gives.
    """

    def __init__(
        self,
        model: Model | nn.Module,
        layer: str | nn.Module | None = None,
        method: str = "ShapleyCAM",
        *,
        layout: Axes | Layout | None = None,
        utility: str | Utility = "rest",
    ) -> None:
        """All as in `explain`."""
        self.model, self.layer, self.method, self.layout, self.utility = model, layer, method, layout, utility

    def attribute(
        self,
        inputs: Images,
        target: int | str | Sequence[int] | Tensor | None = None,
        *,
        relu_attributions: bool = False,
    ) -> Attributions:
        """E, (b, 1, h, w), signed unless rectified; `target` None explains each image's likeliest class.

        Examples
        --------
        >>> import torch, shapleycam as sc
        >>> from shapleycam.compat.captum import LayerExplainer
        >>> explainer = LayerExplainer(sc.load_model("resnet18", weights="random"))
        >>> images = torch.rand(1, 3, 64, 64)
        >>> explainer.interpolate(explainer.attribute(images, target=3), images.shape[2:]).shape
        torch.Size([1, 1, 64, 64])
        """
        out = explain(
            self.model,
            inputs,
            methods=self.method,
            layer=self.layer,
            layout=self.layout,
            targets=target,
            utility=self.utility,
        )
        found = out.explanations[self.method][:, None]
        return found.relu() if relu_attributions else found

    @staticmethod
    def interpolate(
        layer_attribution: Attributions,
        interpolate_dims: int | Sequence[int],
        interpolate_mode: Literal["nearest", "bilinear", "trilinear"] = "nearest",
    ) -> Float[Tensor, "b 1 *size"]:
        """Attributions resized to the inputs, as captum's `LayerAttribution.interpolate` does."""
        size = interpolate_dims if isinstance(interpolate_dims, int) else list(interpolate_dims)
        return interpolate(layer_attribution, size, mode=interpolate_mode)
