"""A run: every unit of work measured once, whatever was killed in between."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TypeAlias

import pyarrow as pa
from torch import Tensor

from ..faithfulness import Fidelity, fidelity
from ..measurement import Measurements, measure
from ..network.pictures import PictureError, pixels
from ..network.zoo import Model
from ..theory.cams import METHODS
from . import store
from .datasets import Item
from .loaded import Loaded, class_indices, load
from .planned import Plan, now
from .rows import failed_rows, measured_rows, problems
from .store import Footer, Unit

AHEAD = 2
"""Batches that are decoded ahead of the one that the network sees."""
WAITING = 256
"""Parts that are kept in memory while the disk is full, before the run gives up."""


@dataclass(frozen=True)
class Step:
    """What happened since the last one: a batch went through the network, or was found on disk."""

    unit: Unit
    pictures: int
    problems: tuple[str, ...] = ()
    """Why rows have no numbers, or a part could not be written."""


def measured(plan: Plan) -> Generator[Step, None, None]:
    """Measure what is missing, a batch a step. To stop, close it: the batches that went through are written.

    Raises
    ------
    ValueError
        When a model's weights are not those that the run began with.
    OSError
        When parts cannot be written and no more fit into memory.
    """
    writer = _Writer(plan)
    started = datetime.now(UTC)
    for name, units in groupby(plan.missing(), key=lambda unit: unit.model):
        facts = plan.facts["models"][name]
        loaded = load(name, plan.configuration, plan.machine, facts["channels_last"])
        if loaded.sha256 != (begun := plan.facts["weights"][name]["sha256"]):
            raise ValueError(
                f"the weights of {name} are not those that {str(plan.run)!r} began with, sha256 {loaded.sha256[:12]} and "
                f"there {begun[:12]}; give those (--weights {name}=FILE), or name another folder (--out)"
            )
        batch = plan.facts["batch"][name] if plan.machine.batch == "auto" else int(plan.machine.batch)
        jobs = (job for unit in units for job in _jobs(plan, unit, batch))
        labels = class_indices(loaded.model, plan.items)
        with closing(_decoded(jobs, loaded.model, plan.machine.threads)) as decoded:
            for unit, batches in groupby(decoded, key=lambda each: each[0].unit):
                yield from _measured_unit(plan, loaded, labels, unit, batches, writer)
    writer.flush()
    if not plan.missing():
        seconds = plan.facts["times"].get("seconds", 0) + (datetime.now(UTC) - started).total_seconds()
        times = {**plan.facts["times"], "finished": now(), "seconds": round(seconds, 1)}
        store.rewrite(plan.run, {**plan.facts, "times": times})


@dataclass(frozen=True)
class _Job:
    """A batch of a unit, and the rows that the unit has on disk already."""

    unit: Unit
    items: tuple[Item, ...]
    taken: pa.Table | None


_Read: TypeAlias = Tensor | PictureError


def _jobs(plan: Plan, unit: Unit, batch: int) -> Iterator[_Job]:
    footer = plan.footer(unit)
    if footer and footer.complete:  # by another process, since the run was planned
        yield _Job(unit, (), None)
        return
    taken = store.read_part(unit.path(plan.run)) if footer else None
    done = set(taken["picture"].to_pylist()) if taken else set()
    left = tuple(item for item in plan.items_of(unit) if item.name not in done)
    for start in range(0, len(left), batch):
        yield _Job(unit, left[start : start + batch], taken)


def _decoded(jobs: Iterable[_Job], model: Model, threads: int) -> Generator[tuple[_Job, list[_Read]], None, None]:
    """The batches with their pictures' pixels, decoded by threads that are never more than `AHEAD` batches ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    queue: deque[tuple[_Job, list[Future[_Read]]]] = deque()
    try:
        for job in jobs:
            queue.append((job, [pool.submit(_read, item, model.preprocess.crop) for item in job.items]))
            if len(queue) > AHEAD:
                first, reads = queue.popleft()
                yield first, [read.result() for read in reads]
        while queue:
            first, reads = queue.popleft()
            yield first, [read.result() for read in reads]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(item: Item, crop: Callable[[Any], Any]) -> _Read:
    try:
        return pixels(crop(item.open()))
    except PictureError as error:
        return error
    except OSError as error:
        return PictureError(f"{item.name} cannot be read: {error}")


def _measured_unit(
    plan: Plan,
    loaded: Loaded,
    labels: dict[str, int | None],
    unit: Unit,
    batches: Iterable[tuple[_Job, list[_Read]]],
    writer: "_Writer",
) -> Iterator[Step]:
    tables: list[pa.Table] = []
    try:
        for job, reads in batches:
            if not tables and job.taken is not None:
                tables.append(job.taken)
                yield Step(unit, len(set(job.taken["picture"].to_pylist())))
            if not job.items:
                yield Step(unit, len(plan.items_of(unit)))
                continue
            tables.append(_rows(plan, loaded, labels, unit, job.items, reads))
            yield Step(unit, len(job.items), problems(tables[-1]))
    finally:
        if tables:
            writer.part(unit, pa.concat_tables(tables), loaded.sha256)
    if writer.problem:
        yield Step(unit, 0, (writer.problem,))


def _rows(
    plan: Plan, loaded: Loaded, labels: dict[str, int | None], unit: Unit, items: tuple[Item, ...], reads: list[_Read]
) -> pa.Table:
    """The rows of a batch, in the order of its pictures."""
    c = plan.configuration
    good: list[tuple[Item, Tensor]] = []
    bad: list[tuple[Item, str]] = []
    for item, read in zip(items, reads, strict=True):
        if isinstance(read, PictureError):
            bad.append((item, str(read)))
        elif c.targets == "label" and labels[item.name] is None:
            label = "no label" if item.label is None else f"the label {item.label!r}, which is no class of {unit.model}"
            bad.append((item, f"it has {label}, and the label is to be the target; give labels with --labels FILE"))
        else:
            good.append((item, read))
    tables = [failed_rows(unit, [(item.name, labels[item.name], reason) for item, reason in bad])]
    if good:
        names = [item.name for item, _ in good]
        classes = [labels[name] for name in names]
        images = loaded.images([crop for _, crop in good])
        found = _measure(plan, loaded, unit, images, names, classes)
        true = _fidelities(plan, loaded, unit, images, names, found) if plan.configuration.fidelity else []
        tables.append(measured_rows(unit, plan.facts["configuration"]["methods"], names, classes, found, true))
    return _ordered(pa.concat_tables(tables), items)


def _measure(
    plan: Plan, loaded: Loaded, unit: Unit, images: Tensor, names: list[str], classes: list[int | None]
) -> list[Measurements]:
    c = plan.configuration
    methods = plan.facts["configuration"]["methods"]
    elsewhere = plan.facts["models"][unit.model].get("published_layers", {}).get(unit.layer, unit.layer)
    second = [name for name in methods if elsewhere != unit.layer and _is_second(name)]
    first = [name for name in methods if name not in second]
    targets = [each or 0 for each in classes] if c.targets == "label" else None if c.targets == "predicted" else "least"
    return [
        measure(
            loaded.model, images, methods=some, layer=layer, targets=targets, utility=unit.utility, masking=c.masking,
            seed=c.seed, keys=names, infer=loaded.infer, metrics=c.metrics,
        )
        for some, layer in ((first, unit.layer), (second, elsewhere))
        if some
    ]  # fmt: skip


def _fidelities(
    plan: Plan, loaded: Loaded, unit: Unit, images: Tensor, names: list[str], found: list[Measurements]
) -> list[Fidelity]:
    c = plan.configuration
    return [
        fidelity(
            loaded.model, images, methods=tuple(each.out.explanations), layer=each.out.layer.name, targets=each.targets,
            layout=each.out.layer.layout, utility=unit.utility, budget=c.fidelity, seed=c.seed, keys=names,
        )
        for each in found
        if each.out.explanations
    ]  # fmt: skip


def _is_second(name: str) -> bool:
    return name in METHODS and METHODS[name].order == "second"


def _ordered(rows: pa.Table, items: tuple[Item, ...]) -> pa.Table:
    places = {item.name: place for place, item in enumerate(items)}
    order = sorted(range(rows.num_rows), key=[places[name] for name in rows["picture"].to_pylist()].__getitem__)
    return rows.take(order)


class _Writer:
    """Writes parts; those for which the disk has no room are kept and tried again with the next one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.waiting: dict[Unit, tuple[pa.Table, Footer]] = {}
        self.problem: str | None = None

    def part(self, unit: Unit, rows: pa.Table, weights: str) -> None:
        names = set(rows["picture"].to_pylist())
        complete = names == {item.name for item in self.plan.items_of(unit)}
        before = None if complete else self.plan.footer(unit)
        if before and before.complete:  # another process was faster
            return
        errors = sum(status != store.OK for status in rows["status"].to_pylist())
        self.waiting[unit] = rows, Footer(self.plan.facts["hash"], weights, complete, len(names), errors)
        self.flush()

    def flush(self) -> None:
        self.problem = None
        for unit, (rows, footer) in list(self.waiting.items()):
            try:
                store.write_part(unit.path(self.plan.run), rows, footer)
            except OSError as error:
                if len(self.waiting) >= WAITING:
                    raise
                self.problem = f"{len(self.waiting)} parts wait for room on the disk: {error}"
                return
            del self.waiting[unit]
