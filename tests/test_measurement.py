"""`measure` against loops over images and methods, against the paper's own code, and what it costs and refuses."""

import copy
import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.clock import peak
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

import shapleycam as sc
from shapleycam.network.preprocess import Preprocess
from shapleycam.network.weights import calibrate, randomise
from shapleycam.network.zoo import Model
from shapleycam.scoring import masked
from shapleycam.theory.draws import checksums, key, uniform
from shapleycam.theory.heatmap import heatmap
from small import network
from test_contract import NETWORKS, SURROUNDINGS, Left
from unchecked import library

KNOWING = [name for name in sc.METHODS if name != "RandomCAM"]
COLUMNS = ("full", "kept", "deleted", "coherency", "complexity")


def images(b: int = 3, h: int = 12, w: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def model() -> Model:
    """The same with pictures of its own, whose channels are normalised each in its own way."""
    preprocess = Preprocess((12, 16), None, "bilinear", (0.5, 0.3, 0.1), (0.2, 0.4, 0.5))
    return Model("tiny", network(), preprocess, tuple("abcde"), None, {"gap": "3", "conv": "2"}, "drawn")


def on_itself() -> nn.Sequential:
    """A network whose target layer "0" puts out the images themselves."""
    made = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    randomise(made, 0)
    return made.eval()


@contextmanager
def passing(module: nn.Module) -> Iterator[list[int]]:
    """How many images each forward pass takes through a module."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    yield seen
    handle.remove()


def same(found: sc.Measurements, expected: sc.Measurements, atol: float = 1e-6) -> None:
    for name in COLUMNS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)


# What is measured


def with_the_mean_colour(x: Tensor, shares: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for channel in range(x.shape[0]):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                out[channel, row, column] = x[channel, row, column] * shares[row, column]
    return out


def with_black(x: Tensor, shares: Tensor) -> Tensor:
    preprocess = model().preprocess
    out = torch.zeros_like(x)
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                value = float(x[channel, row, column]) * std + mean
                out[channel, row, column] = (value * float(shares[row, column]) - mean) / std
    return out


def slow(
    x: Tensor, target: int, method: str, layer: str, utility: str, mask: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """One image, one method, in float64, from the definitions."""
    net = network().double()

    def probability(image: Tensor) -> float:
        return float(net(image[None].double()).softmax(1)[0, target].detach())

    def explained(image: Tensor) -> Tensor:
        out = sc.explain(net, image[None].double(), methods=method, layer=layer, utility=utility, targets=target)
        return out.heatmaps[method][0]

    h = explained(x)
    again = explained(mask(x.double(), h))
    flat = 0 in (len(h.unique()) - 1, len(again.unique()) - 1)
    full, kept, deleted = probability(x), probability(mask(x.double(), h)), probability(mask(x.double(), 1 - h))
    return {
        "full": full,
        "kept": kept,
        "deleted": deleted,
        "coherency": 0 if flat else (pearsonr(h.flatten(), again.flatten()).statistic + 1) / 2,
        "complexity": sum(sum(row) for row in h.tolist()) / h.numel(),
        "average_drop": max(0.0, full - kept) / full,
        "increase_in_confidence": float(kept > full),
        "average_drop_in_deletion": max(0.0, full - deleted) / full,
    }


@pytest.mark.parametrize("layer", ["gap", "conv"])
@pytest.mark.parametrize(
    ("masking", "mask", "utility"),
    [
        ("normalised", with_the_mean_colour, "rest"),
        ("normalised", with_the_mean_colour, "post-softmax"),
        ("raw", with_black, "rest"),
    ],
)
def test_measurements_are_those_of_a_loop_over_images_and_methods(
    masking: Any, mask: Callable[[Tensor, Tensor], Tensor], layer: str, utility: str
) -> None:
    double = Model(**{**vars(model()), "module": network().double()})
    x, targets = images(), [4, 0, 1]
    found = sc.measure(
        double, x.double(), methods=KNOWING, layer=layer, utility=utility, targets=targets, masking=masking
    )
    assert found.methods == tuple(KNOWING)
    assert found.targets.tolist() == targets
    for j, target in enumerate(targets):
        for i, method in enumerate(KNOWING):
            expected = slow(x[j], target, method, model().layers[layer], utility, mask)
            got = {
                name: float(getattr(found, name)[j] if name == "full" else getattr(found, name)[j, i])
                for name in expected
            }
            assert got == pytest.approx(expected, abs=1e-6), (method, j)


@pytest.mark.parametrize("layer", ["gap", "conv"])
def test_networks_and_images_above_are_such_that_masks_change_the_scores(layer: str) -> None:
    found = sc.measure(model(), images(), methods=KNOWING, layer=layer, targets=[4, 0, 1])
    raw = sc.measure(model(), images(), methods=KNOWING, layer=layer, targets=[4, 0, 1], masking="raw")
    assert float((found.coherency > 0.5).float().mean()) > 0.6
    assert float((found.kept - raw.kept).abs().max()) > 0.05
    assert float((found.kept - found.deleted).abs().max()) > 0.05


@given(seed=st.integers(0, 2**31), b=st.integers(1, 2), h=st.integers(1, 4), w=st.integers(1, 4))
def test_masked_image_is_a_share_of_the_image_and_the_rest_of_the_background(seed: int, b: int, h: int, w: int) -> None:
    x, shares = images(b, h, w, seed), images(b, h, w, seed + 1)[:, 0].sigmoid()
    behind = torch.tensor([1.0, -2.0, 3.0])[None, :, None, None]
    for background in (None, behind):
        found = masked(x, shares, background)
        for j in range(b):
            for c in range(3):
                for y in range(h):
                    for z in range(w):
                        share = float(shares[j, y, z])
                        back = 0.0 if background is None else float(background[0, c, 0, 0])
                        expected = float(x[j, c, y, z]) * share + back * (1 - share)
                        assert float(found[j, c, y, z]) == pytest.approx(expected, abs=1e-5)


def test_targets_default_to_the_predicted_classes_and_adcc_is_of_the_means() -> None:
    x = images()
    found = sc.measure(network(), x, layer="2", methods=["GradCAM", "LayerCAM"])
    assert found.targets.tolist() == network()(x).argmax(1).tolist()
    for i in range(2):
        means = [float(each[:, i].mean()) for each in (found.average_drop, found.coherency, found.complexity)]
        expected = 3 / (1 / means[1] + 1 / (1 - means[2]) + 1 / (1 - means[0]))
        assert float(found.adcc[i]) == pytest.approx(expected, abs=1e-6)


def test_heatmaps_that_were_measured_are_those_of_explain() -> None:
    found = sc.measure(network(), images(), layer="2", methods="paper")
    out = sc.explain(network(), images(), layer="2", methods="paper")
    assert list(found.out.heatmaps) == list(out.heatmaps) == list(found.methods)
    for name, expected in out.heatmaps.items():
        assert torch.equal(found.out.heatmaps[name], expected)
        assert torch.equal(found.complexity[:, found.methods.index(name)], expected.mean((1, 2)))
    assert torch.equal(found.out[1].heatmaps["GradCAM"], out.heatmaps["GradCAM"][1:2])
    assert torch.equal(found.out.logits, out.logits)


@pytest.mark.large
@pytest.mark.parametrize("layer", ["gap", "conv"])
def test_measurements_of_a_trained_network_are_those_of_the_papers_own_code(shared_data: Path, layer: str) -> None:
    with (shared_data / "golden_efficientnet_lite0.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["target_layer"] == layer]
    pictures = sorted({row["picture"] for row in rows})
    assert (len(pictures), len(rows)) == (16, 16 * 9)
    lite = sc.load_model("efficientnet_lite0")
    found = sc.measure(
        lite, lite.preprocess([shared_data / "imagenet-sample" / picture for picture in pictures]), layer=layer
    )
    columns = {
        "average_drop": found.average_drop,
        "coherency": found.coherency,
        "complexity": found.complexity,
        "increase": found.increase_in_confidence,
        "deletion_drop": found.average_drop_in_deletion,
    }
    for row in rows:
        image, method = pictures.index(row["picture"]), found.methods.index(row["method"])
        assert int(found.targets[image]) == int(row["target"])
        assert float(found.full[image]) == pytest.approx(float(row["full"]), abs=1e-4)
        for name, scores in columns.items():
            # XGradCAM divides by a sum near zero there.
            loose = (layer, row["method"], name) == ("conv", "XGradCAM", "coherency")
            assert float(scores[image, method]) == pytest.approx(float(row[name]), abs=5e-3 if loose else 1e-4), (
                row,
                name,
            )


# What it costs


@pytest.mark.parametrize(
    ("utility", "layer", "methods", "distinct"),
    [
        ("rest", "3", "paper", 7),  # before GAP GradCAM is HiResCAM and XGradCAM, ShapleyCAM is ShapleyCAM-H
        ("pre-softmax", "3", "paper", 5),  # where HX is zero, ShapleyCAM is GradCAM too
        ("rest", "2", "paper", 10),
        ("rest", "3", ["HiResCAM", "GradCAM", "XGradCAM"], 1),
        ("rest", "3", ["GradCAM", "FakeCAM", "Gaussian"], 3),
        ("rest", "2", "RandomCAM", 1),
        ("rest", "2", "FakeCAM", 1),
    ],
)
def test_b_images_pass_1_and_2_times_the_number_of_distinct_heatmaps(
    utility: str, layer: str, methods: Any, distinct: int
) -> None:
    net, b = network(), 3
    with passing(net[0]) as seen:
        sc.measure(net, images(b), methods=methods, layer=layer, utility=utility)
    assert seen == [b] * (1 + 2 * distinct)


def test_methods_that_coincide_have_the_scores_of_each_measured_alone() -> None:
    together = sc.measure(network(), images(), layer="3", methods=["GradCAM", "LayerCAM", "HiResCAM", "XGradCAM"])
    for i, name in enumerate(together.methods):
        alone = sc.measure(network(), images(), layer="3", methods=name)
        for column in COLUMNS[1:]:
            got, expected = getattr(together, column)[:, i], getattr(alone, column)[:, 0]
            assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-5), (name, column)


def test_methods_that_coincide_on_one_picture_only_are_measured_once_there_and_twice_elsewhere() -> None:
    """LayerCAM is GradCAM-E where no map is negative."""
    net, x = on_itself(), images()
    x[1] = x[1].abs()
    with passing(net[0]) as seen:
        found = sc.measure(net, x, layer="0", methods=["LayerCAM", "GradCAM-E", "RandomCAM"])
    assert sum(seen) == 3 + 2 * (2 + 3 * 2)
    assert max(seen) <= 3
    for i, name in enumerate(found.methods):
        for j in range(3):
            alone = sc.measure(net, x[j : j + 1], layer="0", methods=name, targets=int(found.targets[j]))
            for column in COLUMNS[1:]:
                expected = float(getattr(alone, column)[0, 0])
                assert float(getattr(found, column)[j, i]) == pytest.approx(expected, abs=1e-5), (name, j, column)
    assert float((found.kept[:, 0] - found.kept[:, 1]).abs()[[0, 2]].min()) > 1e-4


@pytest.mark.parametrize(
    ("apart", "distinct"),
    [
        ([3e-7], 1),
        ([1e-5], 2),
        ([9e-7, 1.8e-6], 2),  # the third is near the second, but not near the first, which the second is measured with
    ],
)
def test_heatmaps_count_as_equal_up_to_a_millionth(
    apart: list[float], distinct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GradCAM again, its highest position higher by so much."""

    def nearly(more: float, w: Tensor, a: Tensor) -> Tensor:
        total = (w.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True)
        high = total.amax((2, 3), keepdim=True)
        return (total + (total == high) * high * more) / a.shape[1] / a

    row = sc.METHODS["GradCAM"]
    again = [type(row)(f"GradCAM {more}", "", "first", "", partial(nearly, more)) for more in apart]
    for module in ("batch", "theory.cams"):
        monkeypatch.setattr(f"shapleycam.{module}.METHODS", {**sc.METHODS, **{each.name: each for each in again}})
    net, x, names = network().double(), images(4).double(), ["GradCAM", *(each.name for each in again)]
    with passing(net[0]) as seen:
        found = sc.measure(net, x, layer="2", methods=names)
    assert seen == [4] * (1 + 2 * distinct)
    for i, name in enumerate(names):
        alone = sc.measure(net, x, layer="2", methods=name)
        torch.testing.assert_close(found.kept[:, i], alone.kept[:, 0], rtol=0, atol=1e-5)


def test_anti_explanation_maps_and_nothing_else_pass_what_was_given_to_infer_them() -> None:
    net, x, seen = network(), images(), []

    def infer(batch: Tensor) -> Tensor:
        seen.append(batch.clone())
        return 2 * net(batch).detach()

    found = sc.measure(net, x, layer="2", methods=["GradCAM", "LayerCAM"], infer=infer)
    expected = sc.measure(net, x, layer="2", methods=["GradCAM", "LayerCAM"])
    assert len(seen) == 2
    for i, (batch, heatmaps) in enumerate(zip(seen, expected.out.heatmaps.values(), strict=True)):
        torch.testing.assert_close(batch, x * (1 - heatmaps[:, None]))
        deleted = (2 * net(batch)).softmax(1).gather(1, found.targets[:, None])[:, 0].detach()
        torch.testing.assert_close(found.deleted[:, i], deleted)
    assert torch.equal(found.kept, expected.kept)


def test_memory_at_the_peak_does_not_grow_with_the_number_of_methods() -> None:
    net, x = network(), images(8, 96, 96)
    few, many = (
        peak(lambda methods=methods: sc.measure(net, x, layer="2", methods=methods))
        for methods in (["GradCAM", "HiResCAM", "ShapleyCAM"], "paper")
    )
    assert few > 8 * 3 * 96 * 96 * 4 / 2**20  # the images, masked: the account counts something
    assert many <= 1.05 * few


# More metrics


def test_more_metrics_are_those_of_their_functions_on_the_same_heatmaps() -> None:
    x, names = images(), ["GradCAM", "LayerCAM", "RandomCAM", "FakeCAM"]
    found = sc.measure(
        network(), x, layer="2", methods=names, targets=[4, 0, 1], metrics=("road", "insertion", "deletion")
    )
    assert list(found.more) == ["road", "insertion", "deletion"]
    for i, name in enumerate(names):
        h = found.out.heatmaps[name] if name != "FakeCAM" else sc.BASELINES[name](12, 16).expand(3, -1, -1)
        for metric, scores in found.more.items():
            expected = getattr(sc, metric)(network(), x, h, [4, 0, 1])
            torch.testing.assert_close(scores[:, i], expected, rtol=0, atol=1e-6)
    assert min(float((scores[:, 0] - scores[:, 1]).abs().max()) for scores in found.more.values()) > 1e-3
    same(found, sc.measure(network(), x, layer="2", methods=names, targets=[4, 0, 1]))


def test_equal_heatmaps_are_inserted_deleted_and_painted_over_once() -> None:
    def passed(methods: Any) -> tuple[list[int], sc.Measurements]:
        net = network()
        with passing(net[0]) as seen:
            return seen, sc.measure(
                net, images(), layer="3", methods=methods, metrics=["insertion", "deletion", "road"]
            )

    (one, alone), (three, found) = passed("GradCAM"), passed(["HiResCAM", "GradCAM", "XGradCAM"])
    assert one == three
    assert sum(one) == 3 * (1 + 2 + 102 + 102 + 19)
    for metric, scores in found.more.items():
        torch.testing.assert_close(scores, alone.more[metric].expand(-1, 3), rtol=0, atol=1e-5)


def test_more_metrics_are_of_the_logits_that_were_named() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.net(x)
            return -logits, logits

    found = sc.measure(
        Both().eval(), images(), layer="net.2", methods="GradCAM", output=lambda both: both[1], metrics="road"
    )
    expected = sc.measure(network(), images(), layer="2", methods="GradCAM", metrics="road")
    assert torch.equal(found.more["road"], expected.more["road"])


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_surroundings_change_no_number_of_more_metrics(surrounding: str) -> None:
    metrics = ("insertion", "deletion", "road", "randomisation")
    given: dict[str, Any] = {"layer": "2", "methods": "GradCAM", "metrics": metrics}
    expected = library.measure(network(), images(), **given)
    net, x = network(), images().requires_grad_()
    left = Left(net, x, torch.zeros(1))
    with SURROUNDINGS[surrounding]():
        found = library.measure(net, x, **given)
    left.check()
    for metric, scores in found.more.items():
        assert torch.equal(scores, expected.more[metric]), metric
        assert not scores.requires_grad


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "RandomCAM", "ScoreCAM", "FakeCAM"])
def test_randomisation_is_the_rank_correlation_with_the_heatmap_of_the_network_drawn_anew(method: str) -> None:
    net, x, targets = network(), images(), [4, 0, 1]
    found = sc.measure(net, x, layer="2", methods=method, targets=targets, seed=6, metrics=["randomisation", "road"])
    assert list(found.more) == ["randomisation", "road"]
    again = copy.deepcopy(net)
    randomise(again, 7)
    calibrate(again, (3, 12, 16))
    for i in range(3):
        expected = 1.0
        if method != "FakeCAM":
            before, after = (
                sc.explain(each, x[i : i + 1], layer="2", methods=method, targets=targets[i], seed=6).heatmaps[method]
                for each in (net, again)
            )
            expected = spearmanr(before.flatten(), after.flatten()).statistic
            assert abs(expected) < 0.9
        assert float(found.more["randomisation"][i, 0]) == pytest.approx(expected, abs=1e-5)


def test_randomisation_costs_one_pass_whatever_the_number_of_methods() -> None:
    def passed(**options: Any) -> int:
        net = network()
        with passing(net[0]) as seen:
            sc.measure(net, images(), layer="2", methods="paper", **options)
        return sum(seen)

    assert passed(metrics="randomisation", randomised=network()) == passed()
    assert passed(metrics="randomisation") - passed() == 3 + 4  # drawing weights takes a pass of four pictures


def test_randomisation_of_a_random_network_draws_other_weights() -> None:
    net = network()
    randomise(net, 0)
    calibrate(net, (3, 12, 16))
    found = sc.measure(net, images(), layer="2", methods="GradCAM", metrics="randomisation")
    assert float(found.more["randomisation"].max()) < 0.99


def test_randomisation_of_a_blank_heatmap_is_0() -> None:
    net = network()
    with torch.no_grad():
        net[6].weight[3] = 0
    found = sc.measure(
        net, images(), layer="3", methods="GradCAM", utility="pre-softmax", targets=3, metrics="randomisation"
    )
    assert found.more["randomisation"].tolist() == [[0.0]] * 3


# What it depends on, and what not


@pytest.mark.parametrize("layer", ["2", "3"])
def test_images_of_a_batch_do_not_affect_each_other(layer: str) -> None:
    x = images(4)
    whole = sc.measure(network(), x, layer=layer, methods=["paper", "FakeCAM", "Gaussian"])
    for j in range(4):
        alone = sc.measure(network(), x[j : j + 1], layer=layer, methods=["paper", "FakeCAM", "Gaussian"])
        for column in COLUMNS:
            got, expected = getattr(whole, column)[j : j + 1], getattr(alone, column)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_methods_come_out_in_the_order_asked_for_each_once_with_the_same_scores() -> None:
    names = ["FakeCAM", *reversed(sc.METHODS), "Gaussian"]
    found = sc.measure(network(), images(), layer="3", methods=[*names, "GradCAM", "all", "FakeCAM"])
    assert found.methods == tuple(names)
    forward = sc.measure(network(), images(), layer="3", methods=["all", "Gaussian", "FakeCAM"])
    order = [forward.methods.index(name) for name in names]
    for column in COLUMNS[1:]:
        torch.testing.assert_close(getattr(found, column), getattr(forward, column)[:, order], rtol=0, atol=1e-5)


def test_an_image_that_the_network_answers_with_nan_spoils_no_other() -> None:
    class Fragile(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1, 0, 0] > 50, torch.nan, super().forward(x))

    net, x = Fragile(*network()).eval(), images()
    expected = sc.measure(net, x, layer="3")
    x[1, 0, 0, 0] = 100
    found = sc.measure(net, x, layer="3")
    assert found.full[1].isnan()
    assert found.average_drop[1].isnan().all()
    assert (found.coherency[1] == 0).sum() >= 9  # all but RandomCAM's
    for column in COLUMNS:
        others = getattr(found, column)[[0, 2]], getattr(expected, column)[[0, 2]]
        torch.testing.assert_close(*others, rtol=0, atol=1e-5)


def test_a_heatmap_of_the_explanation_map_that_is_not_finite_is_no_incoherent_one() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt().mean((2, 3)) @ torch.eye(3)[:, :2]

    net = nn.Sequential(nn.Identity(), Steep()).eval()
    x = images().abs() + 0.1  # its explanation map has zeros, where the square root has no slope
    found = sc.measure(net, x[:, :3], layer="0", methods=["HiResCAM", "FakeCAM"])
    assert found.kept.isfinite().all()
    assert found.coherency[:, 0].isnan().all()
    assert (found.coherency[:, 1] == 1).all()


# RandomCAM


def randomly(x: Tensor, keys: Tensor, seed: int, stream: int) -> Tensor:
    maps = network()[:4](x).detach()
    weights = uniform(keys, maps.shape[1], seed, stream)
    return heatmap((weights[:, :, None, None] * maps).sum(1), (x.shape[-2], x.shape[-1]))


@pytest.mark.parametrize("keys", [None, ["a", "b", "c"]])
def test_randomcam_draws_anew_for_the_explanation_map_from_the_same_key(keys: list[str] | None) -> None:
    x, seed = images(), 5
    found = sc.measure(network(), x, layer="3", methods=["GradCAM", "RandomCAM"], seed=seed, keys=keys)
    drawn = checksums(x) if keys is None else torch.tensor([key(name) for name in keys])
    h = randomly(x, drawn, seed, 0)
    again, not_anew = (randomly(x * h[:, None], drawn, seed, stream) for stream in (1, 0))
    torch.testing.assert_close(found.coherency[:, 1], sc.metrics.coherency(h, again), rtol=0, atol=1e-5)
    assert float((sc.metrics.coherency(h, not_anew) - found.coherency[:, 1]).abs().min()) > 0.01


def test_keys_name_the_images_whatever_their_order_and_batch() -> None:
    x, names = images(), ["a", "b", "c"]
    found = sc.measure(network(), x, layer="3", methods="RandomCAM", keys=names)
    other = sc.measure(network(), x, layer="3", methods="RandomCAM", keys=["a", "b", "d"])
    assert torch.equal(found.kept[:2], other.kept[:2])
    assert found.kept[2] != other.kept[2]
    for j in (2, 0, 1):
        alone = sc.measure(network(), x[j : j + 1], layer="3", methods="RandomCAM", keys=names[j : j + 1])
        assert alone.coherency.item() == pytest.approx(found.coherency[j].item(), abs=1e-5)


# Baselines


def test_baselines_are_measured_as_the_pictures_that_they_are() -> None:
    x = images()
    found = sc.measure(network(), x, layer="3", methods=["FakeCAM", "Gaussian"])
    assert found.coherency.tolist() == [[pytest.approx(1)] * 2] * 3
    assert list(found.out.explanations) == []
    for i, name in enumerate(found.methods):
        shares = sc.BASELINES[name](12, 16)
        assert found.complexity[:, i].tolist() == pytest.approx([float(shares.mean())] * 3)
        for column, mask in (("kept", shares), ("deleted", 1 - shares)):
            expected = network()(x * mask).softmax(1).gather(1, found.targets[:, None])[:, 0]
            torch.testing.assert_close(getattr(found, column)[:, i], expected, rtol=0, atol=1e-6)


@pytest.mark.large
def test_fakecam_scores_as_poppi_et_al_describe(shared_data: Path) -> None:
    """It drops next to nothing and is wholly coherent; only its complexity gives it away, and takes ADCC to zero."""
    lite = sc.load_model("efficientnet_lite0")
    pictures = sorted((shared_data / "imagenet-sample").iterdir())[:6]
    found = sc.measure(lite, lite.preprocess(pictures), methods=["FakeCAM", "ShapleyCAM"])
    assert float(found.average_drop[:, 0].mean()) < 0.01
    assert float(found.coherency[:, 0].min()) > 1 - 1e-6
    assert float(found.complexity[:, 0].min()) > 0.9999
    assert float(found.adcc[0]) < 0.001 < 0.5 < float(found.adcc[1])


# Surroundings and types


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_call_leaves_nothing_behind_and_its_surroundings_change_no_number(name: str, surrounding: str) -> None:
    make, layer = NETWORKS[name]
    x = images(2, 16, 16)
    if name == "attention":  # its tokens are no maps
        layer = "conv"
    expected = library.measure(make(), x, layer=layer, methods=["paper", "FakeCAM"], targets=[1, 4])
    net, given, targets, keys = make(), x.clone().requires_grad_(), torch.tensor([1, 4]), ["a", "b"]
    net.train()
    left = Left(net, given, targets)
    with SURROUNDINGS[surrounding]():
        found = library.measure(net, given, layer=layer, methods=["paper", "FakeCAM"], targets=targets)
        library.measure(net, given, layer=layer, methods="RandomCAM", keys=keys)
    left.check()
    assert keys == ["a", "b"]
    for column in COLUMNS:
        got = getattr(found, column)
        assert torch.equal(got, getattr(expected, column)), column
        assert not got.requires_grad


def test_bfloat16_network_gives_float32_scores_near_those_of_float32() -> None:
    exact = sc.measure(network(), images(), layer="3", methods=["ShapleyCAM", "Gaussian"])
    net, x = network().bfloat16(), images().bfloat16()
    found = sc.measure(net, x, layer="3", methods=["ShapleyCAM", "Gaussian"], targets=exact.targets)
    assert torch.equal(found.complexity[:, 1], exact.complexity[:, 1])
    assert torch.equal(found.full, net(x).float().softmax(1).gather(1, exact.targets[:, None])[:, 0].detach())
    for column in COLUMNS:
        assert getattr(found, column).dtype == torch.float32
        torch.testing.assert_close(getattr(found, column), getattr(exact, column), rtol=0, atol=0.02)


def test_float64_network_gives_float64_scores() -> None:
    found, single = (
        sc.measure(net, x, layer="3", methods=["ShapleyCAM", "Gaussian"])
        for net, x in ((network().double(), images().double()), (network(), images()))
    )
    assert torch.equal(found.targets, single.targets)
    for column in COLUMNS:
        assert getattr(found, column).dtype == torch.float64
        torch.testing.assert_close(getattr(found, column), getattr(single, column).double(), rtol=0, atol=1e-5)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"masking": "black"}, 'masking is \'black\', expected "normalised" or "raw"'),
        ({"masking": "raw"}, 'masking="raw" needs to know how images were normalised; pass what load_model gives'),
        ({"methods": []}, "no method was given; name one or more of paper, path, all, RandomCAM.*FakeCAM, Gaussian"),
        ({"methods": "GradCan"}, "unknown method 'GradCan'; did you mean GradCAM"),
        ({"methods": "FakeCan"}, "unknown method 'FakeCan'; did you mean FakeCAM"),
        ({"utility": "logit"}, "unknown utility 'logit'"),
        ({"layer": "7"}, "the network has no layer '7'"),
        ({"metrics": "insert"}, "unknown metric 'insert'; did you mean insertion"),
        ({"keys": ["a"]}, "keys has 1 names, expected one for each of 3 images"),
        ({"images": images() * torch.nan}, r"images \[0, 1, 2\] hold NaN or infinity"),
        ({"targets": 9}, "out of range; the network has classes 0 to 4"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: dict[str, Any], words: str) -> None:
    given = {"images": images(), "layer": "3", **arguments}
    with pytest.raises(ValueError, match=words):
        library.measure(network(), **given)


def test_labels_that_stand_each_for_itself_are_measured_by_the_sigmoid_of_the_side_explained() -> None:
    """What other labels do is nothing to the one explained; of a side that is negative the probability is the rest."""
    net, x = network(), images()
    label = 2
    with torch.no_grad():  # so that it is there on some images and not on others
        net[6].bias[label] -= net(x)[:, label].mean()
    logits = net(x).detach()
    assert 0 < (logits[:, label] > 0).sum() < len(x)
    found = sc.measure(net, x, methods="GradCAM", layer="3", targets=label, utility="rest-sigmoid")
    for i in range(len(x)):
        positive = bool(logits[i, label] > 0)
        kind = f"rest-sigmoid-{'positive' if positive else 'negative'}"
        h = sc.explain(net, x[i : i + 1], methods="GradCAM", layer="3", targets=label, utility=kind).heatmaps["GradCAM"]

        def share(image: Tensor, positive: bool = positive) -> float:
            p = float(net(image)[0, label].detach().sigmoid())
            return p if positive else 1 - p

        expected = share(x[i : i + 1]), share(x[i : i + 1] * h[:, None]), share(x[i : i + 1] * (1 - h[:, None]))
        got = float(found.full[i]), float(found.kept[i, 0]), float(found.deleted[i, 0])
        assert got == pytest.approx(expected, abs=1e-5)
        again = sc.explain(
            net, x[i : i + 1] * h[:, None], methods="GradCAM", layer="3", targets=label, utility=kind
        ).heatmaps["GradCAM"]
        assert float(found.coherency[i, 0]) == pytest.approx(float(sc.metrics.coherency(h, again)[0]), abs=1e-4)


def test_a_network_of_one_logit_is_measured() -> None:
    net, x = nn.Sequential(network(), nn.Linear(5, 1)).eval(), images()
    found = sc.measure(net, x, methods="GradCAM", layer="0.3", utility="rest-sigmoid")
    assert (found.full >= 0.5).all()


def test_signals_are_refused_for_nothing_masks_them() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.raises(ValueError, match=r"images has shape \(2, 2, 40\), expected \(b, channels, H, W\)"):
        sc.measure(net, torch.randn(2, 2, 40), layer="1")
