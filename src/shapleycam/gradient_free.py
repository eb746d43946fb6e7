"""CAMs whose weights come of trying, one a map, E = sum_i w_i A^i: CAM, ScoreCAM and AblationCAM."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from .playground import Playground, undisturbed
from .theory.axes import ExplanationMaps, Maps, wide
from .theory.heatmap import MODES
from .theory.utility import pre_softmax

MapWeights = Float[Tensor, "b n"]
FLAT = 1e-3
"""Share of an image's largest slope by which slopes that count as equal may differ."""


def weighed(weights: MapWeights, maps: Maps) -> ExplanationMaps:
    """E = sum_i w_i A^i, in float32 or wider."""
    return (wide(weights).view(*weights.shape, *[1] * (maps.ndim - 2)) * wide(maps)).sum(1)


@undisturbed
def cam(play: Playground) -> ExplanationMaps:
    """M_c = sum_k w_k^c f_k, Eq. (2) of Zhou et al. 2016, w^c the classifier's weights; explains the logit, whatever the utility.

    The weights are read off the tail: behind global average pooling of p positions the logit's slope is w_k^c / p at each.

    Raises
    ------
    ValueError
        When the tail is not global average pooling and a linear classifier.
    """
    maps = play.maps
    with torch.enable_grad():
        rows = torch.cat([maps, torch.zeros_like(maps), -maps]).requires_grad_()
        logits = play.tail(rows)
        (slopes,) = torch.autograd.grad(pre_softmax(logits, play.targets.repeat(3)).sum(), rows)
    slopes = slopes.flatten(2).unflatten(0, (3, len(maps)))
    apart = (slopes - slopes[0].mean(-1, keepdim=True)).abs().flatten(2).amax((0, 2))
    equal = apart <= FLAT * slopes[0].abs().flatten(1).amax(1)
    if not bool((equal | ~maps.flatten(1).isfinite().all(1)).all()):
        raise ValueError(
            f"CAM needs global average pooling and a linear classifier behind the layer; behind {play.forward.layer.name!r} "
            "the logit's slope is not the same at all positions and for all maps; name the layer that is pooled, or use "
            "GradCAM, which is CAM there and goes on elsewhere"
        )
    return weighed(slopes[0].sum(-1), maps)


@undisturbed
def score_cam(play: Playground) -> ExplanationMaps:
    """w = softmax over the maps of U(x * H^i) - U(x_b), Algorithm 1 of Wang et al. 2020, H^i the map on the image in [0, 1].

    U(x_b), the same for all maps, cancels in the softmax. The source leaves open how maps are enlarged: here with corners
    aligned, as in grad-cam; and it leaves out what to do with a constant map: here its H^i is 0. torchcam weighs
    probabilities, and the source's code does without the softmax. Costs a forward pass an image and map.

    Raises
    ------
    ValueError
        When maps and images have not as many axes.
    """
    maps, size = play.maps, play.images.shape[2:]
    b, n = maps.shape[:2]
    if maps.ndim != play.images.ndim:
        raise ValueError(
            f"ScoreCAM lays maps on images; layer {play.forward.layer.name!r} has maps of shape {tuple(maps.shape[2:])}, "
            f"the images {tuple(size)}; use AblationCAM"
        )
    scores = []
    for some in play.parts(b * n, play.images[0].numel()):
        pairs = torch.arange(some.start, some.stop, device=maps.device)
        image = pairs // n
        masks = interpolate(maps[image, pairs % n][:, None], size, mode=MODES[len(size)], align_corners=True)
        logits = play.infer(play.images[image] * _unit(wide(masks)).to(play.images.dtype))
        scores.append(play.worth(logits, image))
    return weighed(torch.cat(scores).view(b, n).softmax(1), maps)


@undisturbed
def ablation_cam(play: Playground) -> ExplanationMaps:
    """w_i = (U(A) - U(A without map i)) / |U(A)|, Desai and Ramaswamy 2020, the map set to zero.

    The source divides by a logit that is positive; where U(A) is not, its sign would turn the map over. Costs a replay of the
    tail an image and map; the head never runs again.
    """
    maps = play.maps
    b, n = maps.shape[:2]
    left = []
    for some in play.parts(n, maps.numel()):
        k = len(some)

        def without(some: range = some, k: int = k) -> Tensor:
            rows = maps.expand(k, *maps.shape).clone()
            rows[torch.arange(k), :, torch.arange(some.start, some.stop)] = 0
            return rows.flatten(0, 1)

        left.append(play.worth(play.tail.of(without), play.each.repeat(k)).view(k, b))
    full = play.full[:, None]
    return weighed((full - torch.cat(left).T) / full.abs(), maps)


def _unit(masks: Tensor) -> Tensor:
    """Each mask's minimum to 0 and its maximum to 1; 1e-8 in the divisor keeps constant ones at 0."""
    axes = tuple(range(2, masks.ndim))
    low, high = masks.amin(axes, keepdim=True), masks.amax(axes, keepdim=True)
    return (masks - low) / (high - low + 1e-8)
