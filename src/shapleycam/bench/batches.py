"""The batches of a part: which pictures are left, decoded ahead of the network, and the rows that they give."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from torch import Tensor

from ..faithfulness import Fidelity, fidelity
from ..measurement import Measurements, measure
from ..network.pictures import PictureError, label, pixels
from ..network.zoo import Model
from ..searches import on_image
from ..theory.cams import METHODS
from . import store
from .datasets import Item
from .loaded import Loaded
from .places import passes, store_errors
from .planned import Plan
from .rows import failed_rows, measured_rows
from .store import Unit

AHEAD = 2
"""Batches that are decoded ahead of the one that the network sees."""
PROBES = 16
"""Pictures, from all over the run, one of which must be there where none of a batch could be read."""
Read: TypeAlias = Tensor | PictureError


@dataclass(frozen=True)
class Job:
    """A batch of a unit, and the rows that the unit has on disk already."""

    unit: Unit
    items: tuple[Item, ...]
    taken: pa.Table | None
    last: bool
    """Whether the unit ends with it."""


def jobs(plan: Plan, unit: Unit, batch: int) -> Iterator[Job]:
    """What is left to do of a unit."""
    taken = store.read_part(unit.path(plan.run)) if plan.footer(unit) else None
    done = set(taken["picture"].to_pylist()) if taken else set()
    left = tuple(item for item in plan.items_of(unit) if item.name not in done)
    for start in range(0, max(len(left), 1), batch):
        yield Job(unit, left[start : start + batch], taken, start + batch >= len(left))


def decoded(some: Iterable[Job], model: Model, threads: int) -> Generator[tuple[Job, list[Read]], None, None]:
    """The batches with their pictures' pixels, decoded by threads that are never more than `AHEAD` batches ahead.

    The next unit, which is claimed when it is asked for, is begun when one batch is left of the one before.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    queue: deque[tuple[Job, list[Future[Read]]]] = deque()
    try:
        for job in some:
            queue.append((job, [pool.submit(_read, item, model.preprocess.crop) for item in job.items]))
            while len(queue) > (1 if job.last else AHEAD):
                first, reads = queue.popleft()
                yield first, [read.result() for read in reads]
        while queue:
            first, reads = queue.popleft()
            yield first, [read.result() for read in reads]
    finally:
        pool.shutdown(cancel_futures=True)


def _read(item: Item, crop: Callable[[Any], Any]) -> Read:
    opened: Path | bytes = b""
    try:
        return pixels(crop(opened := item.open()))
    except PictureError as error:
        if isinstance(error.__cause__, OSError) and passes(error.__cause__):  # nothing that the picture is to blame for
            raise error.__cause__ from error
        return PictureError(str(error).replace(label(opened), repr(item.name)))  # the same wherever the pictures are
    except OSError as error:
        if passes(error):
            raise
        return PictureError(f"{item.name} cannot be read: {error.strerror or type(error).__name__}")


def _refuse_lost(plan: Plan, none_read: bool) -> None:
    """Pictures that are all gone are no rows: a folder is not mounted, say, or a token has expired."""
    apart = max(1, len(plan.items) // PROBES)
    gone = plan.source is not None and not plan.source.exists()
    if gone or (none_read and not any(map(_there, plan.items[::apart]))):
        raise FileNotFoundError(
            f"the pictures are no longer at {str(plan.source)!r}; bring them back, the same command again goes on from there"
        )


def _there(item: Item) -> bool:
    with suppress(OSError, *store_errors()):
        opened = item.open()
        return isinstance(opened, bytes) or os.access(opened, os.R_OK)
    return False


def rows_of(plan: Plan, loaded: Loaded, labels: dict[str, int | None], job: Job, reads: list[Read]) -> pa.Table:
    """The rows of a batch, in the order of its pictures."""
    c, unit, items = plan.configuration, job.unit, job.items
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
    if bad:
        _refuse_lost(plan, none_read=not any(isinstance(read, Tensor) for read in reads))
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
            budget=c.budget, randomised=loaded.randomised if "randomisation" in c.metrics else None,
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
            loaded.model, images, methods=methods, layer=each.out.layer.name, targets=each.targets,
            layout=each.out.layer.layout, utility=unit.utility, budget=c.fidelity, seed=c.seed, keys=names,
        )
        for each in found
        if (methods := tuple(name for name in each.out.explanations if not on_image(name)))
    ]  # fmt: skip


def _is_second(name: str) -> bool:
    return name in METHODS and METHODS[name].order == "second"


def _ordered(rows: pa.Table, items: tuple[Item, ...]) -> pa.Table:
    places = {item.name: place for place, item in enumerate(items)}
    order = sorted(range(rows.num_rows), key=[places[name] for name in rows["picture"].to_pylist()].__getitem__)
    return rows.take(pa.array(order, pa.int64()))  # of no rows as well
