"""The drop-in for grad-cam against grad-cam 1.5.7 itself: CNNs, Swin, ViT; one and several layers; its targets and options.

Where grad-cam is wrong it is no reference: see `test_grad_cam` one folder up, which has loops in its place.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from PIL import Image
from pytorch_grad_cam.utils import image as their_images
from pytorch_grad_cam.utils import model_targets as their_targets
from torch import Tensor, nn

import shapleycam
from shapleycam.compat import grad_cam
from shapleycam.network.weights import randomise
from test_contract import Left
from unchecked import library

PICTURES = [Path(shapleycam.__file__).parent / "data" / name for name in ("cat.jpg", "coffee.jpg")]
ALIKE = (
    "GradCAM",
    "HiResCAM",
    "GradCAMElementWise",
    "LayerCAM",
    "XGradCAM",
    "GradCAMPlusPlus",
    "ShapleyCAM",
    "EigenCAM",
    "EigenGradCAM",
)

# Its divisor comes near zero, where the maps of a layer add up to less than nothing.
TOLERANCE = {"GradCAMPlusPlus": 5e-5}


def channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def without_class_token(output: Tensor) -> Tensor:
    """As in grad-cam's documentation."""
    side = int((output.shape[1] - 1) ** 0.5)
    return output[:, 1:].reshape(len(output), side, side, output.shape[2]).transpose(2, 3).transpose(1, 2)


Made = tuple[nn.Module, tuple[str, ...], Callable[[Tensor], Tensor] | None]


def resnet(name: str, layer: str) -> Made:
    return torchvision.models.get_model(name, weights=None), (layer, "layer3"), None


def swin() -> Made:
    made = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=112, window_size=7, depths=(1, 1, 1, 1), embed_dim=24, num_classes=10
    )
    return made, ("layers.2.blocks.0.norm1", "layers.1"), channels_first


def vit() -> Made:
    made = timm.create_model("vit_tiny_patch16_224", img_size=112, depth=3, num_classes=10)
    return made, ("blocks.2.norm1", "blocks.1"), without_class_token


NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet18": partial(resnet, "resnet18", "layer4.1"),
    "resnet50": partial(resnet, "resnet50", "layer4.2"),
    "swin": swin,
    "vit": vit,
}
NAMES = ["resnet18", pytest.param("resnet50", marks=pytest.mark.large), "swin", "vit"]


@cache
def network(name: str) -> tuple[nn.Module, list[nn.Module], Callable[[Tensor], Tensor] | None]:
    """With norms that take the pictures' statistics: random weights let the signal die in a deep network."""
    model, layers, reshape = NETWORKS[name]()
    randomise(model, 0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.train().momentum = 1
        model(pictures())
        for norm in norms:
            norm.eval()
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.weight *= 3 / model.eval()(pictures()).std(1).mean()
    return model.eval(), [model.get_submodule(layer) for layer in layers], reshape


@cache
def pictures() -> Tensor:
    shown = [np.float32(Image.open(path).convert("RGB").resize((112, 112))) / 255 for path in PICTURES]
    return torch.cat([grad_cam.preprocess_image(each) for each in shown])


def theirs(name: str, method: str, layers: list[nn.Module], targets: object, **options: bool) -> np.ndarray:
    model, _, reshape = network(name)
    try:
        with getattr(pytorch_grad_cam, method)(model=model, target_layers=layers, reshape_transform=reshape) as cam:
            return cam(input_tensor=pictures(), targets=targets, **options)
    finally:
        model.zero_grad()


def ours(name: str, method: str, layers: list[nn.Module], targets: object, **options: bool) -> np.ndarray:
    model, _, reshape = network(name)
    with getattr(grad_cam, method)(model=model, target_layers=layers, reshape_transform=reshape) as cam:
        return cam(input_tensor=pictures(), targets=targets, **options)


def agree(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == np.float32
    assert (expected.reshape(2, -1).std(1) > 0.05).all()  # not blank
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@cache
def worth_comparing(name: str, method: str, count: int, kind: str = "ClassifierOutputReST") -> tuple[int, int]:
    """For each picture the first class for which grad-cam's heatmap is not blank."""
    layers, target = network(name)[1][:count], getattr(their_targets, kind)
    found: dict[int, int] = {}
    for c in range(10):
        lively = theirs(name, method, layers, [target(c)] * 2).reshape(2, -1).std(1) > 0.05
        found = {place: c for place in range(2) if lively[place]} | found
        if len(found) == 2:
            return found[0], found[1]
    raise AssertionError("no class has heatmaps that are worth a comparison")


def both(
    name: str, method: str, count: int = 1, kind: str = "ClassifierOutputReST", **options: bool
) -> list[np.ndarray]:
    """Ours and theirs, of classes worth comparing."""
    layers, chosen = network(name)[1][:count], worth_comparing(name, method, count, kind)
    mine, other = ([getattr(module, kind)(c) for c in chosen] for module in (grad_cam, their_targets))
    return [ours(name, method, layers, mine, **options), theirs(name, method, layers, other, **options)]


@pytest.mark.parametrize("method", ALIKE)
@pytest.mark.parametrize("name", NAMES)
def test_heatmaps_are_those_of_grad_cam(name: str, method: str) -> None:
    if method == "ShapleyCAM" and not name.startswith("resnet"):
        pytest.skip("grad-cam's fails; see the test below")
    agree(*both(name, method), TOLERANCE.get(method, 1e-5))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what it fails at, it fails to release
@pytest.mark.parametrize("name", ["swin", "vit"])
def test_grad_cam_has_no_shapleycam_of_transformers_and_ours_is_that_of_explain(name: str) -> None:
    model, layers, _ = network(name)
    chosen = worth_comparing(name, "GradCAM", 1)
    with pytest.raises((ValueError, RuntimeError), match=r"could not be broadcast|not implemented|Can't detach views"):
        theirs(name, "ShapleyCAM", layers[:1], [their_targets.ClassifierOutputReST(c) for c in chosen])
    expected = shapleycam.explain(model, pictures(), layer=layers[0], targets=chosen).heatmaps["ShapleyCAM"].numpy()
    agree(ours(name, "ShapleyCAM", layers[:1], [grad_cam.ClassifierOutputReST(c) for c in chosen]), expected)


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "EigenCAM"])
@pytest.mark.parametrize("name", NAMES)
def test_several_layers_are_averaged_as_grad_cam_does(name: str, method: str) -> None:
    found, expected = both(name, method, 2)
    agree(found, expected)
    chosen = [grad_cam.ClassifierOutputReST(c) for c in worth_comparing(name, method, 2)]
    assert np.abs(expected - ours(name, method, network(name)[1][:1], chosen)).max() > 0.01


@pytest.mark.parametrize("method", ["GradCAM", "HiResCAM", "XGradCAM"])
@pytest.mark.parametrize(
    "options", [{"aug_smooth": True}, {"eigen_smooth": True}, {"aug_smooth": True, "eigen_smooth": True}]
)
def test_smoothing_is_that_of_grad_cam(method: str, options: dict[str, bool]) -> None:
    found, expected = both("resnet18", method, **options)
    agree(found, expected)
    assert np.abs(expected - both("resnet18", method)[0]).max() > 0.05


@pytest.mark.parametrize("kind", ["ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"])
def test_targets_are_those_of_grad_cam(kind: str) -> None:
    agree(*both("resnet18", "GradCAM", kind=kind))
    mine, other = (getattr(module, kind)(3) for module in (grad_cam, their_targets))
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    for given in (logits, logits[0]):
        torch.testing.assert_close(mine(given), other(given))


def test_methods_that_try_each_map_are_those_of_grad_cam(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [network("resnet18")[0].get_submodule("layer1")]  # of 64 maps; the last has 512
    mine, other = ([module.ClassifierOutputReST(each) for each in (3, 5)] for module in (grad_cam, their_targets))
    reference = theirs("resnet18", "ScoreCAM", layers, other)
    assert reference.std((1, 2)).min() > 0.05
    agree(ours("resnet18", "ScoreCAM", layers, mine), reference)


def test_methods_beyond_gradients_go_through_explain_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rows they ask the utility about, each has the target of its image."""

    def explain(
        model: nn.Module, image: Tensor, *, methods: str, layer: object, layout: object, utility: Callable
    ) -> object:
        out = shapleycam.explain(model, image, methods="HiResCAM", layer=layer, layout=layout, utility=utility)
        rows = utility(torch.eye(3), torch.zeros(3, dtype=torch.int64))
        return SimpleNamespace(logits=out.logits, explanations={methods: out.explanations["HiResCAM"] + 0 * rows.sum()})

    monkeypatch.setattr(grad_cam, "explain", explain)
    layers = network("resnet18")[1][:1]
    targets = [lambda logits: logits[1], lambda logits: logits[2]]
    agree(ours("resnet18", "ScoreCAM", layers, targets), ours("resnet18", "HiResCAM", layers, targets))
    with pytest.raises(ValueError, match="ScoreCAM weighs no maps position by position; leave out eigen_smooth"):
        ours("resnet18", "ScoreCAM", layers, targets, eigen_smooth=True)


def test_no_target_layers_leave_the_choice_to_explain() -> None:
    model = network("resnet18")[0]
    expected = shapleycam.explain(model, pictures(), methods="GradCAM", utility="pre-softmax").heatmaps["GradCAM"]
    agree(ours("resnet18", "GradCAM", [], None), expected.numpy())


def test_any_function_of_one_images_logits_is_a_target() -> None:
    layers = network("resnet18")[1][:1]
    first, second = worth_comparing("resnet18", "GradCAM", 1)
    targets = [lambda logits: logits[first] - logits[first + 1] / 9, lambda logits: logits[second : second + 2].sum()]
    agree(ours("resnet18", "GradCAM", layers, targets), theirs("resnet18", "GradCAM", layers, targets))


def test_without_targets_the_likeliest_class_is_explained() -> None:
    layers = network("resnet18")[1][:1]
    agree(ours("resnet18", "GradCAM", layers, None), theirs("resnet18", "GradCAM", layers, None))


def test_random_cam_is_that_of_explain() -> None:
    model, layers, _ = network("resnet18")
    expected = shapleycam.explain(model, pictures(), methods="RandomCAM", layer=layers[0]).heatmaps["RandomCAM"]
    agree(ours("resnet18", "RandomCAM", layers[:1], None), expected.numpy())


def test_outputs_are_the_models_and_the_call_leaves_nothing_behind() -> None:
    model, layers, _ = network("resnet18")
    unchecked = import_module(f"{library.__name__}.compat.grad_cam")
    x = pictures().clone().requires_grad_()
    model.train()
    left = Left(model, x)
    with unchecked.ShapleyCAM(model, layers) as cam:
        assert cam.outputs is None
        cam(x, [unchecked.ClassifierOutputReST(c) for c in (3, 7)], aug_smooth=True)
        cam(x)
    left.check()
    torch.testing.assert_close(cam.outputs, model.eval()(pictures()).detach())


def test_an_error_inside_the_block_is_not_swallowed() -> None:
    model, layers, _ = network("resnet18")
    with pytest.raises(IndexError, match="mine"), grad_cam.GradCAM(model, layers):
        raise IndexError("mine")


def test_grad_cams_own_example_runs_unchanged_but_for_the_import() -> None:
    from shapleycam.compat.grad_cam import (  # noqa: F401
        AblationCAM,
        ClassifierOutputTarget,
        EigenCAM,
        FullGrad,
        GradCAM,
        GradCAMPlusPlus,
        HiResCAM,
        ScoreCAM,
        XGradCAM,
        show_cam_on_image,
    )

    model = network("resnet18")[0]
    rgb_img = np.float32(Image.open(PICTURES[0]).convert("RGB").resize((112, 112))) / 255
    input_tensor = pictures()[:1]
    # from here on as in its README
    target_layers = [model.layer4[-1]]
    targets = [ClassifierOutputTarget(281)]
    with GradCAM(model=model, target_layers=target_layers) as cam:
        grayscale_cam = cam(input_tensor=input_tensor, targets=targets)
        grayscale_cam = grayscale_cam[0, :]
        visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
        model_outputs = cam.outputs
    with pytorch_grad_cam.GradCAM(model=model, target_layers=target_layers) as theirs:
        expected = theirs(input_tensor=input_tensor, targets=targets)[0, :]
    model.zero_grad()
    np.testing.assert_allclose(grayscale_cam, expected, rtol=0, atol=1e-5)
    shown = their_images.show_cam_on_image(rgb_img, expected, use_rgb=True)
    assert np.abs(visualization.astype(int) - shown).max() <= 4  # the next of 256 colours, where a heatmap rounds
    torch.testing.assert_close(model_outputs, model(input_tensor).detach())


@pytest.mark.parametrize("options", [{}, {"use_rgb": True}, {"image_weight": 0.3}, {"colormap": 16, "use_rgb": True}])
def test_overlays_are_those_of_grad_cam(options: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    mask, img = random.random((20, 30), dtype=np.float32), random.random((20, 30, 3), dtype=np.float32)
    mask.flat[:256] = np.arange(256) / 255
    found, expected = (module.show_cam_on_image(img, mask, **options) for module in (grad_cam, their_images))
    assert np.array_equal(found, expected)


def test_pictures_are_prepared_as_grad_cam_does() -> None:
    img = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for each in (img, np.float32(img) / 255):
        for options in ({}, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}):
            found, expected = (module.preprocess_image(each, **options) for module in (grad_cam, their_images))
            torch.testing.assert_close(found, expected)


def test_a_transform_that_does_more_than_move_axes_is_refused() -> None:
    model, layers, _ = network("resnet18")
    cam = grad_cam.GradCAM(model, layers[:1], reshape_transform=lambda output: output.flip(-1))
    with pytest.raises(
        ValueError, match=r"reshape_transform makes \(1, 512, 4, 4\) of the layer's \(1, 512, 4, 4\), not by"
    ):
        cam(pictures())


def test_what_cannot_be_explained_is_refused() -> None:
    model, layers, _ = network("resnet18")
    with pytest.raises(ValueError, match="got 1 targets, expected one for each of 2 images"):
        grad_cam.GradCAM(model, layers)(pictures(), [grad_cam.ClassifierOutputTarget(1)])
    with pytest.raises(ValueError, match=r"img has values up to 2.0, expected 0 to 1; use numpy.float32\(img\) / 255"):
        grad_cam.show_cam_on_image(np.full((2, 2, 3), 2, np.float32), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"image_weight is 2\.0, expected 0 to 1"):
        grad_cam.show_cam_on_image(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32), image_weight=2.0)


class Normalising(nn.Module):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        randomise(self, 0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.sub_(0.5).mul_(4)).relu().mean((2, 3)))


def test_images_stay_as_they_are_where_a_layout_is_found_out() -> None:
    network, x = Normalising(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    found = grad_cam.GradCAM(network, [network.conv], reshape_transform=lambda output: output)(x)
    assert torch.equal(x, before)
    np.testing.assert_array_equal(found, grad_cam.GradCAM(network, [network.conv])(x))


def test_it_works_in_inference_mode_without_targets() -> None:
    network, x = Normalising(), torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = grad_cam.ShapleyCAM(network, [network.conv])(x)
    with torch.inference_mode():
        np.testing.assert_array_equal(grad_cam.ShapleyCAM(network, [network.conv])(x), wanted)
