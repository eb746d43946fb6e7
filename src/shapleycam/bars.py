"""Bars on a terminal for what explains a few pictures; what is printed beside them stays on its own stream."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .bench.allocator import keep_freed

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def explaining(pictures: int, slow: bool) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None] | None]]:
    """A bar of pictures, where there are more than a few, and under it one of what a slow method has done; on a terminal."""
    with _progress(pictures > 4 or slow) as progress:
        task = progress.add_task("pictures", total=pictures)
        inner = progress.add_task("passes", total=None, visible=slow)
        yield (
            lambda: progress.advance(task),
            (lambda done, all_: progress.update(inner, completed=done, total=all_)) if slow else None,
        )


@contextmanager
def coalitions(budget: int) -> Iterator[Callable[[int, int], None]]:
    """A bar of the coalitions played of one picture, on a terminal; gives what is to be told of them."""
    with _progress(True) as progress:
        task = progress.add_task("coalitions", total=budget)
        yield lambda played, most: progress.update(task, completed=played, total=most)


def _progress(shown: bool) -> Progress:
    keep_freed()
    console = Console(stderr=True)
    # A bar that minds where lines are printed would take those of a pipe or a file to the terminal.
    return Progress(
        *_COLUMNS, console=console, disable=not (shown and console.is_terminal), transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
