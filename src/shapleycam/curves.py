"""`insertion` and `deletion`: the target's probability as pixels are shown or taken away, the most relevant first.

Petsiuk et al. 2018 (RISE, arXiv:1806.07421). Only the order of a heatmap's pixels counts; equal ones go row by row.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .network.arguments import check_pictures, resolve_targets, resolve_utility
from .network.cut import inference
from .network.inputs import Output
from .network.zoo import Model
from .theory.axes import Heatmaps, Images, Utilities
from .theory.utility import Utility, confidence

ROOM = 2**22
"""Numbers of images that a network is given at a time."""
Curve = Float[Tensor, "b points"]
Share = Callable[[Images, Int64[Tensor, " k"]], Utilities]
"""The targets' probabilities on versions of the images at k places."""


def insertion(
    model: Model | nn.Module,
    images: Images,
    heatmaps: Heatmaps,
    targets: int | str | Sequence[int] | Tensor | None = None,
    *,
    steps: int = 100,
    utility: str | Utility = "rest",
    output: Output | None = None,
) -> Utilities:
    """Area under the target's probability while a blurred image turns sharp, (b,) in [0, 1]; higher is better.

    Costs steps + 2 forward passes. The blur is that of the authors' code, 11 x 11 pixels.

    Parameters
    ----------
    images, targets, output
        As in `explain`.
    heatmaps
        Of any method and origin, (b, H, W).
    steps
        How many equal parts of the pixels are shown one after the other; 224 is the authors' choice for 224 x 224 pixels.
    utility
        What was explained: of "rest-sigmoid" and its kin the probability is that of the logit by itself, for the side that is
        explained.

    Raises
    ------
    ValueError
        When heatmaps do not lie on the images, for less than one step or more than there are pixels, and as `explain`.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> model, images = sc.load_model("resnet18", weights="random"), torch.rand(2, 3, 64, 64)
    >>> out = sc.explain(model, images, methods="GradCAM")
    >>> sc.insertion(model, images, out.heatmaps["GradCAM"], out.targets, steps=4).shape
    torch.Size([2])
    """
    share, images = checked(model, images, heatmaps, targets, utility, output)
    return area(exchange(share, blurred(images), images, heatmaps, steps))


def deletion(
    model: Model | nn.Module,
    images: Images,
    heatmaps: Heatmaps,
    targets: int | str | Sequence[int] | Tensor | None = None,
    *,
    steps: int = 100,
    utility: str | Utility = "rest",
    output: Output | None = None,
) -> Utilities:
    """Area under the target's probability while the image's pixels turn to zero, (b,) in [0, 1]; lower is better.

    Zero is the mean colour, for images are normalised. Parameters, cost and errors are those of `insertion`.
    """
    share, images = checked(model, images, heatmaps, targets, utility, output)
    return area(exchange(share, images, torch.zeros_like(images), heatmaps, steps))


def area(curve: Curve) -> Utilities:
    """Area under a curve of equally spaced points over [0, 1], by trapezoids."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def exchange(share: Share, before: Images, after: Images, heatmaps: Heatmaps, steps: int) -> Curve:
    """The targets' probabilities while `before` turns into `after`, the hottest pixels first, as many at each of the steps."""
    pixels = heatmaps[0].numel()
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps is {steps}, expected 1 to {pixels}, the number of pixels")
    hottest = ranked(heatmaps).to(before.device)
    changed = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().long().to(hottest.device)

    def version(image: Tensor, step: Tensor) -> Images:
        return torch.where((hottest[image] < changed[step, None, None])[:, None], after[image], before[image])

    return probabilities(share, version, before, steps + 1)


def probabilities(share: Share, version: Callable[[Tensor, Tensor], Images], images: Images, versions: int) -> Curve:
    """The targets' probabilities on `versions` versions of each image, as many at a time as there is room for."""
    pairs = torch.arange(len(images) * versions, device=images.device).split(max(1, ROOM // images[0].numel()))
    found = [share(version(some // versions, some % versions), some // versions) for some in pairs]
    return torch.cat(found).view(len(images), versions)


def ranked(heatmaps: Heatmaps) -> Int64[Tensor, "b H W"]:
    """Each pixel's place, from 0 for the hottest; equal ones follow each other row by row."""
    places = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks: Tensor = places.argsort(1).view(heatmaps.shape)
    return ranks


def blurred(images: Images) -> Images:
    """Images under the blur of the authors' code: a Gaussian of deviation 5, folded into 11 pixels a side; zero around them."""
    reach = torch.arange(-20, 21, dtype=torch.float64)
    bell = (-(reach**2) / 50).exp()
    place = (torch.arange(11)[:, None] + reach.long()) % 22  # beyond the edge it comes back, as in a mirror
    kernel = ((place == 5) | (place == 16)).double() @ (bell / bell.sum())
    flat = images.flatten(0, 1)[:, None]
    with torch.autocast(images.device.type, enabled=False):
        for side in (kernel[:, None], kernel):
            weight = side.to(images).view(1, 1, *(side.shape if side.ndim == 2 else (1, 11)))
            flat = conv2d(flat, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    return flat[:, 0].view(images.shape)


def checked(
    model: Model | nn.Module,
    images: Images,
    heatmaps: Heatmaps,
    targets: int | str | Sequence[int] | Tensor | None,
    utility: str | Utility,
    output: Output | None = None,
) -> tuple[Share, Images]:
    """What gives the probabilities of a model's targets, and its images without a graph."""
    check_pictures(model, images)
    if not isinstance(heatmaps, Tensor):
        raise TypeError(f"heatmaps is a {type(heatmaps).__name__}, expected a tensor (b, H, W); use torch.as_tensor")
    if heatmaps.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"heatmaps have shape {tuple(heatmaps.shape)}, expected one on each image, "
            f"{(len(images), *images.shape[2:])}; what sc.explain gives in out.heatmaps[method] fits"
        )
    infer, images = inference(model.module if isinstance(model, Model) else model, output), images.detach()
    logits, function = infer(images.clone()), resolve_utility(utility)[1]  # the network may write into them
    known = confidence(function, logits, resolve_targets(targets, logits, function))
    return lambda some, places: known(infer(some), places), images
