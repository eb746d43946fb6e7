"""How fast the page answers beyond drawing, and what users at random leave in memory: `python -m benchmarks.page [--quick]`.

EfficientNet-Lite0. A switch of method, class or utility is one expansion behind the cut; the network in front does not run
again. The page's own events are called by twenty users in turn, who open a picture anew in one of five requests.
"""

import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import shapleycam as sc
from shapleycam.web.blocks import EXAMPLES
from shapleycam.web.page import Page


def milliseconds(run: Callable[[], object], runs: int = 15) -> float:
    """The median time of a call, after a warm one."""
    run()
    times = []
    for _ in range(runs):
        start = perf_counter()
        run()
        times.append(1000 * (perf_counter() - start))
    return median(times)


def main() -> None:
    """Print two small tables."""
    requests = 100 if "--quick" in sys.argv else 1000
    model = sc.load_model("efficientnet_lite0")
    with tempfile.TemporaryDirectory() as folder:
        page = Page({model.name: model}, Path(folder))
        seen = page.open(EXAMPLES["cat"], model.name, None, "me")
        print("| event | ms, median of 15 |\n|---|--:|")
        print(f"| open a picture | {milliseconds(lambda: page.open(EXAMPLES['cat'], model.name, None, 'me')):.0f} |")
        for name in ("GradCAM", "ShapleyCAM", "AumannCAM"):
            print(f"| switch to {name} | {milliseconds(lambda name=name: seen.explain([name], None, 'rest')):.0f} |")
        print(f"| another class | {milliseconds(lambda: seen.explain(['ShapleyCAM'], 3, 'rest')):.0f} |")
        print(f"| a player leaves | {milliseconds(lambda: seen.without([3, 17], 282, 'rest')):.0f} |")
        shown = milliseconds(lambda: page.shown("me", "ShapleyCAM", None, "rest", 0.5, "inferno"))
        print(f"| switch with drawing | {shown:.0f} |")
        print("\n| requests of 20 users | MiB at the peak | open pictures |\n|--:|--:|--:|")
        draw = random.Random(0)
        for request in range(1, requests + 1):
            user = f"user {draw.randrange(20)}"
            if page.looks.get(user) is None or draw.random() < 0.2:
                page.open(draw.choice([*EXAMPLES.values()]), model.name, draw.choice(["gap", "conv"]), user)
            target, utility = draw.choice([None, 3, 282]), draw.choice([*sc.UTILITIES])
            event = draw.randrange(5)
            if event < 2:
                page.shown(user, draw.choice([*sc.METHODS]), target, utility, draw.random(), "viridis")
            elif event == 2:
                page.of(user).without(draw.sample(range(49), 9), target or 0, utility)
            elif event == 3:
                page.downloads(user, "GradCAM", target, utility, 0.5, "inferno")
            else:
                page.leave(user)
            if request % (requests // 5) == 0:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                print(f"| {request} | {peak} | {len(page.looks)} |", flush=True)


if __name__ == "__main__":
    main()
