"""The six metrics against loops, against scipy, and against every ADCC that the paper prints."""

import csv
from math import fsum, inf, nan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from torch import Tensor

from shapleycam import BASELINES, metrics

SHARES = st.floats(0, 1, width=32)
PROBABILITIES = st.floats(2**-20, 1, width=32)
SEEDS = st.integers(0, 2**31)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_adcc(drop: float, coherency: float, complexity: float) -> float:
    """The harmonic mean of three numbers, 0 as soon as one of them is."""
    good = (coherency, 1 - complexity, 1 - drop)
    return 0 if 0 in good else 3 / fsum(1 / each for each in good)


# Average drop, increase in confidence, average drop in deletion


@given(pairs=st.lists(st.tuples(PROBABILITIES, SHARES), min_size=1, max_size=5))
def test_drops_and_increase_are_their_equations(pairs: list[tuple[float, float]]) -> None:
    full, masked = numbers(*(f for f, _ in pairs)), numbers(*(m for _, m in pairs))
    drops = [max(0.0, f - m) / f for f, m in pairs]
    assert metrics.average_drop(full, masked).tolist() == pytest.approx(drops, abs=1e-12)
    assert metrics.average_drop_in_deletion(full, masked).tolist() == pytest.approx(drops, abs=1e-12)
    assert metrics.increase_in_confidence(full, masked).tolist() == [float(m > f) for f, m in pairs]


def test_confidence_that_rises_drops_by_nothing_and_a_tie_is_no_increase() -> None:
    full, kept = numbers(0.5, 0.5, 0.5), numbers(0.8, 0.5, 0.1)
    assert metrics.average_drop(full, kept).tolist() == pytest.approx([0, 0, 0.8])
    assert metrics.increase_in_confidence(full, kept).tolist() == [1, 0, 0]


def test_drop_of_no_confidence_and_of_one_that_is_not_known_is_nan() -> None:
    assert metrics.average_drop(numbers(0, 0, nan, 0.5), numbers(0, 0.3, 0.3, nan)).isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_formulas_of_probabilities_give_the_same_of_numpys_arrays(seed: int) -> None:
    full, kept = maps(seed, 2, 7)
    for formula in (metrics.average_drop, metrics.increase_in_confidence, metrics.average_drop_in_deletion):
        assert formula(full.numpy(), kept.numpy()).tolist() == formula(full, kept).tolist()


def test_drops_broadcast_a_column_of_images_over_the_methods() -> None:
    found = metrics.average_drop(numbers(0.5, 0.8)[:, None], maps(0, 2, 3))
    assert torch.equal(found[:, 1], metrics.average_drop(numbers(0.5, 0.8), maps(0, 2, 3)[:, 1]))


# Coherency


@given(seed=SEEDS, b=st.integers(1, 3), h=st.integers(1, 6), w=st.integers(2, 6))
def test_coherency_is_scipys_correlation_moved_to_0_to_1(seed: int, b: int, h: int, w: int) -> None:
    one, other = maps(seed, b, h, w), maps(seed + 1, b, h, w)
    expected = [(pearsonr(x.flatten(), y.flatten()).statistic + 1) / 2 for x, y in zip(one, other, strict=True)]
    assert metrics.coherency(one, other).tolist() == pytest.approx(expected, abs=1e-9)


def test_coherency_in_float32_is_scipys_on_maps_of_a_networks_size() -> None:
    one, other = maps(0, 1, 224, 224), maps(1, 1, 224, 224)
    other = 0.7 * one + 0.3 * other
    expected = (pearsonr(one.flatten(), other.flatten()).statistic + 1) / 2
    assert float(metrics.coherency(one.float(), other.float())) == pytest.approx(expected, abs=1e-6)


def test_coherency_is_1_with_itself_stretched_0_with_its_negative_and_the_same_in_either_order() -> None:
    one, other = maps(0, 2, 4, 5), maps(1, 2, 4, 5)
    assert metrics.coherency(one, 3 * one + 2).tolist() == pytest.approx([1, 1])
    assert metrics.coherency(one, 1 - one).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert torch.equal(metrics.coherency(one, other), metrics.coherency(other, one))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coherency_of_a_constant_map_is_0_though_rounding_gives_it_a_deviation(
    value: float, dtype: torch.dtype
) -> None:
    flat, other = torch.full((1, 224, 224), value, dtype=dtype), maps(0, 1, 224, 224).to(dtype)
    assert metrics.coherency(flat, other).item() == 0
    assert metrics.coherency(other, flat).item() == 0
    assert metrics.coherency(flat, flat).item() == 0


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_coherency_of_a_map_that_is_not_finite_is_0_and_spoils_no_other(value: float) -> None:
    one, other = maps(0, 3, 4, 5), maps(1, 3, 4, 5)
    expected = metrics.coherency(one, other)
    broken = one.clone()
    broken[1, 2, 3] = value
    for found in (metrics.coherency(broken, other), metrics.coherency(other, broken)):
        assert found[1] == 0
        assert found[[0, 2]].tolist() == pytest.approx(expected[[0, 2]].tolist())


# Complexity


@given(seed=SEEDS, b=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 5))
def test_complexity_is_the_sum_over_the_pixels_divided_by_their_number(seed: int, b: int, h: int, w: int) -> None:
    some = maps(seed, b, h, w)
    expected = [fsum(fsum(row) for row in picture) / (h * w) for picture in some.tolist()]
    assert metrics.complexity(some).tolist() == pytest.approx(expected)


# ADCC


@given(drop=SHARES, coherency=SHARES, complexity=SHARES)
def test_adcc_of_an_image_is_the_harmonic_mean_and_lies_between_its_worst_and_its_best(
    drop: float, coherency: float, complexity: float
) -> None:
    found = float(metrics.adcc_per_image(*(numbers(each) for each in (drop, coherency, complexity))))
    assert found == pytest.approx(slow_adcc(drop, coherency, complexity), abs=1e-12)
    good = (coherency, 1 - complexity, 1 - drop)
    assert min(good) - 1e-12 <= found <= max(good) + 1e-12


def test_adcc_is_of_the_means_of_each_column_and_not_the_mean_of_single_adccs() -> None:
    drop, coherency, complexity = numbers(0.1, 0.7)[:, None], numbers(0.9, 0.6)[:, None], numbers(0.2, 0.4)[:, None]
    found = float(metrics.adcc(drop, coherency, complexity))
    assert found == pytest.approx(slow_adcc(0.4, 0.75, 0.3))
    single = metrics.adcc_per_image(drop, coherency, complexity)
    assert single[:, 0].tolist() == pytest.approx([slow_adcc(0.1, 0.9, 0.2), slow_adcc(0.7, 0.6, 0.4)])
    assert abs(found - float(single.mean())) > 0.02


def test_adcc_of_one_image_is_its_own() -> None:
    scores = maps(0, 3, 1, 4)
    assert torch.equal(metrics.adcc(*scores), metrics.adcc_per_image(*scores[:, 0]))


@given(seed=SEEDS, b=st.integers(1, 4), side=st.integers(1, 5))
def test_scores_lie_in_0_to_1(seed: int, b: int, side: int) -> None:
    one, other = maps(seed, b, side, side).float(), maps(seed + 1, b, side, side).float()
    full, kept, deleted = maps(seed + 2, 3, b).float()
    drop, coherency, complexity = (
        metrics.average_drop(full, kept),
        metrics.coherency(one, other),
        metrics.complexity(one),
    )
    scores = (
        drop, coherency, complexity, metrics.increase_in_confidence(full, kept),
        metrics.average_drop_in_deletion(full, deleted), metrics.adcc(drop, coherency, complexity),
    )  # fmt: skip
    for each in scores:
        assert ((each >= 0) & (each <= 1)).all()


def test_published_adcc_is_that_of_the_published_average_drop_coherency_and_complexity(shared_data: Path) -> None:
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    with (shared_data / "published_tables.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            column = (row["table"], row["target_layer"], row["network"], row["method"])
            cells.setdefault(column, {})[row["metric"]] = float(row["value"]) / 100
    assert len(cells) == 203
    for column, cell in cells.items():
        # ADCC falls with AD and Com and rises with Coh, so rounding to two digits of percent leaves this much room.
        best, worst = (
            float(
                metrics.adcc(
                    *(numbers(cell[name] + way * sign * 5e-5) for name, sign in (("AD", -1), ("Coh", 1), ("Com", -1)))
                )
            )
            for way in (1, -1)
        )
        assert worst - 5e-5 - 1e-9 <= cell["ADCC"] <= best + 5e-5 + 1e-9, column


# Baselines


@pytest.mark.parametrize(("h", "w"), [(224, 224), (3, 5)])
def test_fakecam_is_1_at_every_pixel_but_one(h: int, w: int) -> None:
    fake = BASELINES["FakeCAM"](h, w)
    assert fake.shape == (h, w)
    assert sorted(fake.flatten().tolist()) == [0.0] + [1.0] * (h * w - 1)


def test_gaussian_falls_from_1_in_the_middle_to_0_in_the_corners_as_the_bell_curve_does() -> None:
    h, w = 5, 9
    found = BASELINES["Gaussian"](h, w)
    bell = [
        [2.718281828459045 ** (-((4 * y / (h - 1) - 2) ** 2 + (4 * x / (w - 1) - 2) ** 2) / 2) for x in range(w)]
        for y in range(h)
    ]
    low = bell[0][0]
    for y in range(h):
        assert found[y].tolist() == pytest.approx([(value - low) / (1 - low) for value in bell[y]], abs=1e-6)
    assert found[2, 4] == 1
    assert found[0, 0] == found[-1, -1] == found[0, -1] == 0
