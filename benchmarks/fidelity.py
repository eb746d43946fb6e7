"""How true heatmaps are: `python -m benchmarks.fidelity PICTURES [COUNT]`, PICTURES a folder of pictures.

Each method's explanation against the sampled Shapley values of the game that it explains, EfficientNet-Lite0 with its trained
weights, ReST, the predicted class: medians over the pictures of the relative L2 error and of Pearson's correlation, with 95 %
bootstrap intervals. Then the two samplers against each other: their true error at the same number of coalitions.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import shapleycam as sc

PLACES = {"gap": (20, 4_000), "conv": (20, 4_000), "blocks.5": (12, 10_000)}
"""Layers, with the pictures and the coalitions a picture."""
METHODS = (
    "HiResCAM",
    "ShapleyCAM-H",
    "AumannCAM-H",
    "GradCAM",
    "ShapleyCAM",
    "AumannCAM",
    "GradCAM-E",
    "ShapleyCAM-E",
    "AumannCAM-E",
)


def median(values: np.ndarray) -> str:
    """The median with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, 1), (2.5, 97.5))
    return f"{np.median(values):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the tables of docs/fidelity.md."""
    pictures = sorted(path for path in Path(sys.argv[1]).iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    model = sc.load_model("efficientnet_lite0")
    print("| layer | pictures | method | error | Pearson | within noise |")
    print("|---|--:|---|--:|--:|--:|")
    for layer, (count, budget) in PLACES.items():
        some = pictures[: int(sys.argv[2]) if len(sys.argv) > 2 else count]
        found = [
            sc.fidelity(model, model.preprocess(path), layer=layer, methods=METHODS, budget=budget, tolerance=0.0)
            for path in some
        ]
        errors, correlations = (
            torch.cat([getattr(each, name) for each in found]).numpy() for name in ("error", "pearson")
        )
        within = torch.cat([each.within_noise for each in found]).double().mean(0).numpy()
        for i, name in enumerate(METHODS):
            cells = (layer, str(len(some)), name, median(errors[:, i]), median(correlations[:, i]), f"{within[i]:.0%}")
            print("| " + " | ".join(cells) + " |", flush=True)
        noise = median(np.array([float(each.noise) for each in found]))
        print(f"| {layer} | {len(some)} | the reference itself | {noise} | | |", flush=True)
    print("\n| layer | coalitions | permutations | kernel |\n|---|--:|--:|--:|")
    for layer in ("gap", "conv"):
        games = [sc.game(model, model.preprocess(path)[0], layer=layer) for path in pictures[:5]]
        truth = [sc.sampled(game, tolerance=0.0, budget=40_000, seed=1).values for game in games]
        for budget in (4_000, 8_000):
            cells = []
            for method in ("permutations", "kernel"):
                values = [sc.sampled(game, tolerance=0.0, budget=budget, method=method).values for game in games]
                errors = [float((a - b).norm() / b.norm()) for a, b in zip(values, truth, strict=True)]
                cells.append(f"{np.median(errors):.4f}")
            print(f"| {layer} | {budget} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
