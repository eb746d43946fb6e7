"""Games small enough to play every coalition, and networks small enough to be one: what the theorems are held against."""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import factorial

import torch
from torch import Tensor, nn

from shapleycam import explain
from shapleycam.theory.utility import Utility

Worth = Callable[[frozenset[int]], float]


def shapley_values(worth: Worth, players: int) -> Tensor:
    """phi_j = sum over S without j of |S|! (d - |S| - 1)! / d! (v(S + j) - v(S)); Shapley 1953, float64.

    >>> shapley_values(lambda coalition: float(coalition >= {0, 1}), 3)
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    v = cache(worth)
    values = torch.zeros(players, dtype=torch.float64)
    for player in range(players):
        others = [other for other in range(players) if other != player]
        for size in range(players):
            share = factorial(size) * factorial(players - size - 1) / factorial(players)
            for coalition in map(frozenset, combinations(others, size)):
                values[player] += share * (v(coalition | {player}) - v(coalition))
    return values


def keep(maps: Tensor, coalition: frozenset[int]) -> Tensor:
    """Maps (n, *positions) with every position outside the coalition set to zero."""
    kept = torch.zeros_like(maps)
    for position in coalition:
        kept.flatten(1)[:, position] = maps.flatten(1)[:, position]
    return kept


def network(tail: nn.Module, seed: int, maps: int = 5) -> nn.Sequential:
    """Images (b, 3, 2h, 2w), a layer "maps" with maps (b, 5, h, w) of both signs, a tail; float64, parameters at random.

    Norms have statistics and weights at random too, so that none of them is the identity.
    """
    head = nn.Conv2d(3, maps, 2, stride=2)
    net = nn.Sequential()
    net.add_module("maps", head)
    net.add_module("tail", tail)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
            tensor.normal_(0, fan_in**-0.5, generator=generator)
    return net.double().eval()


def images(seed: int, b: int = 2, size: tuple[int, int] = (6, 6)) -> Tensor:
    """Images (b, 3, *size) of standard normal values."""
    return torch.randn(b, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def played(net: nn.Sequential, image: Tensor, utility: Utility, target: int) -> Tensor:
    """The exact Shapley values (h, w) of the positions of "maps" in one image (3, H, W)."""
    with torch.no_grad():
        maps = net.maps(image[None])[0]

        def worth(coalition: frozenset[int]) -> float:
            return utility(net.tail(keep(maps, coalition)[None]), torch.tensor([target])).item()

        return shapley_values(worth, maps[0].numel()).view(maps.shape[1:])


def explained(net: nn.Sequential, x: Tensor, method: str, utility: Utility, target: int) -> Tensor:
    """E (b, h, w), before the last ReLU, by the library, end to end."""
    return explain(net, x, layer="maps", methods=method, utility=utility, targets=target).explanations[method]


class Head(nn.Sequential):
    """Global average pooling and a linear layer: what most networks end with."""

    def __init__(self, maps: int = 5, classes: int = 4) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, classes))


class Curved(nn.Sequential):
    """A tail that is smooth and nowhere linear: a convolution, GELU, and the head."""

    def __init__(self, maps: int = 5, classes: int = 4) -> None:
        super().__init__(nn.Conv2d(maps, 6, 3, padding=1), nn.GELU(), Head(6, classes))
