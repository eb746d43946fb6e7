"""What sharing a run costs: `python -m benchmarks.scale PICTURES [workers] [cost] [growth]`, all three if none is named.

workers: pictures/s of two workers on two cores over one on one core, of efficientnet_lite0, one thread each: two processes on
one folder, two ranks of torchrun, two actors of Ray; and two processes that share nothing, which is what the machine allows.
While all of them work: starting and the end are left out. All are there at once, and take turns of two seconds, in which the
processes of the others are stopped. Linux only.

cost: what an engine adds to a tiny network's 2,000 pictures: 1 less the pictures/s of one worker over those of a bare loop that
reads and measures the same batches, and neither claims nor writes. Starting is left out there too, and told apart: seconds
until the first part is written. Medians of seven rounds.

growth: a network that does nothing on ever more parts, up to 50,000 pictures, twelve networks and two layers: seconds and
resident memory of the run, and of the table of its rows.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from PIL import Image

from shapleycam.bench import run as bench
from shapleycam.bench import store
from shapleycam.bench.allocator import keep_freed
from shapleycam.bench.batches import Job, decoded, jobs, rows_of
from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.datasets import Item
from shapleycam.bench.loaded import class_indices
from shapleycam.bench.paper import NAMES
from shapleycam.bench.planned import Plan, plan
from shapleycam.bench.run import measured
from shapleycam.bench.scores import ORDER

ENGINES = {
    "one process": ("local", 1),
    "two apart": ("apart", 2),
    "two processes": ("local", 2),
    "torchrun": ("torchrun", 2),
    "Ray": ("ray", 2),
}
PART = 64
BEGUN = 5
"""Parts of a run that are done before every worker has begun: they start one after the other."""
TURN, TURNS = 2.0, 60
"""Seconds for which a run goes on while others stand still, too few for anyone to be taken for dead; and how often it does."""


class Run:
    """A command that measures pictures with some workers, one thread each, and all the processes that it has begun."""

    def __init__(self, pictures: Path, out: Path, engine: str, workers: int, *flags: str, cores: int = 2) -> None:
        """`cores` are those that it may use; engine "apart" makes as many runs as workers, which share nothing."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        call = [sys.executable, *(torchrun if engine == "torchrun" else ()), "-m", "shapleycam", "bench", str(pictures)]
        call += ["--engine", "local" if engine == "apart" else engine, "--actors", str(workers), "--workers", "1"]
        self.runs = [out / f"{number}" for number in range(workers if engine == "apart" else 1)]
        self.begun, every = time.time(), os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(every)[:cores])  # which processes that are started from here keep
        self.processes = [
            subprocess.Popen(
                [*call, *flags, "--out", str(run)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for run in self.runs
            for _ in range(workers if engine == "local" else 1)
        ]
        os.sched_setaffinity(0, every)

    def written(self) -> list[float]:
        """When its parts were."""
        return sorted(path.stat().st_mtime for run in self.runs for path in run.rglob("*.parquet"))

    def end(self) -> None:
        """Wait for it."""
        for process in self.processes:
            if said := process.communicate()[1] if process.wait() else "":
                raise RuntimeError(f"failed: {process.args}\n{said}")

    def signal(self, number: int) -> None:
        """Tell all of its processes, those that others began for it too."""
        above = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it is over
                above[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        queue = [process.pid for process in self.processes]
        for pid in queue:
            queue += [child for child, parent in above.items() if parent == pid]
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def started(pictures: Path, out: Path, engine: str, *flags: str) -> tuple[float, float]:
    """Parts a second of a run with one worker and one thread, once it has begun; and seconds until the first part was there."""
    run = Run(pictures, out, engine, 1, *flags)
    run.end()
    return rate(run.written()[BEGUN:]), run.written()[0] - run.begun


def rate(ends: list[float]) -> float:
    """Parts a second, of the times at which they ended: the slope of a straight line, for those of two workers end in pairs."""
    return float(np.polyfit(np.subtract(ends, ends[0]), range(len(ends)), 1)[0])


def workers(pictures: Path, folder: Path) -> None:
    """Print how much faster two are than one."""
    flags = ["--models", "efficientnet_lite0", "--layers", "gap", "--part", "5", "--batch", "5", "--no-channels-last"]
    many = folder / "many"  # parts that all take as long, more than the turns have time for
    for copy in range(16):
        shutil.copytree(pictures, many / f"{copy}")
    runs = dict[str, Run]()
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    try:
        for name, (engine, count) in ENGINES.items():
            runs[name] = run = Run(many, folder / name, engine, count, *flags, cores=count)
            while len(run.written()) < BEGUN * len(run.runs):
                if any(process.poll() for process in run.processes):
                    run.end()
                time.sleep(0.1)
            run.signal(signal.SIGSTOP)
        # While one is at work the others stand still, for seconds, so that the machine's speed drifts for all of them alike.
        for _ in range(TURNS):
            for name, run in runs.items():
                run.signal(signal.SIGCONT)
                begun = time.time()
                time.sleep(TURN)
                run.signal(signal.SIGSTOP)
                turns[name].append((begun, time.time()))
                if any(process.poll() is not None for process in run.processes):
                    raise RuntimeError(f"{name} ended before its {TURNS} turns were over; give more pictures")
        rates = dict[str, float]()
        for name, run in runs.items():
            ends = [end for end in run.written() if end > turns[name][0][0]]
            rates[name] = rate([sum(max(0.0, min(end, till) - since) for since, till in turns[name]) for end in ends])
        for name in list(ENGINES)[1:]:
            print(f"{name}: {rates[name] / rates['one process']:.2f} times one process", flush=True)
    finally:
        for run in runs.values():
            run.signal(signal.SIGKILL)
            for process in run.processes:
                process.communicate()


def cost(folder: Path, count: int = 2000) -> None:
    """Print what each engine adds to the measuring itself, with one worker."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number % 20).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:06}.png")
    flags = ("--models", "benchmarks.bench_flow:tiny", "--part", str(PART), "--batch", "32", "--no-channels-last")
    found: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    for turn in range(7):
        found.setdefault("bare", []).append(bare(pictures, folder / f"bare{turn}"))
        for engine in ("local", "torchrun", "ray"):
            speed, wait = started(pictures, folder / f"{engine}{turn}", engine, *flags)
            found.setdefault(engine, []).append(speed)
            waits.setdefault(engine, []).append(wait)
    for engine in ("local", "torchrun", "ray"):
        ratios = [mine / alone for mine, alone in zip(found[engine], found["bare"], strict=True)]
        share, wait = 100 * (1 - median(ratios)), median(waits[engine])
        print(
            f"{engine}: {share:.0f} % of the run is the engine's, {count} pictures; the first part after {wait:.1f} s"
        )


def bare(pictures: Path, out: Path) -> float:
    """Parts a second of a process of its own that measures the same batches, and neither claims nor writes."""
    call = [sys.executable, "-m", "benchmarks.scale", "--bare", str(pictures), str(out)]
    done = subprocess.run(call, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _bare(pictures: Path, out: Path) -> float:
    keep_freed()  # as the command does
    configuration = Configuration(models=("benchmarks.bench_flow:tiny",), part=PART)
    planned = plan(pictures, out, configuration, Machine(batch="32", channels_last=False, workers=1))
    loaded = planned.load(configuration.models[0])
    labels = class_indices(loaded.model, planned.items)
    todo = (job for unit in planned.units for job in jobs(planned, unit, 32))
    ends = []
    for job, reads in decoded(todo, loaded.model, 1):
        rows_of(planned, loaded, labels, job, reads)
        if job.last:
            ends.append(time.perf_counter())
    return rate(ends[BEGUN:])


def growth(folder: Path) -> None:
    """Print seconds and memory of runs that measure nothing, and of their tables."""
    print(f"{'rows':>10}  {'parts':>6}  {'run s':>7}  {'ms a part':>9}  {'MiB':>6}  {'table s':>7}  {'MiB':>6}")
    for pictures in (3_125, 12_500, 50_000):
        out = folder / f"grown{pictures}"
        call = [sys.executable, "-m", "benchmarks.scale"]
        seconds, memory = _timed([*call, "--nothing", str(pictures), str(out)])
        table, room = _timed([sys.executable, "-m", "shapleycam", "table", str(out)])
        parts = len(list(out.rglob("*.parquet")))
        rows = pictures * len(NAMES) * 2 * 10
        print(
            f"{rows:10,}  {parts:6}  {seconds:7.1f}  {1000 * seconds / parts:9.1f}  {memory:6.0f}  {table:7.1f}  {room:6.0f}",
            flush=True,
        )


def _timed(call: list[str]) -> tuple[float, float]:
    """Seconds and MiB of the largest resident memory of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"failed: {' '.join(call)}")
    return time.perf_counter() - start, used.ru_maxrss * 1024 / 2**20 if resource else 0.0


def _nothing(count: int, out: Path) -> None:
    """A run of the paper's grid in which decoding gives nothing and rows are made up."""
    methods = tuple(name for name in ORDER if not name.startswith("Aumann"))
    configuration = Configuration(models=("paper",), layers=("gap", "conv"), part=PART)
    items = tuple(
        Item(f"ILSVRC2012_val_{n:08}.JPEG", n % 1000, partial(Path, f"{n}.JPEG")) for n in range(1, count + 1)
    )
    wanted = configuration.facts(methods, {"count": count, "sha256": ""})
    facts = {
        "configuration": wanted,
        "hash": store.fingerprint(wanted),
        "models": {key: {} for key in configuration.models},
        "weights": {key: {"sha256": "x"} for key in configuration.models},
        "batch": dict.fromkeys(configuration.models, PART),
        "times": {},
    }
    planned = Plan(out, items, configuration, Machine(), store.begin(out, facts))
    made = _made_up(methods)

    def rows(plan: Plan, loaded: Any, labels: Any, job: Job, reads: Any) -> pa.Table:
        some = made.slice(0, len(job.items) * len(methods))
        names = [item.name for item in job.items for _ in methods]
        own = {"model": job.unit.model, "layer": job.unit.layer, "utility": job.unit.utility}
        columns = {name: pa.array([value] * len(names)) for name, value in own.items()} | {"picture": pa.array(names)}
        return pa.table({name: columns.get(name, some[name]) for name in store.SCHEMA.names}, schema=store.SCHEMA)

    class Nothing:
        sha256 = "x"
        model = None

    with (
        patch.object(bench, "rows_of", rows),
        patch.object(bench, "decoded", lambda todo, model, threads: ((job, []) for job in todo)),
        patch.object(bench, "class_indices", lambda model, items: {}),
        patch.object(Plan, "load", lambda self, name: Nothing()),
    ):
        for _ in measured(replace(planned)):
            pass


def _made_up(methods: tuple[str, ...]) -> pa.Table:
    count, rng = PART * len(methods), np.random.default_rng(0)
    maps, scales = store.pack(rng.standard_normal((count, 7, 7)).astype(np.float32))
    numbers = ("full", "kept", "deleted", "coherency", "complexity", "discrimination")
    columns: dict[str, Any] = {
        "method": list(methods) * PART,
        **{name: rng.random(count).astype(np.float32) for name in numbers},
        "label": np.zeros(count, np.int32),
        "predicted": rng.integers(0, 2, count).astype(np.int32),
        "map": list(maps.reshape(count, 49)),
        "map_scale": scales,
        "status": [store.OK] * count,
    }
    blank = [None] * count
    return pa.table(
        {each.name: pa.array(columns.get(each.name, blank), each.type) for each in store.SCHEMA}, schema=store.SCHEMA
    )


def main() -> None:
    """Print what was asked for."""
    if sys.argv[1] == "--bare":
        print(_bare(Path(sys.argv[2]), Path(sys.argv[3])))
        return
    if sys.argv[1] == "--nothing":
        _nothing(int(sys.argv[2]), Path(sys.argv[3]))
        return
    asked = sys.argv[2:] or ["workers", "cost", "growth"]
    with tempfile.TemporaryDirectory() as folder:
        if "workers" in asked:
            workers(Path(sys.argv[1]), Path(folder))
        if "cost" in asked:
            cost(Path(folder))
        if "growth" in asked:
            growth(Path(folder))


if __name__ == "__main__":
    main()
