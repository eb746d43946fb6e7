"""Parts and run.json: written as a whole or not at all, read back as they were, refused where they do not belong."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.made import write_part
from shapleycam.bench import places, store
from shapleycam.bench.store import (
    SCHEMA,
    Footer,
    Unit,
    begin,
    explanation_map,
    pack,
    read_configuration,
    read_rows,
)
from tiny import Planned, finish

FACTS = {"configuration": {"seed": 0}, "hash": store.fingerprint({"seed": 0})}


def footer(**changes: object) -> Footer:
    return Footer(
        **{"configuration": FACTS["hash"], "weights": "w", "complete": True, "pictures": 1, "errors": 0} | changes
    )


def rows(*pictures: str) -> pa.Table:
    return pa.Table.from_pylist([{"picture": name, "status": "ok"} for name in pictures], schema=SCHEMA)


def test_maps_keep_eleven_bits_whatever_their_size() -> None:
    generator = np.random.default_rng(0)
    for size in (1e-30, 1e-9, 1.0, 1e6, 1e30):
        maps = (size * generator.standard_normal((3, 4, 5))).astype(np.float32)
        packed, scales = pack(maps)
        again = packed.astype(np.float32) * scales[:, None, None]
        assert np.abs(again - maps).max() <= 2**-11 * np.abs(maps).max()
    assert not pack(np.zeros((1, 2, 2), np.float32))[0].any()


def test_a_map_comes_back_in_its_shape() -> None:
    packed, scales = pack(np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    row = {"map": packed.ravel().tolist(), "map_scale": float(scales[0]), "map_h": 2, "map_w": 3}
    assert np.array_equal(explanation_map(row), [[0, 1, 2], [3, 4, 5]])
    assert explanation_map({"map": None}) is None


def test_rows_of_any_names_come_back_and_files_still_being_written_do_not(tmp_path: Path) -> None:
    begin(tmp_path, FACTS)
    units = [
        Unit("torchvision/x", "gap", "rest", 0),
        Unit("torchvision%2Fx", "gap", "rest", 0),
        Unit("a b", "../..", "rest", 12),
    ]
    for unit in units:
        write_part(unit.path(tmp_path), rows(unit.model), footer())
    path = units[0].path(tmp_path)
    path.with_name(f"{path.name}.tmp-there-1").write_bytes(b"PAR1")
    assert sorted(read_rows(tmp_path, ["picture"])["picture"].to_pylist()) == sorted(unit.model for unit in units)
    assert set(store.parts(tmp_path)) == {(unit.model, unit.layer, unit.utility) for unit in units}


def test_a_part_of_before_there_were_more_metrics_is_read_with_blanks_in_their_place(tmp_path: Path) -> None:
    begin(tmp_path, FACTS)
    old = rows("a", "b").drop_columns(["insertion", "deletion", "road", "randomisation"])
    write_part(Unit("m", "gap", "rest", 0).path(tmp_path), old, footer())
    write_part(Unit("m", "gap", "rest", 1).path(tmp_path), rows("c"), footer())
    assert read_rows(tmp_path).equals(rows("a", "b", "c"))
    found = read_rows(tmp_path, ["road", "picture"])
    assert found.to_pydict() == {"road": [None] * 3, "picture": ["a", "b", "c"]}


def test_the_first_process_to_begin_a_run_is_the_one_that_counts(tmp_path: Path) -> None:
    assert begin(tmp_path, {**FACTS, "batch": 1})["batch"] == 1
    assert begin(tmp_path, {**FACTS, "batch": 2})["batch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_write_that_fails_leaves_what_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, FACTS)
    path = Unit("m", "gap", "rest", 0).path(tmp_path)
    write_part(path, rows("old"), footer())

    def failing(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        write_part(path, rows("new"), footer())
    assert read_rows(tmp_path)["picture"].to_pylist() == ["old"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_who_has_a_part_open_while_it_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_part(path, rows("old"), footer())
    old = path.read_bytes()
    with path.open("rb") as reader:
        write_part(path, rows("new"), footer())
        assert reader.read() == old
    assert store.read_part(path)["picture"].to_pylist() == ["new"]


def test_a_part_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "x.parquet", []
    real = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_part(path, rows("a"), footer())
    assert seen[0] is False


def test_only_leftovers_of_dead_processes_of_this_machine_are_swept_away(tmp_path: Path) -> None:
    alive, dead, elsewhere = (tmp_path / f"a.tmp-{host}-{pid}-1" for host, pid in
                              ((places.host(), os.getpid()), (places.host(), 2**22 + 1), ("elsewhere", 2**22 + 1)))  # fmt: skip
    for file in (alive, dead, elsewhere):
        file.touch()
    places.sweep(tmp_path)
    assert [file.exists() for file in (alive, dead, elsewhere)] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged, it is no JSON"),
        ("[]", "is not a run's"),
        ('{"name": "x"}', "is not a run's"),
        (json.dumps({**FACTS, "configuration": {"seed": 1}}), "changed after the run"),
    ],
)
def test_a_run_json_that_cannot_be_believed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_rows(tmp_path)


def test_folders_without_a_run_or_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_configuration(tmp_path)
    begin(tmp_path, FACTS)
    with pytest.raises(FileNotFoundError, match="has no rows yet"):
        read_rows(tmp_path)


def test_parts_that_do_not_belong_are_refused_by_name(tmp_path: Path) -> None:
    begin(tmp_path, FACTS)
    path = Unit("m", "gap", "rest", 3).path(tmp_path)
    write_part(path, rows("a"), footer(configuration="other"))
    with pytest.raises(ValueError, match=r"00003.parquet was made with another configuration"):
        read_rows(tmp_path)
    write_part(path, rows("a"), footer())
    write_part(path.with_name("00004.parquet"), rows("b"), footer(weights="others"))
    with pytest.raises(ValueError, match=r"00004.parquet was made with other weights of m"):
        read_rows(tmp_path)
    path.with_name("00004.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00004.parquet .* is damaged"):
        read_rows(tmp_path)
    pq.write_table(rows("c"), path.with_name("00004.parquet"))
    with pytest.raises(ValueError, match=r"00004.parquet .* is damaged"):
        read_rows(tmp_path)


def test_a_damaged_part_is_made_anew_by_the_next_start(planned: Planned) -> None:
    plan = planned()
    quiet = finish(plan)
    whole = plan.units[1].path(plan.run)
    whole.write_bytes(whole.read_bytes()[:100])
    assert planned().missing() == (plan.units[1],)
    assert finish(planned()).equals(quiet)


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, FACTS)
    with pytest.raises(ValueError, match="no column 'adcc'"):
        read_rows(tmp_path, ["adcc"])


def test_a_part_of_another_configuration_is_made_anew(planned: Planned) -> None:
    plan, other = planned(), planned("other", seed=1)
    quiet = finish(plan)
    finish(other)
    shutil.copy(other.units[2].path(other.run), plan.units[2].path(plan.run))
    assert planned().missing() == (plan.units[2],)
    assert finish(planned()).equals(quiet)
