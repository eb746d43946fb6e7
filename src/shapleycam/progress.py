"""A run that a person watches: a bar on a terminal, a line every half minute in a log, and Ctrl-C without loss."""

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from time import monotonic
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .bench.address import reach
from .bench.allocator import keep_freed
from .bench.configuration import Configuration, Machine
from .bench.places import locate
from .bench.planned import Plan, plan
from .bench.ranks import Rank, rank
from .bench.run import NAMED, Step, measured

EVERY = 30.0
"""Seconds between lines in a log."""
WIDE = 110
"""Columns of a terminal that has room for a bar, and model, layer and utility beside the numbers."""
LISTED = 16
"""Processes whose speeds a line of a log gives one by one."""
SHOWN = 10
"""Problems that are printed; all are in the rows."""


def bench(pictures: str, out: str, configuration: Configuration, machine: Machine) -> int:
    """Start a run or go on with it: 0 if all rows have their numbers, 1 if some do not, 128 + signal if it was stopped.

    Raises
    ------
    ValueError, OSError
        As `plan` and the engines.
    """
    keep_freed()
    console, run, me = Console(stderr=True), locate(out), None
    if machine.engine == "torchrun":
        me = rank()
        machine = me.machine(machine)
        me.wait(run, machine.stall)
    if machine.engine == "ray":
        reach(machine.address)
    first = me is None or me.number == 0
    if first:
        _say(console, f"loading {', '.join(configuration.models)}")
    planned = plan(locate(pictures), run, configuration, machine)
    total, left = (sum(len(planned.items_of(unit)) for unit in units) for units in (planned.units, planned.missing()))
    standing = Standing(total, total - left, f"rank {me.number}" if me else "here")
    shown = _bar(console, standing) if console.is_terminal else Log(console, standing)
    problems = 0
    with (
        _stoppable("leaving what actors are at" if machine.engine == "ray" else "finishing this batch") as stopped,
        closing(_engine(planned, me)) as steps,
        shown if first else nullcontext(standing) as watch,  # ranks have one bar
    ):
        for step in steps:
            watch(step)
            if first and step.said:
                _say(console, step.said)
            for problem in step.problems:
                problems += 1
                if problems <= SHOWN:
                    _say(console, f"problem: {problem}")
            if stopped():
                break
        else:
            standing.done = total - sum(len(planned.items_of(unit)) for unit in planned.missing())
            watch(Step(planned.every[-1], 0))  # what others did in the end was not told any more
    return _conclusion(planned, stopped()) if first or stopped() else 0


def _engine(planned: Plan, me: Rank | None) -> Generator[Step, None, None]:
    if planned.machine.engine == "ray":
        from .bench.cluster import measured_on_ray

        return measured_on_ray(planned)
    return measured(planned, f"rank {me.number}" if me else "", watched=me is None or me.number == 0)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _conclusion(planned: Plan, stopped: int) -> int:
    errors, missing, parts = planned.errors(), len(planned.missing()), len(planned.units)
    if missing:
        why = "stopped" if stopped else "ended with parts that could not be written"
        by = "torchrun ... -m " if planned.machine.engine == "torchrun" else ""
        again = f"the same command again goes on from there: {by}shapleycam {shlex.join(sys.argv[1:])}"
        sys.stderr.write(f"{why}; {parts - missing} of {parts} parts are complete, {again}\n")
    else:
        whole = "its one part" if parts == 1 else f"all {parts} parts"
        sys.stdout.write(f"{planned.run}: {len(planned.items)} pictures, {whole} complete\n")
    if errors:
        sys.stderr.write(f"rows without numbers: {errors}; the column status says why\n")
    if planned.machine.engine == "torchrun" and not missing:
        return 0  # torchrun would start all ranks again
    return 128 + stopped if stopped and missing else int(errors > 0 or missing > 0)


class Standing:
    """How far a run is: pictures, pictures/s in all and of each process, failures, and the time that is left."""

    def __init__(self, total: int, done: int, me: str, clock: Callable[[], float] = monotonic) -> None:
        self.total, self.done, self.me, self.clock = total, done, me, clock
        self.began, self.failures, self.where = clock(), 0, ""
        self.pictures: dict[str, int] = {}

    def __call__(self, step: Step) -> None:
        """Count a step."""
        worker = step.worker or self.me
        if step.pictures or step.worker:
            self.pictures[worker] = self.pictures.get(worker, 0) + step.pictures
        self.done = min(self.done + step.pictures + step.found, self.total)  # what a killed one did is done again
        self.failures += step.failures or len(step.problems)
        if step.pictures or step.found or not self.where:  # who only waits names any unit
            self.where = f"{step.unit.model} {step.unit.layer} {step.unit.utility}"

    def speed(self, *, named: bool = True) -> str:
        """Pictures/s in all, and of each process where there are several."""
        seconds = max(self.clock() - self.began, 1e-9)
        each = {name: pictures / seconds for name, pictures in self.pictures.items()}
        said = f"{sum(each.values()):.1f} pictures/s"
        if len(each) < 2:
            return said
        if len(each) <= (LISTED if named else NAMED):
            several = (f"{name} {speed:.1f}" if named else f"{speed:.1f}" for name, speed in sorted(each.items()))
            return f"{said} ({(', ' if named else ' + ').join(several)})"
        speeds = f"{min(each.values()):.1f} to {max(each.values()):.1f}"
        return f"{said} ({len(each)} processes, {speeds} each)" if named else f"{said} ({len(each)} x {speeds})"

    def left(self) -> str:
        """The time that is left, if nothing changes."""
        done = sum(self.pictures.values())
        seconds = (self.total - self.done) * (self.clock() - self.began) / done if done else None
        return "?" if seconds is None else str(timedelta(seconds=round(seconds)))

    def failed(self) -> str:
        """Failures so far, if there are any."""
        return f"{self.failures} failure{'s' * (self.failures > 1)}" if self.failures else ""


@contextmanager
def _bar(console: Console, standing: Standing) -> Iterator[Callable[[Step], None]]:
    wide = console.width >= WIDE
    columns = (
        TextColumn("{task.fields[where]}"), BarColumn(12 if wide else 4), MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[left]} left"), TextColumn("[red]{task.fields[failed]}"),
    )  # fmt: skip
    with Progress(*columns[not wide :], console=console) as progress:
        task = progress.add_task(
            "", total=standing.total, completed=standing.done, where="", speed="", left="?", failed=""
        )

        def watch(step: Step) -> None:
            before = standing.where
            standing(step)
            if not wide and standing.where != before:  # above the bar, for it has no room beside it
                _say(progress.console, standing.where)
            progress.update(
                task, completed=standing.done, where=standing.where, speed=standing.speed(named=False), left=standing.left(),
                failed=standing.failed(),
            )  # fmt: skip

        yield watch


class Log:
    """A line every half minute, also while a batch takes longer: pictures, pictures/s, time left, failures, model and layer."""

    def __init__(self, console: Console, standing: Standing) -> None:
        self.console, self.standing, self.said = console, standing, standing.clock()
        self._over, self._lock = threading.Event(), threading.Lock()
        self._clock = threading.Thread(target=self._speak, name="log", daemon=True)

    def __enter__(self) -> "Log":
        self._clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._clock.join()

    def __call__(self, step: Step) -> None:
        with self._lock:
            self.standing(step)
            self._say()

    def _speak(self) -> None:
        while not self._over.wait(1):
            with self._lock:
                self._say()

    def _say(self) -> None:
        s = self.standing
        if s.clock() - self.said >= EVERY:
            self.said = s.clock()
            words = f"{s.done} of {s.total} pictures", s.speed(), f"{s.left()} left", s.failed(), s.where
            _say(self.console, ", ".join(word for word in words if word))


@contextmanager
def _stoppable(doing: str) -> Iterator[Callable[[], int]]:
    """Gives the number of the signal that asked to stop, or 0; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            sys.exit(128 + number)
        asked.append(number)
        sys.stderr.write(f"{doing}; once more to stop at once\n")

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
