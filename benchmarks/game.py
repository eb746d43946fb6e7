"""What playing costs: `python -m benchmarks.game`.

The path row (three methods, K = 8) over plain inference; a replay of ResNet-50's tail over the same tail written by hand, and
1,000 coalitions over one forward pass; 2^16 coalitions of a small head in seconds. Medians of ratios measured in turn.
"""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional as F

import shapleycam as sc
from shapleycam.network.weights import randomise

from .clock import ratios


def path_row(network: str, layer: str, batch: int) -> float:
    """The time of the path row over that of inference."""
    model = sc.load_model(network, weights="random")
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))

    def infer() -> object:
        with torch.inference_mode():
            return model.module(images)

    rounds = 21 if batch == 1 else 7
    return ratios({"inference": infer, "path": lambda: sc.explain(model, images, methods="path", layer=layer)}, rounds)[
        "path"
    ]


def by_hand(game: sc.Game, module: nn.Module, identity: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The tail of ResNet-50 behind layer4.2.conv3, as one would write it."""
    block = module.layer4[2]

    def worth(coalitions: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            maps = game.maps * coalitions.view(-1, 1, *game.layer.positions)
            out = F.relu(block.bn3(maps) + identity)
            logits = module.fc(out.mean((2, 3)))
            return logits[:, game.target] + logits.log_softmax(1)[:, game.target]

    return worth


def main() -> None:
    """Print the numbers of docs/fidelity.md."""
    print("| network | layer | batch | path row over inference |\n|---|---|--:|--:|")
    for network in ("resnet50", "efficientnet_lite0"):
        for layer in ("gap", "conv"):
            for batch in (1, 8):
                print(f"| {network} | {layer} | {batch} | {path_row(network, layer, batch):.2f} |", flush=True)

    model = sc.load_model("resnet50", weights="random")
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    game = sc.game(model, image, layer="conv")
    coalitions = torch.rand(1000, game.players, generator=torch.Generator().manual_seed(0)) < 0.5
    kept: list[torch.Tensor] = []
    handle = model.module.layer4[1].register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        model.module(image)
    handle.remove()
    hand = by_hand(game, model.module, kept[0])
    some = coalitions[:40]
    torch.testing.assert_close(game.worth(some), hand(some), rtol=1e-4, atol=1e-4)

    def infer() -> object:
        with torch.inference_mode():
            return model.module(image)

    replay = ratios({"hand": lambda: hand(some), "replay": lambda: game.worth(some)}, 15)["replay"]
    passes = ratios({"pass": infer, "coalitions": lambda: game.worth(coalitions)}, 7)["coalitions"]
    print(f"\nreplay of 40 coalitions over the tail by hand: {replay:.2f}")
    print(f"1,000 coalitions over one forward pass: {passes:.1f}")

    small = nn.Sequential(nn.Conv2d(3, 16, 3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    randomise(small, 0)
    tiny = sc.game(small.eval(), torch.rand(3, 32, 32), layer="1")
    start = perf_counter()
    sc.exact(tiny)
    print(f"2^{tiny.players} coalitions of a small head: {perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
