"""Shapley values of any game: exact for few players, sampled for many.

A game is a function `worth` from coalitions, a boolean matrix (k, d) with a row for each, to their worths (k,).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import comb, factorial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .draws import uniform

Coalitions = Bool[Tensor, "k d"]
Worths = Float[Tensor, " k"]
Values = Float[Tensor, " d"]
Progress = Callable[[int, int], object]
"""Told now and then how many coalitions were played, of how many at most."""
MOST = 20
"""Players of which all coalitions can be played."""
ENOUGH = 16
"""Pairs of permutations whose standard errors may be relied on to stop."""
ROOM = 2**22
"""Numbers of a matrix of coalitions that is made at a time, so that memory is bounded."""
BATCHES = 20
"""Independent estimates that KernelSHAP's standard errors are made of."""


def _silent(played: int, budget: int) -> None: ...


@runtime_checkable
class Game(Protocol):
    """What can be played: `worth` of coalitions of `players` players."""

    @property
    def players(self) -> int: ...

    def worth(self, coalitions: Coalitions, /) -> Worths: ...


@dataclass(frozen=True)
class ShapleyValues:
    """What each of d players earned."""

    values: Values
    """In units of the utility; they add up to the worth of all players less that of none."""
    errors: Values
    """Standard errors; zero for exact values."""
    evaluations: int
    """Coalitions that were played."""

    @property
    def noise(self) -> float:
        """The standard errors' length over that of the values: what a relative L2 error cannot tell from zero."""
        return _relative(self.errors, self.values)


def exact(game: Game) -> ShapleyValues:
    """Shapley values by playing all 2^d coalitions, Eq. (7) with the inverse of the binomial; in float64.

    Raises
    ------
    ValueError
        For more than 20 players.
    """
    d = _few(game)
    worths = _all_worths(game)
    weights = [1 / (d * comb(d - 1, s)) for s in range(d)]
    values = torch.stack([_weighed(high - low, weights) for low, high in (_split(worths, j) for j in range(d))])
    return ShapleyValues(values, torch.zeros_like(values), len(worths))


def exact_interactions(game: Game) -> Float[Tensor, "d d"]:
    """Shapley interaction indices of all pairs (Grabisch and Roubens 1999), by playing all coalitions; zero diagonal.

    Positive for players that need each other, negative for those that are redundant.

    Raises
    ------
    ValueError
        For more than 20 players, or a single one.
    """
    d = _few(game)
    if d < 2:
        raise ValueError("a single player has nobody to interact with")
    worths = _all_worths(game)
    weights = [factorial(d - s - 2) * factorial(s) / factorial(d - 1) for s in range(d - 1)]
    table = worths.new_zeros(d, d)
    for i in range(d):
        low, high = _split(worths, i)
        for j in range(i):  # below bit i, so still bit j of what is left
            without, with_j = _split(high - low, j)
            table[i, j] = table[j, i] = _weighed(with_j - without, weights)
    return table


def by_permutations(
    game: Game, budget: int, tolerance: float = 0.0, seed: int = 0, progress: Progress = _silent
) -> ShapleyValues:
    """Shapley values from permutations and their reverses, Eq. (8); efficiency holds exactly.

    Standard errors are those of the mean over pairs. It stops once `noise` is within the tolerance, from 16 pairs on, or before a
    pair would exceed the budget of coalitions, but not before four pairs; of fewer than 16 the errors are rough.
    """
    d = game.players
    empty, full = _ends(game)
    if d == 1:
        return ShapleyValues((full - empty)[None], torch.zeros(1).to(full), 2)
    pairs: list[Tensor] = []
    spent = 2
    for block in _blocks(max(4, (budget - 2) // (2 * (d - 1)))):
        orders = uniform(torch.tensor(block, device=full.device), d, seed).argsort(1)
        orders = torch.cat([orders, orders.flip(1)])
        ranks = orders.argsort(1)
        steps = torch.arange(1, d, device=full.device)
        chains = ranks[:, None, :] < steps[:, None]  # (orders, d - 1, d): the first 1, 2, ... players of each
        worths = game.worth(chains.flatten(0, 1)).to(torch.float64).view(len(orders), d - 1)
        ladder = torch.cat([empty.expand(len(orders), 1), worths, full.expand(len(orders), 1)], 1)
        gains = ladder.diff(dim=1).gather(1, ranks)
        pairs.append((gains[: len(block)] + gains[len(block) :]) / 2)
        spent += worths.numel()
        found = _mean(torch.cat(pairs), spent)
        progress(spent, budget)
        if len(torch.cat(pairs)) >= ENOUGH and found.noise <= tolerance:
            break
    return found


def by_kernel(
    game: Game, budget: int, tolerance: float = 0.0, seed: int = 0, progress: Progress = _silent
) -> ShapleyValues:
    """Shapley values by KernelSHAP (Lundberg and Lee 2017) with paired sampling (Covert and Lee 2021).

    Weighted least squares under efficiency, which holds exactly, in independent batches: values are their mean, standard errors
    those of the mean. It stops once `noise` is within the tolerance, or before a round would exceed the budget of coalitions, but
    not before the first round: four coalitions a player in each of 20 batches.
    """
    d = game.players
    empty, full = _ends(game)
    if d == 1:
        return ShapleyValues((full - empty)[None], torch.zeros(1).to(full), 2)
    sizes = torch.tensor([1 / (s * (d - s)) for s in range(1, d)], dtype=torch.float64).cumsum(0)
    least = 2 * d  # pairs that a batch draws at a time
    rounds = max(1, (budget - 2) // (2 * BATCHES * least))
    gram = torch.zeros(BATCHES, d, d, dtype=torch.float64, device=full.device)
    moment = torch.zeros(BATCHES, d, dtype=torch.float64, device=full.device)
    spent = 2
    for turn in range(rounds):
        for batches in torch.arange(BATCHES).split(max(1, ROOM // (2 * least * d))):
            keys = (batches[:, None] * least + torch.arange(least)).flatten()
            draws = (uniform(keys, d + 1, seed, stream=turn + 1).to(torch.float64) + 1) / 2
            size = torch.searchsorted(sizes / sizes[-1], draws[:, 0].contiguous()) + 1
            some = (draws[:, 1:].argsort(1).argsort(1) < size[:, None]).to(full.device)
            both = torch.stack([some, ~some], 1)
            worths = (game.worth(both.flatten(0, 1)).to(torch.float64) - empty).view(len(batches), -1)
            z = both.to(torch.float64).view(len(batches), -1, d)
            gram[batches] += z.mT @ z
            moment[batches] += (z.mT @ worths[..., None])[..., 0]
            spent += worths.numel()
        found = _mean(_solve(gram, moment, full - empty), spent)
        progress(spent, budget)
        if found.noise <= tolerance:
            break
    return found


def _solve(gram: Tensor, moment: Tensor, total: Tensor) -> Tensor:
    """Least squares under the constraint that the values add up to the total."""
    inverse = torch.linalg.pinv(gram, hermitian=True)
    free, along = (inverse @ moment[..., None])[..., 0], inverse.sum(-1)
    values: Tensor = free - along * ((free.sum(-1) - total) / along.sum(-1))[..., None]
    return values


def _few(game: Game) -> int:
    if game.players > MOST:
        raise ValueError(
            f"the game has {game.players} players, so 2^{game.players} coalitions; expected at most {MOST}. Sample it with "
            "shapleycam.sampled(game), or play groups of positions: shapleycam.game(..., players=4) for a grid of 4 x 4"
        )
    return game.players


def _all_worths(game: Game) -> Tensor:
    """Worths of all coalitions, (2^d,) in float64; player j is bit j of the place."""
    d = game.players
    places = torch.arange(2**d)
    return game.worth((places[:, None] >> torch.arange(d)) & 1 == 1).to(torch.float64)


def _split(worths: Tensor, bit: int) -> tuple[Tensor, Tensor]:
    """The worths without a player and with him, each by the places of the others."""
    parts = worths.view(-1, 2, 2**bit)
    return parts[:, 0].flatten(), parts[:, 1].flatten()


def _weighed(differences: Tensor, weights: list[float]) -> Tensor:
    """The sum of differences, each with the weight of its coalition's size."""
    sizes = torch.zeros(1, dtype=torch.int64, device=differences.device)
    while len(sizes) < len(differences):
        sizes = torch.cat([sizes, sizes + 1])
    return (differences * torch.tensor(weights, dtype=torch.float64, device=differences.device)[sizes]).sum()


def _ends(game: Game) -> tuple[Tensor, Tensor]:
    ends = torch.tensor([[False], [True]]).expand(2, game.players)
    empty, full = game.worth(ends).to(torch.float64)
    return empty, full


def _blocks(pairs: int) -> Iterator[range]:
    """Places of so many pairs, a few at first and more as it goes on, to stop in time at little cost."""
    start, size = 0, 4
    while start < pairs:
        yield range(start, min(pairs, start + size))
        start, size = start + size, min(2 * size, 64)


def _mean(estimates: Tensor, spent: int) -> ShapleyValues:
    return ShapleyValues(estimates.mean(0), estimates.std(0) / len(estimates) ** 0.5, spent)


def _relative(difference: Tensor, reference: Tensor) -> float:
    scale = reference.norm()
    return float(difference.norm() / scale) if scale != 0 else float(difference.norm() > 0)  # NaN where the scale is


SAMPLERS: dict[str, Callable[..., ShapleyValues]] = {"permutations": by_permutations, "kernel": by_kernel}
