"""What runs in Ray's actors: one measures parts, another hears of it."""

import os
import traceback
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from socket import gethostname
from typing import Any, TypeAlias

from .allocator import keep_freed
from .batches import decoded, jobs
from .loaded import Loaded, class_indices, there
from .planned import Plan
from .run import Step, unit_steps
from .store import Unit

News: TypeAlias = tuple[str, Step]
"""An actor, and what it has done."""


class Board:
    """An actor to which the others say what they have done."""

    def __init__(self) -> None:
        self.news: list[News] = []

    def tell(self, news: News) -> None:
        self.news.append(news)

    def take(self) -> list[News]:
        taken, self.news = self.news, []
        return taken


class Measurer:
    """An actor that measures units one after the other, and decodes the next one's pictures meanwhile.

    It is called from several threads; the network is run by one, and there is one model at a time.
    """

    def __init__(self, plan: Any, models: Mapping[str, Any], board: Any) -> None:
        import ray

        keep_freed()
        self.plan: Plan = ray.get(plan[0])
        self.models, self.board, self.name = models, board, f"{gethostname()}:{os.getpid()}"
        self._has: tuple[str, Loaded, dict[str, int | None]] | None = None
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        unit, parts, failed = Unit(**batch["unit"][0]), [b""], ""
        try:
            parts = self._part(unit)
        except Exception as error:  # noqa: BLE001 - Ray would keep its words to itself
            last = traceback.extract_tb(error.__traceback__)[-1]
            failed = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno}, in {last.name})"
        return {"unit": batch["unit"], "data": parts, "failed": [failed]}

    def _part(self, unit: Unit) -> list[bytes]:
        has = self._has
        if has is None or has[0] != unit.model:
            has = self._network.submit(self._model, unit.model).result()
        todo = jobs(self.plan, unit, self.plan.batch(unit.model))
        with closing(decoded(todo, has[1].model, self.plan.machine.threads)) as batches:
            ready = chain((next(batches),), batches)
            return self._network.submit(self._measured, unit, *has[1:], ready).result()

    def _measured(
        self, unit: Unit, loaded: Loaded, labels: dict[str, int | None], batches: Iterable[Any]
    ) -> list[bytes]:
        parts = list[bytes]()
        for step in unit_steps(self.plan, loaded, labels, unit, batches, lambda unit, data, whole: parts.append(data)):
            self.board.tell.remote((self.name, step))
        return parts

    def _model(self, name: str) -> tuple[str, Loaded, dict[str, int | None]]:
        import ray

        if self._has is None or self._has[0] != name:
            self._has = None  # makes room
            loaded = there(ray.get(self.models[name]), self.plan.machine.device, self.plan.configuration.compile)
            self._has = name, loaded, class_indices(loaded.model, self.plan.items)
        return self._has
