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
from threading import Event, Thread
from uuid import uuid4

from .places import Place, alive, create, files, full_disk, host, prune, remove, store_errors, write_whole
from .store import Unit

BEAT = 10.0
"""Seconds between two signs of life."""
EXPIRY = 60.0
"""Seconds without one after which a process of another machine is taken for dead."""
PATIENCE = 3600.0
"""Seconds without a batch done after which a process no longer says that it lives: it may hang for ever."""
POLL = 1.0
"""Seconds between two looks at what others do, where there is nothing else to do."""


@dataclass(frozen=True)
class Worker:
    """What a process says of itself in the run's folder."""

    id: str
    name: str
    """Its rank, or its machine and process."""
    alone: bool = False
    """Whether it deals out the parts itself, so that no other may take any."""
    beat: int = 0
    pictures: int = 0
    """Measured since it was started."""
    problems: int = 0


class Claims:
    """What this process holds of a run. To be closed, or others wait until it has expired.

    Raises
    ------
    ValueError
        When another process works on the run, and one of the two wants it for itself.
    """

    def __init__(
        self, run: Place, name: str = "", *, alone: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        id = f"{host()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.run, self.me, self._clock = run, Worker(id, name or f"{gethostname()}:{os.getpid()}", alone), clock
        self._held: dict[Unit, list[Place]] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        """Of other workers: the last beat, and when it was first seen."""
        self._looked = self._worked = self.began = clock()
        self._beat()
        self.before = {worker.id: worker for worker in self.others()}
        """The processes that were at work when this one began."""
        if rivals := self._rivals():
            remove(self._file(self.me.id))
            raise ValueError(
                f"{', '.join(rivals)} works on the run in {str(run)!r}, and a Ray driver must be alone on a run; wait for it, "
                "or stop it and start again"
            )
        self._told = dict(self.before)
        self._over = Event()
        self._heart = Thread(target=self._live, name="heartbeat", daemon=True)
        self._heart.start()

    def each(self, units: Iterable[Unit], done: Callable[[Unit], bool]) -> Iterator[Unit]:
        """Those of the units that no other process does or has done, each claimed when it is asked for."""
        for unit in units:
            if self.take(unit):
                if done(unit):
                    self.release(unit)
                else:
                    yield unit

    def take(self, unit: Unit) -> bool:
        """Whether the unit is this process's from now on: not if one that lives has it."""
        folder = self.run.joinpath("claims", *unit.folders)
        tried: list[Place] = []
        while True:
            file = folder / f"{unit.part:05d}-{len(tried)}"
            tried.append(file)
            try:
                mine = create(file, self.me.id.encode())
            except OSError as error:
                if not full_disk(error):
                    raise
                mine = True  # two that do the same part write the same rows
            if mine:
                self._held[unit] = tried
                return True
            try:
                owner = file.read_bytes().decode()
            except FileNotFoundError:  # it has just been done
                return False
            if self._lives(owner):
                return False

    def release(self, unit: Unit) -> None:
        """Let others have a unit, or see that it is done."""
        for file in self._held.pop(unit, ()):
            remove(file)

    def tell(self, pictures: int, problems: int) -> None:
        """Count what has been done, for others to see at the next beat."""
        self._worked = self._clock()
        self.me = replace(self.me, pictures=self.me.pictures + pictures, problems=self.me.problems + problems)

    def others(self) -> list[Worker]:
        """The other processes that live."""
        names = (name for name in files(self.run / "workers") if name.suffix == ".json")
        ids = [name.stem for name in names if name.stem != self.me.id]
        return [worker for id in ids if self._lives(id) and (worker := self._read(id))]

    def news(self) -> Iterator[tuple[str, int, int]]:
        """What others have done since the last time, looked up once a beat: name, pictures, problems."""
        if self._clock() - self._looked < BEAT:
            return
        self._looked = self._clock()
        for worker in self.others():
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

    def sweep(self) -> None:
        """Close, and remove what is left of claims and workers, once a run is complete and nobody else works on it."""
        self.close()
        if self.others():
            return
        for folder in (self.run / "claims", self.run / "workers"):
            for name in files(folder):
                remove(folder / str(name))
            prune(folder)

    def _rivals(self) -> list[str]:
        """The living processes with which this one cannot share; of those that may be dead it waits for a beat."""
        first = self.before
        while self.before and (self.me.alone or any(worker.alone for worker in self.before.values())):
            moved = [
                worker.name
                for worker in self.before.values()
                if worker.id.startswith(f"{host()}-") or worker.beat != first.get(worker.id, worker).beat
            ]
            if moved:
                return moved
            time.sleep(POLL)
            self.before = {worker.id: worker for worker in self.others()}
        return []

    def _lives(self, id: str) -> bool:
        machine, process, _ = id.rsplit("-", 2)
        gone = machine == host() and os.name == "posix" and not alive(int(process))
        worker = None if gone else self._read(id)
        beat, since = self._seen.get(id, (-1, 0.0))
        if worker and worker.beat != beat:
            self._seen[id] = worker.beat, self._clock()
        elif worker is None or self._clock() - since > EXPIRY:
            remove(self._file(id))
            return False
        return True

    def _read(self, id: str) -> Worker | None:
        try:
            return Worker(**json.loads(self._file(id).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _file(self, id: str) -> Place:
        return self.run / "workers" / f"{id}.json"

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            if self._clock() - self._worked < PATIENCE:
                self._beat()

    def _beat(self) -> None:
        self.me = replace(self.me, beat=self.me.beat + 1)
        with suppress(OSError, *store_errors()):  # a full disk, say: in the end others do the same parts
            write_whole(self._file(self.me.id), json.dumps(asdict(self.me)).encode())
