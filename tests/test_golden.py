"""Heatmaps of a trained EfficientNet-Lite0 against those that the paper's own code made: 16 pictures, two layers."""

import csv
from functools import cache
from pathlib import Path

import pytest
import torch

from shapleycam import Explanation, explain, load_model

METHODS = (
    *("GradCAM", "HiResCAM", "GradCAM-E", "LayerCAM", "XGradCAM", "GradCAM++"),
    *("ShapleyCAM", "ShapleyCAM-H", "ShapleyCAM-E"),
)
LAYERS = ("gap", "conv")

Row = dict[str, str]


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> list[Row]:
    with (shared_data / "golden_efficientnet_lite0.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def explained(pictures: tuple[Path, ...], layer: str) -> Explanation:
    model = load_model("efficientnet_lite0")
    return explain(model, model.preprocess(pictures), methods=METHODS, layer=layer, utility="rest")


def rows_of(golden: list[Row], layer: str, method: str) -> list[Row]:
    return sorted(
        (row for row in golden if (row["target_layer"], row["method"]) == (layer, method)),
        key=lambda row: row["picture"],
    )


def column(rows: list[Row], name: str) -> torch.Tensor:
    return torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)


def test_the_golden_table_has_every_picture_method_and_layer_once(golden: list[Row]) -> None:
    pictures = {row["picture"] for row in golden}
    wanted = {(layer, method, picture) for layer in LAYERS for method in METHODS for picture in pictures}
    assert len(pictures) == 16
    assert sorted((row["target_layer"], row["method"], row["picture"]) for row in golden) == sorted(wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_heatmaps_are_those_of_the_papers_code(golden: list[Row], shared_data: Path, layer: str, method: str) -> None:
    rows = rows_of(golden, layer, method)
    out = explained(tuple(shared_data / "imagenet-sample" / row["picture"] for row in rows), layer)
    heatmaps = out.heatmaps[method].double().flatten(1)
    assert out.targets.tolist() == [int(row["target"]) for row in rows]
    assert heatmaps.argmax(1).tolist() == [int(row["heatmap_argmax"]) for row in rows]
    full = out.logits.double().softmax(1).gather(1, out.targets[:, None])[:, 0]
    for name, got in (
        ("full", full),
        ("heatmap_mean", heatmaps.mean(1)),
        ("heatmap_std", heatmaps.std(1, correction=0)),
    ):
        torch.testing.assert_close(got, column(rows, name), rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
