"""SmoothGrad for every method: against a loop, its noise, and that it hangs on the image's key alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import shapleycam as sc
from playing import images, network, play
from shapleycam.searches import SEARCHES
from shapleycam.smoothing import noisy, normal, smoothed
from shapleycam.theory.draws import checksums

TARGETS = [4, 0, 1]
METHODS = ["GradCAM", "ShapleyCAM-H", "AumannCAM"]


def explain(x: Tensor, targets: list[int] = TARGETS) -> Mapping[str, Tensor]:
    """Three of the table's methods and one that plays, on noisy images, for the same classes."""
    net = network().to(x.dtype)
    out = sc.explain(net, x, layer="4", methods=METHODS, targets=targets, layout="bnhw")
    return {**out.explanations, "AblationCAM": SEARCHES["AblationCAM"].explain(play(net, "4", x, targets, "rest"))}


def test_mean_and_deviation_are_those_of_a_loop_over_noisy_images() -> None:
    x = images().double()
    found = smoothed(explain, x, checksums(x), samples=5, level=0.2, seed=3)
    each = [explain(noisy(x, checksums(x), 0.2, 3, sample)) for sample in range(5)]
    assert list(found.mean) == [*METHODS, "AblationCAM"]
    for name in found.mean:
        stacked = torch.stack([one[name] for one in each])
        mean = sum(stacked) / 5
        deviation = (sum((one - mean) ** 2 for one in stacked) / 5) ** 0.5
        torch.testing.assert_close(found.mean[name], mean)
        torch.testing.assert_close(found.deviation[name], deviation)
        assert float(deviation.mean()) > 1e-4


def test_without_noise_the_mean_is_the_explanation_and_nothing_deviates() -> None:
    x = images()
    found, expected = smoothed(explain, x, checksums(x), samples=3, level=0.0), explain(x)
    for name in found.mean:
        torch.testing.assert_close(found.mean[name], expected[name])
        assert float(found.deviation[name].abs().max()) == 0


def test_an_image_is_smoothed_alike_in_every_batch_and_order() -> None:
    x = images()
    whole = smoothed(explain, x, checksums(x), samples=4)
    for j in (2, 0, 1):
        one = x[j : j + 1]
        alone = smoothed(lambda some, j=j: explain(some, [TARGETS[j]]), one, checksums(one), samples=4)
        for name in whole.mean:
            torch.testing.assert_close(whole.mean[name][j], alone.mean[name][0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(whole.deviation[name][j], alone.deviation[name][0], rtol=1e-3, atol=1e-6)


def test_noise_is_normal_with_a_deviation_of_the_level_times_the_images_range() -> None:
    x = 3 * images(2, 60, 80)
    x[1] *= 5
    for sample in range(2):
        noise = noisy(x, torch.tensor([1, 2]), 0.1, 0, sample) - x
        for j in range(2):
            flat = noise[j].flatten() / (0.1 * (x[j].max() - x[j].min()))
            assert kstest(flat.numpy(), "norm").pvalue > 0.01


def test_samples_seeds_and_keys_each_give_other_numbers() -> None:
    drawn = [
        normal(torch.tensor([key]), 4000, seed, stream)[0] for key in (1, 2) for seed in (0, 1) for stream in (0, 1)
    ]
    for i, one in enumerate(drawn):
        assert one.isfinite().all()
        for other in drawn[:i]:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.07


def test_the_mean_over_more_samples_is_surer() -> None:
    x, keys = images(1), torch.tensor([1])

    def one(some: Tensor) -> Mapping[str, Tensor]:
        return {"E": some.mean(1)}

    few, many = (smoothed(one, x, keys, samples=samples).mean["E"] - x.mean(1) for samples in (4, 256))
    assert float(few.std() / many.std()) == pytest.approx(8, rel=0.15)


def test_progress_is_told_of_every_sample_and_the_images_stay_as_they_are() -> None:
    x, told = images(), []
    before = x.clone()
    smoothed(
        lambda some: {"E": some}, x, checksums(x), samples=3, progress=lambda done, most: told.append((done, most))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{"samples": 0}, {"level": -0.1}, {"level": float("nan")}])
def test_no_samples_and_levels_that_are_no_share_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, and a share of 0 or more"):
        smoothed(lambda some: {"E": some}, images(), checksums(images()), **options)
