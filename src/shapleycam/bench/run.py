"""A run: every unit of work measured once, whatever was killed in between."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, groupby

import pyarrow as pa

from . import store
from .batches import Job, Read, decoded, jobs, rows_of
from .claims import BEAT, POLL, Claims
from .loaded import Loaded, class_indices
from .places import create, listings, passes, patient, write_whole
from .planned import Plan
from .rows import problems
from .store import Footer, Unit

WAITING = 256
"""Parts that are kept in memory while the disk is full, or the store away, before the run gives up."""

NAMED = 4
"""Processes that are named one by one."""
QUIET = 3
"""Looks in vain before it is said for whom a process waits."""


@dataclass(frozen=True)
class Step:
    """What happened since the last one: a batch went through the network, was found on disk, or was done elsewhere."""

    unit: Unit
    pictures: int
    """Measured."""
    problems: tuple[str, ...] = ()
    """Why rows have no numbers, or a part could not be written."""
    worker: str = ""
    """Which other process did it; none for this one."""
    failures: int = 0
    """How many problems that one had, which it says itself."""
    found: int = 0
    """Pictures that were on disk already, in a part that was begun."""
    said: str = ""
    """What a person is to know now."""


def measured(plan: Plan, name: str = "", *, watched: bool = True) -> Generator[Step, None, None]:
    """Measure what no other process does, a batch a step. To stop, close it: the batches that went through are written.

    It ends when every unit of the plan is done, by whomever. `name` is what others call this process; `watched` says that
    steps of others are asked for.

    Raises
    ------
    ValueError
        When a model's weights are not those that the run began with.
    OSError
        When parts cannot be written and no more fit into memory.
    """
    started, writer, m = datetime.now(UTC), Writer(plan), plan.machine
    if not (left := plan.missing()) and plan.ended:
        return
    again = m.engine == "torchrun" and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    hung = _leave if again else lambda: None
    with closing(Claims(plan.run, name, shard=m.shard, patience=m.stall, hung=hung)) as claims:
        others = [worker.name for worker in claims.before.values() if left and claims.shares(worker)]
        for place, other in enumerate(others):
            yield Step(left[0], 0, worker=other, said="" if name or place else _sharing(others))
        idle = 0
        while left:
            before, written = claims.me.pictures, _written(plan, left)
            for model, units in groupby(left, key=lambda unit: unit.model):
                mine = claims.each(units, plan.complete, written)
                with closing(_of_model(plan, model, mine, writer, claims)) as steps:
                    for step in steps:
                        claims.tell(step.pictures, len(step.problems))
                        yield step
                        if watched:
                            yield from _news(claims, step.unit)
            missing = set(left)
            with patient():  # a store that is away for a moment
                missing = set(plan.missing())
            left = tuple(unit for unit in left if unit in missing and unit not in writer.waiting)
            idle = 0 if claims.me.pictures > before else idle + 1
            if left and idle:
                claims.tell(0, 0)  # who waits does not hang
                writer.flush()
                yield Step(left[0], 0, said=_waiting(claims, left) if idle == QUIET else "")
                if watched:
                    yield from _news(claims, left[0])
                time.sleep(min(idle * POLL, BEAT / 2))
        writer.flush()
        if plan.whole():
            claims.sweep()
            plan.finished((datetime.now(UTC) - started).total_seconds())


def _leave() -> None:
    """Ends a rank that hangs: torchrun starts the ranks again, where it would wait for this one for ever."""
    sys.stderr.write("shapleycam: no batch was done for too long (--stall), so this rank is given up\n")
    sys.stderr.flush()
    os._exit(1)


def _sharing(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} works on this run too; the two share its parts"
    return f"{_some(names)} are on this run too; those that live share its parts"


def _waiting(claims: Claims, left: tuple[Unit, ...]) -> str:
    names = list[str]()
    with patient():
        names = sorted(worker.name for worker in claims.others() if claims.shares(worker) or worker.shard == "1/1")
    return f"waiting for {len(left)} part{'s' * (len(left) > 1)}, with {_some(names)}" if names else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _written(plan: Plan, left: tuple[Unit, ...]) -> Callable[[Unit], bool]:
    """Whether a unit was written since now, as a listing of its folder says; in full, most likely."""
    listed = listings(POLL, time.monotonic)

    def there(unit: Unit) -> bool:
        path = unit.path(plan.run)
        return path.name in listed(path.parent)

    begun = {unit for unit in left if there(unit)}
    return lambda unit: unit not in begun and there(unit)


def _of_model(
    plan: Plan, name: str, units: Iterator[Unit], writer: "Writer", claims: Claims
) -> Generator[Step, None, None]:
    first = next(units, None)
    if first is None:
        return
    loaded = plan.load(name)
    claims.tell(0, 0)  # who loads does not hang
    todo = (job for unit in chain((first,), units) for job in jobs(plan, unit, plan.batch(name)))
    labels = class_indices(loaded.model, plan.items)
    with closing(decoded(todo, loaded.model, plan.machine.threads)) as found:
        for unit, batches in groupby(found, key=lambda each: each[0].unit):
            yield from unit_steps(plan, loaded, labels, unit, batches, writer.part)
            claims.release(unit)
            if writer.problem:
                yield Step(unit, 0, (writer.problem,))


def unit_steps(
    plan: Plan,
    loaded: Loaded,
    labels: dict[str, int | None],
    unit: Unit,
    batches: Iterable[tuple[Job, list[Read]]],
    write: Callable[[Unit, bytes, bool], object],
) -> Generator[Step, None, None]:
    """Measure a unit's batches, and write the rows of those that went through, also when it is closed before the last."""
    tables: list[pa.Table] = []
    try:
        for job, reads in batches:
            if not tables and job.taken is not None:
                tables.append(job.taken)
                yield Step(unit, 0, found=len(set(job.taken["picture"].to_pylist())))
            tables.append(rows_of(plan, loaded, labels, job, reads))
            yield Step(unit, len(job.items), problems(tables[-1]))
            if job.last:  # written before the next unit is looked for
                break
    finally:
        if tables:
            rows = pa.concat_tables(tables)
            names = set(rows["picture"].to_pylist())
            errors = sum(status != store.OK for status in rows["status"].to_pylist())
            complete = names == {item.name for item in plan.items_of(unit)}
            footer = Footer(plan.facts["hash"], loaded.sha256, complete, len(names), errors)
            write(unit, store.part_bytes(rows, footer), complete)


def _news(claims: Claims, unit: Unit) -> Iterator[Step]:
    """What other processes have done since they were last looked at."""
    for worker, pictures, some in claims.news():
        yield Step(unit, pictures, (), worker, some)


class Writer:
    """Writes parts; those for which the disk has no room, or the store no answer, are kept and tried again with the next."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.waiting: dict[Unit, tuple[bytes, bool]] = {}
        self.problem: str | None = None

    def part(self, unit: Unit, data: bytes, complete: bool) -> None:
        """Write a part, unless it is not complete and another process wrote one that is."""
        self.waiting[unit] = data, complete
        self.flush()

    def flush(self) -> None:
        """Try what waits."""
        self.problem = None
        for unit, (data, complete) in list(self.waiting.items()):
            path = unit.path(self.plan.run)
            try:
                if complete:
                    write_whole(path, data)
                elif not create(path, data):
                    path.read_bytes()  # or a part that a store does not hand out just now would be taken for a damaged one
                    if not self.plan.complete(unit):
                        write_whole(path, data)
            except Exception as error:
                if len(self.waiting) >= WAITING or not passes(error):
                    raise
                self.problem = f"{len(self.waiting)} parts cannot be written yet: {error}"
                return
            del self.waiting[unit]
