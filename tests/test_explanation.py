"""`explain`: what it takes, what it refuses and with which words, and when it warns."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from shapleycam.network.weights import randomise
from unchecked import library

METHODS, UTILITIES, explain = library.METHODS, library.UTILITIES, library.explain


def images(b: int = 3, h: int = 16, w: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def network(seed: int = 0) -> nn.Sequential:
    """Five classes; conv 0, gelu 1, conv 2, gelu 3, pool 4, flatten 5, linear 6."""
    layers = (
        nn.Conv2d(3, 6, 3),
        nn.GELU(),
        nn.Conv2d(6, 6, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    made = nn.Sequential(*layers).eval()
    randomise(made, seed)
    return made


class Tail(nn.Module):
    """A network whose maps are its images, so that a test says what the maps are."""

    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.maps(x))


@pytest.fixture(scope="module")
def model() -> Any:
    return library.load_model("efficientnet_lite0", weights="random")


# Targets


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (2, [2, 2, 2]),
        ([4, 0, 1], [4, 0, 1]),
        ((4, 0, 1), [4, 0, 1]),
        (range(3), [0, 1, 2]),
        (torch.tensor([4, 0, 1]), [4, 0, 1]),
        (torch.tensor([4, 0, 1], dtype=torch.uint8), [4, 0, 1]),
        (torch.tensor(3), [3, 3, 3]),
        (torch.tensor([4, 0, 1]).numpy(), [4, 0, 1]),
        (torch.tensor([4, 0, 1]).numpy()[0], [4, 4, 4]),
    ],
)
def test_targets_are_one_class_for_all_or_one_an_image(targets: Any, classes: list[int]) -> None:
    out = explain(network(), images(), layer="2", targets=targets)
    assert out.targets.dtype == torch.int64
    assert out.targets.tolist() == classes
    for image, target in enumerate(classes):
        alone = explain(network(), images()[image : image + 1], layer="2", targets=target)
        torch.testing.assert_close(out.explanations["ShapleyCAM"][image : image + 1], alone.explanations["ShapleyCAM"])


def test_targets_default_to_the_predicted_classes_and_least_is_the_least_likely() -> None:
    net, x = network(), images(8)
    with torch.no_grad():
        probabilities = net(x).softmax(1)
    predicted, least = (explain(net, x, layer="2", targets=targets).targets.tolist() for targets in (None, "least"))
    assert predicted == [max(range(5), key=row.tolist().__getitem__) for row in probabilities]
    assert least == [min(range(5), key=row.tolist().__getitem__) for row in probabilities]


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (5, ValueError, r"targets 5 are out of range; the network has classes 0 to 4$"),
        (-1, ValueError, r"targets -1 are out of range"),
        ([0, 1, 7], ValueError, r"targets \[0, 1, 7\] are out of range"),
        ([0, 1], ValueError, r"targets have shape \(2,\), expected one index, or one for each of 3 images$"),
        ([[0], [1], [2]], ValueError, r"targets have shape \(3, 1\), expected one index, or one for each of 3 images$"),
        ([], ValueError, r"targets have shape \(0,\), expected one index"),
        (1.0, TypeError, r"targets are torch.float32, expected class indices as integers$"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"targets are torch.float32"),
        (True, TypeError, r"targets are torch.bool, expected class indices as integers$"),
        ([True, False, True], TypeError, r"targets are torch.bool"),
        (1j, TypeError, r"targets are torch.complex64"),
        (["least", "least", "least"], TypeError, r"targets is \['least', 'least', 'least'\], expected class indices"),
        ([0, None, 1], TypeError, r"targets is \[0, None, 1\], expected class indices as integers$"),
        ([[0], [1, 2], [3]], TypeError, r"expected class indices as integers$"),
        ("most", ValueError, r"targets is 'most', expected None, \"least\", a class index, or one index an image$"),
        ("", ValueError, r"targets is '', expected None"),
    ],
)
def test_targets_that_name_no_class_are_refused(targets: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        explain(network(), images(), layer="2", targets=targets)


# Utilities


@pytest.mark.parametrize("name", UTILITIES)
def test_utility_by_name_is_the_function_of_that_name(name: str) -> None:
    by_name = explain(network(), images(), layer="2", utility=name, methods="all")
    by_function = explain(network(), images(), layer="2", utility=UTILITIES[name], methods="all")
    assert by_name.utility == name
    assert by_function.utility == UTILITIES[name].__name__
    for method, explanation in by_name.explanations.items():
        assert torch.equal(explanation, by_function.explanations[method])


def test_utility_of_ones_own_is_explained() -> None:
    """Of the difference of two logits, GradCAM is the difference of their GradCAMs."""
    out, *parts = (
        explain(network(), images(), layer="2", methods="GradCAM", utility=utility, targets=targets).explanations[
            "GradCAM"
        ]
        for utility, targets in (
            (lambda logits, targets: logits[:, 1] - logits.gather(1, targets[:, None])[:, 0], 3),
            ("pre-softmax", 1),
            ("pre-softmax", 3),
        )
    )
    torch.testing.assert_close(out, parts[0] - parts[1])


@pytest.mark.parametrize(
    ("utility", "words"),
    [
        (
            lambda logits, targets: logits,
            r"the utility gave shape \(3, 5\) for logits \(3, 5\), expected one number an image, \(3,\)",
        ),
        (lambda logits, targets: logits.sum(), r"the utility gave shape \(\) for logits"),
        (lambda logits, targets: 1.0, r"the utility gave a float for logits"),
        (lambda logits, targets: None, r"the utility gave a NoneType for logits"),
        (
            "pre_softmax",
            r"unknown utility 'pre_softmax'; did you mean pre-softmax or .*\? \(in Python, or pass a function\)$",
        ),
        ("ReST", r"unknown utility 'ReST'; did you mean rest\?"),
        (
            "probability",
            r"unknown utility 'probability'; known are rest, pre-softmax, post-softmax, log-softmax",
        ),
    ],
)
def test_utility_that_is_none_is_refused(utility: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explain(network(), images(), layer="2", utility=utility)


# Methods


def test_methods_come_out_in_the_order_asked_for_each_once() -> None:
    out = explain(network(), images(), layer="2", methods=["LayerCAM", "GradCAM", "LayerCAM"])
    assert list(out.heatmaps) == list(out.explanations) == ["LayerCAM", "GradCAM"]


@given(wanted=st.lists(st.sampled_from(list(METHODS)), min_size=1, unique=True))
def test_a_method_gives_the_same_map_whatever_else_was_asked_for(wanted: list[str]) -> None:
    together = explain(network(), images(), layer="2", methods=wanted)
    for method in wanted:
        alone = explain(network(), images(), layer="2", methods=method)
        torch.testing.assert_close(alone.explanations[method], together.explanations[method], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("GradCam++", r"unknown method 'GradCam\+\+'; did you mean GradCAM\+\+"),
        ([], r"no method was given; name one or more of paper, path, all,"),
    ],
)
def test_unknown_methods_are_refused(methods: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explain(network(), images(), layer="2", methods=methods)


# Images, models, layers


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (images()[0], ValueError, r"images has shape \(3, 16, 16\), expected a batch \(b, channels, H, W\); use images\[None\]$"),
        (images()[0, 0], ValueError, r"images has shape \(16, 16\), expected a batch \(b, channels, H, W\)$"),
        (images()[None], ValueError, r"images has shape \(1, 3, 3, 16, 16\), expected a batch"),
        (images(0), ValueError, r"images has shape \(0, 3, 16, 16\), expected a batch"),
        (images(2, 0, 4), ValueError, r"images has shape \(2, 3, 0, 4\), expected a batch"),
        (images().double(), ValueError, r"images are torch.float64, the model's parameters torch.float32; use images.to\(torch."),
        (images().half(), ValueError, r"images are torch.float16, the model's parameters torch.float32"),
        ((images() * 50).byte(), ValueError, r"images are torch.uint8, the model's parameters torch.float32"),
        (images().to("meta"), ValueError, r"images are on meta, the model on cpu; use images.to\('cpu'\)$"),
        (images().numpy(), TypeError, r"images is a ndarray, expected a tensor \(b, channels, H, W\)"),
        ("cat.jpg", TypeError, r"images is a str, expected a tensor .*: model.preprocess\(pictures\)$"),
        ([images()[0]], TypeError, r"images is a list, expected a tensor"),
    ],
)  # fmt: skip
def test_images_that_are_no_batch_for_the_model_are_refused(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        explain(network(), x, layer="2")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [[1], [0, 2]])
def test_images_that_are_not_finite_are_refused_by_their_places(value: float, bad: list[int]) -> None:
    x = images()
    x[bad, 1, 2, 3] = value
    with pytest.raises(
        ValueError, match=rf"images {bad} hold NaN or infinity; expected finite values$".replace("[", r"\[")
    ):
        explain(network(), x, layer="2")


def test_infinities_of_both_signs_in_one_image_are_refused() -> None:
    x = images()
    x[1, 0, 0, 0], x[1, 0, 0, 1] = math.inf, -math.inf
    with pytest.raises(ValueError, match=r"images \[1\] hold NaN or infinity"):
        explain(network(), x, layer="2")


def test_finite_images_whose_sum_is_not_are_explained() -> None:
    large = images().abs() * 1e37
    assert not large.sum().isfinite()
    out = explain(Tail(lambda maps: (maps * 1e-38).mean((2, 3))), large, layer="maps", methods="GradCAM")
    assert out.heatmaps["GradCAM"].isfinite().all()


def test_wrong_number_of_channels_is_refused_by_a_model_of_the_zoo(model: Any) -> None:
    with pytest.raises(ValueError, match=r"images has 1 channels, shape \(2, 1, 64, 64\); efficientnet_lite0 takes 3$"):
        explain(model, torch.zeros(2, 1, 64, 64))


def test_error_of_the_users_own_network_gets_a_note_of_what_it_was_given() -> None:
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4 channels instead") as caught:
        explain(network(), torch.zeros(2, 4, 16, 16), layer="2")
    assert caught.value.__notes__ == ["shapleycam ran Sequential on images of shape (2, 4, 16, 16), torch.float32"]


def test_image_of_a_size_that_timm_asserts_against_is_refused_in_a_sentence() -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2, num_classes=5).eval()
    given = r"VisionTransformer on images of shape \(., 3, 20, 20\), torch.float32: .*doesn't match model"
    for layer in ("patch_embed.proj", None):
        with pytest.raises(ValueError, match=f"the network refuses what it was given, {given}"):
            explain(vit, images(2, 20, 20), layer=layer)


@pytest.mark.parametrize("model", ["resnet18", network, None, {"0": 1}])
def test_model_that_is_none_is_refused(model: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"model is a {type(model).__name__}, expected what load_model gives or a torch.nn.Module"
    ):
        explain(model, images(), layer="2")


def test_a_module_of_ones_own_needs_no_layer() -> None:
    chosen, named = explain(network(), images()), explain(network(), images(), layer="3")
    assert (chosen.layer.name, chosen.layer.reason) == ("3", "feeds the last spatial reduction")
    assert torch.equal(chosen.heatmaps["ShapleyCAM"], named.heatmaps["ShapleyCAM"])


def test_model_of_the_zoo_knows_its_layers(model: Any) -> None:
    x = images(1, 64, 64)
    gap, default, conv, named = (
        explain(model, x, **({} if layer is None else {"layer": layer})) for layer in ("gap", None, "conv", "conv_head")
    )
    assert gap.layer == default.layer
    assert (gap.layer.name, conv.layer.name) == ("bn2", "conv_head")
    assert conv.layer == named.layer
    assert torch.equal(gap.heatmaps["ShapleyCAM"], default.heatmaps["ShapleyCAM"])
    assert not torch.equal(gap.heatmaps["ShapleyCAM"], conv.heatmaps["ShapleyCAM"])
    assert gap.preprocess is model.preprocess


def test_model_from_outside_the_zoo_has_no_layer_known_as_gap() -> None:
    stranger = library.load_model("resnet10t", weights="random")
    with pytest.raises(
        ValueError,
        match=r"resnet10t has no layer known as 'gap'; name one that `shapleycam layers resnet10t` lists, or none",
    ):
        explain(stranger, images(1, 64, 64), layer="gap")
    assert explain(stranger, images(1, 64, 64)).layer.name == "layer4"


# One image of a batch


def test_images_of_a_batch_do_not_affect_each_other() -> None:
    net, x = network(), images(4)
    out = explain(net, x, layer="2", methods="all")
    changed = x.clone()
    changed[1] *= 7
    other = explain(net, changed, layer="2", methods="all")
    for method in METHODS:
        assert torch.equal(out.explanations[method][[0, 2, 3]], other.explanations[method][[0, 2, 3]])
        assert not torch.equal(out.explanations[method][1], other.explanations[method][1])


def test_item_is_the_slice_of_its_image() -> None:
    out = explain(network(), images(), layer="2", methods="all", targets=[1, 2, 3])
    for image in (0, 1, 2, -1, -3):
        one, place = out[image], range(3)[image]
        assert one.targets.tolist() == [[1], [2], [3]][place]
        assert torch.equal(one.logits, out.logits[place : place + 1])
        assert (one.layer, one.utility) == (out.layer, out.utility)
        for method in METHODS:
            assert torch.equal(one.heatmaps[method], out.heatmaps[method][place : place + 1])
            assert torch.equal(one.explanations[method], out.explanations[method][place : place + 1])


def test_loop_over_an_explanation_ends_behind_its_last_image() -> None:
    out = explain(network(), images(), layer="2", targets=[1, 2, 3])
    assert [one.targets.item() for one in out] == [1, 2, 3]
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            out[beyond]


# RandomCAM


def test_randomcam_does_not_depend_on_batch_size_or_order() -> None:
    net, x = network(), images(4)
    out = explain(net, x, layer="2", methods="RandomCAM").explanations["RandomCAM"]
    for image in range(4):
        alone = explain(net, x[image : image + 1], layer="2", methods="RandomCAM").explanations["RandomCAM"]
        torch.testing.assert_close(alone[0], out[image])
    turned = explain(net, x.flip(0), layer="2", methods=["RandomCAM", "GradCAM"]).explanations["RandomCAM"]
    torch.testing.assert_close(turned.flip(0), out)


def test_randomcam_is_a_sum_of_the_maps_with_weights_of_the_key_and_the_seed() -> None:
    net, x = network(), images(1)
    with torch.no_grad():
        maps = net[:3](x)[0].flatten(1)

    def weights(**arguments: Any) -> Tensor:
        e = explain(net, x, layer="2", methods="RandomCAM", **arguments).explanations["RandomCAM"].flatten()
        return torch.linalg.lstsq(maps.T.double(), e[:, None].double()).solution[:, 0]

    first = weights(seed=3, keys=["cat.jpg"])
    assert ((first >= -1) & (first < 1)).all()
    for same in (weights(seed=3, keys=["cat.jpg"]), weights(seed=3, keys=("cat.jpg",))):
        assert torch.equal(same, first)
    for other in (weights(seed=4, keys=["cat.jpg"]), weights(seed=3, keys=["dog.jpg"]), weights(seed=3), weights()):
        assert (other - first).abs().max() > 0.1


def test_keys_name_the_images_whatever_their_values() -> None:
    net = network()
    x = images(2)
    x[1] = x[0]
    out = explain(net, x, layer="2", methods="RandomCAM", keys=["a", "b"]).explanations["RandomCAM"]
    swapped = explain(net, x, layer="2", methods="RandomCAM", keys=["b", "a"]).explanations["RandomCAM"]
    assert torch.equal(out.flip(0), swapped)
    assert not torch.equal(out[0], out[1])
    alike = explain(net, x, layer="2", methods="RandomCAM").explanations["RandomCAM"]
    assert torch.equal(alike[0], alike[1])


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c", "d"], []])
def test_another_number_of_keys_than_images_is_refused(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"keys has {len(keys)} names, expected one for each of 3 images$"):
        explain(network(), images(), layer="2", methods="RandomCAM", keys=keys)


# Warnings


def reasons(out: Any) -> list[tuple[int, str | None, str]]:
    return [(each.image, each.method, each.reason) for each in out.warnings]


def test_ordinary_pictures_give_no_warning() -> None:
    """The cat and the coffee that ship with the library, and the weights that do."""
    trained = library.load_model("efficientnet_lite0")
    folder = Path(library.__file__).parent / "data"
    x = trained.preprocess([folder / "cat.jpg", folder / "coffee.jpg"])
    for layer in ("gap", "conv"):
        out = explain(trained, x, layer=layer, methods="paper")
        assert out.warnings == ()


@pytest.mark.parametrize("utility", UTILITIES)
def test_ordinary_maps_give_no_warning(utility: str) -> None:
    assert reasons(explain(network(), images(), layer="2", methods="all", utility=utility)) == []


def pooled(maps: Tensor) -> Tensor:
    """Three classes, whose logits are the means of the three maps."""
    return maps.mean((2, 3))


def test_blank_map_is_named_with_its_signed_range() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[1] = -x[1]
    out = explain(Tail(pooled), x, layer="maps", methods=["GradCAM", "GradCAM-E"], utility="pre-softmax", targets=0)
    assert reasons(out) == [(1, "GradCAM", "blank"), (1, "GradCAM-E", "blank")]
    e = out.explanations["GradCAM"][1]
    words = f"it ranges from {float(e.min()):.3g} to {float(e.max()):.3g}, so every position speaks against class 0"
    assert words in str(out.warnings[0])
    assert str(out.warnings[0]).startswith("image 1, GradCAM: the map is blank: ")
    assert "the map is zero throughout: maps puts out zeros, or pre-softmax does not change with them" in str(
        out.warnings[1]
    )
    assert e.max() < 0
    assert out.heatmaps["GradCAM"][1].eq(0).all()


def test_map_that_is_too_faint_for_its_heatmap_is_named() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0] -= 60  # class 0 has a probability of 1e-26, and so has the gradient
    x[0, 0, 0, 0] = 1
    out = explain(Tail(pooled), x, layer="maps", methods="GradCAM", utility="post-softmax", targets=0)
    assert reasons(out) == [(0, "GradCAM", "blank")]
    assert 0 < out.explanations["GradCAM"][0].max() < 1e-20
    assert out.heatmaps["GradCAM"][0].max() < 0.01
    assert "post-softmax hardly changes with the maps of maps; utility=" in str(out.warnings[0])


def test_map_that_is_zero_throughout_is_blank() -> None:
    x = images(2, 4, 4)
    x[0] = 0
    out = explain(Tail(pooled), x, layer="maps", methods=["GradCAM", "RandomCAM"], targets=0)
    assert [each for each in reasons(out) if each[0] == 0] == [(0, "GradCAM", "blank"), (0, "RandomCAM", "blank")]


def test_constant_map_is_named() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[0] = 2
    out = explain(Tail(pooled), x, layer="maps", methods=["GradCAM", "LayerCAM"], utility="pre-softmax", targets=0)
    assert reasons(out) == [(0, "GradCAM", "constant"), (0, "LayerCAM", "constant")]
    value = float(out.explanations["GradCAM"][0, 0, 0])
    assert str(out.warnings[0]) == f"image 0, GradCAM: the map has the same value, {value:.3g}, at every position"
    assert out.heatmaps["GradCAM"][0].eq(0).all()


@pytest.mark.parametrize("utility", ["post-softmax", "log-softmax"])
def test_saturated_softmax_is_named_where_its_gradient_vanishes(utility: str) -> None:
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0, 0] += 40  # probability 1
    x[1, 0] += 10  # 0.9999, where the gradient is still good for a map
    out = explain(Tail(pooled), x, layer="maps", methods="GradCAM", utility=utility, targets=0)
    assert (0, None, "saturated") in reasons(out)
    assert not [each for each in reasons(out) if each[0] > 0]
    assert 0.9995 < out.logits.softmax(1)[1, 0] < 1 - 1e-5
    words = (
        rf"class 0 has a probability of 1.00000000, where the softmax is flat and the gradient of {utility} vanishes"
    )
    assert words in str(out.warnings[0])
    assert 'utility="rest" does not saturate' in str(out.warnings[0])
    for other in ("rest", "pre-softmax"):
        assert reasons(explain(Tail(pooled), x, layer="maps", methods="GradCAM", utility=other, targets=0)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_named_and_spoil_no_other_image(value: float) -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 9, value, x)

    net, x = nn.Sequential(Breaks(), *network()).eval(), images()
    expected = explain(net, x, layer="0", methods="all")
    x[1, 0, 5, 5] = 10
    out = explain(net, x, layer="0", methods="all")
    assert (1, None, "non-finite") in reasons(out)
    assert not [each for each in reasons(out) if each[0] != 1]
    assert "NaN or infinity in the maps or gradients of 0" in str(out.warnings[0])
    for method in METHODS:
        assert torch.equal(out.explanations[method][[0, 2]], expected.explanations[method][[0, 2]])
        assert torch.equal(out.heatmaps[method][[0, 2]], expected.heatmaps[method][[0, 2]])


def test_gradients_that_are_not_finite_are_named() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[0, 0, 0, 0] = 0  # where the square root has no slope
    out = explain(Tail(lambda maps: pooled(maps.sqrt())), x, layer="maps", methods="GradCAM", targets=0)
    assert out.logits.isfinite().all()
    assert reasons(out) == [(0, None, "non-finite")]


def test_map_that_overflows_is_named_though_its_maps_and_gradients_are_finite() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[0] *= 1e30
    x[0, :, :, 2:] = -x[0, :, :, :2]  # so that the logits are finite
    net = Tail(lambda maps: torch.stack([maps[:, 0].mean((1, 2)) * s for s in (1e10, 1, 0)], 1) * torch.tensor(1.0))
    out = explain(net, x, layer="maps", methods=["RandomCAM", "HiResCAM"], utility="pre-softmax", targets=0, seed=1)
    assert [str(each) for each in out.warnings if each.reason == "non-finite"] == [
        "image 0, HiResCAM: NaN or infinity in the map, made of finite maps and gradients"
    ]


@pytest.mark.large
@pytest.mark.parametrize(("name", "equal"), [("resnet18", True), ("vgg16", False)])
def test_at_gap_means_over_the_positions_change_nothing_on_networks_that_pool_globally(name: str, equal: bool) -> None:
    model = library.load_model(name, weights="random")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    maps = explain(model, x, methods="paper", layer="gap").explanations
    for one, other in (("HiResCAM", "GradCAM"), ("XGradCAM", "GradCAM"), ("ShapleyCAM-H", "ShapleyCAM")):
        apart = (maps[one] - maps[other]).norm() / maps[other].norm()
        assert (apart < 1e-4) == equal, f"{one} and {other}: {apart}"
    if equal:
        torch.testing.assert_close(maps["LayerCAM"], maps["GradCAM-E"])  # A >= 0


def test_logits_that_are_not_finite_are_named() -> None:
    net = Tail(lambda maps: pooled(maps) / torch.tensor([1.0, 0.0, 1.0])[: pooled(maps).shape[1]])
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    out = explain(net, x, layer="maps", methods="GradCAM", targets=0, utility="pre-softmax")
    assert reasons(out) == [(0, None, "non-finite")]
    ruled_out = Tail(lambda maps: pooled(maps).index_fill(1, torch.tensor([1]), -torch.inf))
    assert not explain(ruled_out, x, layer="maps", methods="GradCAM", targets=0, utility="pre-softmax").warnings


def test_saturation_is_named_whoever_names_the_utility_and_rounding_is_no_map() -> None:
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    sure = Tail(lambda maps: pooled(maps) * 1e4)
    for utility in ("post-softmax", UTILITIES["post-softmax"]):
        assert (0, None, "saturated") in reasons(explain(sure, x, layer="maps", methods="GradCAM", utility=utility))
    level = torch.ones(1, 3, 4, 4) * 5
    level[0, 0, 0, 0] += 1e-6
    out = explain(Tail(pooled), level, layer="maps", methods="GradCAM", targets=0, utility="pre-softmax")
    assert (0, "GradCAM", "constant") in reasons(out)


def test_utility_without_curvature_is_named_where_second_order_was_asked_for() -> None:
    x = images(2, 4, 4)
    for methods, expected in (("GradCAM", []), (["GradCAM", "ShapleyCAM"], [(0, None, "linear"), (1, None, "linear")])):
        out = explain(Tail(pooled), x, layer="maps", methods=methods, utility="pre-softmax", targets=0)
        assert [each for each in reasons(out) if each[1] is None] == expected
    half = Tail(
        lambda maps: torch.where(maps[:, :, :1, 0] > 0, pooled(maps)[..., None], F.gelu(maps).mean((2, 3))[..., None])[
            ..., 0
        ]
    )
    x[0, :, 0, 0], x[1, :, 0, 0] = 1, -1
    out = explain(half, x, layer="maps", utility="pre-softmax", targets=0)
    assert [each for each in reasons(out) if each[1] is None] == [(0, None, "linear")]
    slight = Tail(lambda maps: pooled(maps) + 1e-9 * pooled(maps**2))
    out = explain(slight, x, layer="maps", utility="pre-softmax", targets=0)
    assert not [each for each in reasons(out) if each[2] == "linear"]


def test_warnings_come_in_the_order_of_the_images_and_an_item_has_its_own() -> None:
    x = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    x[1], x[2] = -x[1], 2
    out = explain(Tail(pooled), x, layer="maps", methods=["HiResCAM", "GradCAM"], utility="pre-softmax", targets=0)
    assert reasons(out) == [
        (1, "HiResCAM", "blank"),
        (1, "GradCAM", "blank"),
        (2, "HiResCAM", "constant"),
        (2, "GradCAM", "constant"),
    ]
    for image in range(4):
        of_image = [each for each in out.warnings if each.image == image]
        assert [(each.method, each.message) for each in out[image].warnings] == [
            (each.method, each.message) for each in of_image
        ]
        assert all(each.image == 0 for each in out[image].warnings)
