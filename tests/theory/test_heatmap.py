"""The heatmap against bilinear interpolation written as a loop, and against OpenCV as the published code calls it."""

from math import floor

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapleycam.theory import metrics
from shapleycam.theory.heatmap import coherency, heatmap, rescale

SIDES = st.integers(1, 6)
PIXELS = st.tuples(st.integers(1, 12), st.integers(1, 12))
SEEDS = st.integers(0, 2**31)

Rows = list[list[float]]


def explanations(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stretched(rows: Rows) -> Rows:
    low = min(map(min, rows))
    high = max(value - low for row in rows for value in row)
    return [[(value - low) / (high + 1e-7) for value in row] for row in rows]


def bilinear(rows: Rows, height: int, width: int) -> Rows:
    """Pixel centres at half integers; what lies beyond the centres of the border is the border."""

    def neighbours(pixel: int, pixels: int, positions: int) -> tuple[int, int, float]:
        place = min(max((pixel + 0.5) * positions / pixels - 0.5, 0), positions - 1)
        return floor(place), min(floor(place) + 1, positions - 1), place - floor(place)

    resized = []
    for y in range(height):
        up, down, below = neighbours(y, height, len(rows))
        resized.append([])
        for x in range(width):
            left, right, beyond = neighbours(x, width, len(rows[0]))
            upper = rows[up][left] * (1 - beyond) + rows[up][right] * beyond
            lower = rows[down][left] * (1 - beyond) + rows[down][right] * beyond
            resized[y].append(upper * (1 - below) + lower * below)
    return resized


@given(h=SIDES, w=SIDES, size=PIXELS, seed=SEEDS)
def test_heatmap_is_the_loop_over_pixels(h, w, size, seed):
    e = explanations(seed, 2, h, w)
    got = heatmap(e, size)
    for image in range(2):
        rectified = [[max(value, 0.0) for value in row] for row in e[image].tolist()]
        wanted = stretched(bilinear(stretched(rectified), *size))
        torch.testing.assert_close(got[image], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("positions", "size"), [((7, 7), (224, 224)), ((5, 9), (160, 288)), ((14, 14), (50, 61))])
def test_heatmap_is_what_the_published_code_draws(positions, size):
    """maximum(E, 0), minus min, over 1e-7 + max, cv2.resize, and min and max again (pytorch-grad-cam's base_cam)."""
    e = explanations(0, 3, *positions).float()
    for image, got in zip(e.numpy(), heatmap(e, size), strict=True):
        drawn = np.maximum(image, 0)
        drawn = drawn - drawn.min()
        drawn = cv2.resize(drawn / (1e-7 + drawn.max()), size[::-1])
        drawn = drawn - drawn.min()
        np.testing.assert_allclose(got.numpy(), drawn / (1e-7 + drawn.max()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 1e-12])
def test_constant_explanation_gives_zeros(value):
    assert heatmap(torch.full((2, 4, 5), value), (9, 8)).count_nonzero() == 0


def test_explanation_without_a_positive_value_gives_zeros():
    assert heatmap(-explanations(0, 2, 4, 5).abs(), (9, 8)).count_nonzero() == 0


@given(
    h=SIDES,
    w=SIDES,
    size=PIXELS,
    seed=SEEDS,
    exponent=st.integers(-44, 37),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_heatmap_lies_between_zero_and_one_at_any_scale(h, w, size, seed, exponent, dtype):
    got = heatmap((explanations(seed, 3, h, w) * 10.0**exponent).to(getattr(torch, dtype)), size)
    assert got.shape == (3, *size)
    assert ((got >= 0) & (got <= 1)).all()


@given(h=SIDES, w=SIDES, seed=SEEDS)
def test_heatmap_reaches_from_zero_to_one_where_the_explanation_varies(h, w, seed):
    e = torch.cat([explanations(seed, 1, h, w), -torch.ones(1, h, 1)], 2).flatten(1)
    e[0, 0] = 1
    got = heatmap(e.view(1, h, w + 1), (4 * h, 4 * w))
    assert got.min() == 0
    assert got.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e6])
def test_scale_of_the_explanation_leaves_the_heatmap(scale):
    """It is divided twice, so a tenth of a billionth is not dark yet, though 1e-7 in the divisor is far larger."""
    e = explanations(0, 2, 7, 7)
    torch.testing.assert_close(heatmap(scale * e, (28, 28)), heatmap(e, (28, 28)), rtol=0, atol=2e-4)


@given(h=SIDES, w=SIDES, size=PIXELS, seed=SEEDS)
def test_heatmap_of_an_image_does_not_depend_on_the_rest_of_its_batch(h, w, size, seed):
    e = explanations(seed, 3, h, w) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    together = heatmap(e, size)
    for image in range(3):
        torch.testing.assert_close(together[image], heatmap(e[image : image + 1], size)[0], rtol=0, atol=1e-15)


@given(h=SIDES, w=SIDES, size=PIXELS, seed=SEEDS)
def test_mirrored_explanation_gives_the_mirrored_heatmap(h, w, size, seed):
    """Fails for corners that are aligned on one side only."""
    e = explanations(seed, 1, h, w)
    for axis in (-2, -1):
        torch.testing.assert_close(heatmap(e.flip(axis), size), heatmap(e, size).flip(axis), rtol=0, atol=1e-12)


@given(size=PIXELS)
def test_transposed_explanation_gives_the_transposed_heatmap(size):
    e = explanations(0, 1, 3, 5)
    torch.testing.assert_close(heatmap(e.mT.contiguous(), size[::-1]), heatmap(e, size).mT, rtol=0, atol=1e-12)


def test_rescale_treats_every_map_by_itself():
    maps = explanations(0, 3, 4, 5)
    for image in range(3):
        wanted = torch.tensor(stretched(maps[image].tolist()), dtype=torch.float64)
        torch.testing.assert_close(rescale(maps)[image], wanted, rtol=0, atol=1e-15)


def test_heatmap_does_not_write_into_the_explanation():
    e = explanations(0, 2, 4, 5)
    before = e.clone()
    heatmap(e, (8, 10))
    assert torch.equal(e, before)


@pytest.mark.parametrize(
    ("positions", "size"), [((7, 7), (224, 224)), ((5, 3), (40, 31)), ((6, 8), (6, 8)), ((9, 9), (5, 4))]
)
def test_coherency_of_explanation_maps_is_that_of_their_heatmaps(
    positions: tuple[int, int], size: tuple[int, int]
) -> None:
    one, other = torch.randn(2, 6, *positions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other[1], other[2] = one[1], -one[2]
    one[3], other[4], other[5, 0, 0] = -1, 2, torch.nan
    found = coherency(one, other, size)
    wanted = metrics.coherency(heatmap(one, size), heatmap(other, size))
    torch.testing.assert_close(found[:5], wanted[:5], rtol=0, atol=1e-9)
    assert found[[3, 4]].tolist() == [0, 0]
    assert found[5].isnan()
    torch.testing.assert_close(coherency(one.float(), other.float(), size)[:5], wanted[:5].float(), rtol=0, atol=2e-6)
