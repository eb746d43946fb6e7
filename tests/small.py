"""Networks with a few hundred parameters, their weights drawn, and noise to give them."""

import torch
from torch import Tensor, nn

from shapleycam.network.weights import randomise


def network() -> nn.Sequential:
    """Five classes; conv 0, gelu 1, conv 2, gelu 3 (before pooling), pool 4, flatten 5, linear 6."""
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 20, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)
    )  # fmt: skip
    randomise(made, 0)
    with torch.no_grad():
        made[6].weight *= 8  # else nothing that is masked would change a probability by much
    return made.eval()


def living(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 and eval mode, its weights drawn."""
    randomise(network, seed)
    return network.eval().double()


def noise(*shape: int, seed: int = 1) -> Tensor:
    """In float64, of deviation 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
