"""Draws how far each method is from the Shapley values in a run: `python -m benchmarks.draw_fidelity RUN OUT.png`.

RUN is a folder that `shapleycam bench ... --fidelity N` wrote; a dot is a picture, a bar the median.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shapleycam.bench.scores import COLUMNS, GAME, ORDER, score_rows
from shapleycam.bench.store import read_rows

NOT_DRAWN = ("RandomCAM", "GradCAM++", "XGradCAM")
"""Their units are not those of the utility: errors in the tens and hundreds."""


def main() -> None:
    """Write the figure."""
    found = score_rows(read_rows(Path(sys.argv[1]), COLUMNS))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axis, scores in zip(axes, found, strict=True):
        names = [name for name in reversed(ORDER) if name in scores.methods and name not in NOT_DRAWN]
        for place, name in enumerate(names):
            errors = scores.game[:, scores.methods.index(name), GAME.index("error")]
            jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(errors))
            axis.plot(errors, place + jitter, ".", color="tab:blue", alpha=0.35, markersize=4)
            axis.plot([np.nanmedian(errors)] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
        noise = float(np.nanmedian(scores.game[..., GAME.index("noise")]))
        axis.axvspan(1e-3, 2 * noise, color="lightgrey", zorder=0)
        axis.set(xscale="log", xlim=(3e-3, 10), xlabel="|E - phi| / |phi|", title=f"{scores.model}, {scores.layer}")
        axis.set_yticks(range(len(names)), names)
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
