"""Overlays and sheets, pixel by pixel."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn

import shapleycam
from shapleycam import Explanation, Model, Preprocess, explain, overlay, sheet
from shapleycam.render import blend

CAT = Path(shapleycam.__file__).parent / "data" / "cat.jpg"
PREPROCESS = Preprocess((24, 40), 48, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [noise(60, 90), noise(90, 60, seed=1)]


@pytest.fixture(scope="module")
def out(pictures: list[np.ndarray]) -> Explanation:
    model = Model("tiny", network(), PREPROCESS, tuple("abcde"), None, {"gap": "1"}, "random")
    return explain(model, PREPROCESS(pictures), methods=["GradCAM", "LayerCAM"])


@pytest.fixture(scope="module")
def bare() -> Callable[[int, int], Explanation]:
    """Explanations of a module of one's own, which does not know how its images were made."""
    return lambda height, width: explain(network(), torch.rand(1, 3, height, width), methods="GradCAM", layer="1")


# Overlays


def test_at_opacity_0_an_overlay_is_what_the_network_saw(out: Explanation, pictures: list[np.ndarray]) -> None:
    tiles = overlay(out, pictures, opacity=0.0)
    assert list(tiles) == ["GradCAM", "LayerCAM"]
    for views in tiles.values():
        for view, picture in zip(views, pictures, strict=True):
            np.testing.assert_array_equal(np.asarray(view), np.asarray(PREPROCESS.crop(picture)))


@pytest.mark.parametrize("colours", ["inferno", "viridis"])
def test_at_opacity_1_an_overlay_is_the_heatmap_in_colours(
    out: Explanation, pictures: list[np.ndarray], colours: str
) -> None:
    for method, views in overlay(out, pictures, opacity=1.0, colours=colours).items():
        for view, heatmap in zip(views, out.heatmaps[method], strict=True):
            assert float(heatmap.max() - heatmap.min()) > 0.99
            wanted = [[colormaps[colours](float(value))[:3] for value in row] for row in heatmap]
            np.testing.assert_allclose(np.asarray(view), np.array(wanted) * 255, atol=0.51)


def test_an_overlay_mixes_both_by_its_opacity(out: Explanation, pictures: list[np.ndarray]) -> None:
    below, above = (overlay(out, pictures, opacity=opacity)["GradCAM"][1] for opacity in (0.0, 1.0))
    for opacity in (0.3, 0.5):
        mixed = overlay(out, pictures, opacity=opacity)["GradCAM"][1]
        wanted = (1 - opacity) * np.asarray(below, float) + opacity * np.asarray(above, float)
        np.testing.assert_allclose(np.asarray(mixed), wanted, atol=1)
    default = overlay(out, pictures)["GradCAM"][1]
    np.testing.assert_array_equal(np.asarray(default), np.asarray(overlay(out, pictures, opacity=0.5)["GradCAM"][1]))


def test_hot_positions_are_brighter_than_cold_ones_in_inferno() -> None:
    ramp = torch.linspace(0, 1, 16).expand(4, 16)
    colours = np.asarray(blend(Image.new("RGB", (16, 4)), ramp, opacity=1.0)).astype(float)
    assert (np.diff(colours.sum(2)) > 0).all()


def test_an_overlay_leaves_the_picture_and_the_heatmaps_as_they_were(
    out: Explanation, pictures: list[np.ndarray]
) -> None:
    before = [picture.copy() for picture in pictures], out.heatmaps["GradCAM"].clone()
    overlay(out, pictures)
    np.testing.assert_array_equal(pictures[0], before[0][0])
    assert torch.equal(out.heatmaps["GradCAM"], before[1])


def test_a_picture_file_is_overlaid_upright_and_cropped(out: Explanation) -> None:
    (view,) = overlay(out[0], [CAT], opacity=0.0)["LayerCAM"]
    np.testing.assert_array_equal(np.asarray(view), np.asarray(PREPROCESS.crop(CAT)))


def test_pictures_of_a_module_of_ones_own_are_resized_to_its_images(
    bare: Callable[[int, int], Explanation],
) -> None:
    picture = Image.fromarray(noise(60, 90))
    (view,) = overlay(bare(30, 45), [picture], opacity=0.0)["GradCAM"]
    np.testing.assert_array_equal(np.asarray(view), np.asarray(picture.resize((45, 30), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(("height", "width"), [(61, 90), (60, 91), (2, 3)])
def test_proportions_may_be_off_by_a_pixel_of_rounding(
    bare: Callable[[int, int], Explanation], height: int, width: int
) -> None:
    (view,) = overlay(bare(30, 45), [noise(height, width)])["GradCAM"]
    assert view.size == (45, 30)


def test_a_picture_of_other_proportions_is_refused(bare: Callable[[int, int], Explanation]) -> None:
    with pytest.raises(ValueError, match=r"a picture is 60 x 90, the heatmaps 45 x 30: pass .* cropped"):
        overlay(bare(30, 45), [noise(90, 60)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_pictures_are_refused(out: Explanation, count: int) -> None:
    with pytest.raises(ValueError, match=rf"got {count} pictures for the 2 images that were explained"):
        overlay(out, [noise(60, 90)] * count)


@pytest.mark.parametrize("opacity", [-0.01, 1.01, 50.0, float("nan")])
def test_an_opacity_outside_0_to_1_is_refused(out: Explanation, pictures: list[np.ndarray], opacity: float) -> None:
    with pytest.raises(ValueError, match=rf"opacity is {opacity}, expected a number in \[0, 1\]"):
        overlay(out, pictures, opacity=opacity)


def test_an_unknown_colour_map_is_refused(out: Explanation, pictures: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="unknown colour map 'infernal'; any of matplotlib's, such as inferno"):
        overlay(out, pictures, colours="infernal")


# Sheets


def plain(colour: str, width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def boxes(page: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Where a colour is on a page: left, top, right, bottom; it must fill that box."""
    found = (np.asarray(page) == colour).all(2)
    ys, xs = np.nonzero(found)
    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert found[top:bottom, left:right].all()
    return int(left), int(top), int(right), int(bottom)


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def test_a_sheet_sets_its_tiles_in_rows_from_left_to_right() -> None:
    page = sheet([("one", plain("red")), ("two", plain("green")), ("three", plain("blue"))], columns=2)
    gap, line = 8, 24
    assert page.size == (2 * 60 + 3 * gap, 2 * (40 + line + gap) + gap)
    assert boxes(page, RED) == (gap, gap + line, gap + 60, gap + line + 40)
    assert boxes(page, GREEN) == (2 * gap + 60, gap + line, 2 * gap + 120, gap + line + 40)
    assert boxes(page, BLUE) == (gap, 2 * (gap + line) + 40, gap + 60, 2 * (gap + line) + 80)


def test_a_sheet_has_four_columns_and_no_more_than_it_has_tiles() -> None:
    one, five = (sheet([("", plain("red"))] * count) for count in (1, 5))
    assert (one.width, five.width) == (60 + 16, 4 * 68 + 8)
    assert five.height - one.height == 40 + 24 + 8


def ink(page: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How many pixels in a box are not white."""
    return int((np.asarray(page.crop(box)) != 255).any(2).sum())


def test_captions_stand_above_their_tiles_and_the_rest_is_white() -> None:
    page = sheet([("picture", plain("red", 90)), ("", plain("green", 90))])
    assert ink(page, (8, 8, 98, 32)) > 50
    assert ink(page, (98, 8, page.width, 32)) == 0
    assert ink(page, (0, 0, 8, page.height)) == ink(page, (0, 72, page.width, page.height)) == 0


def test_a_title_takes_a_line_for_each_of_its_own() -> None:
    bare, one, two = (sheet([("", plain("red", 200))], title) for title in ("", "a title", "a title\nof two lines"))
    assert (one.height - bare.height, two.height - bare.height) == (24, 48)
    assert boxes(two, RED)[1] - boxes(bare, RED)[1] == 48
    assert ink(two, (0, 0, 200, 24)) > 50
    assert ink(two, (0, 28, 200, 52)) > 50


def test_a_title_wider_than_the_tiles_is_not_cut_off() -> None:
    page = sheet([("", plain("red"))], "swin_t, layers.3.blocks.1.norm1 (768 maps of 7 x 7, bhwn), rest")
    assert page.width > 300
    assert ink(page, (page.width - 8, 0, page.width, page.height)) == 0
    assert ink(page, (page.width - 28, 0, page.width - 8, 24)) > 0


def test_one_picture_needs_no_list_and_the_mean_of_several_layers_is_laid_on_it() -> None:
    model, picture = Model("tiny", network(), PREPROCESS, tuple("abcde"), None, {}, "random"), noise(60, 90)
    found = explain(model, PREPROCESS(picture), layer=["0", "1"], methods="GradCAM")
    (tile,) = overlay(found, picture)["GradCAM"]
    view = PREPROCESS.crop(picture)
    np.testing.assert_array_equal(np.asarray(tile), np.asarray(blend(view, found.heatmaps["GradCAM"][0])))
