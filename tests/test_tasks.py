"""Tasks beside classification: utilities of single logits and of contrasts, and outputs of networks that are no classifiers."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small import living, noise
from unchecked import library

UTILITIES, contrast, explain, game, measure, outputs = (
    library.UTILITIES, library.contrast, library.explain, library.game, library.measure, library.outputs,
)  # fmt: skip


def classifier(classes: int, seed: int = 0) -> nn.Module:
    return living(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Conv2d(6, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, classes),
        ),
        seed,
    )  # fmt: skip


def by_hand(network: nn.Module, layer: str, x: Tensor, worth: Callable[[Any], Tensor]) -> Tensor:
    """HiResCAM of one image's worth, from a hook of our own."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, given, output: kept.append(output.detach().requires_grad_()) or kept[-1]
    )
    value = worth(network(x))
    handle.remove()
    (slope,) = torch.autograd.grad(value, kept[0])
    return (slope * kept[0].detach()).sum(1)


# Utilities


@pytest.mark.parametrize(
    ("name", "side"), [("rest-sigmoid", None), ("rest-sigmoid-positive", 1), ("rest-sigmoid-negative", -1)]
)
@pytest.mark.parametrize("classes", [1, 4])
def test_rest_sigmoid_is_the_logit_and_its_log_probability_on_one_side(
    name: str, side: int | None, classes: int
) -> None:
    network, x = classifier(classes), noise(3, 3, 12, 12)
    for c in range(classes):
        out = explain(network, x, layer="1", methods="HiResCAM", utility=name, targets=c)
        for i in range(3):

            def worth(y: Tensor) -> Tensor:
                s = side or (1 if y[0, c] > 0 else -1)  # noqa: B023
                p = 1 / (1 + torch.exp(-y[0, c]))  # noqa: B023
                return s * y[0, c] + (p if s > 0 else 1 - p).log()  # noqa: B023

            wanted = by_hand(network, "1", x[i : i + 1], worth)
            torch.testing.assert_close(out.explanations["HiResCAM"][i : i + 1], wanted, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(out.full[i], worth(out.logits[i : i + 1]), rtol=1e-9, atol=1e-12)


def test_the_predicted_side_is_that_of_the_whole_image_for_every_coalition() -> None:
    network, x = classifier(1), noise(1, 3, 12, 12)
    logit = network(x).item()
    network[6].bias.data -= 0.9 * logit  # barely on its side, so that coalitions are on the other
    y = network(x).item()
    played = game(network, x, layer="1", utility="rest-sigmoid", players=2)
    every = torch.tensor([[bool(i >> j & 1) for j in range(4)] for i in range(16)])
    worths = played.worth(every)
    side = 1 if y > 0 else -1
    signs = []
    for row, found in zip(every, worths, strict=True):
        handle = network[1].register_forward_hook(
            lambda module, given, output, row=row: output * row[played.regions].to(output)
        )
        logit = network(x)[0, 0]
        handle.remove()
        signs.append(bool(logit > 0))
        torch.testing.assert_close(found, side * logit + torch.nn.functional.logsigmoid(side * logit))
    assert len(set(signs)) == 2
    for name in ("AumannCAM-H",):
        out = explain(network, x, layer="1", utility="rest-sigmoid", methods=name, nodes=32)
        assert out.efficiency_gap[name].item() < 1e-5


@pytest.mark.parametrize("method", [*library.SEARCHES, "AumannCAM", "GradCAM"])
@pytest.mark.parametrize("samples", [0, 3])
def test_every_method_keeps_to_the_side_of_the_whole_image(method: str, samples: int) -> None:
    network, x = classifier(1), noise(2, 3, 12, 12)
    logits = network(x)[:, 0].detach()
    network[6].bias.data -= logits.mean()  # so that each image is barely on a side of its own
    if method == "LIFT-CAM":
        pytest.importorskip("captum")
    options: dict[str, Any] = {"layer": "3", "methods": method, "budget": 400, "samples": samples}
    both = explain(network, x, utility="rest-sigmoid", **options)
    for i, logit in enumerate(both.logits[:, 0]):
        name = f"rest-sigmoid-{'positive' if logit > 0 else 'negative'}"
        alone = explain(network, x[i : i + 1], utility=name, **options)
        torch.testing.assert_close(
            both.explanations[method][i : i + 1], alone.explanations[method], rtol=1e-6, atol=1e-9
        )
    assert len(set((both.logits[:, 0] > 0).tolist())) == 2


@pytest.mark.parametrize("utility", ["rest", "post-softmax", "log-softmax"])
def test_a_single_logit_under_a_softmax_is_refused_and_rest_sigmoid_named(utility: str) -> None:
    with pytest.raises(
        ValueError, match=r'single logit.*utility="rest-sigmoid" for a yes or no, "pre-softmax" for a regress'
    ):
        explain(classifier(1), noise(1, 3, 12, 12), layer="1", utility=utility)


def test_a_regression_is_explained_by_its_own_value() -> None:
    network, x = classifier(1), noise(2, 3, 12, 12)
    out = explain(network, x, layer="1", utility="pre-softmax", methods="HiResCAM")
    wanted = torch.cat([by_hand(network, "1", x[i : i + 1], lambda y: y[0, 0]) for i in range(2)])
    torch.testing.assert_close(out.explanations["HiResCAM"], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(2, 0), (2, [0, 3]), (None, 1), (None, None)])
def test_contrast_is_the_difference_of_logits(a: int | None, b: Any) -> None:
    network, x = classifier(4), noise(3, 3, 12, 12)
    out = explain(network, x, layer="1", methods=["HiResCAM", "ShapleyCAM"], utility=contrast(a, b, 0.7))
    for i in range(3):
        y = network(x[i : i + 1])[0]
        wanted = int(y.argmax()) if a is None else a
        others = (
            [int(y.scatter(0, torch.tensor(wanted), -torch.inf).argmax())]
            if b is None
            else b
            if isinstance(b, list)
            else [b]
        )

        def worth(y: Tensor) -> Tensor:
            return y[0, wanted] - 0.7 * sum(y[0, o] for o in others) / len(others)  # noqa: B023

        by_us = by_hand(network, "1", x[i : i + 1], worth)
        torch.testing.assert_close(out.explanations["HiResCAM"][i : i + 1], by_us, rtol=1e-9, atol=1e-12)
    assert out.utility == f"contrast({a}, {b}, 0.7)"


def test_a_contrast_of_the_target_with_itself_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"contrast\(None, 3, 0.6\) of a class with itself, 3; name other classes than the"
    ):
        explain(classifier(5), noise(2, 3, 12, 12), layer="1", targets=[1, 3], utility=contrast(b=3))


def test_a_contrast_is_about_its_class_in_all_that_is_said_and_measured() -> None:
    network, x, other = classifier(4), noise(3, 3, 12, 12), {"layer": "1", "utility": contrast(2, 0)}
    found = measure(network, x, methods=["HiResCAM"], **other)
    assert found.targets.tolist() == found.out.targets.tolist() == [2, 2, 2]
    torch.testing.assert_close(found.full, network(x).softmax(1)[:, 2])
    assert (found.discrimination < 1).all()  # the least likely class is explained against 0 as well
    assert game(network, x[:1], **other).target == 2
    with pytest.raises(ValueError, match=r"targets are \[1, 1, 1\], and contrast\(2, 0, 0.6\) is about class 2"):
        explain(network, x, targets=1, **other)
    of_two = measure(classifier(2), x, methods=["HiResCAM"], layer="1", targets=0, utility=contrast(b=1))
    assert of_two.discrimination.isfinite().all()


def test_contrasts_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma is 1.5, expected a share from 0"):
        contrast(1, 2, 1.5)
    with pytest.raises(ValueError, match=r"b is 1, expected one or more classes other than a, 1"):
        contrast(1, 1)
    with pytest.raises(ValueError, match=r"contrast of classes 1 and 9; the network has classes 0 to 3"):
        explain(classifier(4), noise(1, 3, 12, 12), layer="1", utility=contrast(1, 9))


# Outputs


def segmenter() -> nn.Module:
    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.act, self.classes = nn.Conv2d(3, 5, 3, 2), nn.GELU(), nn.Conv2d(5, 4, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": nn.functional.interpolate(self.classes(self.act(self.maps(x))), x.shape[-2:])}

    return living(Segmenter())


def test_segmentation_is_a_classs_mean_over_a_region() -> None:
    network, x = segmenter(), noise(2, 3, 13, 13)
    region = torch.zeros(13, 13, dtype=torch.bool)
    region[2:7, 3:9] = True
    for mask in (region, region.expand(2, -1, -1), region.int().tolist()):
        out = explain(
            network,
            x,
            layer="act",
            methods="HiResCAM",
            utility="pre-softmax",
            targets=2,
            output=outputs.segmentation(mask),
        )
        for i in range(2):
            wanted = by_hand(network, "act", x[i : i + 1], lambda y: y["out"][0, 2][region].mean())
            torch.testing.assert_close(out.explanations["HiResCAM"][i : i + 1], wanted, rtol=1e-9, atol=1e-12)


def test_each_image_has_its_own_region_wherever_the_network_runs() -> None:
    network = living(nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 5, 1)))
    x, masks = noise(2, 3, 12, 12), torch.zeros(2, 10, 10, dtype=torch.bool)
    masks[0, :4], masks[1, 5:, 5:] = True, True
    options: dict[str, Any] = {
        "methods": ["AumannCAM", "AblationCAM"], "layer": "1", "targets": 2, "utility": "pre-softmax",
    }  # fmt: skip
    both = explain(network, x, output=outputs.segmentation(masks), **options)
    for i in range(2):
        alone = explain(network, x[i : i + 1], output=outputs.segmentation(masks[i]), **options)
        for name, maps in alone.explanations.items():
            torch.testing.assert_close(both.explanations[name][i : i + 1], maps)
    with pytest.raises(ValueError, match="region has 2 masks, expected one, or one for each of 3 images"):
        explain(network, noise(3, 3, 12, 12), output=outputs.segmentation(masks), **options)
    with pytest.raises(ValueError, match="one for each of 1 images; with a mask an image name the layer"):
        explain(network, x, output=outputs.segmentation(masks), **{**options, "layer": None})
    second = explain(network, x, output=outputs.segmentation(masks), **{**options, "methods": "HiResCAM"})[1]
    with pytest.raises(ValueError, match="region has 2 masks"):
        _ = second.empty


def test_segmentation_without_a_region_asks_every_change_of_a_picture_about_the_same_pixels() -> None:
    network, x = segmenter(), noise(1, 3, 13, 13)
    whole, options = torch.ones(13, 13), {"layer": "act", "methods": ["AumannCAM", "ScoreCAM"], "targets": 2}
    wanted = explain(network, x, output=outputs.segmentation(whole), **options).explanations
    for name, found in explain(network, x, output=outputs.segmentation(), **options).explanations.items():
        torch.testing.assert_close(found, wanted[name])


def test_a_segmenter_is_not_explained_at_its_own_class_scores() -> None:
    out = explain(segmenter(), noise(1, 3, 13, 13), output=outputs.segmentation(), methods="GradCAM")
    assert out.layer.name == "act"


def test_segmentations_that_are_none_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"region has shape \(4, 4\), expected a mask \(H, W\) or \(b, H, W\) with pixels"
    ):
        outputs.segmentation(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"the network puts out \(2, 5\), expected the scores of each pixel"):
        outputs.segmentation()(torch.zeros(2, 5))


def found(*detections: tuple[list[float], int, float]) -> dict[str, Tensor]:
    boxes, labels, scores = zip(*detections, strict=True) if detections else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float64),
    }


def test_detection_is_the_best_score_of_each_class_as_a_logit() -> None:
    given = [found(([0, 0, 4, 4], 2, 0.9), ([5, 5, 9, 9], 2, 0.7), ([5, 5, 9, 8], 1, 0.4))]
    best = outputs.detection(classes=4)(given)
    torch.testing.assert_close(
        best[0].sigmoid(), torch.tensor([1e-9, 0.4, 0.9, 1e-9], dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    boxed = outputs.detection(box=(5, 5, 9, 9))(given)
    torch.testing.assert_close(
        boxed[0].sigmoid(), torch.tensor([1e-9, 0.4, 0.7], dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


class OneByOne(nn.Module):
    """Takes images in a list, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = classifier(4)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.network(torch.stack(images))


def test_images_in_a_list_are_those_of_a_batch() -> None:
    network, x = OneByOne(), noise(2, 3, 12, 12)
    listed = explain(network, library.Inputs([*x]), layer="network.1", methods=["RandomCAM", "GradCAM"])
    stacked = explain(network.network, x, layer="1", methods=["RandomCAM", "GradCAM"])
    for name, maps in stacked.explanations.items():
        torch.testing.assert_close(listed.explanations[name], maps)
    with pytest.raises(ValueError, match=r"images \[1\] hold NaN"):
        explain(network, library.Inputs([x[0], x[1] * torch.nan]), layer="network.1")


def test_no_detection_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images \[1\] have no detection, so there is nothing to explain; lower"):
        outputs.detection()([found(([0, 0, 4, 4], 2, 0.9)), found()])
    with pytest.raises(ValueError, match=r"images \[0\] have no detection that overlaps \(7, 7, 9, 9\) by 0.5"):
        outputs.detection(box=(7, 7, 9, 9))([found(([0, 0, 4, 4], 2, 0.9))])
    with pytest.raises(ValueError, match=r"box is \(4, 4, 2, 2\), expected \(x1, y1, x2, y2\)"):
        outputs.detection(box=(4, 4, 2, 2))
    with pytest.raises(ValueError, match=r"the network puts out no detections"):
        outputs.detection()(torch.zeros(2, 3))


@pytest.mark.large
def test_a_torchvision_detector_is_explained_at_its_backbone() -> None:
    from torchvision.models.detection import retinanet_resnet50_fpn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=64)
    network.score_thresh = 0.0
    network = network.eval()
    x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    out = explain(
        network, library.Inputs([x]), layer="backbone.body.layer4", methods=["HiResCAM", "ShapleyCAM"],
        utility="pre-softmax", output=outputs.detection(),
    )  # fmt: skip

    def worth(y: Any) -> Tensor:
        best = y[0]["scores"][y[0]["labels"] == int(out.targets)].max()
        return best.logit()

    wanted = by_hand(network, "backbone.body.layer4", [x], worth)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(out.explanations["HiResCAM"], wanted, rtol=1e-4, atol=1e-6)
    assert out.heatmaps["HiResCAM"].shape == (1, 64, 64)


@pytest.mark.parametrize(
    "wrap", [lambda e: e, lambda e: {"image_embeds": e}, lambda e: SimpleNamespace(image_embeds=e)]
)
def test_similarity_is_the_cosine_with_each_reference(wrap: Callable[[Tensor], Any]) -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = classifier(7)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.body(x))

    network, x, texts = Embedding(), noise(2, 3, 12, 12), noise(3, 7, seed=4)
    likeness = outputs.similarity(texts, scale=100)
    out = explain(network, x, layer="body.1", methods="HiResCAM", output=likeness, utility="pre-softmax", targets=1)
    for i in range(2):
        wanted = by_hand(
            network.body,
            "1",
            x[i : i + 1],
            lambda y: 100 * torch.nn.functional.cosine_similarity(y[0], texts[1], dim=0),
        )
        torch.testing.assert_close(out.explanations["HiResCAM"][i : i + 1], wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"the network puts out \(2, 7\), expected embeddings \(b, 4\)"):
        outputs.similarity(torch.ones(3, 4))(torch.ones(2, 7))
