"""Insertion, deletion and ROAD against slow loops, torchcam and grad-cam; the randomisation check against Quantus."""

import copy
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import quantus
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchcam.methods import GradCAM
from torchcam.metrics import DeletionInsertionMetric

import shapleycam as sc
from shapleycam import curves
from shapleycam.curves import blurred, deletion, exchange, insertion, ranked
from shapleycam.imputation import imputed, road
from shapleycam.network.cut import inference
from shapleycam.network.weights import randomise
from shapleycam.sanity import cascade, randomisation, weighted
from small import network
from test_contract import NETWORKS, SURROUNDINGS, Left
from unchecked import library

UNCHECKED: dict[str, Any] = {
    name: getattr(import_module(f"{library.__name__}.{home}"), name)
    for home, names in {
        "curves": ("insertion", "deletion"),
        "imputation": ("road",),
        "sanity": ("randomisation",),
    }.items()
    for name in names
}

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")  # grad-cam's


def images(b: int = 3, h: int = 11, w: int = 11, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def heats(b: int = 3, h: int = 11, w: int = 11, seed: int = 2) -> Tensor:
    return torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed))


def probability(net: nn.Module, image: Tensor, target: int) -> float:
    with torch.no_grad():
        return float(net(image[None]).softmax(1)[0, target])


def by_heat(heatmap: Tensor) -> list[tuple[int, int]]:
    places = [(row, column) for row in range(heatmap.shape[0]) for column in range(heatmap.shape[1])]
    return sorted(places, key=lambda place: -float(heatmap[place]))


# Insertion and deletion


def slow_area(net: nn.Module, before: Tensor, after: Tensor, heatmap: Tensor, target: int, steps: int) -> float:
    places, image = by_heat(heatmap), before.clone()
    curve = [probability(net, image, target)]
    for k in range(steps):
        start, end = (round(len(places) * each / steps) for each in (k, k + 1))
        for row, column in places[start:end]:
            image[:, row, column] = after[:, row, column]
        curve.append(probability(net, image, target))
    return sum((left + right) / 2 for left, right in pairwise(curve)) / steps


def blurred_by_scipy(image: Tensor) -> Tensor:
    """As the authors' code makes its kernel: a point, filtered inside 11 x 11 pixels."""
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = gaussian_filter(point, 5)
    return torch.stack([torch.from_numpy(convolve2d(each.numpy(), kernel, mode="same")) for each in image]).to(image)


@pytest.mark.parametrize("steps", [1, 7, 121])
def test_insertion_and_deletion_are_those_of_a_slow_loop(steps: int) -> None:
    net, x, h, targets = network(), images(), heats(), [1, 4, 0]
    h[0] = (h[0] * 3).round()  # ties go row by row
    shown, taken = (each(net, x, h, targets, steps=steps) for each in (insertion, deletion))
    for i, target in enumerate(targets):
        soft, none = blurred_by_scipy(x[i]), torch.zeros_like(x[i])
        assert float(shown[i]) == pytest.approx(slow_area(net, soft, x[i], h[i], target, steps), abs=1e-5)
        assert float(taken[i]) == pytest.approx(slow_area(net, x[i], none, h[i], target, steps), abs=1e-5)
    assert float((shown - taken).abs().min()) > 0.003


@pytest.mark.parametrize("soft", [False, True])
def test_insertion_and_deletion_are_those_of_torchcam(soft: bool) -> None:
    net, x = network(), images(2, 20, 20)  # 400 pixels, so that its steps are as even as ours
    extractor = GradCAM(net, net[3])
    metric = DeletionInsertionMetric(
        extractor, lambda logits: logits.softmax(1), steps=8, baseline=blurred if soft else None
    )
    metric.update(x.clone().requires_grad_(), class_idx=[1, 4])
    extractor.remove_hooks()
    expected = metric.summary()
    found = sc.explain(net, x, methods="GradCAM", layer="3", targets=[1, 4], utility="post-softmax")
    coarse = found.explanations["GradCAM"].relu()
    # It explains the score that it measures, and its order of equal pixels is ours.
    h = nn.functional.interpolate(coarse[:, None], (20, 20), mode="bilinear", align_corners=False)[:, 0]
    infer, targets = inference(net), torch.tensor([1, 4])
    ground = blurred(x) if soft else torch.zeros_like(x)

    def share(some: Tensor, places: Tensor) -> Tensor:
        return infer(some).softmax(1).gather(1, targets[places, None])[:, 0]

    shown, taken = exchange(share, ground, x, h, 8), exchange(share, x, ground, h, 8)
    assert float(curves.area(shown).mean()) == pytest.approx(expected["insertion_auc"], abs=1e-5)
    assert float(curves.area(taken).mean()) == pytest.approx(expected["deletion_auc"], abs=1e-5)


def test_the_networks_own_gradcam_is_inserted_sooner_and_deleted_sooner_than_its_opposite() -> None:
    net, x = network(), images(6, 16, 16)
    h = sc.explain(net, x, methods="HiResCAM", layer="3", utility="pre-softmax").heatmaps["HiResCAM"]
    assert float((insertion(net, x, h) - insertion(net, x, -h)).mean()) > 0.01
    assert float((deletion(net, x, -h) - deletion(net, x, h)).mean()) > 0.01


@drawn(st.integers(0, 1000))
def test_only_the_order_of_pixels_counts(seed: int) -> None:
    net, x, h = network(), images(2, 6, 7, seed), heats(2, 6, 7, seed)
    for score in (insertion, deletion):
        torch.testing.assert_close(score(net, x, h, 1, steps=5), score(net, x, h.exp() * 7, 1, steps=5))


def test_memory_is_bounded_by_the_number_of_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, seen = images(), heats(), []
    net = network()

    def share(batch: Tensor, places: Tensor) -> Tensor:
        seen.append(len(batch))
        return net(batch).detach()[:, 1] + places

    whole = exchange(share, x, torch.zeros_like(x), h, 9)
    monkeypatch.setattr(curves, "ROOM", 4 * x[0].numel())
    torch.testing.assert_close(exchange(share, x, torch.zeros_like(x), h, 9), whole)
    assert seen == [30, 4, 4, 4, 4, 4, 4, 4, 2]


# ROAD


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [(11, 11), (16, 23), (61, 90)])
def test_imputation_solves_the_equations_that_grad_cams_does(size: tuple[int, int], share: float) -> None:
    x, h = images(2, *size), heats(2, *size)
    h = nn.functional.avg_pool2d(h[:, None], 3, 1, 1)[:, 0]  # holes of many pixels
    missing = h > h.flatten(1).quantile(1 - share, 1)[:, None, None]
    found = imputed(x, missing)
    for i in range(2):
        torch.testing.assert_close(found[i], NoisyLinearImputer(0.0)(x[i], (~missing[i]).float()), rtol=0, atol=1e-5)


def test_every_painted_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    x, missing = images(1, 9, 8).double(), heats(1, 9, 8) > 0.4
    found = imputed(x, missing)[0]
    for row in range(9):
        for column in range(8):
            if not missing[0, row, column]:
                assert torch.equal(found[:, row, column], x[0, :, row, column])
                continue
            total, weights = torch.zeros(3, dtype=torch.float64), 0.0
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if (down or right) and 0 <= row + down < 9 and 0 <= column + right < 8:
                        weight = 1 / 12 if down and right else 1 / 6
                        total, weights = total + weight * found[:, row + down, column + right], weights + weight
            torch.testing.assert_close(found[:, row, column], total / weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.9, 0.99])
def test_holes_as_wide_as_those_of_heatmaps_take_few_steps(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conjugate gradients alone take hundreds of steps there, the more the larger the image."""
    monkeypatch.setattr("shapleycam.imputation.MOST", 30)
    x, coarse = images(1, 113, 160).double(), heats(1, 5, 5)
    h = nn.functional.interpolate(coarse[:, None], (113, 160), mode="bilinear")[:, 0]
    missing = h > h.quantile(1 - share)
    found = imputed(x, missing)
    monkeypatch.setattr("shapleycam.imputation.MOST", 1000)
    monkeypatch.setattr("shapleycam.imputation.EXACT", 1e-12)
    torch.testing.assert_close(found, imputed(x, missing), rtol=0, atol=1e-4)
    torch.testing.assert_close(imputed(x.float(), missing).double(), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_surroundings_change_no_painted_pixel(surrounding: str) -> None:
    missing = heats() > 0.4
    expected = imputed(images(), missing)
    with SURROUNDINGS[surrounding]():
        found = imputed(images(), missing)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("order", [RemoveMostRelevantFirst, RemoveLeastRelevantFirst])
def test_road_is_that_of_grad_cam(order: type) -> None:
    """On 121 pixels, all different, its percentiles keep as many pixels as ours; without noise."""
    net, x, h = network(), images(), heats()
    targets = [ClassifierOutputSoftmaxTarget(c) for c in (1, 4, 0)]
    scores = {}
    for kind in (RemoveMostRelevantFirst, RemoveLeastRelevantFirst):
        scores[kind] = np.mean(
            [
                PerturbationConfidenceMetric(kind(p, NoisyLinearImputer(0.0)))(x, h.numpy(), targets, net)
                for p in range(10, 100, 10)
            ],
            0,
        )
    expected = (scores[RemoveLeastRelevantFirst] - scores[RemoveMostRelevantFirst]) / 2
    signed = h if order is RemoveMostRelevantFirst else -h
    sign = 1 if order is RemoveMostRelevantFirst else -1
    found = road(net, x, signed, [1, 4, 0], noise=0.0)
    assert np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(sign * found.numpy(), expected, rtol=0, atol=1e-5)


def test_noise_is_drawn_from_the_seed_for_painted_pixels_alone() -> None:
    net, x, h = network(), images(), heats()
    first, again, other, none = (
        road(net, x, h, 1, seed=seed, noise=noise) for seed, noise in ((0, 0.01), (0, 0.01), (1, 0.01), (0, 0.0))
    )
    assert torch.equal(first, again)
    assert 0 < float((first - other).abs().max()) < 0.01
    assert 0 < float((first - none).abs().max()) < 0.01
    alone = road(net, x[1:2], h[1:2], 1)
    torch.testing.assert_close(alone, first[1:2])


def test_heatmaps_of_zeros_can_be_scored_too() -> None:
    found = road(network(), images(), torch.zeros(3, 11, 11), 1)
    assert found.isfinite().all()


# The randomisation check


def resettable() -> nn.Sequential:
    made = network()
    made[6] = nn.Linear(20, 5)
    return made.eval()


def by_torch(module: nn.Module, seed: int) -> None:
    torch.manual_seed(43)
    module.reset_parameters()


def explained_by_hirescam(model: nn.Module, inputs: object, targets: object, **kwargs: object) -> np.ndarray:
    x, y = (torch.as_tensor(each) for each in (inputs, targets))
    return sc.explain(model, x, methods="HiResCAM", layer="3", targets=y).heatmaps["HiResCAM"][:, None].numpy()


def test_correlations_are_those_of_quantus() -> None:
    net, x, y = resettable(), images(4, 16, 16), np.array([1, 4, 0, 2])
    found = randomisation(net, x, methods="HiResCAM", layer="3", targets=torch.from_numpy(y), draw=by_torch)

    metric = quantus.MPRT(disable_warnings=True, abs=False, normalise=False, seed=42)
    expected = metric(copy.deepcopy(net), x.numpy(), y, explain_func=explained_by_hirescam, softmax=False, device="cpu")
    assert found.layers == ("6", "2", "0")
    for k, name in enumerate(found.layers):
        np.testing.assert_allclose(found.correlations["HiResCAM"][:, k].numpy(), expected[name], rtol=0, atol=1e-5)
    assert float(found.correlations["HiResCAM"].abs().max()) < 0.99


def test_the_last_correlation_is_that_of_quantus_in_what_measure_gives() -> None:
    net, x, y = resettable(), images(4, 16, 16), np.array([1, 4, 0, 2])
    other = copy.deepcopy(net)
    for each in (other[6], other[2], other[0]):
        by_torch(each, 0)
    found = sc.measure(
        net, x, methods="HiResCAM", layer="3", targets=torch.from_numpy(y), metrics="randomisation", randomised=other
    )
    metric = quantus.MPRT(disable_warnings=True, abs=False, normalise=False, return_last_correlation=True)
    expected = metric(copy.deepcopy(net), x.numpy(), y, explain_func=explained_by_hirescam, softmax=False, device="cpu")
    np.testing.assert_allclose(found.more["randomisation"][:, 0].numpy(), expected, rtol=0, atol=1e-4)


def test_each_layer_is_drawn_on_top_of_those_before_it() -> None:
    net, x = network(), images(2, 16, 16)
    found = randomisation(net, x, methods=["GradCAM", "LayerCAM"], layer="3", targets=[1, 4], layers=["6", "0"], seed=5)
    again = copy.deepcopy(net)
    for k, name in enumerate(("6", "0")):
        randomise(again.get_submodule(name), 5 + k)
        for method in ("GradCAM", "LayerCAM"):
            before, after = (
                sc.explain(each, x, methods=method, layer="3", targets=[1, 4]).heatmaps[method] for each in (net, again)
            )
            expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(before, after, strict=True)]
            assert found.correlations[method][:, k].tolist() == pytest.approx(expected, abs=1e-5)


def test_layers_go_from_the_last_that_runs_to_the_first_whatever_the_order_they_were_made_in() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.unused, self.stem = nn.Linear(4, 3), nn.Linear(2, 2), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)))

    assert weighted(Backwards().eval(), images()) == ["head", "stem"]


def test_a_cascade_leaves_the_network_as_it_was() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    seen = []
    for forgetful in cascade(net, ["6", "2"]):
        seen.append(
            [not torch.equal(a, b) for a, b in zip(forgetful.state_dict().values(), before.values(), strict=True)]
        )
    assert seen == [[False] * 4 + [True] * 2, [False] * 2 + [True] * 4]
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


# Surroundings and refusals


@pytest.mark.parametrize("name", NETWORKS)
def test_calls_leave_nothing_behind(name: str) -> None:
    make, layer = NETWORKS[name]
    net, x, targets = make(), images(2, 16, 16).requires_grad_(), torch.tensor([1, 4])
    net.train()
    left = Left(net, x, targets)
    for score in ("insertion", "deletion", "road"):
        UNCHECKED[score](net, x, heats(2, 16, 16), targets)
    UNCHECKED["randomisation"](net, x, layer="conv" if name == "attention" else layer, targets=targets)
    left.check()


@pytest.mark.parametrize(
    ("name", "given", "options", "words"),
    [
        ("insertion", (heats(3, 5, 5),), {}, r"shape \(3, 5, 5\), expected one on each image, \(3, 11, 11\)"),
        ("deletion", (heats(),), {"steps": 122}, "steps is 122, expected 1 to 121, the number of pixels"),
        ("deletion", (heats(), 9), {}, "out of range; the network has classes 0 to 4"),
        ("road", (heats(),), {"percentiles": [0]}, r"percentiles is \[0\], expected one or more between 0 and 100"),
        ("road", (heats(),), {"percentiles": []}, r"percentiles is \[\], expected one or more"),
        ("randomisation", (), {"layer": "3", "layers": ["9"]}, "the network has no layer '9'"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    name: str, given: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        UNCHECKED[name](network(), images(), *given, **options)


def test_ranks_begin_with_the_hottest_and_break_ties_row_by_row() -> None:
    assert ranked(torch.tensor([[[0.0, 2.0], [2.0, 1.0]]])).tolist() == [[[3, 0], [1, 2]]]


@pytest.mark.parametrize("name", ["insertion", "deletion", "road"])
def test_a_logit_by_itself_has_the_probability_of_its_side(name: str) -> None:
    """A network of one logit is one of two classes, the other of which stays at zero."""
    net, x, h = network(), images(), heats()
    single = nn.Sequential(net, nn.Linear(5, 1)).eval()
    with torch.no_grad():  # yes on some images and no on others
        single[1].bias -= single(x).mean()
    two = nn.Sequential(single, nn.ConstantPad1d((1, 0), 0.0)).eval()
    yes = single(x)[:, 0] > 0
    assert 0 < yes.sum() < len(x)
    expected = UNCHECKED[name](two, x, h, yes.long())
    torch.testing.assert_close(UNCHECKED[name](single, x, h, utility="rest-sigmoid"), expected)
    signal = torch.randn(2, 3, 40)
    with pytest.raises(ValueError, match=r"images has shape \(2, 3, 40\), expected \(b, channels, H, W\)"):
        UNCHECKED[name](nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten()), signal, signal[:, 0])


def test_the_random_network_is_asked_about_the_side_that_the_trained_one_took() -> None:
    net, x = network(), images()
    sides = torch.where(net(x)[:, 2] > 0, 1, -1).tolist()
    found = randomisation(net, x, methods="GradCAM", layer="3", targets=2, utility="rest-sigmoid", layers=["6"])
    for i, side in enumerate(sides):
        kind = f"rest-sigmoid-{'positive' if side > 0 else 'negative'}"
        alone = randomisation(net, x[i : i + 1], methods="GradCAM", layer="3", targets=2, utility=kind, layers=["6"])
        torch.testing.assert_close(
            found.correlations["GradCAM"][i], alone.correlations["GradCAM"][0], equal_nan=True, rtol=1e-4, atol=1e-4
        )


def test_a_network_that_writes_into_its_images_does_not_write_into_the_users() -> None:
    class Normalised(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5))

    network = Normalised(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    for name in ("insertion", "deletion", "road"):
        UNCHECKED[name](network, x, heats(2, 16, 16))
        assert torch.equal(x, kept)
