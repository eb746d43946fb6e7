"""A run: every unit of work measured once, whatever was killed in between."""

import platform
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from torch import Tensor

from ..measurement import Measurements, measure
from ..network.arguments import resolve_utility
from ..network.pictures import PictureError, pixels
from ..network.zoo import Model
from ..theory.baselines import BASELINES
from ..theory.cams import METHODS, resolve_methods
from . import store
from .configuration import Configuration, Machine
from .datasets import Item, checksum, find_pictures
from .loaded import Loaded, choose_batch, class_indices, load
from .published import overwriting_layer
from .rows import failed_rows, measured_rows
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


@dataclass(frozen=True)
class Plan:
    """A run that can be started, or gone on with: nothing is measured yet."""

    run: Path
    items: tuple[Item, ...]
    configuration: Configuration
    machine: Machine
    facts: dict[str, Any]
    """What `run.json` says."""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """This shard's units, model by model."""
        size, (share, shares) = self.configuration.part, self.machine.share
        c = self.configuration
        every = product(c.models, c.layers, c.utilities, range(-(-len(self.items) // size)))
        return tuple(Unit(*each) for place, each in enumerate(every) if place % shares == share)

    def items_of(self, unit: Unit) -> tuple[Item, ...]:
        """The pictures of a unit."""
        size = self.configuration.part
        return self.items[unit.part * size : (unit.part + 1) * size]

    def footer(self, unit: Unit) -> Footer | None:
        """What the unit's part says of itself, if there is one that belongs to the run."""
        footer = store.read_footer(unit.path(self.run))
        return footer if footer and footer.configuration == self.facts["hash"] else None

    def missing(self) -> tuple[Unit, ...]:
        """Units of this shard that are not on disk, or not in full."""
        return tuple(u for u in self.units if not (footer := self.footer(u)) or not footer.complete)

    def errors(self) -> int:
        """Rows of this shard on disk that have no numbers."""
        return sum(footer.errors for unit in self.units if (footer := self.footer(unit)))


def plan(source: Path, run: Path, configuration: Configuration, machine: Machine) -> Plan:
    """Find the pictures, begin the run or find what is left of it, and try each model and layer once.

    Raises
    ------
    ValueError
        For anything in the configuration that does not fit, and for a folder with another configuration's run.
    OSError
        When there are no pictures, or the folder cannot be written.
    """
    for utility in configuration.utilities:
        resolve_utility(utility)
    names = _method_names(configuration)
    items = find_pictures(source, configuration.labels)
    if configuration.targets == "label" and all(item.label is None for item in items):
        raise ValueError("targets is label, but no picture has one; give a file of them with labels (--labels FILE)")
    wanted = configuration.facts(names, {"count": len(items), "sha256": checksum(items)})
    if run.exists() and not run.is_dir():
        raise FileExistsError(f"{str(run)!r} is a file; name a folder for the run, it is made if need be")
    if not (run / "run.json").exists():
        _refuse_foreign(run)
        begun = _begin(source, wanted, configuration, machine)
        facts = store.begin(run, begun)
    else:
        facts = store.read_configuration(run)
    if changed := store.differences(facts["configuration"], wanted):
        raise ValueError(
            f"{str(run)!r} holds a run with another configuration: {'; '.join(changed)}; name another folder (--out), or "
            "give the configuration that is there to go on with it"
        )
    store.sweep(run)
    return Plan(run, items, configuration, machine, facts)


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
        times = {**plan.facts["times"], "finished": _now(), "seconds": round(seconds, 1)}
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
            yield Step(unit, len(job.items), _problems(tables[-1]))
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
            label = "no label" if item.label is None else f"a label that is no class of {unit.model}, {item.label!r}"
            bad.append((item, f"it has {label}, and the label is the target"))
        else:
            good.append((item, read))
    tables = [failed_rows(unit, [(item.name, labels[item.name], reason) for item, reason in bad])]
    if good:
        names = [item.name for item, _ in good]
        classes = [labels[name] for name in names]
        found = _measure(plan, loaded, unit, loaded.images([crop for _, crop in good]), names, classes)
        tables.append(measured_rows(unit, plan.facts["configuration"]["methods"], names, classes, found))
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
            seed=c.seed, keys=names,
        )
        for some, layer in ((first, unit.layer), (second, elsewhere))
        if some
    ]  # fmt: skip


def _is_second(name: str) -> bool:
    return name in METHODS and METHODS[name].order == "second"


def _ordered(rows: pa.Table, items: tuple[Item, ...]) -> pa.Table:
    places = {item.name: place for place, item in enumerate(items)}
    order = sorted(range(rows.num_rows), key=[places[name] for name in rows["picture"].to_pylist()].__getitem__)
    return rows.take(order)


def _problems(rows: pa.Table) -> tuple[str, ...]:
    bad = {
        (picture, status): None
        for picture, status in zip(rows["picture"].to_pylist(), rows["status"].to_pylist(), strict=True)
        if status != store.OK
    }
    return tuple(f"{picture}: {status}" for picture, status in bad)


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


def _method_names(configuration: Configuration) -> tuple[str, ...]:
    given = [*configuration.methods, *(BASELINES if configuration.baselines else ())]
    names = ([each] if each in BASELINES else [row.name for row in resolve_methods(each)] for each in given)
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def _refuse_foreign(run: Path) -> None:
    if (run / "parts").exists():
        raise ValueError(f"{str(run)!r} has parts but no run.json that says what they are; name another folder (--out)")


def _begin(source: Path, wanted: dict[str, Any], configuration: Configuration, machine: Machine) -> dict[str, Any]:
    """What `run.json` is to say: every model is loaded, and every layer tried, before anything is measured."""
    models, weights, batches = {}, {}, {}
    for name in configuration.models:
        loaded = load(name, configuration, machine)
        models[name] = _facts(loaded, configuration)
        weights[name] = {"origin": loaded.model.weights, "sha256": loaded.sha256}
        batches[name] = (
            choose_batch(loaded, configuration.layers[0], configuration.utilities[0], configuration.part)
            if machine.batch == "auto"
            else int(machine.batch)
        )
    return {
        "configuration": wanted,
        "hash": store.fingerprint(wanted),
        "source": str(source.absolute()),
        "labels": str(configuration.labels.absolute()) if configuration.labels else None,
        "versions": {
            name: version(name) for name in ("shapleycam", "torch", "torchvision", "timm", "pillow", "pyarrow")
        }
        | {"python": platform.python_version()},
        "weights": weights,
        "models": models,
        "seed": configuration.seed,
        "device": machine.device,
        "batch": batches,
        "times": {"started": _now()},
    }


def _facts(loaded: Loaded, configuration: Configuration) -> dict[str, Any]:
    model, blank = loaded.model, loaded.blank(1)
    layers: dict[str, Any] = {}
    for layer in configuration.layers:
        layers[layer] = asdict(measure(model, blank, methods="GradCAM", layer=layer, utility="pre-softmax").out.layer)
    facts = {
        "layers": layers,
        "channels_last": loaded.channels_last,
        "preprocess": asdict(model.preprocess),
        "classes": list(model.class_names),
        "wnids": list(model.wnids) if model.wnids else None,
    }
    if configuration.as_published:
        facts["published_layers"] = {
            layer: written
            for layer, at in layers.items()
            if (written := overwriting_layer(model.module, at["name"], blank)) != at["name"]
        }
    return facts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
