"""A run that a person watches: a bar on a terminal, a line every half minute in a log, and Ctrl-C without loss."""

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from time import monotonic
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .bench.configuration import Configuration, Machine
from .bench.planned import Plan, plan
from .bench.run import Step, measured

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
EVERY = 30.0
"""Seconds between lines in a log."""
SHOWN = 10
"""Problems that are printed; all are in the rows."""


def bench(pictures: Path, out: Path, configuration: Configuration, machine: Machine) -> int:
    """Start a run or go on with it: 0 if all rows have their numbers, 1 if some do not, 128 + signal if it was stopped.

    Raises
    ------
    ValueError, OSError
        As `plan` and `measured`.
    """
    console = Console(stderr=True)
    console.print(f"loading {', '.join(configuration.models)}", markup=False, highlight=False, soft_wrap=True)
    planned = plan(pictures, out, configuration, machine)
    total, left = (sum(len(planned.items_of(unit)) for unit in units) for units in (planned.units, planned.missing()))
    log = nullcontext(Log(console, total, total - left))
    problems = 0
    with (
        _stoppable() as stopped,
        closing(measured(planned)) as steps,
        _bar(console, total, total - left) if console.is_terminal else log as watch,
    ):
        for step in steps:
            watch(step)
            for problem in step.problems:
                problems += 1
                if problems <= SHOWN:
                    console.print(f"problem: {problem}", markup=False, highlight=False, soft_wrap=True)
            if stopped():
                break
    return _conclusion(planned, stopped())


def _conclusion(planned: Plan, stopped: int) -> int:
    errors, missing, parts = planned.errors(), len(planned.missing()), len(planned.units)
    if missing:
        why = "stopped" if stopped else "ended with parts that could not be written"
        again = f"the same command again goes on from there: shapleycam {shlex.join(sys.argv[1:])}"
        sys.stderr.write(f"{why}; {parts - missing} of {parts} parts are complete, {again}\n")
    else:
        sys.stdout.write(f"{planned.run}: {len(planned.items)} pictures, all {parts} parts complete\n")
    if errors:
        sys.stderr.write(f"rows without numbers: {errors}; the column status says why\n")
    return 128 + stopped if stopped and missing else int(errors > 0 or missing > 0)


@contextmanager
def explaining(pictures: int, slow: bool) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None] | None]]:
    """A bar of pictures, where there are more than a few, and under it one of what a slow method has done; on a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or (pictures <= 4 and not slow)
    with Progress(*_COLUMNS, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task("pictures", total=pictures)
        inner = progress.add_task("passes", total=None, visible=slow)
        yield (
            lambda: progress.advance(task),
            (lambda done, all_: progress.update(inner, completed=done, total=all_)) if slow else None,
        )


@contextmanager
def coalitions(budget: int) -> Iterator[Callable[[int, int], None]]:
    """A bar of the coalitions played of one picture, on a terminal; gives what is to be told of them."""
    console = Console(stderr=True)
    with Progress(*_COLUMNS, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("coalitions", total=budget)
        yield lambda played, most: progress.update(task, completed=played, total=most)


@contextmanager
def _bar(console: Console, total: int, done: int) -> Iterator[Callable[[Step], None]]:
    first, *rest = _COLUMNS
    with Progress(first, *rest[:-1], _Speed(), rest[-1], console=console) as progress:
        task = progress.add_task("", total=total, completed=done)

        def watch(step: Step) -> None:
            progress.update(task, description=_where(step), advance=step.pictures)

        yield watch


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f} pictures/s")


class Log:
    """A line now and then: pictures, pictures/s, time left, model and layer."""

    def __init__(self, console: Console, total: int, done: int, clock: Callable[[], float] = monotonic) -> None:
        self.console, self.total, self.done, self.clock = console, total, done, clock
        self.began, self.before, self.said = clock(), done, clock()

    def __call__(self, step: Step) -> None:
        self.done += step.pictures
        now = self.clock()
        if now - self.said >= EVERY:
            self.said = now
            speed = (self.done - self.before) / (now - self.began)
            left = str(timedelta(seconds=round((self.total - self.done) / speed))) if speed else "?"
            line = f"{self.done} of {self.total} pictures, {speed:.1f} pictures/s, {left} left, {_where(step)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _where(step: Step) -> str:
    return f"{step.unit.model} {step.unit.layer} {step.unit.utility}"


@contextmanager
def _stoppable() -> Iterator[Callable[[], int]]:
    """Gives the number of the signal that asked to stop, or 0; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        sys.stderr.write("finishing this batch; once more to stop at once\n")

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
