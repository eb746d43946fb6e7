"""Who does which part: one process alone, the next when that one is dead, and nobody's clock is believed."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from shapleycam.bench import claims, places
from shapleycam.bench.claims import Claims, Worker
from shapleycam.bench.store import Unit

UNITS = tuple(Unit("m/x", "gap", "rest", part) for part in range(6))


def died(run: Any) -> Claims:
    """The claims of a process that is dead."""
    dead = Claims(run)
    dead.close()
    dead.me = Worker(f"{places.host()}-{2**22 + 1}-abc", "dead")
    dead._beat()
    return dead


def nothing(unit: Unit) -> bool:
    return False


@pytest.fixture(params=["disk", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A run's folder, on disk and in an object store that lives in memory."""
    return tmp_path if request.param == "disk" else UPath(f"memory://{tmp_path.name}", use_listings_cache=False)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process seems to be on another machine, so that none can be asked whether it lives."""
    monkeypatch.setattr(claims, "alive", lambda process: True)


def test_a_unit_is_taken_by_one_of_two_and_free_again_once_released(run: Any) -> None:
    first, second = Claims(run), Claims(run)
    assert list(first.each(UNITS[:3], nothing)) == list(UNITS[:3])
    assert list(second.each(UNITS, nothing)) == list(UNITS[3:])
    first.release(UNITS[1])
    assert list(second.each(UNITS, nothing)) == [UNITS[1]]
    first.close()
    assert list(second.each(UNITS, nothing)) == [UNITS[0], UNITS[2]]
    second.close()
    assert [each for each in places.files(run) if each.suffix == ".json"] == []


def test_what_is_done_when_it_is_taken_is_passed_over_and_released(run: Any) -> None:
    first, second = Claims(run), Claims(run)
    assert list(first.each(UNITS[:3], lambda unit: unit.part != 1)) == [UNITS[1]]
    assert second.take(UNITS[0])
    first.close()
    second.close()


def test_of_many_threads_one_alone_takes_a_unit(tmp_path: Path) -> None:
    several = [Claims(tmp_path) for _ in range(8)]
    for unit in UNITS:
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(Claims.take, several, [unit] * 8)) == [False] * 7 + [True]
    for each in several:
        each.close()


def test_what_a_dead_process_of_this_machine_held_is_taken_at_once(run: Any) -> None:
    dead = died(run)
    assert dead.take(UNITS[0])
    living = Claims(run)
    assert living.take(UNITS[0])
    assert not (run / "workers" / f"{dead.me.id}.json").exists()
    third = Claims(run)
    assert not third.take(UNITS[0])  # it has a second owner, who lives
    living.release(UNITS[0])
    assert third.take(UNITS[0])  # with it the dead one's claim went
    for each in (living, third):
        each.close()


@pytest.mark.usefixtures("far")
def test_elsewhere_a_process_is_dead_when_its_beats_stand_still_by_the_own_clock_of_who_waits(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1e9]
    other = Claims(run)
    assert other.take(UNITS[0])
    waiting = Claims(run, clock=lambda: now[0])
    for _ in range(5):  # it lives: its beats go on, whatever time passes between them
        assert not waiting.take(UNITS[0])
        now[0] += claims.EXPIRY + 1
        other._beat()
    assert not waiting.take(UNITS[0])
    now[0] += claims.EXPIRY - 1
    assert not waiting.take(UNITS[0])
    now[0] += claims.BEAT
    assert waiting.take(UNITS[0])
    waiting.close()
    other.close()


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_clocks_of_other_machines_that_are_wrong_change_nothing(tmp_path: Path, skew: float) -> None:
    other = Claims(tmp_path)
    assert other.take(UNITS[0])
    for file in places.files(tmp_path):
        os.utime(tmp_path / file, (1.8e9 + skew,) * 2)
    waiting = Claims(tmp_path)
    assert not waiting.take(UNITS[0])
    waiting.close()
    other.close()


def test_a_process_that_has_hung_no_longer_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.001)
    now, hung = [0.0], threading.Event()
    one = Claims(tmp_path, patience=7.0, clock=lambda: now[0], hung=hung.set)
    file = tmp_path / "workers" / f"{one.me.id}.json"

    def beats() -> bool:
        before = one.me.beat
        one._over.wait(0.2)
        return one.me.beat > before

    assert beats()
    assert not hung.is_set()
    now[0] = 8
    one._over.wait(0.1)
    assert not beats()
    assert hung.wait(10)
    one.tell(2, 1)
    assert beats()
    one.close()
    assert not file.exists()


def test_what_others_have_done_is_told_once_and_not_what_they_had_done_before(run: Any) -> None:
    now = [0.0]
    early = Claims(run, "rank 1")
    early.tell(10, 1)
    early._beat()
    one = Claims(run, "rank 0", clock=lambda: now[0])
    assert [worker.name for worker in one.before.values()] == ["rank 1"]
    late = Claims(run, "rank 2")
    early.tell(3, 0)
    late.tell(5, 2)
    for each in (early, late):
        each._beat()
    assert list(one.news()) == []  # not before a beat has passed
    now[0] += claims.BEAT
    assert sorted(one.news()) == [("rank 1", 3, 0), ("rank 2", 5, 2)]
    now[0] += claims.BEAT
    assert sorted(one.news()) == [("rank 1", 0, 0), ("rank 2", 0, 0)]
    for each in (early, late, one):
        each.close()


def test_an_engine_that_deals_out_parts_itself_works_alone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "POLL", 0.05)
    one = Claims(run, "rank 7")
    with pytest.raises(ValueError, match="rank 7 works on the run in"):
        Claims(run, alone=True)
    one.close()
    driver = Claims(run, "the Ray driver", alone=True)
    with pytest.raises(ValueError, match="the Ray driver works on the run in"):
        Claims(run)
    driver.close()
    Claims(run).close()


def test_a_full_disk_keeps_nobody_from_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "_write", full)
    one = Claims(tmp_path)
    assert list(one.each(UNITS, nothing)) == list(UNITS)
    one.close()
    monkeypatch.setattr(places, "_write", lambda *given: (_ for _ in ()).throw(PermissionError("not yours")))
    with closing(Claims(tmp_path)) as one, pytest.raises(PermissionError):
        one.take(UNITS[0])


def test_a_worker_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    one = Claims(tmp_path)
    (tmp_path / "workers" / "elsewhere-1-abc.json").write_text(json.dumps({"id": "x"}))
    assert one.others() == []
    one.close()


def test_a_complete_run_keeps_neither_claims_nor_workers(run: Any) -> None:
    dead = died(run)
    assert dead.take(UNITS[0])
    one, other = Claims(run), Claims(run)
    assert other.take(UNITS[1])
    one.sweep()  # another still works
    assert not one.take(UNITS[1])
    other.sweep()
    assert list(places.files(run)) == []
    if isinstance(run, Path):
        assert list(run.iterdir()) == []


def test_a_store_is_asked_little_while_others_work(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others hold is seen in a listing, and what they have written in another."""
    other, one = Claims(run), Claims(run)
    assert list(other.each(UNITS[:3], nothing)) == list(UNITS[:3])
    asked: list[str] = []
    create, look = claims.create, Claims._look
    monkeypatch.setattr(claims, "create", lambda *given: asked.append("create") or create(*given))
    monkeypatch.setattr(Claims, "_look", lambda self, id: asked.append("look") or look(self, id))
    assert list(one.each(UNITS, nothing, lambda unit: unit.part == 4)) == [UNITS[3], UNITS[5]]
    assert asked == ["create"] * 2 + ["look"] * 3
    for each in (other, one):
        each.close()


def test_free_units_come_first_and_then_those_of_the_dead(run: Any) -> None:
    dead, living, one = died(run), Claims(run), Claims(run)
    assert dead.take(UNITS[0])
    assert living.take(UNITS[1])
    assert list(one.each(UNITS[:4], nothing)) == [UNITS[2], UNITS[3], UNITS[0]]
    for each in (living, one):
        each.close()


def test_an_owner_is_read_again_before_a_claim_of_the_same_name_is_passed_over(run: Any) -> None:
    dead, one = died(run), Claims(run)
    assert dead.take(UNITS[0])
    assert one._owner(run.joinpath("claims", *UNITS[0].folders) / "00000-0") == dead.me.id
    dead.release(UNITS[0])
    living = Claims(run)
    assert living.take(UNITS[0])
    assert list(one.each(UNITS[:1], nothing)) == []
    for each in (living, one):
        each.close()


def test_of_other_shards_nothing_is_told_for_they_share_no_part(run: Any) -> None:
    now = [0.0]
    shards = {shard: Claims(run, shard, shard=shard, clock=lambda: now[0]) for shard in ("1/2", "2/2", "1/1")}
    for each in shards.values():
        each.tell(5, 0)
        each._beat()
    now[0] += claims.BEAT
    told = {shard: sorted(name for name, _, _ in each.news()) for shard, each in shards.items()}
    assert told == {"1/2": [], "2/2": [], "1/1": ["1/2", "2/2"]}
    for each in shards.values():
        each.close()


@pytest.mark.parametrize("machine", ["elsewhere", places.host()])
def test_a_driver_waits_for_the_sign_of_life_of_one_that_may_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """One whose beats stand still is waited for, also where its number is another process's by now; one that beats is a rival."""
    now, expiry, id = [0.0], claims.EXPIRY, f"{machine}-{os.getpid()}-abc"

    def file(beat: int) -> None:
        places.write_whole(
            tmp_path / "workers" / f"{id}.json",
            json.dumps({"id": id, "name": "the old driver", "alone": True, "beat": beat}).encode(),
        )

    def later(seconds: float) -> None:
        now[0] += claims.BEAT
        if beats:
            file(round(now[0]))

    monkeypatch.setattr(claims.time, "sleep", later)
    beats = False
    file(7)
    driver = Claims(tmp_path, alone=True, clock=lambda: now[0])
    assert now[0] > expiry
    driver.close()
    beats = True
    file(7)
    with pytest.raises(ValueError, match="the old driver works on the run in"):
        Claims(tmp_path, alone=True, clock=lambda: now[0])


def test_a_complete_run_keeps_nothing_half_written_of_whatever_machine(tmp_path: Path) -> None:
    left = tmp_path / "parts" / "00001.parquet.tmp-elsewhere-12-3"
    places.write_whole(left, b"half")
    first = Claims(tmp_path)
    places.sweep(tmp_path)  # at the start of a run, where its process may still be at it
    assert left.exists()
    first.sweep()
    assert not left.exists()


def test_what_another_that_ends_just_now_writes_of_the_run_is_left_to_it(tmp_path: Path) -> None:
    begun = tmp_path / "run.json.tmp-elsewhere-12-3"
    places.write_whole(begun, b"half")
    Claims(tmp_path).sweep()
    assert begun.exists()


def test_a_claim_whose_answer_was_lost_on_the_way_is_known_as_ones_own(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = claims.create
    monkeypatch.setattr(claims, "create", lambda path, data: real(path, data) and False)
    with closing(Claims(run)) as mine:
        assert list(mine.each(UNITS[:2], nothing)) == list(UNITS[:2])
        mine.release(UNITS[0])
    assert [each for each in places.files(run) if "claims" in each.parts] == []


def test_a_store_that_is_away_is_nobodys_death_and_stops_nobody(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Claims(run)
    assert first.take(UNITS[0])
    now = [0.0]
    second = Claims(run, clock=lambda: now[0])

    def away(*given: Any, **named: Any) -> Any:
        raise TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(claims.json, "loads", away)
        patched.setattr(second, "others", away)
        now[0] = 100.0
        assert not second.take(UNITS[0])
        assert list(second.news()) == []
        now[0] += 2 * claims.EXPIRY
        assert not second.take(UNITS[0])
    assert (run / "workers" / f"{first.me.id}.json").exists()
    first.close()
    assert second.take(UNITS[0])
    second.close()


def test_a_process_that_could_not_be_read_has_not_done_less_than_before(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    other = Claims(run, "rank 1")
    other.tell(10, 0)
    other._beat()
    one = Claims(run, clock=lambda: now[0])
    now[0] += claims.BEAT
    one._seen.clear()
    with monkeypatch.context() as patched:
        patched.setattr(claims.json, "loads", lambda data: (_ for _ in ()).throw(TimeoutError("no answer")))
        assert list(one.news()) == []
    other.tell(2, 0)
    other._beat()
    now[0] += claims.BEAT
    assert list(one.news()) == [("rank 1", 2, 0)]
    for each in (other, one):
        each.close()


def test_who_could_not_release_a_unit_does_not_wait_for_itself(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(path: Any) -> None:
        raise TimeoutError("no answer")

    with closing(Claims(run)) as one:
        assert one.take(UNITS[0])
        with monkeypatch.context() as patched:
            patched.setattr(claims, "remove", away)
            one.release(UNITS[0])
        assert list(one.each(UNITS[:1], nothing)) == [UNITS[0]]
