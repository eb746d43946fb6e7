"""Times of contestants, measured in turn in one run, so that a noisy machine is equally unkind to all; and their memory."""

import gc
from collections.abc import Callable
from itertools import accumulate
from math import ceil
from statistics import median
from time import perf_counter

from torch.profiler import ProfilerActivity, profile


def ratios(contestants: dict[str, Callable[[], object]], runs: int = 9, least: float = 0.0) -> dict[str, float]:
    """The median over `runs` rounds of each contestant's time over the first contestant's in the same round.

    Each is timed behind an untimed call of its own, as in a loop: else it pays for what the one before did to the memory. As
    many calls are timed at once as take `least` seconds.
    """
    rounds = []
    for _ in range(runs):
        times = {}
        for name, run in contestants.items():
            gc.collect()
            start = perf_counter()
            run()
            calls = max(1, ceil(least / (perf_counter() - start)))
            start = perf_counter()
            for _ in range(calls):
                run()
            times[name] = (perf_counter() - start) / calls
        rounds.append(times)
    first = next(iter(contestants))
    return {name: median(times[name] / times[first] for times in rounds) for name in contestants}


def peak(run: Callable[[], object]) -> float:
    """MiB of tensors that a call holds at its peak above what was there before, by PyTorch's own account; CPU only."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(steps), default=0) / 2**20
