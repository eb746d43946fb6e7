"""Times of contestants, measured in turn in one run, so that a noisy machine is equally unkind to all; and their memory."""

import gc
from collections.abc import Callable
from itertools import accumulate
from statistics import median
from time import perf_counter

from torch.profiler import ProfilerActivity, profile


def ratios(contestants: dict[str, Callable[[], object]], runs: int = 9, least: float = 0.0) -> dict[str, float]:
    """The median over rounds of each contestant's time over the first contestant's, timed before it and behind it.

    A shared machine's speed drifts by half within seconds, so that only neighbours are compared. Each is timed behind an untimed
    call of its own, as in a loop: else it pays for what the one before did to the memory. At least `runs` rounds, and as many as
    take `least` seconds.
    """
    first, *others = contestants
    found: dict[str, list[float]] = {first: [], **{name: [] for name in others}}
    start = perf_counter()
    while len(found[first]) < runs or perf_counter() - start < least:
        before = _seconds(contestants[first])
        for name in others:
            gc.collect()
            mine, after = _seconds(contestants[name]), _seconds(contestants[first])
            found[name].append(2 * mine / (before + after))
            before = after
        found[first].append(1.0)
    return {name: median(each) for name, each in found.items()}


def _seconds(run: Callable[[], object]) -> float:
    run()
    start = perf_counter()
    run()
    return perf_counter() - start


def peak(run: Callable[[], object]) -> float:
    """MiB of tensors that a call holds at its peak above what was there before, by PyTorch's own account; CPU only."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(steps), default=0) / 2**20
