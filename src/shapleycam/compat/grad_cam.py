"""What `pytorch_grad_cam` offers, by this library: change the import, and grad-cam's programs run.

Heatmaps are grad-cam 1.5.7's to 1e-5, but where it is wrong: see docs/migrating.md.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..explanation import explain
from ..network.arguments import cut_network, resolve_targets, run
from ..network.cut import CutNetwork
from ..network.expand import expand
from ..network.layout import AXES, Layout, TargetLayer
from ..network.twin import twin, unwrap
from ..theory.axes import ExplanationMaps, Images, Logits, Maps, Utilities
from ..theory.cams import METHODS, products
from ..theory.crg import INGREDIENTS, Expansion
from ..theory.draws import checksums, random_weights
from ..theory.heatmap import rescale
from ..theory.utility import Utility, pre_softmax
from .grad_cam_image import preprocess_image as preprocess_image
from .grad_cam_image import show_cam_on_image as show_cam_on_image

Target = Callable[[Tensor], Tensor]
"""From the logits of one image, (c,), to the number that is explained."""
Transform = Callable[[Tensor], Tensor]
"""From what a layer puts out to activation maps (b, n, h, w)."""
_FLIPS, _FACTORS = (False, True), (0.9, 1.0, 1.1)
"""grad-cam's test-time augmentation."""


class ClassifierOutputTarget:
    """The class's logit."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[..., self.category]


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The class's probability."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output.softmax(-1)[..., self.category]


class ClassifierOutputReST(ClassifierOutputTarget):
    """The Residual Softmax Target-Class utility of the class: see `theory.utility.rest`."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return (model_output + model_output.log_softmax(-1))[..., self.category]


class CAM:
    """A method of grad-cam's at one or several layers of a model, which is left as it is: no hooks, no change of mode."""

    method: ClassVar[str]
    """The method's name in this library; one that is not in `_GRADIENTS` goes through `explain`."""

    def __init__(
        self, model: nn.Module, target_layers: Sequence[nn.Module | str], reshape_transform: Transform | None = None
    ) -> None:
        """No `target_layers` leaves the choice to `explain`.

        `reshape_transform` may move axes and leave out tokens, as those in grad-cam's documentation do. It is not needed: without
        one the layout is found out.
        """
        if isinstance(target_layers, str) or not isinstance(target_layers, Sequence):
            raise TypeError("target_layers is no list of layers; use target_layers=[layer]")
        self.model, self.target_layers, self.reshape_transform = model, list(target_layers), reshape_transform
        self.outputs: Tensor | None = None
        """The model's logits in the last call, (b, c), without a graph; None before the first."""

    def __call__(
        self,
        input_tensor: Images,
        targets: Sequence[Target] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Float[np.ndarray, "b H W"]:
        """Heatmaps in [0, 1], averaged over the target layers; `targets` None explains each image's likeliest class.

        Parameters
        ----------
        targets
            One an image; called with its logits (c,).
        aug_smooth
            Average over mirrored, darker and lighter images: six times the cost.
        eigen_smooth
            Take the first principal component of the weighted maps instead of their sum.

        Raises
        ------
        ValueError
            For another number of targets than images, and as `explain`.
        """
        parameter = next(self.model.parameters(), input_tensor)
        images = input_tensor.detach().to(parameter.device)
        if images.ndim != 4:
            raise ValueError(
                f"input_tensor has shape {tuple(images.shape)}, expected (b, channels, H, W); use sc.explain"
            )
        if not aug_smooth:
            return _array(self._heatmaps(images, targets, eigen_smooth))
        found = []
        for flip, factor in product(_FLIPS, _FACTORS):
            heatmaps = self._heatmaps((images.flip(-1) if flip else images) * factor, targets, eigen_smooth)
            found.append(heatmaps.flip(-1) if flip else heatmaps)
        return _array(torch.stack(found).mean(0))

    def __enter__(self) -> "CAM":
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing to release."""

    def _heatmaps(self, images: Images, targets: Sequence[Target] | None, eigen: bool) -> Tensor:
        size = tuple(images.shape[2:])
        layers: list[nn.Module | str | None] = [*self.target_layers] or [None]
        coarse = [rescale(self._explanation(images, layer, targets, eigen).relu()) for layer in layers]
        fine = [interpolate(each[:, None], size, mode="bilinear", align_corners=False)[:, 0] for each in coarse]
        return rescale(torch.stack(fine).mean(0))

    def _explanation(
        self, images: Images, layer: nn.Module | str | None, targets: Sequence[Target] | None, eigen: bool
    ) -> ExplanationMaps:
        """E, (b, h, w), at one layer."""
        layout = None
        if self.reshape_transform is not None and layer is not None:
            layout = layout_of(self.reshape_transform, self.model, layer, images)
        if self.method not in _GRADIENTS:
            if eigen:
                raise ValueError(f"{self.method} weighs no maps position by position; leave out eigen_smooth")
            return self._by_trying(images, layer, layout, _each(targets, images))
        utility = _utility(targets)
        ingredients, weigh = _GRADIENTS[self.method]
        forward = run(cut_network(self.model, layer, layout, images), images, second_order="hvp" in ingredients)
        self.outputs = forward.logits.detach()

        def noise() -> Maps:
            return random_weights(checksums(images), forward.leaf)

        expansion = expand(forward, resolve_targets(None, self.outputs), utility, ingredients, noise)
        parts = weigh(expansion)
        return principal(parts) if eigen or self.method in _PRINCIPAL else parts.sum(1)

    def _by_trying(
        self, images: Images, layer: nn.Module | str | None, layout: Layout | None, targets: Sequence[Target | None]
    ) -> ExplanationMaps:
        """E of methods that ask for the worth of many rows: image by image, so that each row's target is known."""
        options: dict[str, Any] = {"methods": self.method, "layer": layer, "layout": layout}
        outs = [
            explain(self.model, image[None], utility=_utility_of_rows(target), **options)
            for image, target in zip(images, targets, strict=True)
        ]
        self.outputs = torch.cat([out.logits for out in outs])
        return torch.cat([out.explanations[self.method] for out in outs])


def _maps(expansion: Expansion) -> Maps:
    return expansion.maps


_ROWS = ("RandomCAM", "GradCAM", "HiResCAM", "GradCAM-E", "LayerCAM", "XGradCAM", "GradCAM++", "ShapleyCAM")
_PRINCIPAL = ("EigenCAM", "EigenGradCAM")
_GRADIENTS: Mapping[str, tuple[frozenset[str], Callable[[Expansion], Maps]]] = MappingProxyType(
    {name: (INGREDIENTS[METHODS[name].order], partial(products, METHODS[name])) for name in _ROWS}
    | {
        "EigenCAM": (frozenset[str](), _maps),
        "EigenGradCAM": (INGREDIENTS["first"], partial(products, METHODS["HiResCAM"])),
    }
)
"""What methods need beside the maps, and the weighted maps that they add up, or take the first principal component of."""


class GradCAM(CAM):
    method = "GradCAM"


class HiResCAM(CAM):
    method = "HiResCAM"


class GradCAMElementWise(CAM):
    method = "GradCAM-E"


class LayerCAM(CAM):
    method = "LayerCAM"


class XGradCAM(CAM):
    method = "XGradCAM"


class GradCAMPlusPlus(CAM):
    method = "GradCAM++"


class ShapleyCAM(CAM):
    method = "ShapleyCAM"


class RandomCAM(CAM):
    """Its weights are drawn from the image, so that the same image gives the same heatmap; grad-cam's change with each call."""

    method = "RandomCAM"


class EigenCAM(CAM):
    method = "EigenCAM"


class EigenGradCAM(CAM):
    method = "EigenGradCAM"


class AblationCAM(CAM):
    method = "AblationCAM"


class ScoreCAM(CAM):
    method = "ScoreCAM"


class FullGrad(CAM):
    method = "FullGrad"


def principal(maps: Float[Tensor, "b n *p"]) -> Float[Tensor, "b *p"]:
    """Each position's place along the first principal component of the maps; the sign is LAPACK's, as in grad-cam."""
    found = []
    for each in maps.nan_to_num(0, torch.inf, -torch.inf).flatten(2).mT.cpu().numpy():
        centred = each - each.mean(0)
        found.append(centred @ np.linalg.svd(centred, full_matrices=False)[2][0])
    return torch.from_numpy(np.stack(found)).to(maps).view(len(maps), *maps.shape[2:])


def layout_of(transform: Transform, model: nn.Module, layer: nn.Module | str, images: Images) -> Layout:
    """The layout that a `reshape_transform` reads, found by having it move numbered values; costs a forward pass.

    Raises
    ------
    ValueError
        When it does more than move axes and leave out tokens in front.
    """
    shapes: list[tuple[int, ...]] = []
    target = CutNetwork(model, layer).layer
    with torch.inference_mode(False), torch.no_grad():
        twin(unwrap(model), {target: lambda module, given, output: shapes.append(tuple(output.shape))})(
            images[:1].clone()
        )
    shape = shapes[0] if shapes else (1, 1, 1, 1)
    numbered = torch.arange(prod(shape), dtype=torch.float64).view(shape)
    wanted = transform(numbered)
    positions = tuple(wanted.shape[2:])
    for axes in (axes for axes in AXES if len(axes) == len(shape)):
        tokens = shape[axes.index("t")] - prod(positions) if "t" in axes else 0
        sizes = tuple(size for axis, size in zip(axes, shape, strict=True) if axis not in "bn")
        if tokens >= 0 and ("t" in axes or sizes == positions):
            read = TargetLayer("", axes, wanted.shape[1], positions, tokens)
            if torch.equal(read.maps_of(numbered), wanted):
                return Layout(axes, positions, tokens)
    raise ValueError(
        f"reshape_transform makes {tuple(wanted.shape)} of the layer's {shape}, not by moving axes and leaving out tokens in "
        "front alone; leave it out, and the layout is found out"
    )


def _each(targets: Sequence[Target] | None, images: Tensor) -> list[Target | None]:
    given: list[Target | None] = [None] * len(images) if targets is None else list(targets)
    if len(given) != len(images):
        raise ValueError(f"got {len(given)} targets, expected one for each of {len(images)} images")
    return given


def _utility(targets: Sequence[Target] | None) -> Utility:
    def utility(logits: Logits, classes: Tensor) -> Utilities:
        each = _each(targets, logits)
        return torch.cat([_utility_of_rows(t)(logits[i, None], classes[i, None]) for i, t in enumerate(each)])

    return utility


def _utility_of_rows(target: Target | None) -> Utility:
    if target is None:
        return pre_softmax
    return lambda logits, classes: torch.stack([target(row).reshape(()) for row in logits])


def _array(heatmaps: Tensor) -> Float[np.ndarray, "b H W"]:
    array: NDArray[np.float32] = heatmaps.cpu().float().numpy()
    return array
