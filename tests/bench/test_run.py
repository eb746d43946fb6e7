"""Runs that are stopped, killed, shared, refused, and starved of disk: in the end the rows are those of a quiet run."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from upath import UPath

import tiny
from shapleycam import explain, measure
from shapleycam.bench import batches, claims, places, run, store
from shapleycam.bench.batches import decoded, jobs
from shapleycam.bench.run import measured, unit_steps
from shapleycam.bench.store import OK, explanation_map, read_configuration, read_footer, read_rows
from shapleycam.network.zoo import load_model
from tiny import Planned, finish
from unchecked import library

PICTURES = 11
TESTS = Path(__file__).parents[1]

# A process that dies as kill -9 ends it: at the n-th call of a function, before it or half-way through what it writes.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from shapleycam.bench import batches, places, run
from shapleycam.cli import main

moment, count, calls = sys.argv.pop(1), int(sys.argv.pop(1)), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(home, name, half=None):
    real = getattr(home, name)
    def counted(*given, **named):
        global calls
        calls += moment == "measuring" or any(".parquet" in str(each) or "run.json" in str(each) for each in given)
        if calls == count:
            if half:
                half(*given, **named)
            die()
        return real(*given, **named)
    setattr(home, name, counted)

def half_written(path, data):
    path.write_bytes(data[: len(data) // 2])

if moment == "measuring":
    at(batches, "measure")
elif moment == "writing":
    at(places, "_write", half_written)
elif moment == "renaming":
    at(Path, "replace")
elif moment == "after":
    at(run, "write_whole", run.write_whole)
main()
"""


def command(pictures: Path, out: Path) -> list[str]:
    return [
        "bench", str(pictures), "--out", str(out), "--models", "tiny:network", "--layers", "gap,conv", "--methods",
        "GradCAM,ShapleyCAM,RandomCAM", "--part", "4", "--batch", "2", "--no-channels-last",
    ]  # fmt: skip


def killed(moment: str, count: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", KILLED, moment, str(count), *arguments]
    return subprocess.run(call, cwd=TESTS, capture_output=True, text=True, check=False)


def keys(rows: pa.Table) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(row.values()) for row in rows.select(["model", "layer", "utility", "method", "picture"]).to_pylist()
    )


def test_rows_are_what_measure_gives_for_each_picture_alone(planned: Planned, pictures: Path) -> None:
    model = tiny.network()
    rows = finish(planned(batch="3", part=11, targets="least")).to_pylist()  # batches of several classes
    assert len(rows) == 2 * PICTURES * 3
    assert len({row["target"] for row in rows}) > 1
    for row in rows:
        image = model.preprocess(pictures / row["picture"])
        found = measure(model, image, methods=row["method"], layer=row["layer"], targets="least", keys=[row["picture"]])
        expected = [found.full, found.kept[:, 0], found.deleted[:, 0], found.coherency[:, 0], found.complexity[:, 0]]
        got = [row[name] for name in ("full", "kept", "deleted", "coherency", "complexity")]
        torch.testing.assert_close(torch.tensor(got), torch.cat(expected), atol=1e-6, rtol=1e-5)
        assert (row["target"], row["predicted"]) == (int(found.targets), int(found.out.logits.argmax()))
        exact = found.out.explanations[row["method"]][0].numpy()
        np.testing.assert_allclose(explanation_map(row), exact, rtol=2**-11, atol=2**-11 * np.abs(exact).max())
        assert row["label"] == {"axolotl": 0, "crane": None, "dipper": 4}[row["picture"].split("/")[0]]  # two cranes
        assert row["status"] == "ok"


def test_more_metrics_are_columns_that_hold_what_measure_gives_for_each_picture_alone(
    planned: Planned, pictures: Path
) -> None:
    methods, metrics = ["GradCAM", "RandomCAM", "FakeCAM"], ["insertion", "road", "randomisation"]
    model = tiny.network()
    rows = finish(planned(layers="conv", methods=",".join(methods), metrics=",".join(metrics), batch="3")).to_pylist()
    assert len(rows) == PICTURES * 3
    for row in rows[::4]:  # of every method
        image = model.preprocess(pictures / row["picture"])
        found = measure(model, image, methods=methods, layer="conv", keys=[row["picture"]], metrics=metrics)
        expected = [float(found.more[metric][0, methods.index(row["method"])]) for metric in metrics]
        assert [row[metric] for metric in metrics] == pytest.approx(expected, abs=1e-3)  # a last bit moves a rank
        assert (row["deletion"], row["status"]) == (None, "ok")
    assert len({row["road"] for row in rows}) > PICTURES
    assert len({row["randomisation"] for row in rows}) > PICTURES


def test_rows_of_rise_keep_to_the_budget(planned: Planned, pictures: Path) -> None:
    model = tiny.network()
    for row in finish(planned(layers="conv", methods="RISE", budget=30)).to_pylist():
        given: dict[str, Any] = {"methods": "RISE", "layer": "conv", "keys": [row["picture"]], "budget": 30}
        found = measure(model, model.preprocess(pictures / row["picture"]), **given)
        assert row["kept"] == pytest.approx(float(found.kept), abs=1e-5)


def test_weights_are_drawn_anew_once_for_a_network(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        "shapleycam.bench.loaded.redrawn", lambda module, shape, seed: drawn.append(seed) or deepcopy(module)
    )
    rows = finish(planned(methods="GradCAM", metrics="randomisation", batch="3", seed=4)).to_pylist()
    assert drawn == [5]
    assert {round(row["randomisation"], 5) for row in rows} == {0.0, 1.0}  # 0 where a heatmap is blank


def test_a_part_is_no_larger_than_asked_and_every_picture_is_in_one(planned: Planned) -> None:
    plan = planned()
    finish(plan)
    footers = [read_footer(unit.path(plan.run)) for unit in plan.units]
    assert [footer.pictures for footer in footers if footer] == [4, 4, 3] * 2
    assert all(footer.complete and footer.errors == 0 for footer in footers if footer)


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_run_that_is_closed_after_any_step_ends_with_the_same_rows(
    planned: Planned, undisturbed: pa.Table, steps: int
) -> None:
    running = measured(planned())
    done = [next(running) for _ in range(steps)]
    running.close()
    early = read_rows(planned().run)
    assert keys(early).total() == 3 * sum(step.pictures for step in done)  # what went through is on disk
    assert finish(planned()).equals(undisturbed)


def test_a_resumed_run_measures_only_what_is_missing(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    running = measured(planned())
    for _ in range(5):
        next(running)
    running.close()
    seen: list[str] = []

    def counted(model: Any, images: Any, *, keys: list[str], layer: str, **given: Any) -> Any:
        seen.extend(f"{layer} {key}" for key in keys)
        return measure(model, images, keys=keys, layer=layer, **given)

    plan = planned()
    monkeypatch.setattr(batches, "measure", counted)
    finish(plan)
    assert len(seen) == len(set(seen)) == 2 * PICTURES - 10
    finish(plan)
    assert len(seen) == 2 * PICTURES - 10


@pytest.mark.parametrize("what", ["the preprocessing", "the layer conv"])
def test_a_model_whose_own_settings_changed_is_refused(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan = planned()
    loaded = plan.load("tiny:network")
    model = loaded.model
    changed = (
        replace(model, preprocess=replace(model.preprocess, std=(0.3,) * 3))
        if what == "the preprocessing"
        else replace(model, layers={**model.layers, "conv": model.layers["gap"]})
    )
    monkeypatch.setattr("shapleycam.bench.planned.load", lambda *given: replace(loaded, model=changed))
    with pytest.raises(ValueError, match=f"{what} of tiny:network changed since '.*' began"):
        finish(plan)


def test_error_rows_name_pictures_as_the_run_does_wherever_they_are(
    planned: Planned, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(pictures, copied)
    (broken := next(copied.rglob("p03.png"))).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    near, far = (finish(planned(run, source, layers="gap")) for run, source in (("a", Path("copied")), ("b", copied)))
    assert near.equals(far)
    said = {status for status in near["status"].to_pylist() if status != OK}
    assert len(said) == 1
    assert str(broken.relative_to(copied)) in said.pop()


def test_named_labels_that_count_from_1_are_refused_where_a_network_has_a_thousand_classes(
    planned: Planned, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(path.relative_to(pictures)) for path in sorted(pictures.rglob("*.png"))]
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{name},{1000 - place}\n" for place, name in enumerate(names)))
    loaded = planned("other").load("tiny:network")

    def of(classes: int) -> None:
        model = replace(loaded.model, class_names=tuple(map(str, range(classes))))
        monkeypatch.setattr("shapleycam.bench.begun.load", lambda *given: replace(loaded, model=model))
        planned(f"run{classes}", labels=labels)

    of(1001)  # a class of the background goes before the others
    with pytest.raises(ValueError, match=r"labels.csv' numbers classes from 1 to 1000"):
        of(1000)


def test_a_rank_that_hangs_leaves_where_torchrun_starts_it_again(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = run.Claims
    monkeypatch.setattr(
        run, "Claims", lambda *given, hung, **named: asked.append(hung) or real(*given, hung=hung, **named)
    )
    for engine, restarts in (("local", "3"), ("torchrun", "0"), ("torchrun", "3")):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        plan = planned(f"{engine}{restarts}")
        finish(replace(plan, machine=replace(plan.machine, engine=engine)))
    assert [hung is run._leave for hung in asked] == [False, False, True]


def test_an_order_without_its_derivatives_is_known_before_a_run_begins(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = explain

    def refusing(*given: Any, methods: Any, **named: Any) -> Any:
        if "ShapleyCAM" in methods:
            raise ValueError("second order needs a second derivative")
        return real(*given, methods=methods, **named)

    monkeypatch.setattr("shapleycam.bench.begun.explain", refusing)
    with pytest.raises(ValueError, match="second order needs a second derivative"):
        planned()


def test_an_error_in_the_network_loses_none_of_the_batches_before_it(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RuntimeError("out of everything")
        return measure(*given, **named)

    plan = planned()
    with monkeypatch.context() as patched:
        patched.setattr(batches, "measure", failing)
        with pytest.raises(RuntimeError, match="out of everything"):
            finish(plan)
    assert keys(read_rows(plan.run)).total() == 3 * 10
    assert finish(planned()).equals(undisturbed)


def test_killed_while_a_part_is_written_the_run_goes_on_as_if_nothing_had_been(
    planned: Planned, undisturbed: pa.Table, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    dead = killed("writing", 4, command(pictures, out))  # run.json is the first file
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert keys(read_rows(out)).total() == 3 * 8
    assert len(list(out.rglob("*.tmp-*"))) == 1
    assert finish(planned("killed")).equals(undisturbed)
    assert not list(out.rglob("*.tmp-*"))


@pytest.mark.large
def test_killed_at_many_moments_one_after_another_the_rows_are_those_of_a_quiet_run(
    undisturbed: pa.Table, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    moments = [
        ("writing", 1),
        ("measuring", 1),
        ("measuring", 5),
        ("renaming", 1),
        ("after", 1),
        ("measuring", 2),
        ("after", 2),
    ]
    for moment, count in moments:
        dead = killed(moment, count, command(pictures, out))
        assert dead.returncode == -signal.SIGKILL, (moment, dead.stderr)
        if list(out.glob("parts/*/*/*/*.parquet")):
            assert max(keys(read_rows(out)).values()) == 1
    done = killed("never", 0, command(pictures, out))
    assert done.returncode == 0, done.stderr
    assert read_rows(out).equals(undisturbed)


@pytest.mark.large
def test_two_processes_on_the_same_parts_do_not_disturb_each_other(
    undisturbed: pa.Table, pictures: Path, tmp_path: Path
) -> None:
    call = [sys.executable, "-c", KILLED, "never", "0", *command(pictures, tmp_path / "shared")]
    both = [subprocess.Popen(call, cwd=TESTS, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert read_rows(tmp_path / "shared").equals(undisturbed)


def test_two_runs_step_by_step_on_the_same_parts_end_with_the_same_rows(
    planned: Planned, undisturbed: pa.Table
) -> None:
    first, second = planned(), planned()
    for _ in zip_longest(measured(first), measured(second)):
        pass
    assert read_rows(first.run).equals(undisturbed)


def test_a_slower_process_that_was_taken_for_dead_leaves_the_whole_part_of_a_faster_one(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = measured(planned())
    next(slow)
    with monkeypatch.context() as patched:
        patched.setattr(claims.Claims, "_lives", lambda self, id: False)
        finish(planned())
    slow.close()
    assert read_rows(planned().run).equals(undisturbed)
    assert not list(planned().run.rglob("claims/*"))


@pytest.mark.large
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(
    planned: Planned, undisturbed: pa.Table, pictures: Path, tmp_path: Path
) -> None:
    code = KILLED.replace("signal.SIGKILL", "signal.SIGINT").replace("            die()\n", "            die()\n", 1)
    call = [sys.executable, "-c", code, "measuring", "5", *command(pictures, tmp_path / "stopped")]
    stopped = subprocess.run(call, cwd=TESTS, capture_output=True, text=True, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert any(f"{done} of 6 parts are complete" in stopped.stderr for done in range(6))
    assert f"shapleycam bench {pictures}" in stopped.stderr
    rows = read_rows(tmp_path / "stopped")
    assert rows.num_rows % 6 == 0  # whole batches
    assert finish(planned("stopped")).equals(undisturbed)


def test_a_unit_that_is_done_comes_out_as_it_is_when_it_is_dealt_out_again(planned: Planned) -> None:
    plan, found = planned(), []
    finish(plan)
    unit, loaded = plan.units[1], plan.load("tiny:network")
    batches = decoded(jobs(plan, unit, 2), loaded.model, 1)
    labels = dict.fromkeys((item.name for item in plan.items), None)
    steps = list(unit_steps(plan, loaded, labels, unit, batches, lambda *given: found.append(given)))
    assert sum(step.found for step in steps) == 4
    ((_, data, complete),) = found
    assert complete
    assert store.read_part(UPath(memory(data))).equals(store.read_part(unit.path(plan.run)))


def memory(data: bytes) -> str:
    """Where the bytes lie as a file."""
    UPath("memory://part.parquet").write_bytes(data)
    return "memory://part.parquet"


def test_shards_of_several_machines_copied_into_one_folder_are_one_run(
    planned: Planned, undisturbed: pa.Table, tmp_path: Path
) -> None:
    for i in (1, 2, 3):
        finish(planned(f"machine{i}", shard=f"{i}/3"))
        shutil.copytree(tmp_path / f"machine{i}", tmp_path / "all", dirs_exist_ok=True)
    assert read_rows(tmp_path / "all").equals(undisturbed)
    assert not planned("all").missing()


def test_a_full_disk_costs_no_row_once_there_is_room_again(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real, calls = planned(), places._write, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += ".parquet" in path.name
        if ".parquet" in path.name and calls in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(places, "_write", full)
    problems = [problem for step in measured(plan) for problem in step.problems]
    assert len(problems) == 2
    assert "No space left on device" in problems[0]
    assert read_rows(plan.run).equals(undisturbed)


def test_a_disk_that_is_full_for_the_last_part_alone_is_tried_once_more_at_the_end(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real, calls = planned(), places._write, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += ".parquet" in path.name
        if ".parquet" in path.name and calls == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(places, "_write", full)
    assert finish(plan).equals(undisturbed)


def test_a_disk_that_stays_full_leaves_whole_parts_and_says_which_are_missing(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real, calls = planned(), places._write, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += ".parquet" in path.name
        if calls > 3:
            path.write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(places, "_write", full)
        finish(plan)
    assert plan.missing() == plan.units[3:]
    assert not list(plan.run.rglob("*.tmp-*"))
    assert finish(planned()).equals(undisturbed)


def test_a_store_that_does_not_answer_for_a_while_costs_no_row(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real, calls = planned(), run.write_whole, 0

    def away(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError("nobody answers")
        real(path, data)

    monkeypatch.setattr(run, "write_whole", away)
    problems = [problem for step in measured(plan) for problem in step.problems]
    assert problems == [f"{n} parts cannot be written yet: nobody answers" for n in (1, 2)]
    assert read_rows(plan.run).equals(undisturbed)


def test_a_part_that_another_process_has_just_completed_is_not_replaced_by_half_of_it(planned: Planned) -> None:
    plan, slower = planned(), planned()
    finish(plan)
    unit = plan.units[0]
    whole = unit.path(plan.run).read_bytes()
    run.Writer(slower).part(unit, b"half", False)
    assert unit.path(plan.run).read_bytes() == whole
    run.Writer(slower).part(unit, b"whole", True)
    assert unit.path(plan.run).read_bytes() == b"whole"
    run.Writer(planned()).part(unit, b"half", False)  # what is there is no part
    assert unit.path(plan.run).read_bytes() == b"half"


def test_a_part_that_a_store_does_not_hand_out_just_now_is_not_replaced_by_half_of_it(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, slower = planned(), planned()
    finish(plan)
    unit = plan.units[0]
    whole = unit.path(plan.run).read_bytes()

    def away(*given: Any, **named: Any) -> Any:
        raise ConnectionError("nobody answers")

    writer = run.Writer(slower)
    with monkeypatch.context() as patched:
        patched.setattr(type(unit.path(plan.run)), "read_bytes", away)
        patched.setattr(store.pq, "read_schema", away)
        writer.part(unit, b"half", False)
    assert writer.problem == "1 parts cannot be written yet: nobody answers"
    writer.flush()
    assert unit.path(plan.run).read_bytes() == whole


def test_a_finished_run_that_is_called_again_is_left_as_it_is(planned: Planned) -> None:
    finish(planned())
    file = planned().run / "run.json"
    before, when = file.read_bytes(), file.stat().st_mtime_ns
    assert list(measured(planned())) == []
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, when)
    (planned().run / "claims").mkdir()
    facts = read_configuration(planned().run)
    del facts["times"]["finished"]
    store.rewrite(planned().run, facts)  # as if it had been killed just before the end
    assert list(measured(planned())) == []
    assert "finished" in read_configuration(planned().run)["times"]
    assert not (planned().run / "claims").exists()


def test_a_run_that_was_killed_just_before_its_end_is_brought_to_it_beside_what_is_left_of_the_dead(
    planned: Planned,
) -> None:
    finish(planned())
    facts = read_configuration(planned().run)
    del facts["times"]["finished"]
    store.rewrite(planned().run, facts)
    left = planned().run / "workers" / "elsewhere-1-abc.json"
    places.write_whole(left, b'{"id": "elsewhere-1-abc", "name": "node7", "beat": 3}')
    assert list(measured(planned())) == []
    assert "finished" in read_configuration(planned().run)["times"]


def test_a_run_is_finished_when_all_shards_are(planned: Planned) -> None:
    for i in (1, 2, 3):
        assert "finished" not in read_configuration(planned(shard=f"{i}/3").run)["times"]
        half = planned().run / "parts" / "x.parquet.tmp-elsewhere-1-2"
        half.touch() if half.parent.exists() else None
        finish(planned(shard=f"{i}/3"))
        assert half.exists() == (i == 2)
    assert "finished" in read_configuration(planned().run)["times"]
    assert planned(shard="9/9").units == ()
    assert list(measured(planned(shard="9/9"))) == []


def test_what_others_have_done_is_not_asked_of_the_disk_part_by_part(
    planned: Planned, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "POLL", 0.0)
    monkeypatch.setattr(claims, "POLL", 0.0)
    made: list[str] = []
    create = claims.create
    monkeypatch.setattr(claims, "create", lambda path, data: made.append(path.name) or create(path, data))
    for _ in zip_longest(measured(planned()), measured(planned())):
        pass
    assert read_rows(planned().run).equals(undisturbed)
    assert len(made) <= len(planned().every) + 1  # both may reach for one at the same moment


def test_of_many_others_a_line_names_some(planned: Planned) -> None:
    plan = planned()
    others = [claims.Claims(plan.run, f"node{number}") for number in range(6)]
    with closing(measured(plan)) as steps:
        first = [next(steps) for _ in others]
    assert {step.worker for step in first} == {f"node{number}" for number in range(6)}
    assert [bool(step.said) for step in first] == [True] + [False] * 5
    assert first[0].said.endswith(" and 2 more are on this run too; those that live share its parts")
    for each in others:
        each.close()


def test_who_waits_for_others_says_for_whom(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    other, slept = claims.Claims(plan.run, "node7"), list[float]()
    assert other.take(plan.units[1])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 5:
            other.close()

    monkeypatch.setattr(run.time, "sleep", sleep)
    said = [step.said for step in measured(plan) if step.said]
    assert said == ["node7 works on this run too; the two share its parts", "waiting for 1 part, with node7"]
    assert slept == [1, 2, 3, 4, 5]


def test_pictures_on_a_disk_that_has_gone_or_a_store_that_does_not_answer_are_no_rows(
    planned: Planned, undisturbed: pa.Table, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(pictures, tmp_path / "mounted")
    plan = planned(source=source)
    source.rename(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError, match="the pictures are no longer at"):
        finish(plan)
    source.mkdir()  # the place where it was mounted
    with pytest.raises(FileNotFoundError, match="the pictures are no longer at"):
        finish(plan)
    source.rmdir()
    (tmp_path / "unmounted").rename(source)

    def stale(self: Path, *given: Any, **named: Any) -> Any:
        raise OSError(errno.ESTALE, "stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr("shapleycam.network.pictures.Path.open", stale)
        with pytest.raises(OSError, match="stale"):
            finish(planned(source=source))

    def away(*given: Any) -> Any:
        raise TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(batches, "pixels", away)
        with pytest.raises(TimeoutError):
            finish(planned(source=source))
    assert finish(planned(source=source)).equals(undisturbed)


def test_pictures_that_cannot_be_read_are_rows_with_the_reason_and_the_others_are_measured(
    planned: Planned, pictures: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(pictures, tmp_path / "broken")
    (source / "crane" / "p01.png").write_bytes(b"no picture")
    whole = source / "dipper" / "p02.png"
    whole.write_bytes(whole.read_bytes()[:300])
    plan = planned(source=source)
    rows = finish(plan).to_pylist()
    bad = [row for row in rows if row["status"] != "ok"]
    assert sorted({row["picture"] for row in bad}) == ["crane/p01.png", "dipper/p02.png"]
    assert {row["method"] for row in bad} == {""}
    assert all(row["full"] is None and row["map"] is None and "picture" in row["status"] for row in bad)
    assert len(bad) == plan.errors() == 2 * 2
    assert len(rows) - len(bad) == 2 * 9 * 3


def test_nan_from_a_network_is_a_row_with_the_reason_and_spares_its_neighbours(
    planned: Planned, undisturbed: pa.Table
) -> None:
    rows = finish(planned(models="tiny:fragile")).to_pylist()
    bad = [row for row in rows if row["status"] != "ok"]
    assert {row["picture"] for row in bad} == {"dipper/p05.png"}
    assert {row["method"] for row in bad} == {"GradCAM", "ShapleyCAM", "RandomCAM"}
    assert all(row["full"] is None and row["status"].startswith("NaN or infinity in full") for row in bad)
    quiet = {(row["layer"], row["method"], row["picture"]): row for row in undisturbed.to_pylist()}
    for row in rows:
        if row["status"] == "ok":
            assert row["kept"] == pytest.approx(quiet[row["layer"], row["method"], row["picture"]]["kept"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 1, there 0"),
        ({"layers": "gap"}, r'layers is \["gap"\], there \["gap", "conv"\]'),
        ({"methods": "GradCAM,ShapleyCAM"}, 'methods is .*"ShapleyCAM"\\], there .*"RandomCAM"\\]'),
        ({"baselines": True}, 'methods is .*"FakeCAM", "Gaussian"'),
        ({"part": 5}, "part is 5, there 4"),
        ({"masking": "raw"}, 'masking is "raw", there "normalised"'),
        ({"budget": 30}, "budget is 30, there null"),
        ({"metrics": "road,deletion"}, r'metrics is \["deletion", "road"\], there null'),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused_and_told_apart(
    planned: Planned, changes: dict[str, Any], words: str
) -> None:
    planned()
    with pytest.raises(ValueError, match=f"another configuration: {words}"):
        planned(**changes)


def test_metrics_are_a_set_another_of_which_is_refused(planned: Planned) -> None:
    run = planned(metrics="road,insertion")
    assert planned(metrics="insertion,road").facts == run.facts
    with pytest.raises(ValueError, match=r'another configuration: metrics is null, there \["insertion", "road"\]'):
        planned()


def test_other_pictures_in_the_same_folder_are_refused(planned: Planned, pictures: Path, tmp_path: Path) -> None:
    planned()
    fewer = shutil.copytree(pictures, tmp_path / "fewer")
    (fewer / "crane" / "p01.png").unlink()
    with pytest.raises(ValueError, match=r'pictures is \{"count": 10, .*there \{"count": 11'):
        planned(source=fewer)


def test_other_weights_than_the_run_began_with_are_refused(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    real = tiny.network

    def other() -> Any:
        model = real()
        with torch.no_grad():
            model.module[0].bias[0] += 1e-6
        return model

    monkeypatch.setattr(tiny, "network", other)
    with pytest.raises(ValueError, match="weights of tiny:network are not those"):
        finish(plan)


def test_a_file_of_other_weights_is_refused_also_where_nothing_is_left_to_measure(
    planned: Planned, tmp_path: Path
) -> None:
    model, own, other = "test_resnet.r160_in1k", tmp_path / "own.pth", tmp_path / "other.pth"
    for seed, file in enumerate((own, other)):
        torch.save(load_model(model, weights="random", seed=seed).module.state_dict(), file)

    def again(file: Path) -> Any:
        return planned(models=model, layers="layer4", methods="GradCAM", weights=(f"{model}={file}",))

    finish(again(own))
    assert again(own).missing() == ()
    with pytest.raises(ValueError, match=r"weights of test_resnet.r160_in1k are not those that .* began with"):
        again(other)


def test_another_memory_format_than_the_run_began_with_is_refused(planned: Planned) -> None:
    plan = planned(channels_last=True)
    planned(channels_last=None)
    with pytest.raises(
        ValueError, match=r"--no-channels-last was given, and '.*' measures tiny:network with --channels-last; leave"
    ):
        planned(channels_last=False)
    finish(plan)
    with pytest.raises(ValueError, match="--no-channels-last was given"):
        planned(channels_last=False)


def test_how_a_machine_works_may_change_between_starts(planned: Planned, undisturbed: pa.Table) -> None:
    running = measured(planned())
    next(running)
    running.close()
    rows = finish(planned(workers=3, batch="auto"))  # auto takes the batch of run.json
    assert rows.equals(undisturbed)


def test_run_json_says_what_was_run(planned: Planned) -> None:
    plan = planned(batch="auto", channels_last=None)
    finish(plan)
    facts = read_configuration(plan.run)
    assert facts["configuration"]["methods"] == ["GradCAM", "ShapleyCAM", "RandomCAM"]
    assert facts["weights"]["tiny:network"] == {"origin": "drawn", "sha256": tiny.network().weights_hash}
    assert facts["models"]["tiny:network"]["layers"]["conv"]["positions"] == [8, 8]
    assert facts["batch"]["tiny:network"] in (1, 2, 4)
    assert {"started", "finished", "seconds"} <= set(facts["times"])
    assert {"torch", "shapleycam", "python"} <= set(facts["versions"])
    assert (facts["seed"], facts["device"]) == (0, "cpu")


def test_targets_are_the_labels_where_asked_and_a_picture_without_one_says_so(planned: Planned) -> None:
    rows = finish(planned(targets="label")).to_pylist()
    good = [row for row in rows if row["status"] == "ok"]
    assert {row["picture"].split("/")[0] for row in good} == {"axolotl", "dipper"}
    assert all(row["target"] == row["label"] for row in good)
    bad = [row for row in rows if row["status"] != "ok"]
    assert all("the label 'crane', which is no class of tiny:network" in row["status"] for row in bad)


def test_targets_are_the_least_likely_classes_where_asked(planned: Planned) -> None:
    rows = finish(planned(targets="least")).to_pylist()
    assert all(row["full"] < 0.2 and row["target"] != row["predicted"] for row in rows)


def test_labels_as_targets_need_labels(planned: Planned, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    (tmp_path / "list.txt").write_text("one.png\n")
    with pytest.raises(ValueError, match="no picture has one"):
        planned(source=tmp_path / "list.txt", targets="label")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": "GradCam"}, "did you mean GradCAM"),
        ({"utilities": "logit"}, "unknown utility 'logit'"),
        ({"metrics": "deleted"}, "unknown metric 'deleted'; did you mean deletion"),
        ({"models": "tiny:nothing"}, "no attribute 'nothing'"),
        ({"models": "tiny:nn"}, "tiny:nn is not to be had|not callable|'module' object"),
        ({"layers": "gap,layer9"}, "no layer 'layer9'"),
        ({"batch": "0"}, "batch is '0', expected auto or a number"),
        ({"shard": "3/2"}, "shard is '3/2', expected i/N"),
        ({"workers": 0}, "workers is 0"),
        ({"weights": ("tiny=",)}, "weights is 'tiny='"),
        ({"part": 0}, "part is 0"),
        ({"models": " , "}, "models is empty"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_measured(
    planned: Planned, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        planned(**changes)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_second_order_method_as_published_sees_maps_after_the_relu_that_writes_in_place(planned: Planned) -> None:
    rows = finish(planned(layers="conv", as_published=True, methods="GradCAM,ShapleyCAM,ShapleyCAM-H")).to_pylist()
    ours = finish(planned("ours", layers="conv", methods="GradCAM,ShapleyCAM,ShapleyCAM-H")).to_pylist()
    after = finish(planned("after", layers="4", methods="GradCAM,ShapleyCAM,ShapleyCAM-H")).to_pylist()
    for row, own, behind in zip(rows, ours, after, strict=True):
        expected = own if row["method"] == "GradCAM" else behind
        assert row["map"] == expected["map"]
        # Other methods are measured beside it, and on some processors an image's last bit depends on its batch.
        assert row["kept"] == pytest.approx(expected["kept"], abs=1e-6)
    assert any(own["map"] != behind["map"] for own, behind in zip(ours, after, strict=True))


def test_a_choice_that_does_not_exist_is_refused() -> None:
    configuration = import_module(f"{library.__name__}.bench.configuration")
    with pytest.raises(ValueError, match="precision is 'fp8', expected fp32 or bf16 or fp16"):
        configuration.Configuration(precision="fp8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"weights": ("resnet-50=mine.pth",)},
            "weights are given for 'resnet-50', not one of tiny:network; name models as",
        ),
        ({"weights": ("tiny:network=mine.pth",)}, "weights are given for 'tiny:network', which brings its own"),
        ({"preprocess": "paper"}, "preprocess is paper, and 'tiny:network' brings its own; leave out --preprocess"),
    ],
)
def test_weights_and_preprocessing_that_nothing_would_take_are_refused(
    planned: Planned, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        planned(**changes)


def test_labels_that_mean_no_class_are_refused(planned: Planned, tmp_path: Path) -> None:
    lines = tmp_path / "labels.txt"
    lines.write_text("".join(f"p{n:02}.png,3\n" for n in range(11)))
    with pytest.raises(
        ValueError, match=r"no label is a class of tiny:network, such as 'p.*' of .*p.*png; expected class ind"
    ):
        planned(labels=lines)


def test_a_part_that_was_made_with_other_weights_is_made_anew(planned: Planned, undisturbed: pa.Table) -> None:
    plan = planned()
    finish(plan)
    for unit, complete in ((plan.units[0], True), (plan.units[1], False)):
        rows = store.read_part(unit.path(plan.run))
        footer = replace(read_footer(unit.path(plan.run)), weights="others", complete=complete)
        wrong = rows.set_column(rows.column_names.index("kept"), "kept", pa.nulls(rows.num_rows, pa.float32()))
        unit.path(plan.run).write_bytes(store.part_bytes(wrong if complete else wrong[:3], footer))
    again = planned()
    assert again.missing() == again.units[:2]
    assert finish(again).equals(undisturbed)


def test_a_driver_of_ray_without_a_gpu_tries_models_on_its_processor(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    begun = planned(engine="ray", device="cuda")
    assert (begun.facts["device"], begun.machine.device) == ("cuda", "cuda")
    assert begun.facts["models"]["tiny:network"]["layers"]["gap"]["positions"] == [8, 8]
    with pytest.raises(ValueError, match=r"no GPU to find a batch on .* such as --batch 32"):
        planned("other", engine="ray", device="cuda", batch="auto")
    with pytest.raises(ValueError, match="Ray gives each actor a GPU of its own"):
        planned("third", engine="ray", device="cuda:1")


def test_pictures_are_named_from_the_root_for_actors_that_run_elsewhere(
    planned: Planned, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = planned(source=Path(os.path.relpath(pictures)), engine="ray")
    assert all(Path(item.open()).is_absolute() for item in begun.items)


def test_fidelity_is_of_methods_that_lie_on_the_layer_and_leaves_the_others_null(planned: Planned) -> None:
    rows = finish(planned(layers="conv", methods="GradCAM,FullGrad", fidelity=40)).to_pylist()
    assert {row["method"] for row in rows if row["error"] is None} == {"FullGrad"}
    assert {row["method"] for row in rows if row["error"] is not None} == {"GradCAM"}


def test_a_method_that_refuses_a_layer_is_said_before_anything_is_measured(planned: Planned) -> None:
    with pytest.raises(ValueError, match="CAM needs global average pooling and a linear classifier"):
        planned(layers="gap,0", methods="GradCAM,CAM")
    assert finish(planned("other", layers="gap", methods="GradCAM,CAM")).num_rows == 2 * PICTURES
