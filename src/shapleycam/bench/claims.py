"""Who does which part of a run: any number of processes on any machines share one folder, without a scheduler.

A process claims a unit by a file that only one can create, and says in a file of its own, again and again, that it lives. No
clock is compared with another: who waits counts its own seconds while another's beats stand still.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from socket import gethostname
from threading import Event, Lock, Thread
from uuid import uuid4

from .places import (
    Place,
    alive,
    create,
    files,
    host,
    listings,
    passes,
    patient,
    prune,
    remove,
    store_errors,
    sweep,
    write_whole,
)
from .store import Unit
from .worker import Worker

BEAT = 10.0
"""Seconds between two signs of life."""
EXPIRY = 60.0
"""Seconds without one after which a process of another machine is taken for dead."""
POLL = 1.0
"""Seconds between two looks at what others do, where there is nothing else to do."""


@dataclass(frozen=True)
class _Seen:
    """Another process, when its last beat was first seen, and when it was last looked at."""

    worker: Worker
    since: float
    looked: float


class Claims:
    """What this process holds of a run. To be closed, or others wait until it has expired.

    Parameters
    ----------
    patience
        Seconds without a batch done after which this process no longer says that it lives: it may hang for ever.
    hung
        Called when that is so.

    Raises
    ------
    ValueError
        When another process works on the run, and one of the two wants it for itself.
    """

    def __init__(
        self, run: Place, name: str = "", *, alone: bool = False, shard: str = "1/1", patience: float = 1800.0,
        clock: Callable[[], float] = time.monotonic, hung: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        id = f"{host()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.run, self.me = run, Worker(id, name or f"{gethostname()}:{os.getpid()}", alone, shard)
        self._clock, self._patience, self._hung = clock, patience, hung
        self._folders = run / "claims", run / "workers"
        self._held: dict[Unit, list[Place]] = {}
        self._owners: dict[Place, str] = {}
        """Of claims that others hold, as they were last read."""
        self._seen: dict[str, _Seen] = {}
        self._looked = self._worked = clock()
        self._over, self._lock = Event(), Lock()
        self._heart = Thread(target=self._live, name="heartbeat", daemon=True)
        self._beat()
        self._heart.start()
        self.before = {worker.id: worker for worker in self.others()}
        """The processes that were at work when this one began."""
        if rivals := self._rivals():
            self.close()
            raise ValueError(
                f"{', '.join(rivals)} works on the run in {str(run)!r}, and a Ray driver must be alone on a run; wait for it, "
                "or stop it and start again"
            )
        self._told = dict(self.before)

    def each(
        self, units: Iterable[Unit], done: Callable[[Unit], bool], written: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[Unit]:
        """Those of the units that no other process does or has done, each claimed when it is asked for.

        Parameters
        ----------
        done
            Whether a unit is on disk in full; asked of those that nobody holds.
        written
            Whether somebody has written it meanwhile, as far as is known: such a unit is passed over.
        """
        held, listed = list[Unit](), listings(POLL, self._clock)
        for unit in units:
            if written(unit):
                continue
            if self._of(unit, listed):
                held.append(unit)
            elif self._takes(unit, done):
                yield unit
        for unit in held:  # some may be of the dead
            claims = self._of(unit, listed)
            owner = self._owner(claims[-1]) if claims else None
            # Its own that it does not hold: it could not be removed.
            held_still = unit in self._held or (owner != self.me.id and self._lives(owner))
            if not (written(unit) or held_still) and self._takes(unit, done):
                yield unit

    def take(self, unit: Unit) -> bool:
        """Whether the unit is this process's from now on: not if one that lives has it."""
        folder = self.run.joinpath("claims", *unit.folders)
        tried: list[Place] = []
        while True:
            file = folder / f"{unit.part:05d}-{len(tried)}"
            tried.append(file)
            mine = True
            with patient():  # two that do the same part write the same rows
                mine = create(file, self.me.id.encode())
            self._owners.pop(file, None)
            owner = self.me.id if mine else self._owner(file)
            if owner == self.me.id:  # also where a store's answer was lost, and its client asked again
                self._held[unit] = tried
                return True
            if owner is None or self._lives(owner):  # None: it has just been done
                return False

    def release(self, unit: Unit) -> None:
        """Let others have a unit, or see that it is done."""
        for file in self._held.pop(unit, ()):
            with suppress(*store_errors(), OSError):  # others see that this process has left, or that the part is there
                remove(file)

    def tell(self, pictures: int, problems: int) -> None:
        """Count what has been done, for others to see at the next beat."""
        with self._lock:
            self._worked = self._clock()
            self.me = replace(self.me, pictures=self.me.pictures + pictures, problems=self.me.problems + problems)

    def others(self) -> list[Worker]:
        """The other processes that live."""
        names = (name for name in files(self.run / "workers") if name.suffix == ".json")
        found = (self._look(name.stem) for name in names if name.stem != self.me.id)
        return [worker for worker in found if worker]

    def shares(self, worker: Worker) -> bool:
        """Whether another process does what this one would do otherwise: no two shards share parts."""
        return self.me.shard in ("1/1", worker.shard)

    def news(self) -> Iterator[tuple[str, int, int]]:
        """What others have done of this one's parts since the last time: name, pictures, problems.

        Looked up once a beat, and less often where they are many, so that a store is asked no more often.
        """
        if self._clock() - self._looked < max(BEAT, len(self._told) / 2):
            return
        self._looked = self._clock()
        with patient():
            for worker in filter(self.shares, self.others()):
                if worker.beat < 0:  # it could not be read yet
                    continue
                told = self._told.get(worker.id, Worker("", ""))
                self._told[worker.id] = worker
                yield worker.name, worker.pictures - told.pictures, worker.problems - told.problems

    def close(self) -> None:
        """Release all, and leave."""
        self._over.set()
        self._heart.join()
        for unit in list(self._held):
            self.release(unit)
        remove(self._file(self.me.id))
        for folder in self._folders:
            prune(folder)

    def sweep(self) -> None:
        """Close, and remove what is left of claims and workers, once a run is complete and nobody else works on it."""
        self.close()
        if self.others():
            return
        for folder in self._folders:
            for name in files(folder):
                remove(folder / str(name))
            prune(folder)
        sweep(self.run / "parts", everyone=True)  # another that ends just now may write into run.json

    def _rivals(self) -> list[str]:
        """The processes with which this one cannot share: each is to show a beat, for its number may be another's now."""
        first: dict[str, Worker] = {}
        while self.before and (self.me.alone or any(worker.alone for worker in self.before.values())):
            first = self.before | {id: worker for id, worker in first.items() if worker.beat >= 0}
            moved = [worker.name for worker in self.before.values() if worker.beat > first[worker.id].beat >= 0]
            if moved:
                return moved
            time.sleep(POLL)
            self.before = {worker.id: worker for worker in self.others()}
        return []

    def _takes(self, unit: Unit, done: Callable[[Unit], bool]) -> bool:
        """Whether a unit is now this process's, and is still to be done."""
        if self.take(unit) and done(unit):
            self.release(unit)
        return unit in self._held

    def _of(self, unit: Unit, listed: Callable[[Place], frozenset[str]]) -> list[Place]:
        """The claims of others to a unit, a moment ago, the last one last."""
        folder = self.run.joinpath("claims", *unit.folders)
        found = [name for name in listed(folder) if name.partition("-")[0] == f"{unit.part:05d}"]
        return [folder / name for name in sorted(found, key=lambda name: int(name.partition("-")[2]))]

    def _owner(self, claim: Place) -> str | None:
        """Who holds a claim, or held it when it was last read; None if there is none any more."""
        if claim not in self._owners:
            with suppress(FileNotFoundError), patient():
                self._owners[claim] = claim.read_bytes().decode()
        return self._owners.get(claim)

    def _lives(self, id: str | None) -> bool:
        return id is not None and self._look(id) is not None

    def _look(self, id: str) -> Worker | None:
        """A process that lives, as it was at most half a beat ago."""
        now, seen = self._clock(), self._seen.get(id)
        machine, process, _ = id.rsplit("-", 2)
        gone = machine == host() and os.name == "posix" and not alive(int(process))
        if not gone and seen and now - seen.looked < BEAT / 2:
            return seen.worker
        worker = None if gone else self._read(id)
        since = seen.since if seen and worker and seen.worker.beat == worker.beat else now
        if worker is None or now - since > EXPIRY:
            self._seen.pop(id, None)
            with patient():
                remove(self._file(id))
            return None
        self._seen[id] = _Seen(worker, since, now)
        return worker

    def _read(self, id: str) -> Worker | None:
        try:
            return Worker(**json.loads(self._file(id).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        except Exception as error:
            if not passes(error):
                raise
            known = self._seen.get(id)  # while a store is away nobody's beats stand still
            return replace(known.worker if known else Worker(id, id), beat=(known.worker.beat if known else 0) - 1)

    def _file(self, id: str) -> Place:
        return self.run / "workers" / f"{id}.json"

    def _live(self) -> None:
        late = False
        while not self._over.wait(BEAT):
            before, late = late, self._clock() - self._worked >= self._patience
            if not late:
                self._beat()
            elif before:  # twice: a process that was suspended may go on in between
                self._hung()

    def _beat(self) -> None:
        with self._lock:
            self.me = replace(self.me, beat=self.me.beat + 1)
        with suppress(OSError, *store_errors()):  # a full disk, say: in the end others do the same parts
            write_whole(self._file(self.me.id), json.dumps(asdict(self.me)).encode())
