"""The methods against grad-cam 1.5.7 on real architectures; and against slow loops in float64 where grad-cam is wrong.

Where a layer writes in place into the maps that grad-cam keeps (the ReLU behind VGG-16's last convolution), and where it
multiplies axes that do not match (its ShapleyCAM on Swin's channels-last maps), the loops say what is right, and a test
says that grad-cam is wrong there.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import pytorch_grad_cam
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import shapleycam
from shapleycam import Explanation, Model, explain, load_model

PICTURES = [Path(shapleycam.__file__).parent / "data" / name for name in ("cat.jpg", "coffee.jpg")]

THEIRS = {
    "GradCAM": pytorch_grad_cam.GradCAM,
    "HiResCAM": pytorch_grad_cam.HiResCAM,
    "GradCAM-E": pytorch_grad_cam.GradCAMElementWise,
    "LayerCAM": pytorch_grad_cam.LayerCAM,
    "XGradCAM": pytorch_grad_cam.XGradCAM,
    "GradCAM++": pytorch_grad_cam.GradCAMPlusPlus,
    "ShapleyCAM": pytorch_grad_cam.ShapleyCAM,
}
METHODS = (*THEIRS, "ShapleyCAM-H", "ShapleyCAM-E")
LAYERS = ("gap", "conv")
UTILITIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rest": lambda logits, target: logits[target] + logits.log_softmax(0)[target],
    "pre-softmax": lambda logits, target: logits[target],
}
# XGradCAM divides by the sum of a map, which is a sum of both signs at a convolution.
TOLERANCE = {"XGradCAM": 1e-3}

large = pytest.mark.large
NETWORKS = [
    "efficientnet_lite0",
    pytest.param("mobilenet_v2", marks=large),
    pytest.param("resnet18", marks=large),
    pytest.param("resnet50", marks=large),
    pytest.param("vgg16", marks=large),
    pytest.param("efficientnet_b0", marks=large),
    pytest.param("swin_t", marks=large),
]


CASES = [
    pytest.param(*case.values, layer, utility, marks=case.marks)
    for case in (each if hasattr(each, "marks") else pytest.param(each) for each in NETWORKS)
    for layer in LAYERS
    for utility in UTILITIES
    if utility == "rest" or case.values[0] in ("efficientnet_lite0", "resnet18", "swin_t")
]
"""Every network and layer under ReST; of each kind of network one under the other utility, too."""


def wrong_in_grad_cam(network: str, layer: str, method: str) -> bool:
    """Where grad-cam is no reference; HiResCAM and its kin are spared, for the ReLU's zeros are their gradient's too."""
    written_over = (network, layer) == ("vgg16", "conv") and method in (
        "GradCAM",
        "XGradCAM",
        "GradCAM++",
        "ShapleyCAM",
    )
    return written_over or (network == "swin_t" and method == "ShapleyCAM")


@cache
def pictured(network: str) -> tuple[Model, Tensor]:
    """A network and two pictures: trained if it ships, else random and such that it tells them apart.

    Random weights let the signal die in a deep network: EfficientNet-B0's maps would be the same for all pictures, to a
    few bits. So its norms take the statistics of the pictures, and the logits are spread, which bends the softmax.
    """
    trained = network == "efficientnet_lite0"
    model = load_model(network, weights=None if trained else "random")
    images = model.preprocess(PICTURES)
    if network == "vgg16":  # the slowest by far, and as good on a part
        images = images[:, :, 48:176, 48:176].contiguous()
    if not trained:
        norms = [module for module in model.module.modules() if isinstance(module, nn.BatchNorm2d)]
        head = [module for module in model.module.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            for norm in norms:
                norm.train().momentum = 1
            model.module(images)
            for norm in norms:
                norm.eval()
            head.weight *= 3 / model.module(images).std(1).mean()
    return model, images


@cache
def ours(network: str, layer: str, utility: str) -> Explanation:
    """Our maps of two pictures; their references must not be blank either, which `agree` asserts."""
    model, images = pictured(network)

    def maps(some: Tensor, targets: Tensor) -> Explanation:
        return explain(model, some, methods=METHODS, layer=layer, utility=utility, targets=targets)

    def worth_comparing(image: Tensor) -> int:
        """The likeliest class for which no method's map is all but blank; GradCAM++ has poles where sum(A) is negative."""
        with torch.no_grad():
            likeliest = model.module(image[None])[0].topk(121).indices
        for classes in likeliest.split([1, *[15] * 8]):
            heatmaps = maps(image.expand(len(classes), -1, -1, -1).contiguous(), classes).heatmaps
            found = torch.stack([lively(each) for each in heatmaps.values()]).all(0).nonzero()
            if len(found):
                return int(classes[found[0, 0]])
        raise AssertionError("no class has maps that are worth a comparison")

    return maps(images, torch.tensor([worth_comparing(image) for image in images]))


def lively(heatmaps: Tensor) -> Tensor:
    """Whether each heatmap has both extremes and is more than one bright spot, whose deviation is 0.096."""
    flat = heatmaps.flatten(1)
    return (flat.amax(1) > 0.99) & (flat.amin(1) < 0.01) & (flat.std(1) > 0.1)


def channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def theirs(network: str, layer: str, utility: str, method: str) -> Tensor:
    """grad-cam's heatmaps of the same classes."""
    model, images = pictured(network)
    targets = [
        lambda logits, t=t: UTILITIES[utility](logits, t) for t in ours(network, layer, utility).targets.tolist()
    ]
    target_layer = model.module.get_submodule(model.layers[layer])
    reshape = channels_first if network == "swin_t" else None
    try:
        with THEIRS[method](model.module, [target_layer], reshape_transform=reshape) as cam:
            return torch.from_numpy(cam(images, targets))
    finally:
        model.module.zero_grad()


def in_float64(network: str) -> tuple[Model, Tensor]:
    """The network and its pictures anew: through fifty layers float32 alone costs five digits."""
    model, images = pictured(network)
    return replace(model, module=deepcopy(model.module).double()), images.double()


def slow(network: str, layer: str, utility: str) -> dict[str, Tensor]:
    """Heatmaps in float64, one picture, method and map after the other, on a network in which nothing writes in place."""
    model, images = in_float64(network)
    targets = ours(network, layer, utility).targets.tolist()
    for part in model.module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False
    kept: list[Tensor] = []
    model.module.get_submodule(model.layers[layer]).register_forward_hook(lambda _, given, output: kept.append(output))
    found: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for image, target in zip(images, targets, strict=True):
        kept.clear()
        worth = UTILITIES[utility](model.module(image[None])[0], target)
        (gradient,) = torch.autograd.grad(worth, kept[0], create_graph=True)
        (curved,) = torch.autograd.grad(gradient, kept[0], kept[0].detach(), allow_unused=True)
        curved = torch.zeros_like(gradient) if curved is None else curved
        order = (0, 3, 1, 2) if network == "swin_t" else (0, 1, 2, 3)
        maps, first, hvp = (each.detach().permute(order)[0] for each in (kept[0], gradient, curved))
        for method, maps_of_method in found.items():
            explanation = sum(one_map(method, a, w, w - h / 2) for a, w, h in zip(maps, first, hvp, strict=True))
            maps_of_method.append(heatmap(explanation, tuple(image.shape[1:])))
    return {method: torch.stack(maps_of_method) for method, maps_of_method in found.items()}


def one_map(method: str, a: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What one activation map adds to E, from the methods' equations."""
    if method == "GradCAM++":
        squares, cubes = first**2, first**3
        alpha = squares / (2 * squares + a.sum() * cubes + 1e-6)
        return (alpha * first.relu())[first != 0].sum() * a
    return {
        "GradCAM": lambda: first.mean() * a,
        "HiResCAM": lambda: first * a,
        "GradCAM-E": lambda: (first * a).relu(),
        "LayerCAM": lambda: first.relu() * a,
        "XGradCAM": lambda: (first * a).sum() / (a.sum() + 1e-7) * a,
        "ShapleyCAM": lambda: second.mean() * a,
        "ShapleyCAM-H": lambda: second * a,
        "ShapleyCAM-E": lambda: (second * a).relu(),
    }[method]()


def heatmap(explanation: Tensor, size: tuple[int, ...]) -> Tensor:
    coarse = explanation.relu()
    coarse = (coarse - coarse.min()) / (coarse.max() - coarse.min() + 1e-7)
    fine = interpolate(coarse[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (fine - fine.min()) / (fine.max() - fine.min() + 1e-7)


def agree(got: Tensor, reference: Tensor, method: str, tolerance: float) -> None:
    assert lively(reference).all()
    torch.testing.assert_close(got, reference, rtol=0, atol=tolerance, msg=lambda m: f"{method}: {m}")


@pytest.mark.parametrize(("network", "layer", "utility"), CASES)
def test_every_method_of_grad_cam_gives_its_heatmaps(network: str, layer: str, utility: str) -> None:
    out = ours(network, layer, utility)
    for method in THEIRS:
        if not wrong_in_grad_cam(network, layer, method):
            agree(out.heatmaps[method], theirs(network, layer, utility, method), method, TOLERANCE.get(method, 1e-5))


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_method_gives_the_heatmaps_of_slow_loops_in_float64(network: str, layer: str, utility: str) -> None:
    model, images = in_float64(network)
    targets = ours(network, layer, utility).targets
    out = explain(model, images, methods=METHODS, layer=layer, utility=utility, targets=targets)
    for method, reference in slow(network, layer, utility).items():
        agree(out.heatmaps[method], reference, method, 1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_second_order_is_told_from_first_order_where_they_are_compared(network: str) -> None:
    for layer in LAYERS:
        heatmaps = ours(network, layer, "rest").heatmaps
        assert float((heatmaps["ShapleyCAM"] - heatmaps["GradCAM"]).abs().amax()) > 1e-3


@large
@pytest.mark.parametrize("method", ["GradCAM", "XGradCAM", "GradCAM++", "ShapleyCAM"])
def test_grad_cam_is_wrong_where_the_next_layer_writes_into_the_maps_it_keeps(method: str) -> None:
    assert pictured("vgg16")[0].module.get_submodule("features.29").inplace
    wrong = theirs("vgg16", "conv", "rest", method)
    assert float((wrong - ours("vgg16", "conv", "rest").heatmaps[method]).abs().max()) > 0.1


@large
def test_grad_cam_has_no_shapleycam_of_channels_last_maps() -> None:
    with pytest.raises(ValueError, match="operands could not be broadcast together"):
        theirs("swin_t", "gap", "rest", "ShapleyCAM")
