"""Heatmaps of a trained EfficientNet-Lite0 against numbers made with the paper's own code."""

import csv
from pathlib import Path

import pytest

import shapleycam as sc

pytestmark = pytest.mark.large


@pytest.mark.parametrize("layer", ["gap", "conv"])
def test_heatmaps_are_those_of_the_papers_own_code(shared_data: Path, layer: str) -> None:
    rows = [
        row
        for row in csv.DictReader((shared_data / "golden_efficientnet_lite0.csv").open(encoding="utf-8"))
        if row["target_layer"] == layer
    ]
    pictures = sorted({row["picture"] for row in rows})
    assert (len(pictures), len(rows)) == (16, 16 * 9)
    model = sc.load_model("efficientnet_lite0")
    images = model.preprocess([shared_data / "imagenet-sample" / picture for picture in pictures])
    out = sc.explain(model, images, methods="paper", layer=layer)
    full = out.logits.softmax(1).amax(1)
    for row in rows:
        image = pictures.index(row["picture"])
        heatmap = out.heatmaps[row["method"]][image]
        assert int(out.targets[image]) == int(row["target"])
        assert int(heatmap.argmax()) == int(row["heatmap_argmax"]), (row["method"], row["picture"])
        found = [float(full[image]), float(heatmap.mean()), float(heatmap.std(correction=0))]
        wanted = [float(row[name]) for name in ("full", "heatmap_mean", "heatmap_std")]
        assert found == pytest.approx(wanted, abs=1e-4), (row["method"], row["picture"])
