"""Figures by what stands in them: pixels of the tiles, numbers in their corners, names beside them."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

import shapleycam as sc
from shapleycam.cli import app
from shapleycam.figures import Comparison, Row, Tile, compare, draw, draw_pictures, write_figure
from shapleycam.network.preprocess import Preprocess
from shapleycam.network.weights import randomise
from shapleycam.network.zoo import Model

H, W = 48, 64


@pytest.fixture
def model() -> Model:
    """Five classes, for the middle 48 x 64 of a picture."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, 4), nn.GELU(), nn.Conv2d(6, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    randomise(net, 0)
    with torch.no_grad():
        net[6].weight *= 8
    preprocess = Preprocess((H, W), None, "bilinear", (0.5, 0.3, 0.1), (0.2, 0.4, 0.5))
    names = ("axolotl", "boxer", "crane", "dipper", "egret")
    return Model("tiny", net.eval(), preprocess, names, None, {"gap": "3", "conv": "2"}, "drawn")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures, larger than the network's images."""
    paths = [tmp_path / "one$of$two.png", tmp_path / "other.png"]
    for seed, path in enumerate(paths):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((W + 10, H + 6), Image.Resampling.BICUBIC).save(path)
    return paths


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def adcc(found: sc.Measurements, method: int) -> str:
    drop, coherency, complexity = (
        float(each[0, method]) for each in (found.average_drop, found.coherency, found.complexity)
    )
    if coherency == 0:
        return "0.0"
    return f"{300 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)):.1f}"


# What is compared


def test_a_row_is_said_to_be_done_and_what_a_slow_method_has_done_of_it(model: Model, pictures: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    compare(
        model, pictures, methods=["GradCAM", "ScoreCAM"], targets=["1", "least"], layer="conv",
        done=lambda: told.append((0, 0)), progress=lambda done, most: told.append((done, most)),
    )  # fmt: skip
    assert told == 4 * [(8, 8), (8, 8), (8, 8), (0, 0)]  # the image, the other class, the explanation map


def test_rise_in_a_figure_keeps_to_the_budget(model: Model, pictures: list[Path]) -> None:
    told: list[int] = []
    compare(model, pictures[:1], methods="RISE", budget=25, progress=lambda done, most: told.append(most))
    assert set(told) == {25}


def test_tiles_are_the_overlays_of_explain_with_the_pictures_own_adcc(model: Model, pictures: list[Path]) -> None:
    methods = ["ShapleyCAM", "GradCAM++"]
    found = compare(model, pictures[:1], methods=methods, targets=["dipper", "1", "least", "predicted"], layer="conv")
    assert found.columns == ("picture", *methods)
    x = model.preprocess(pictures[0])
    logits = model.module(x)
    classes = [3, 1, int(logits.argmin()), int(logits.argmax())]
    corners = []
    for row, target in zip(found.rows, classes, strict=True):
        assert row.label == (model.class_names[target], f"p = {float(logits.softmax(1)[0, target].detach()):.3g}")
        overlays = sc.overlay(sc.explain(model, x, methods=methods, layer="conv", targets=target), [pictures[0]])
        alone = sc.measure(model, x, methods=methods, layer="conv", targets=target)
        assert np.array_equal(pixels(row.tiles[0].picture), pixels(model.preprocess.crop(pictures[0])))
        assert row.tiles[0].corner == ""
        for i, method in enumerate(methods):
            assert np.array_equal(pixels(row.tiles[i + 1].picture), pixels(overlays[method][0]))
            assert row.tiles[i + 1].corner == adcc(alone, i)
            corners.append(row.tiles[i + 1].corner)
    assert len(set(corners)) > 4


def test_rows_are_pictures_then_targets_then_utilities_and_say_what_differs(model: Model, pictures: list[Path]) -> None:
    utilities = ["pre-softmax", "post-softmax", "rest"]
    found = compare(model, pictures, methods="GradCAM", targets=["2", "4"], utilities=utilities)
    labels = [(row.label[0], row.label[1], row.label[3]) for row in found.rows]
    assert labels == [(p.stem, c, u) for p in pictures for c in ("crane", "egret") for u in utilities]
    for row, (stem, name, utility) in zip(found.rows, labels, strict=True):
        path = next(path for path in pictures if path.stem == stem)
        out = sc.explain(
            model, model.preprocess(path), methods="GradCAM", targets=model.class_names.index(name), utility=utility
        )
        assert np.array_equal(pixels(row.tiles[1].picture), pixels(sc.overlay(out, [path])["GradCAM"][0]))
    for word in ("tiny", "pre-softmax, post-softmax, rest", "ADCC x 100"):
        assert word in found.caption


@pytest.mark.parametrize(("masking", "behind"), [("normalised", (0.5, 0.3, 0.1)), ("raw", (0, 0, 0))])
def test_maps_are_the_picture_times_the_heatmap_and_times_the_rest(
    model: Model, pictures: list[Path], masking: Any, behind: tuple[float, ...]
) -> None:
    methods = ["GradCAM", "Gaussian"]
    found = compare(model, pictures[1:], methods=methods, targets=["1"], maps=True, masking=masking)
    assert found.columns == ("explanation map", "visual explanation", "anti-explanation map")
    assert [row.label[-1] for row in found.rows] == methods
    x = model.preprocess(pictures[1])
    heatmaps = (
        sc.explain(model, x, methods="GradCAM", targets=1).heatmaps["GradCAM"][0],
        sc.BASELINES["Gaussian"](H, W),
    )
    alone = sc.measure(model, x, methods=methods, targets=1, masking=masking)
    view = pixels(model.preprocess.crop(pictures[1]))
    for i, (row, heatmap) in enumerate(zip(found.rows, heatmaps, strict=True)):
        for tile, shares, scores in ((row.tiles[0], heatmap, alone.kept), (row.tiles[2], 1 - heatmap, alone.deleted)):
            share = shares.numpy()[..., None]
            expected = view * share + 255 * np.array(behind) * (1 - share)
            assert np.abs(pixels(tile.picture) - expected).max() <= 0.51
            assert tile.corner == f"p = {float(scores[0, i]):.3g}"
        assert row.tiles[1].corner == adcc(alone, i)


def test_a_baseline_is_drawn_as_the_heatmap_that_it_is(model: Model, pictures: list[Path]) -> None:
    tile = compare(model, pictures[:1], methods=["FakeCAM"]).rows[0].tiles[1]
    colour = 2 * pixels(tile.picture) - pixels(model.preprocess.crop(pictures[0]))
    assert np.abs(colour[1:] - np.array([252, 255, 164])).max() <= 2  # inferno at 1
    assert np.abs(colour[0, 0] - np.array([0, 0, 4])).max() <= 2  # and at 0
    assert float(tile.corner) < 1


# What is drawn


def comparison(h: int = H, w: int = W) -> Comparison:
    rng = np.random.default_rng(3)

    def tile(corner: str) -> Tile:
        return Tile(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)), corner)

    labels = (("axolotl", "p = 1"), ("a$x^$", "tiger cat", "p = 0.5"))
    rows = tuple(Row(label, (tile(""), tile("12.3"), tile("45.6"))) for label in labels)
    return Comparison(("picture", "GradCAM", "Shapley$_x$"), rows, "tiny, 3, rest")


def test_every_tile_stands_in_the_png_pixel_for_pixel_but_for_its_corner(tmp_path: Path) -> None:
    made = comparison()
    write_figure(made, tmp_path / "figure.png")
    page = pixels(Image.open(tmp_path / "figure.png").convert("RGB"))
    places = [axes.get_window_extent() for axes in draw(made).axes]
    tiles = [tile for row in made.rows for tile in row.tiles]
    assert len(places) == len(tiles) == 6
    for tile, place in zip(tiles, places, strict=True):
        left, top = round(place.x0), round(page.shape[0] - place.y1)
        shown, wanted = page[top : top + H, left : left + W], pixels(tile.picture)
        assert np.array_equal(shown[30:], wanted[30:])
        assert np.array_equal(shown, wanted) == (tile.corner == "")


def test_rows_and_columns_stand_in_their_order_without_overlap() -> None:
    places = [axes.get_window_extent() for axes in draw(comparison()).axes]
    rows = places[:3], places[3:]
    for row in rows:
        assert all(one.x1 < other.x0 for one, other in pairwise(row))
    assert all(upper.y0 > lower.y1 for upper, lower in zip(*rows, strict=True))


def test_svg_holds_every_name_and_number_as_text(tmp_path: Path) -> None:
    write_figure(comparison(), tmp_path / "figure.svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "figure.svg").read_text(encoding="utf-8"))
    wanted = [
        "picture", "GradCAM", "Shapley$_x$", "a$x^$", "tiger cat", "p = 0.5", "axolotl", "p = 1", "12.3", "45.6", "tiny, 3, rest",
    ]  # fmt: skip
    for each in wanted:
        assert any(each in text for text in texts), (each, texts)
    assert texts.count("12.3") == texts.count("45.6") == 2


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_the_same_comparison_gives_the_same_bytes_of_the_right_kind(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / "new" / "folder" / f"other{suffix}"
    for path in (one, other):
        write_figure(comparison(), path)
    assert one.read_bytes() == other.read_bytes()
    beginning = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix.lower()]
    assert one.read_bytes().startswith(beginning)


def test_drawing_leaves_matplotlibs_settings_and_figures_as_they_were(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    write_figure(comparison(), tmp_path / "figure.svg")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


# The command, and what it refuses


def test_command_draws_what_it_was_asked_for(tmp_path: Path, pictures: list[Path], capsys: Any) -> None:
    out = tmp_path / "fig.svg"
    words = [
        "--model",
        "resnet18",
        "--weights",
        "random",
        "--methods",
        "GradCAM, FakeCAM",
        "--targets",
        "tiger cat,least",
    ]
    code = app(["compare", str(pictures[1]), *words, "--out", str(out)], result_action="return_value")
    assert (code, capsys.readouterr().out) == (0, f"{out}\n")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", out.read_text(encoding="utf-8"))
    assert texts.count("GradCAM") == texts.count("FakeCAM") == 1
    assert texts.count("tiger cat") == 1
    assert sum(bool(re.fullmatch(r"\d+\.\d", text)) for text in texts) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"out": Path("figure.jpeg")}, "out is 'figure.jpeg', expected a file ending in .png, .pdf or .svg"),
        ({"pictures": []}, "no picture was given; name one or more"),
        ({"targets": []}, "no target was given; name one or more"),
        ({"utilities": []}, "no utility was given; name one or more"),
        ({"targets": ["boxr"]}, "unknown target 'boxr', no index, wnid or class name; did you mean boxer"),
        ({"methods": "GradCan"}, "unknown method 'GradCan'; did you mean GradCAM"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    model: Model, pictures: list[Path], tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    given: dict[str, Any] = {"pictures": pictures, "out": tmp_path / "new" / "figure.png", **arguments}
    with pytest.raises(ValueError, match=re.escape(words)):
        draw_pictures(model, **given)
    assert not (tmp_path / "new").exists()


def test_picture_that_cannot_be_read_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(sc.PictureError, match=r"broken\.png"):
        draw_pictures(model, [tmp_path / "broken.png"], tmp_path / "figure.png")


def test_picture_that_cannot_be_read_is_left_out_and_the_others_are_drawn(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    found = compare(model, [empty, *pictures], methods="GradCAM")
    assert [row.label[0] for row in found.rows] == [picture.stem for picture in pictures]
    assert ["empty.png" in each for each in found.failed] == [True]
    assert draw_pictures(model, [empty, *pictures], tmp_path / "a.png", methods="GradCAM") == found.failed


def test_caption_is_folded_to_the_width_of_the_figure() -> None:
    tile = Tile(Image.new("RGB", (4 * W, H)))
    figure = draw(Comparison(("a",), (Row(("b",), (tile,)),), "words " * 40))
    *_, caption = figure.texts
    assert caption.get_text().count("\n") > 3
    box = caption.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_names_and_labels_of_small_tiles_do_not_run_into_each_other() -> None:
    tiles = tuple(Tile(Image.new("RGB", (96, 96))) for _ in range(3))
    rows = tuple(Row((name, "p = 0.000201"), tiles) for name in ("tiger cat", "boxer"))
    figure = draw(Comparison(("IntegratedGradients", "ShapleyCAM", "ScoreCAM"), rows, "caption"))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
    one, two, three = (boxes[name] for name in ("IntegratedGradients", "ShapleyCAM", "ScoreCAM"))
    assert one.x1 < two.x0
    assert two.x1 < three.x0
    upper, lower = (box for text, box in boxes.items() if "p =" in text)
    assert upper.y0 > lower.y1
    assert lower.y1 - lower.y0 <= 96


@pytest.mark.parametrize("out", ["file/x.png", "folder.png"])
def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_measured(
    model: Model, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("shapleycam.figures.measure", None)
    with pytest.raises(OSError, match="name a"):
        draw_pictures(model, pictures, tmp_path / out)
