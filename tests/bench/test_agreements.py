"""What tables say of a run and the game, and how bench gets it into the rows."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shapleycam as sc
from bench.made import WHERE, rows, write_run
from shapleycam.bench.agreements import game_cells
from shapleycam.bench.scores import GAME, METRICS, Scores
from shapleycam.bench.tables import make_grids, table
from tiny import finish


def entries(**columns: Any) -> list[dict[str, Any]]:
    """Two methods on three pictures, with errors worked out where they are used."""
    errors = {"GradCAM": (0.5, 0.2, 0.3), "AumannCAM-H": (0.01, 0.04, 0.02)}
    scores = dict.fromkeys(("full", "kept", "deleted", "coherency", "complexity"), 0.5)
    return [
        {
            **WHERE, **scores, "method": method, "picture": "abc"[i], "status": "ok", "error": error, "pearson": 1 - error,
            "spearman": 0.9, "sign": 1.0, "noise": 0.008, "discrimination": -0.25, **columns,
        }
        for method, three in errors.items()
        for i, error in enumerate(three)
    ]  # fmt: skip


def test_agreement_is_the_median_over_the_pictures_in_percent() -> None:
    main, game = make_grids(rows(entries()), {})
    assert game.head == ("Method", "Err ↓", "Pearson ↑", "Spearman ↑", "Sign ↑", "Disc ↓")
    found = {row[0]: [cell.value for cell in row[1:]] for row in game.rows}
    assert found["AumannCAM-H"] == pytest.approx([2, 98, 90, 100, -25], abs=1e-4)
    assert "their own sampling error is 0.80" in game.notes[0]
    assert len(main.head) == 7  # the paper's


def test_a_run_without_fidelity_says_only_how_alike_classes_look() -> None:
    blank = dict.fromkeys(("error", "pearson", "spearman", "sign", "noise"))
    _, game = make_grids(rows(entries(**blank)), {})
    assert game.head == ("Method", "Disc ↓")
    assert make_grids(rows(entries(**blank, discrimination=None)), {})[1:] == []


def test_intervals_hold_the_median_and_csv_has_the_columns_in_each_line(tmp_path: Path) -> None:
    _, game = make_grids(rows(entries()), {}, ci=True)
    low, high = next(row for row in game.rows if row[0] == "GradCAM")[1].interval
    assert (low, high) == pytest.approx((20, 50), abs=1e-4)
    head, first, *_ = table(write_run(tmp_path, entries()), format="csv").splitlines()
    said = dict(zip(head.split(","), first.split(","), strict=True))
    assert (said["Method"], said["Err"], said["Disc"]) == ("GradCAM", "30", "-25")


def test_intervals_of_thousands_of_pictures_hold_one_sample_at_a_time() -> None:
    rng, n, methods = np.random.default_rng(0), 4000, tuple("abcdefghij")
    game = np.full((n, len(methods), len(GAME)), np.nan)
    game[..., GAME.index("discrimination")] = rng.normal(size=game.shape[:2])
    game[: n // 2, 0, GAME.index("error")] = rng.uniform(size=n // 2)
    values = rng.uniform(size=(n, len(methods), 5))
    scores = Scores("", "", "", METRICS, methods, tuple(map(str, range(n))), values, game, None, 0, {}, n)
    tracemalloc.start()
    cells = game_cells(scores, ci=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * game.nbytes
    picks, draw = np.random.default_rng(0), game[:, 0, GAME.index("error")]
    found = [np.nanmedian(draw[picks.integers(n, size=n)]) for _ in range(500)]
    assert cells["a"][0].interval == tuple(100 * np.percentile(found, (2.5, 97.5)))
    assert cells["b"][0].interval is None


def test_bench_writes_what_fidelity_finds(planned: Any) -> None:
    methods = ("HiResCAM", "AumannCAM-H", "FakeCAM")
    found = finish(planned(methods=",".join(methods), fidelity=400)).to_pylist()
    one = next(row for row in found if row["method"] == "HiResCAM" and row["status"] == "ok")
    same = {row["method"]: row for row in found if row["picture"] == one["picture"]}
    assert same["AumannCAM-H"]["error"] < same["HiResCAM"]["error"]
    assert all(same["HiResCAM"][name] is not None for name in ("pearson", "spearman", "sign", "noise"))
    assert all(same["FakeCAM"][name] is None for name in ("error", "pearson", "spearman", "sign", "noise"))
    assert same["FakeCAM"]["discrimination"] == 1


def test_discrimination_is_the_correlation_of_two_classes_maps() -> None:
    model = sc.load_model("resnet18", weights="random")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = sc.measure(model, images, methods=["GradCAM", "LayerCAM", "AumannCAM", "RandomCAM"], layer="layer3.1")
    least = sc.explain(model, images, methods=list(found.methods), layer="layer3.1", targets="least")
    for column, method in enumerate(found.methods):
        for image in range(2):
            maps = [each.explanations[method][image].relu().flatten().numpy() for each in (found.out, least)]
            wanted = np.corrcoef(*maps)[0, 1] if all(map(np.any, maps)) else 0  # a blank map goes with nothing
            assert found.discrimination[image, column].item() == pytest.approx(wanted, abs=1e-4)
    of_least = sc.measure(model, images, methods=["GradCAM"], layer="layer3.1", targets="least")
    assert of_least.discrimination[:, 0].tolist() == pytest.approx(found.discrimination[:, 0].tolist(), abs=1e-4)
