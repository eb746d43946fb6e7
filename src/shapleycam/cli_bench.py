"""The commands for many pictures: plan, bench, table and report."""

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from .bench.configuration import Configuration, Machine
from .cli_lists import as_table


def settings(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take what the command line does not say from the file named by --config."""
    for argument in arguments:
        if argument.name == "--config" and argument.tokens:
            file = Path(argument.tokens[0].value)
            try:
                values = tomllib.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{str(file)!r} is no TOML: {error}") from error
            # Below the command's name, or keys that are commands too, models say, would be passed over.
            Dict({commands[-1]: values}, source=str(file))(app, commands, arguments)


def _default(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


_FLAT = Parameter(name="*", negative_iterable=(), show_default=_default)


def bench(
    pictures: str,
    *,
    out: str,
    config: Path | None = None,
    configuration: Annotated[Configuration, _FLAT] = Configuration(),  # noqa: B008
    machine: Annotated[Machine, _FLAT] = Machine(),  # noqa: B008
) -> int:
    """Measure many pictures; the same command again goes on where it was stopped or killed.

    Lists are names with commas. Exit code 1 means that rows lack numbers, and their status says why.

    Parameters
    ----------
    pictures
        A folder of classes, a flat folder, a .tar, or a text or CSV list of pictures; a path or a URL such as s3://bucket/val.
    out
        The folder of the run, run.json and Parquet parts; a path or a URL.
    config
        A TOML file with the flags below as its keys; what the command line says goes before it.
    """
    from .progress import bench as measure_pictures

    return measure_pictures(pictures, out, configuration, machine)


def plan(
    pictures: str,
    *,
    rate: str = "measured",
    processes: int = 1,
    config: Path | None = None,
    configuration: Annotated[Configuration, _FLAT] = Configuration(),  # noqa: B008
    machine: Annotated[Machine, _FLAT] = Machine(),  # noqa: B008
) -> int:
    """Say what a run will cost at most before it starts: forward passes, hours, rows, and room on the disk.

    Takes the flags of `bench`, and counts every method of every picture; those whose heatmaps coincide cost less.

    Parameters
    ----------
    pictures
        As `bench` takes them, or their number.
    rate
        Forward passes a second of one process, or "measured": each network is timed here, with random weights.
    processes
        How many share the run.
    config
        A TOML file with the flags below as its keys; what the command line says goes before it.
    """
    from .bench.estimate import estimate
    from .bench.places import locate

    try:
        speed = None if rate == "measured" else float(rate)
    except ValueError as error:
        raise ValueError(f"rate is {rate!r}, expected measured or a number of forward passes a second") from error
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected a number of processes, at least 1")
    hours_of = "hours" if processes == 1 else f"hours of {processes}"
    costs = estimate(locate(pictures), configuration, machine, speed)
    hours = [cost.hours / processes for cost in costs]
    rows = [
        (
            cost.model,
            f"{cost.passes:,}",
            f"{cost.rate:.1f}",
            _hours(some),
            f"{cost.rows:,}",
            f"{cost.bytes / 1e6:,.1f}",
        )
        for cost, some in zip(costs, hours, strict=True)
    ]
    passes, all_rows, size = (sum(getattr(cost, name) for cost in costs) for name in ("passes", "rows", "bytes"))
    rows.append(("in all", f"{passes:,}", "", _hours(sum(hours)), f"{all_rows:,}", f"{size / 1e6:,.1f}"))
    return as_table(("network", "passes", "passes/s", hours_of, "rows", "MB on disk"), rows)


def _hours(number: float) -> str:
    return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def table(
    run: str,
    *,
    format: Literal["text", "markdown", "latex", "csv"] = "text",
    against: Literal["published"] | None = None,
    wins: bool = False,
    ci: bool = False,
    sort: str | None = None,
    utilities: str = "",
    methods: str = "",
    baselines: bool = True,
) -> int:
    """Print the tables of a run in percent, as the paper lays them out; neither network nor torch is needed.

    Parameters
    ----------
    run
        The folder given to `shapleycam bench --out`.
    format
        text, markdown, latex or csv.
    against
        "published" sets the paper's numbers beside the run's: difference, 95 % interval, and whether the paper lies in it.
    wins
        Compare the methods with each other on the same pictures; with --format csv a line and a test for each pair.
    ci
        Give each number its 95 % bootstrap interval.
    sort
        Order methods by a metric, best first: AD, Coh, Com, ADCC, IC, ADD, or Ins, Del, ROAD where the run has them.
    utilities
        Compare these utilities of the run, names with commas, as in Table 5.
    methods
        Only these, names with commas.
    baselines
        Show FakeCAM and Gaussian where the run has them, and mark the methods that they beat.
    """
    from .bench.places import locate
    from .bench.tables import table as tabulate

    if against and wins:
        raise ValueError("give --against or --wins, not both: each is a table of its own")
    view: Literal["published", "wins", "scores"] = against or ("wins" if wins else "scores")
    sys.stdout.write(
        tabulate(
            locate(run), format=format, view=view, ci=ci, sort=sort, utilities=names_in(utilities), methods=names_in(methods),
            baselines=baselines,
        )
    )  # fmt: skip
    return 0


def report(run: str, *, out: Path = Path("report.html"), pictures: str | None = None) -> int:
    """Write a run as one HTML file: tables with intervals, plots, the best and the worst pictures with their overlays.

    Parameters
    ----------
    run
        The folder given to `shapleycam bench --out`.
    out
        The file to write.
    pictures
        Where the pictures are now; where the run found them if not given. Without them overlays lie on grey.
    """
    from .bench.places import locate
    from .bench.report import write_report

    write_report(locate(run), out, locate(pictures) if pictures else None)
    sys.stdout.write(f"{out}\n")
    return 0


def names_in(several: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in several.split(",") if name.strip())
