"""From rows to tables: numbers worked out by hand, slow loops, the paper's own cells, and what the formats may not break."""

import csv
import io
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bench.made import WHERE, drawn, rows, write_run
from shapleycam.bench.comparisons import compare
from shapleycam.bench.formats import Cell, Grid, comma_separated, latex, markdown, text
from shapleycam.bench.paper import NOTES, printed, table_number
from shapleycam.bench.report import write_report
from shapleycam.bench.scores import BASELINES, METRICS, ORDER, Scores, score_rows
from shapleycam.bench.store import fingerprint
from shapleycam.bench.tables import make_grids, read_groups, table
from shapleycam.network.zoo import load_model
from shapleycam.theory.baselines import BASELINES as MEASURED_BASELINES
from shapleycam.theory.cams import METHODS


def six(**changes: Any) -> pa.Table:
    """Three pictures, two methods; the means are worked out where they are used."""
    full, label, predicted = (0.8, 0.5, 0.4), (0, 1, 2), (0, 1, 7)
    numbers = {
        "GradCAM": [(0.4, 0.2, 0.9, 0.3), (0.6, 0.25, 0.6, 0.2), (0.2, 0.4, 0.9, 0.1)],
        "ShapleyCAM": [(0.8, 0.4, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (0.4, 0.2, 0.5, 0.5)],
    }
    return rows(
        {
            **WHERE, "method": method, "picture": "abc"[i], "label": label[i], "predicted": predicted[i], "full": full[i],
            **dict(zip(("kept", "deleted", "coherency", "complexity"), found, strict=True)), "status": "ok", **changes,
        }
        for method, three in numbers.items()
        for i, found in enumerate(three)
    )  # fmt: skip


def only(entries: Any) -> Scores:
    (scores,) = score_rows(entries if isinstance(entries, pa.Table) else rows(entries))
    return scores


def numbers(grid: Grid) -> dict[str, list[float]]:
    return {str(row[0]): [it.value for it in row if isinstance(it, Cell)] for row in grid.rows}


def test_six_rows_give_the_numbers_worked_out_by_hand() -> None:
    (grid,) = make_grids(six(), {})
    # GradCAM: drops 1/2, 0, 1/2; coherency 0.8; complexity 0.2; ADCC 3 / (1/0.8 + 1/0.8 + 3/2) = 3/4; one confidence of
    # three rose; deletion drops 3/4, 1/2, 0.
    # ShapleyCAM: no drop and no rise, as ties count for neither; ADCC 3 / (2 + 2 + 1); deletion drops 1/2, 0, 1/2.
    assert numbers(grid)["GradCAM"] == pytest.approx([100 / 3, 80, 20, 75, 100 / 3, 125 / 3], abs=1e-4)
    assert numbers(grid)["ShapleyCAM"] == pytest.approx([0, 50, 50, 60, 0, 100 / 3], abs=1e-4)
    assert grid.name == "ResNet-18 (top-1 66.67 %, 3 pictures)"
    assert grid.title == "Target layer gap, utility rest, as Table 1 of the paper"
    assert [[it.rank for it in row if isinstance(it, Cell)] for row in grid.rows] == [
        [2, 1, 1, 1, 1, 1],
        [1, 2, 2, 2, 2, 2],
    ]


MORE = {
    "GradCAM": {
        "insertion": (0.5, 0.7, 0.6),
        "deletion": (0.1, 0.2, 0.3),
        "road": (0.3, 0.2, 0.1),
        "randomisation": (0.5, -0.1, 0.2),
    },
    "ShapleyCAM": {
        "insertion": (0.4, 0.2, 0.6),
        "deletion": (0.1, 0.1, 0.1),
        "road": (-0.1, 0.2, -0.1),
        "randomisation": (-0.5, 0.2, 0.0),
    },
}


def with_more(**changes: Any) -> pa.Table:
    return rows(
        {**row, **{name: each["abc".index(row["picture"])] for name, each in MORE[row["method"]].items()}, **changes}
        for row in six().to_pylist()
    )


def test_more_metrics_stand_behind_the_papers_where_the_run_has_them() -> None:
    (plain,), (grid,) = make_grids(six(), {}), make_grids(with_more(), {})
    assert len(plain.head) == 7
    assert grid.head == (*plain.head, "Ins ↑", "Del ↓", "ROAD ↑", "MPRT ↓")
    for method, found in numbers(grid).items():
        assert found[:6] == numbers(plain)[method]
        assert found[6:] == pytest.approx([100 * sum(three) / 3 for three in MORE[method].values()], abs=1e-4)
    assert [[it.rank for it in row[7:] if isinstance(it, Cell)] for row in grid.rows] == [[1, 2, 1, 2], [2, 1, 2, 1]]
    (one,) = make_grids(with_more(insertion=None, road=None, randomisation=None), {})
    assert one.head == (*plain.head, "Del ↓")
    (sorted_,) = make_grids(with_more(), {}, sort="del")
    assert [row[0] for row in sorted_.rows] == ["ShapleyCAM", "GradCAM"]
    with pytest.raises(ValueError, match=r"sort is 'del', expected one of AD, Coh, Com, ADCC, IC, ADD$"):
        make_grids(six(), {}, sort="del")


def test_more_metrics_have_intervals_and_stand_in_every_format_and_beside_other_utilities(tmp_path: Path) -> None:
    entries = with_more().to_pylist() + with_more(utility="pre-softmax").to_pylist()
    (grid,) = make_grids(rows(entries), {}, ci=True, utilities=["rest", "pre-softmax"])
    cells = dict(zip(grid.head, grid.rows[0], strict=True))
    assert cells["Method"] == "GradCAM/rest"
    assert cells["Del ↓"].interval == pytest.approx((10, 30), abs=1e-4)
    run = write_run(tmp_path, entries)
    head, *lines = table(run, format="csv").splitlines()
    said = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["Method"], row["utility"], row["Del"]) for row in said] == [
        (method, utility, del_)
        for utility in ("rest", "pre-softmax")
        for method, del_ in (("GradCAM", "20"), ("ShapleyCAM", "10"))
    ]
    assert "| **60.00** | <ins>20.00</ins> | **20.00** | <ins>20.00</ins> |" in table(run, format="markdown")
    assert "ROAD $\\uparrow$" in table(run, format="latex")


def test_a_row_that_lacks_a_metric_of_the_run_leaves_the_means_and_is_counted() -> None:
    entries = with_more().to_pylist()
    entries[0]["road"] = None
    (grid,) = make_grids(rows(entries), {})
    assert "1 error row left out of the means: 1 x a score is not a number." in grid.notes
    assert numbers(grid)["GradCAM"][8] == pytest.approx(15, abs=1e-4)


def test_the_203_printed_adccs_follow_from_ad_coherency_and_complexity() -> None:
    cells = {key[:4] for key in printed() if key[4] == "ADCC"}
    assert len(cells) == 203
    for cell in cells:
        drop, coherency, complexity, adcc = (printed()[(*cell, metric)] for metric in ("AD", "Coh", "Com", "ADCC"))
        entries = [
            {**WHERE, "method": "GradCAM", "picture": "a", "full": 1, "kept": 1 - drop / 100, "deleted": 0.5,
             "coherency": coherency / 100, "complexity": complexity / 100, "status": "ok"}
        ]  # fmt: skip
        # Logged values agree to float32; Table 5 was printed with two decimals.
        assert only(entries).means[0, 3] == pytest.approx(adcc, abs=0.011 if cell[0] == 5 else 1e-4), cell


def test_the_shipped_numbers_are_the_papers(shared_data: Path) -> None:
    ours = {"ResNeXt-50": "resnext50", "MobileNet-V2": "mobilenet_v2", "EfficientNet-B0": "efficientnet_b0"}
    with (shared_data / "published_tables.csv").open() as file:
        given = list(csv.DictReader(file))
    assert len(given) == 1218 == sum(key[4] != "top1" for key in printed())
    for row in given:
        simple = row["network"].lower().replace("-", "_" if row["network"].startswith("Swin") else "")
        network = ours.get(row["network"], simple)
        method = "/".join([row["method"].split("/")[0], *(u.lower() for u in row["method"].split("/")[1:])])
        where = (int(row["table"]), row["target_layer"], network)
        value = printed()[(*where, method, row["metric"])]
        assert value == pytest.approx(float(row["value"]), abs=0.00501)
        assert value == pytest.approx(float(row["full_precision"] or row["value"]), abs=1e-6)
        assert printed()[(*where, "", "top1")] == float(row["top1_percent"])


def test_names_that_tables_repeat_are_those_of_the_methods() -> None:
    assert set(ORDER) == set(METHODS) - set(BASELINES)
    assert set(BASELINES) == set(MEASURED_BASELINES)


def test_rows_that_are_not_ok_or_not_a_number_leave_the_means_and_are_counted() -> None:
    bad = [
        {**WHERE, "method": "", "picture": "torn.jpg", "status": "not a picture"},
        {**WHERE, "method": "GradCAM", "picture": "d", "full": 0.5, "kept": 99, "deleted": 99, "coherency": 99,
         "complexity": 99, "status": "out of memory"},
        {**WHERE, "method": "ShapleyCAM", "picture": "d", "full": 0.5, "kept": float("nan"), "deleted": 0.1,
         "coherency": 0.1, "complexity": 0.1, "status": "ok"},
        {**WHERE, "method": "GradCAM", "picture": "e", "full": 0.0, "kept": 0.0, "deleted": 0.0, "coherency": 0.1,
         "complexity": 0.1, "status": "ok"},
    ]  # fmt: skip
    (clean,), (grid,) = make_grids(six(), {}), make_grids(pa.concat_tables([six(), rows(bad)]), {})
    assert numbers(grid) == numbers(clean)
    assert "3 pictures" in grid.name
    assert grid.notes[-1] == (
        "4 error rows left out of the means: 2 x a score is not a number; 1 x not a picture; 1 x out of memory."
    )


def test_a_picture_whose_logits_are_no_numbers_is_neither_right_nor_wrong() -> None:
    bad = [
        {
            **WHERE,
            "method": method,
            "picture": "d",
            "label": 0,
            "predicted": 0,
            "status": "NaN or infinity in full, kept",
        }
        for method in ("GradCAM", "ShapleyCAM")
    ]
    scores = only(pa.concat_tables([six(), rows(bad)]))
    assert (scores.top1, scores.labelled) == (2 / 3, 3)


def test_a_method_measured_on_fewer_pictures_is_told() -> None:
    (grid,) = make_grids(six().slice(0, 5), {"pictures": {"count": 8}})
    assert "Methods were measured on 2 to 3 pictures." in grid.notes
    assert "The run is not finished: 3 of 8 pictures." in grid.notes


def test_neither_the_order_of_rows_nor_of_parts_changes_a_digit() -> None:
    entries = [*drawn(["GradCAM", "ShapleyCAM"], 30), *drawn(["GradCAM", "LayerCAM"], 30, layer="conv")]
    shuffled = [entries[i] for i in np.random.default_rng(3).permutation(len(entries))]
    whole, mixed = (comma_separated(make_grids(rows(each), {}, ci=True, long=True)) for each in (entries, shuffled))
    assert whole == mixed


def test_two_rows_of_one_picture_and_method_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows of one picture and method"):
        score_rows(pa.concat_tables([six(), six()]))


def test_a_network_with_nothing_but_errors_has_a_table_without_rows_and_no_wins() -> None:
    torn = [{**WHERE, "model": "vgg16", "method": "", "picture": "torn.jpg", "status": "torn"}]
    made = pa.concat_tables([six(), rows(torn)])
    grids = make_grids(made, {}, ci=True)
    assert [(len(grid.rows), grid.name) for grid in grids][1] == (0, "VGG-16 (0 pictures)")
    assert grids[1].notes == ("1 error row left out of the means: 1 x torn.",)
    for form in (text, markdown, latex, comma_separated):
        assert "GradCAM" in form(grids)
    assert len(make_grids(made, {}, view="wins")) == 1
    assert len(make_grids(made, {}, view="published")) == 1
    with pytest.raises(ValueError, match="no picture was measured with every method of vgg16; compare fewer methods"):
        make_grids(rows(torn), {}, view="wins")


def test_a_run_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="has no rows yet"):
        score_rows(six().slice(0, 0))


def test_bootstrap_is_a_loop_over_resampled_pictures_with_adcc_of_the_means() -> None:
    entries = drawn(["GradCAM", "ShapleyCAM"], 12)
    entries[3]["status"] = "lost"  # GradCAM has no row of picture 3
    scores = only(entries)
    samples, rng = scores.resample(40, seed=5), np.random.default_rng(5)
    for sample in samples:
        picked = rng.integers(12, size=12)
        for m in range(2):
            table = [scores.values[p, m] for p in picked if np.isfinite(scores.values[p, m]).all()]
            drop, coherency, complexity, rose, deletion = (
                sum(column) / len(table) for column in zip(*table, strict=True)
            )
            adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
            expected = [100 * each for each in (drop, coherency, complexity, adcc, rose, deletion)]
            assert sample[m] == pytest.approx(expected)


def test_intervals_are_the_percentiles_of_the_bootstrap_and_as_wide_as_statistics_says() -> None:
    entries = drawn(["GradCAM"], 400)
    (grid,) = make_grids(rows(entries), {}, ci=True)
    cells = [it for it in grid.rows[0] if isinstance(it, Cell)]
    samples = only(entries).resample()[:, 0]
    for j, cell in enumerate(cells):
        assert cell.interval == pytest.approx(np.percentile(samples[:, j], (2.5, 97.5)))
    coherency = np.array([e["coherency"] for e in entries])
    low, high = cells[METRICS.index("Coh")].interval or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 100 * coherency.std() / 20, rel=0.08)


def test_comparisons_are_loops_over_pairs_on_the_same_resamples() -> None:
    entries = drawn(["GradCAM", "LayerCAM", "ShapleyCAM"], 25)
    entries[30]["status"] = "lost"  # LayerCAM's picture 5, so no method is compared on it
    scores = only(entries)
    keep = [p for p in range(25) if p != 5]
    rng = np.random.default_rng(0)
    picks = [rng.integers(24, size=24) for _ in range(200)]

    def adcc(values: Any) -> float:
        drop, coherency, complexity = np.asarray(values)[:, :3].mean(0)
        return float(300 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)))

    found = compare(scores, draws=200)
    assert [(c.first, c.second) for c in found] == list(combinations(scores.methods, 2))
    for c in found:
        a, b = (scores.values[keep, scores.methods.index(each)] for each in (c.first, c.second))
        gaps = np.array([adcc(a[pick]) - adcc(b[pick]) for pick in picks])
        single = [(adcc(a[p : p + 1]), adcc(b[p : p + 1])) for p in range(24)]
        assert c.difference == pytest.approx(adcc(a) - adcc(b))
        assert c.interval == pytest.approx(np.percentile(gaps, (2.5, 97.5)))
        assert c.p == pytest.approx(min(1, 2 * (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / 201))
        assert c.wins == pytest.approx(sum(x > y for x, y in single) / 24)
        assert c.losses == pytest.approx(sum(x < y for x, y in single) / 24)


def test_a_small_but_steady_difference_is_found_by_pairs_where_intervals_overlap() -> None:
    one = drawn(["GradCAM"], 60)
    other = [{**e, "method": "ShapleyCAM", "complexity": e["complexity"] - 0.004} for e in one]
    (grid,) = make_grids(rows([*one, *other]), {}, ci=True)
    (low, _), (_, high) = (row[4].interval for row in grid.rows)  # type: ignore[union-attr, misc]
    assert low < high
    (wins,) = make_grids(rows([*one, *other]), {}, view="wins")
    assert [row[1:] for row in wins.rows] == [("", "0.0 <"), ("100.0 >", "")]
    (pair,) = compare(only([*one, *other]))
    assert pair.p < 0.01
    assert pair.interval[1] < 0


def test_a_tie_is_neither_won_nor_lost() -> None:
    one = drawn(["GradCAM"], 10)
    other = [{**e, "method": "LayerCAM", "complexity": e["complexity"] + 0.01 * (i < 3)} for i, e in enumerate(one)]
    (pair,) = compare(only([*one, *other]))
    assert (pair.first, pair.wins, pair.losses) == ("LayerCAM", 0, 0.3)


def test_methods_that_coincide_are_listed_once_and_compared_once() -> None:
    one = drawn(["GradCAM", "ShapleyCAM"], 10)
    same = [{**e, "method": "HiResCAM", "kept": e["kept"] + 2e-7} for e in one[:10]]
    (grid,), (wins,) = make_grids(rows([*one, *same]), {}), make_grids(rows([*one, *same]), {}, view="wins")
    assert [row[0] for row in grid.rows] == ["GradCAM", "ShapleyCAM"]
    assert "GradCAM = HiResCAM on every picture." in grid.notes
    assert wins.head == ("", "GradCAM", "ShapleyCAM")
    same[4]["coherency"] += 1e-3
    (grid,) = make_grids(rows([*one, *same]), {})
    assert [row[0] for row in grid.rows] == ["HiResCAM", "GradCAM", "ShapleyCAM"]


def test_every_method_that_a_baseline_beats_is_marked() -> None:
    def at(method: str, coherency: float) -> list[dict[str, Any]]:
        return [{**e, "method": method, "coherency": coherency} for e in drawn(["GradCAM"], 5)]

    entries = [*at("GradCAM", 0.4), *at("ShapleyCAM", 0.8), *at("Gaussian", 0.6), *at("FakeCAM", 0.3)]
    (grid,) = make_grids(rows(entries), {})
    marks = {row[0]: row[4].mark for row in grid.rows if isinstance(row[4], Cell)}
    assert marks == {"GradCAM": "†", "ShapleyCAM": "", "FakeCAM": "", "Gaussian": ""}
    assert "† ADCC below that of Gaussian, which looks at neither network nor picture." in grid.notes
    (shown,) = make_grids(rows(entries), {}, baselines=False)
    assert [row[0] for row in shown.rows] == ["GradCAM", "ShapleyCAM"]
    assert not any(it.mark for row in shown.rows for it in row if isinstance(it, Cell))


def test_a_baseline_that_leads_every_method_in_a_metric_is_named() -> None:
    fake = [{**e, "method": "FakeCAM", "coherency": 1.0, "complexity": 1.0} for e in drawn(["GradCAM"], 5)]
    (grid,) = make_grids(rows([*drawn(["GradCAM"], 5), *fake]), {})
    assert "FakeCAM is better than every method in Coh." in grid.notes


def test_random_weights_and_baselines_run_out_of_competition() -> None:
    first = {"RandomCAM": 0.99, "Gaussian": 0.98}
    best = [{**e, "method": m, "coherency": c} for m, c in first.items() for e in drawn(["GradCAM"], 5)]
    (grid,) = make_grids(rows([*best, *drawn(["GradCAM", "ShapleyCAM", "LayerCAM"], 5)]), {})
    ranks = {row[0]: row[2].rank for row in grid.rows if isinstance(row[2], Cell)}
    assert ranks["RandomCAM"] == ranks["Gaussian"] == 0
    assert sorted(ranks.values()) == [0, 0, 0, 1, 2]


def test_methods_stand_in_the_papers_order_or_by_a_metric() -> None:
    entries = rows(drawn(["Gaussian", "AumannCAM", "ShapleyCAM", "RandomCAM", "GradCAM++"], 8))
    (paper,) = make_grids(entries, {})
    assert [row[0] for row in paper.rows] == ["RandomCAM", "GradCAM++", "ShapleyCAM", "AumannCAM", "Gaussian"]
    for metric, sign in (("adcc", -1), ("Com", 1)):
        (grid,) = make_grids(entries, {}, sort=metric)
        column = [each[[m.lower() for m in METRICS].index(metric.lower())] for each in numbers(grid).values()]
        assert column == sorted(column, key=lambda value: sign * value)
    with pytest.raises(ValueError, match="sort is 'accuracy', expected one of AD, Coh, Com, ADCC"):
        make_grids(entries, {}, sort="accuracy")


def test_networks_are_ordered_and_numbered_as_in_the_paper() -> None:
    where = [
        ("swin_t", "conv"),
        ("mine", "gap"),
        ("swin_t", "gap"),
        ("vgg16", "conv"),
        ("resnet50", "gap"),
        ("resnet18", "gap"),
    ]
    entries = [e for model, layer in where for e in drawn(["GradCAM"], 3, model=model, layer=layer)]
    grids = make_grids(rows(entries), {})
    assert [(g.name.split(" (")[0], re.findall(r"Table (\d)", g.title)) for g in grids] == [
        ("ResNet-18", ["1"]), ("ResNet-50", ["1"]), ("Swin-T", ["2"]), ("mine", []), ("VGG-16", ["3"]), ("Swin-T", ["4"]),
    ]  # fmt: skip
    assert table_number("gap", "efficientnet_lite0") is None
    (other,) = make_grids(rows(drawn(["GradCAM"], 3, utility="pre-softmax")), {})
    assert other.title == "Target layer gap, utility pre-softmax"  # the paper's Table 1 is ReST's


def test_utilities_make_table_5() -> None:
    entries = [
        e for i, u in enumerate(("rest", "pre-softmax")) for e in drawn(["GradCAM", "Gaussian"], 6, seed=i, utility=u)
    ]
    (grid,) = make_grids(rows(entries), {}, utilities=["pre-softmax", "rest"], methods=["GradCAM"])
    assert grid.title == "Target layer gap, utilities pre-softmax, rest, as Table 5 of the paper"
    assert list(numbers(grid)) == ["GradCAM/pre-softmax", "GradCAM/rest"]
    alone = {g.title.split("utility ")[1].split(",")[0]: numbers(g)["GradCAM"] for g in make_grids(rows(entries), {})}
    assert numbers(grid) == {f"GradCAM/{u}": alone[u] for u in ("pre-softmax", "rest")}
    with pytest.raises(ValueError, match="the run has no utility 'post-softmax'; it has pre-softmax, rest"):
        make_grids(rows(entries), {}, utilities=["post-softmax"])
    with pytest.raises(ValueError, match="the run has no method 'Grad'; it has GradCAM, Gaussian"):
        make_grids(rows(entries), {}, methods=["Grad"])


def test_against_the_paper_says_what_lies_within_sampling_error() -> None:
    paper = {metric: printed()[1, "gap", "resnet18", "GradCAM", metric] / 100 for metric in METRICS}
    noise = np.random.default_rng(0).normal(0, 0.02, 200)
    noise -= noise.mean()
    entries = [
        {**WHERE, "method": "GradCAM", "picture": f"{i:03d}", "label": 0, "predicted": 0, "full": 0.5,
         "kept": 0.5 * (1 - paper["AD"] - e), "deleted": 0.5, "coherency": paper["Coh"] + 0.1 + e / 10,
         "complexity": paper["Com"] + e, "status": "ok"}
        for i, e in enumerate(noise)
    ]  # fmt: skip
    (grid,) = make_grids(rows(entries), {"preprocess": "own"}, view="published")
    said = {row[1]: row for row in grid.rows}
    assert list(said) == list(METRICS)
    assert (said["AD"][5], said["Com"][5], said["Coh"][5]) == ("yes", "yes", "no")
    assert said["Coh"][4].value == pytest.approx(10, abs=1e-3)  # type: ignore[union-attr]
    assert said["AD"][2].value == pytest.approx(18.73, abs=0.005)  # type: ignore[union-attr]
    assert grid.notes[0] == "2 of 6 printed numbers lie within this run's 95 % bootstrap interval."
    assert "Top-1: 100.00 % here, 69.76 % in the paper." in grid.notes
    assert "Not the paper's conditions: preprocess is own here, paper there." in grid.notes


def test_rows_of_the_paper_that_are_not_what_they_say_carry_a_note() -> None:
    (vgg,) = make_grids(rows(drawn(["ShapleyCAM"], 4, model="vgg16", layer="conv")), {}, view="published")
    assert f"ShapleyCAM: {NOTES[3, 'vgg16', 'ShapleyCAM']}" in vgg.notes
    three = [e for u in ("pre-softmax", "post-softmax", "rest") for e in drawn(["GradCAM"], 4, utility=u)]
    (fifth,) = make_grids(rows(three), {}, view="published", utilities=["pre-softmax", "post-softmax", "rest"])
    assert len(fifth.rows) == 18
    assert sum(note.startswith("GradCAM/") for note in fifth.notes) == 3
    same = [printed()[1, "gap", "resnet18", "ShapleyCAM", metric] for metric in METRICS]
    assert [printed()[5, "gap", "resnet18", "GradCAM/rest", metric] for metric in METRICS] == pytest.approx(
        same, abs=0.005
    )


def test_a_run_of_other_networks_has_nothing_to_hold_against_the_paper() -> None:
    with pytest.raises(ValueError, match="nothing of this run is in the paper's tables, which have resnet18, resnet50"):
        make_grids(rows(drawn(["GradCAM"], 3, model="mine")), {}, view="published")


def some_grids(**options: Any) -> list[Grid]:
    entries = [
        *drawn(["RandomCAM", "GradCAM", "LayerCAM", "Gaussian"], 6),
        *drawn(["RandomCAM", "XGradCAM", "GradCAM", "FakeCAM"], 6, seed=1, model="vgg16"),
        *drawn(["GradCAM", "ShapleyCAM"], 6, seed=2, model="my_net & 50%"),
        {**WHERE, "method": "", "picture": "a", "status": "cannot open 'C:\\a_b{1}.jpg' | #1 ~^ é 漢\nsecond line"},
    ]
    return make_grids(rows(entries), {}, **options)


@pytest.mark.parametrize("options", [{}, {"ci": True}, {"view": "wins"}, {"view": "published"}], ids=str)
def test_latex_has_as_many_cells_in_each_row_as_columns_and_balanced_braces(options: dict[str, Any]) -> None:
    source = latex(some_grids(**options))
    assert source.startswith("% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n")
    plain = re.sub(r"\\[\\&%$#_{}]", "", source)
    depth = np.cumsum([{"{": 1, "}": -1}.get(each, 0) for each in plain])
    assert depth[-1] == 0
    assert depth.min() >= 0
    assert plain.isascii() or set(re.findall(r"[^\x00-\x7f]", plain)) <= {"é"}
    assert re.findall(r"\\begin{(.+?)}", plain)
    assert sorted(re.findall(r"\\begin{(.+?)}", plain)) == sorted(re.findall(r"\\end{(.+?)}", plain))
    for columns, body in re.findall(r"\\begin{tabular}{([lr ]+)}(.+?)\\end{tabular}", source, re.DOTALL):
        wanted = len(columns.replace(" ", ""))
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert len(lines) > 2
        for line in lines:
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == wanted, line


def test_latex_sets_two_networks_side_by_side_and_leaves_blank_what_one_of_them_lacks() -> None:
    source = latex(some_grids(baselines=False))
    assert "\\multicolumn{6}{c}{ResNet-18 (top-1 33.33 \\%, 6 pictures)} & \\multicolumn{6}{c}{VGG-16" in source
    (x,) = [line for line in source.splitlines() if line.startswith("XGradCAM")]
    (layer,) = [line for line in source.splitlines() if line.startswith("LayerCAM")]
    assert x.split(" & ")[1:7] == [""] * 6
    assert "" not in x.split(" & ")[7:]
    assert layer.endswith("&  &  &  &  &  &  \\\\")
    labels = [line.split(" & ")[0] for line in source.splitlines() if line.endswith("\\\\")]
    assert [each for each in labels if "CAM" in each][:4] == ["RandomCAM", "XGradCAM", "LayerCAM", "GradCAM"]
    assert source.count("\\begin{table*}") == 2
    assert source.count("\\begin{tabular}") == 2
    assert "my\\_net \\& 50\\%" in source
    assert "\\textbf{" in source
    assert "\\underline{" in source


def test_latex_takes_nothing_for_a_command() -> None:
    source = latex(
        [Grid("t", "n", ("a", "b"), (("x", Cell(1.0)),), ("\\input{a_b} 50% & $1 #2 ~^ <|> † \u6f22 \u00e9",))]
    )
    assert (
        "\\textbackslash{}input\\{a\\_b\\} 50\\% \\& \\$1 \\#2 \\textasciitilde{}\\textasciicircum{} "
        "\\textless{}\\textbar{}\\textgreater{} \\dag{} ? \u00e9"
    ) in source


def test_markdown_has_as_many_cells_in_each_row_and_takes_nothing_for_a_mark_up() -> None:
    source = markdown(some_grids())
    for block in re.findall(r"(?:^\|.*\n)+", source, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "**" in source
    assert "<ins>" in source
    assert "my\\_net & 50%" in source
    assert "\\| \\#1" in source
    assert "漢 second line" in source


def test_text_aligns_its_columns() -> None:
    lines = text(some_grids()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Method"))
    ends = [match.end() for match in re.finditer(r"[↓↑]", lines[start])]
    for line in lines[start + 1 : start + 5]:
        assert [match.end() for match in re.finditer(r"\S+", line)][1:] == ends
    assert lines[-1] == "* best, + second best"


def test_csv_has_six_significant_digits_and_a_line_for_each_method() -> None:
    one = drawn(["GradCAM", "ShapleyCAM"], 7)
    same = [{**e, "method": "HiResCAM"} for e in one[:7]]
    better = [{**e, "method": "Gaussian", "coherency": 0.95, "complexity": 0.01} for e in one[:7]]
    made = rows([*one, *same, *better])
    found = list(csv.DictReader(io.StringIO(comma_separated(make_grids(made, {}, long=True, ci=True)))))
    assert [row["Method"] for row in found] == ["HiResCAM", "GradCAM", "ShapleyCAM", "Gaussian"]
    assert (found[0]["same as"], found[1]["same as"], found[1]["beaten by"]) == ("GradCAM", "", "Gaussian")
    scores = only(made)
    for i, row in enumerate(found):
        assert (row["model"], row["layer"], row["utility"], row["pictures"]) == ("resnet18", "gap", "rest", "7")
        for j, metric in enumerate(METRICS):
            assert row[metric] == f"{scores.means[i, j]:.6g}"
            assert float(row[f"{metric} low"]) <= float(row[metric]) <= float(row[f"{metric} high"])


def test_csv_of_wins_has_a_line_for_each_pair() -> None:
    made = rows(drawn(["GradCAM", "LayerCAM", "ShapleyCAM"], 9))
    found = list(csv.DictReader(io.StringIO(comma_separated(make_grids(made, {}, view="wins", long=True)))))
    assert [(row["method"], row["other"]) for row in found] == list(
        combinations(("LayerCAM", "GradCAM", "ShapleyCAM"), 2)
    )
    assert {"ADCC difference", "ADCC difference low", "ADCC difference high", "p", "wins", "losses"} <= set(found[0])


BLOCKED = "import sys\nfor name in ('torch', 'torchvision', 'timm'):\n    sys.modules[name] = None\n"


@pytest.mark.parametrize(
    "options", ["--format=latex --ci", "--against published", "--wins --format csv", "--sort adcc"]
)
def test_table_needs_no_torch_and_no_network(tmp_path: Path, options: str) -> None:
    run = write_run(tmp_path / "run", drawn(["GradCAM", "Gaussian"], 5))
    code = (
        f"{BLOCKED}sys.argv[1:] = ['table', {str(run)!r}, *{options.split()}]\nfrom shapleycam.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"GradCAM" in done.stdout


def test_table_reads_a_run_and_refuses_other_formats(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [*drawn(["GradCAM"], 5), *drawn(["GradCAM"], 5, layer="conv")])
    assert table(run).count("ResNet-18 (top-1") == 2
    with pytest.raises(ValueError, match="format is 'html', expected one of text, markdown, latex, csv"):
        table(run, format="html")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        table(tmp_path)


def test_intervals_are_those_of_the_samples_in_which_a_method_was_measured() -> None:
    few = six().slice(0, 5)
    (scores,) = score_rows(few)
    assert np.isfinite(scores.interval).all()
    assert "nan" not in text(make_grids(few, {}, ci=True))
    entries = [{**e, "status": "no" if e["method"] == "LayerCAM" else "ok"} for e in drawn(["GradCAM", "LayerCAM"])]
    for shown in (text, markdown, latex, comma_separated):
        assert "nan" not in shown(make_grids(rows(entries), {}, ci=True))


def test_a_network_without_any_score_has_the_columns_of_the_run(tmp_path: Path) -> None:
    bad = [{**entry, "model": "alexnet", "method": "", "status": "no label"} for entry in drawn(["GradCAM"])]
    bad = [{name: entry[name] for name in (*WHERE, "picture", "method", "status")} for entry in bad]
    good = [{**entry, "road": 0.1} for entry in drawn(["GradCAM"])]
    facts = {"metrics": ["road"], "pictures": {}}
    run = write_run(tmp_path / "run", bad + good, configuration=facts, hash=fingerprint(facts))
    grids = make_grids(read_groups(run), {})
    assert [grid.head for grid in grids] == [grids[0].head] * 2
    assert "ROAD" in grids[0].head[-1]


def test_wins_are_of_the_pictures_that_all_methods_have() -> None:
    entries = [e for e in drawn(["GradCAM", "LayerCAM"]) if e["method"] == "GradCAM" or int(e["picture"][:3]) < 12]
    (grid,) = make_grids(rows(entries), {}, view="wins")
    assert "12 pictures)" in grid.name
    assert any("12 to 20 pictures" in note for note in grid.notes)
    (grid,) = make_grids(rows(entries), {}, view="wins", long=True)
    assert dict(grid.key)["pictures"] == "12"


def test_top1_says_of_how_many_pictures_it_is() -> None:
    entries = [{**e, "label": e["label"] if int(e["picture"][:3]) < 3 else None} for e in drawn(["GradCAM"])]
    (grid,) = make_grids(rows(entries), {})
    assert "% of 3 labelled, 20 pictures)" in grid.name


@pytest.mark.parametrize("view", ["scores", "published", "wins"])
def test_every_view_takes_the_order_of_a_metric(view: Any) -> None:
    entries = drawn(["GradCAM", "LayerCAM", "HiResCAM"], layer="conv")
    (scores,) = score_rows(rows(entries))
    best_first = [scores.methods[i] for i in np.argsort(scores.means[:, METRICS.index("AD")])]
    (grid,) = make_grids(rows(entries), {}, view=view, sort="ad")
    assert list(dict.fromkeys(str(row[0]) for row in grid.rows)) == best_first
    with pytest.raises(ValueError, match="sort is 'x', expected one of AD"):
        make_grids(rows(entries), {}, view=view, sort="x")


def test_a_million_pictures_are_counted_to_the_last() -> None:
    assert "1281167" in comma_separated([Grid("t", "n", ("Method",), (("GradCAM",),), (), (("pictures", "1281167"),))])


@pytest.mark.parametrize("models", [["resnet18"], ["resnet18", "vgg16"]])
def test_tables_and_reports_say_of_what_there_is_nothing_yet(tmp_path: Path, models: list[str]) -> None:
    asked = {"models": models, "layers": ["gap", "conv"], "utilities": ["rest"], "preprocess": "own"}
    entries = [*drawn(["GradCAM"]), *drawn(["GradCAM"], layer="conv")]
    run = write_run(tmp_path / "run", entries, configuration=asked, hash=fingerprint(asked))
    write_report(run, tmp_path / "report.html")
    for said in (table(run), (tmp_path / "report.html").read_text()):
        assert said.count("The run is not finished: nothing yet of vgg16 gap rest, vgg16 conv rest.") == len(models) - 1
        assert said.count("not finished") == len(models) - 1


def test_a_baseline_that_is_not_shown_marks_what_it_beats_all_the_same() -> None:
    entries = drawn(["GradCAM", "Gaussian"])
    for entry in entries:
        if entry["method"] == "Gaussian":
            entry |= {"kept": entry["full"], "coherency": 1.0, "complexity": 0.01}
    (grid,) = make_grids(rows(entries), {}, methods=["GradCAM"])
    assert [row[0] for row in grid.rows] == ["GradCAM"]
    assert any("ADCC below that of Gaussian" in note for note in grid.notes)
    (bare,) = make_grids(rows(entries), {}, methods=["GradCAM"], baselines=False)
    assert not bare.notes


def test_random_weights_are_not_the_papers_and_a_file_may_hold_others(tmp_path: Path) -> None:
    def said(origin: str) -> str:
        run = write_run(
            tmp_path / origin, drawn(["GradCAM"]), weights={"resnet18": {"origin": origin, "sha256": "weights"}}
        )
        return table(run, view="published")

    assert "Not the paper's weights: those of resnet18 are random here." in said(
        load_model("resnet18", weights="random").weights
    )
    assert "Perhaps not the paper's weights: those of resnet18 were given as random.pth here." in said(
        "mine/random.pth"
    )
    assert "the paper's weights" not in said("Hugging Face hub: timm/resnet18.tv_in1k")
