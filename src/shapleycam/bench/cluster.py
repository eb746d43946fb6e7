"""A run on Ray Data: actors anywhere in a cluster measure parts, and this process alone writes them.

An actor or a node that is killed costs the parts that it was at: they are done again once the actor has restarted somewhere.
"""

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from queue import Empty, Queue
from socket import gethostname
from threading import Thread
from threading import enumerate as running
from typing import Any

from .actors import Board, Measurer, News
from .allocator import ONE_ARENA
from .claims import POLL, Claims
from .configuration import Machine
from .loaded import Loaded
from .planned import Plan
from .run import Step, Writer
from .store import Unit

CPUS = 0.5
"""What an actor asks for. Where actors take whole ones, they may take all there are, and Ray hangs without a word
(ray-project/ray#44687)."""
CALLS = 2
"""Units that an actor is at: one in the network, and one whose pictures are decoded. As many wait, for Ray gives it more late."""


def measured_on_ray(plan: Plan) -> Generator[Step, None, None]:
    """Measure what is missing, a batch of some actor a step. To stop, close it: parts that are whole are written.

    Raises
    ------
    ValueError
        When another process works on the run, or weights are not those that it began with.
    TimeoutError
        When no actor has finished a batch for `Machine.stall` seconds.
    ActorError
        When a network or a picture's store raised something in an actor.
    OSError
        When there is no cluster at the address, or parts cannot be written and no more fit into memory.
    """
    started, name = time.monotonic(), f"the Ray driver {gethostname()}:{os.getpid()}"
    if not (left := plan.missing()) and plan.ended:
        return
    with closing(Claims(plan.run, name, alone=True, shard=plan.machine.shard, patience=plan.machine.stall)) as claims:
        if left:
            with _connected(plan.machine):
                yield from _steps(plan, left, claims)
        if plan.whole():
            claims.sweep()
            plan.finished(time.monotonic() - started)


def _steps(plan: Plan, left: tuple[Unit, ...], claims: Claims) -> Generator[Step, None, None]:
    import ray

    writer = Writer(plan)
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
    # Each model is put into the object store once, whatever the number of actors.
    models = {name: ray.put(_portable(plan, name)) for name in dict.fromkeys(unit.model for unit in left)}
    parts = _Parts(_dataset(plan, left, models, board))
    parts.start()
    since, asked, done = time.monotonic(), 0.0, Counter[Unit]()
    try:
        while True:
            over = parts.over  # before what is asked for: an error that comes later is raised the next time
            found = parts.next()
            asks = not found or time.monotonic() - asked > POLL  # to ask takes time that parts need
            told, asked = (_told(board), time.monotonic()) if asks else ([], asked)
            for _, step in told:
                done[step.unit] += step.pictures
            # An actor that dies at the same batch each time is heard of for ever; a part that was lost is done again.
            news = any(step.pictures and done[step.unit] <= 3 * len(plan.items_of(step.unit)) for _, step in told)
            since = time.monotonic() if found or news else since
            for unit, data in found:
                writer.part(unit, data, True)
                yield Step(unit, 0, (writer.problem,) if writer.problem else ())
            for actor, step in told:
                claims.tell(step.pictures, len(step.problems))
                yield replace(step, worker=actor)
            if over and not found and not told:
                break
            if time.monotonic() - since > plan.machine.stall:
                raise TimeoutError(_stalled(plan.machine, min(plan.machine.actors, len(left))))
            yield Step(left[0], 0)
    finally:
        parts.end()
        for unit, data in parts.come():
            writer.part(unit, data, True)
        writer.flush()


class ActorError(RuntimeError):
    """What went wrong in an actor, in its words."""


class _Parts(Thread):
    """The parts that actors have measured, waited for where nothing else has to wait."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(name="parts", daemon=True)
        self.dataset, self.over = dataset, False
        self.error: BaseException | None = None
        self._queue: Queue[tuple[Unit, bytes]] = Queue()

    def run(self) -> None:
        try:
            # Not its rows: Ray holds back each until there is another.
            tables = self.dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for row in chain.from_iterable(table.to_pylist() for table in tables):
                unit = Unit(**row["unit"])
                if row["failed"]:
                    raise ActorError(f"an actor failed at part {unit.part} of {unit.model}: {row['failed']}")
                self._queue.put((unit, row["data"]))
        except Exception as error:  # noqa: BLE001 - raised where the driver waits
            from ray.exceptions import RayError

            self.error = ActorError(str(error)) if isinstance(error, RayError) else error
        finally:
            self.over = True

    def next(self) -> list[tuple[Unit, bytes]]:
        """What has come by now, after `POLL` seconds at most."""
        over = self.over  # what came before that is in the queue
        with suppress(Empty):
            return [self._queue.get(timeout=0 if over else POLL)]
        if self.error is not None:
            raise self.error
        return []

    def end(self) -> None:
        """Wait for Ray Data's own thread: Ray ends a process without a word whose threads call it after `ray.shutdown`."""
        for _ in range(10):
            for thread in running():
                if thread.name.startswith("StreamingExecutor"):
                    with suppress(Exception):  # the cluster may be gone
                        thread.shutdown(force=True)  # type: ignore[attr-defined]
            self.join(POLL)

    def come(self) -> Iterator[tuple[Unit, bytes]]:
        """What has come and was not taken."""
        with suppress(Empty):
            while True:
                yield self._queue.get_nowait()


def _dataset(plan: Plan, left: tuple[Unit, ...], models: Mapping[str, Any], board: Any) -> Any:
    import ray.data

    machine = plan.machine
    pool = ray.data.ActorPoolStrategy(
        size=min(machine.actors, len(left)),
        max_tasks_in_flight_per_actor=2 * CALLS,
        max_concurrent_calls_per_actor=CALLS,
        enable_true_multi_threading=True,
    )
    return ray.data.from_items([{"unit": vars(unit)} for unit in left], override_num_blocks=len(left)).map_batches(
        Measurer,
        batch_size=1,
        compute=pool,
        runtime_env={"env_vars": ONE_ARENA},
        num_cpus=CPUS,
        num_gpus=1 if machine.device.startswith("cuda") else 0,
        # In a list, so that it stays a reference: an actor gets it itself.
        fn_constructor_kwargs={"plan": [ray.put(plan)], "models": models, "board": board},
    )


def _portable(plan: Plan, name: str) -> Loaded:
    """A model as an object store takes it: on no accelerator, and not compiled."""
    here = replace(plan, machine=replace(plan.machine, device="cpu"))
    return replace(here.load(name), infer=None)


def _told(board: Any) -> list[News]:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    with suppress(GetTimeoutError, RayActorError):  # with its node it is lost, and made anew on another
        return list[News](ray.get(board.take.remote(), timeout=POLL))
    return []


@contextmanager
def _connected(machine: Machine) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # or what still runs at the end begins another cluster
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it complains of its own doings as errors
    import ray.data

    asked = signal.getsignal(signal.SIGTERM)
    ray.init(address=machine.address, log_to_driver=False, logging_level=logging.ERROR)
    with suppress(ValueError):  # not in the main thread, where alone there are handlers: whoever set one keeps it
        signal.signal(signal.SIGTERM, asked)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _stalled(machine: Machine, actors: int) -> str:
    import ray

    there_are, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    asked = {"CPU": CPUS * actors, "GPU": actors if machine.device.startswith("cuda") else 0}
    said = ", ".join(f"{free.get(k, 0):g} of {there_are.get(k, 0):g} {k}s are free" for k in asked)
    ask, fewer = (" asks", "") if actors == 1 else ("s ask", "fewer (--actors), or ")
    return (
        f"no actor has finished a batch for {machine.stall:g} s; {actors} actor{ask} for "
        f"{asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs, and {said}; give {fewer}a smaller --batch "
        "where actors run out of memory, or more time (--stall SECONDS) where a batch takes that long; the same command "
        "again goes on from there"
    )
