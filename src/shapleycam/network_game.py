"""`game`: a classifier, a picture and a target layer as a cooperative game between the layer's positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .network.arguments import batched, cut_network, resolve_targets, resolve_utility, run
from .network.cut import CutNetwork
from .network.expand import ROOM, mixed_curvatures, worth
from .network.inputs import Given, Inputs, Output, as_inputs
from .network.layout import Axes, Layout, TargetLayer
from .network.tail import Tail
from .network.zoo import Model
from .theory.axes import Logits, Maps, Utilities
from .theory.shapley import SAMPLERS, Coalitions, Progress, ShapleyValues, Values, exact_interactions
from .theory.shapley import exact as exact_values
from .theory.utility import Utility, settled

WIDE = 2**22
"""Numbers of the maps that a tail is given at a time without a graph, so that memory is bounded."""
Positions = Float[Tensor, "*p"]


@dataclass(frozen=True)
class Game:
    """One image, whose prediction is shared out among the positions of a layer's activation maps, Definition 2.

    A coalition keeps the maps' values at its own positions, and all other positions are set to zero.
    """

    layer: TargetLayer
    target: int
    """The class."""
    utility: str
    regions: Int64[Tensor, "*p"] = field(repr=False)
    """Which player each position belongs to; positions are players of their own in row-major order, if not grouped."""
    maps: Maps = field(repr=False)
    """A, (1, n, h, w)."""
    logits: Logits = field(repr=False)
    full: Float[Tensor, ""]
    """U(A), what all players are worth, a number."""
    empty: Float[Tensor, ""]
    """U(0), what none is worth."""
    image: Given = field(repr=False)
    cut: CutNetwork = field(repr=False)
    tail: Tail = field(repr=False)
    function: Utility = field(repr=False)

    @property
    def players(self) -> int:
        """Their number, d."""
        return int(self.regions.max()) + 1

    def worth(self, coalitions: Coalitions) -> Utilities:
        """U of each coalition, (k,), from a boolean matrix (k, d), by replays of the tail in chunks that bound memory.

        Raises
        ------
        ValueError
            For a matrix of another width.
        TypeError
            When it is not boolean.
        """
        if not isinstance(coalitions, Tensor) or coalitions.dtype != torch.bool:
            got = coalitions.dtype if isinstance(coalitions, Tensor) else f"a {type(coalitions).__name__}"
            raise TypeError(
                f"coalitions are {got}, expected a torch.bool tensor (k, {self.players}); use torch.as_tensor"
            )
        if coalitions.ndim != 2 or coalitions.shape[1] != self.players:
            raise ValueError(f"coalitions have shape {tuple(coalitions.shape)}, expected (k, {self.players})")
        chunks = coalitions.to(self.maps.device).split(max(1, WIDE // self.maps.numel()))
        found = [self._worth(some) for some in chunks]
        return torch.cat(found) if found else self.full.new_empty(0)

    def of(self, explanation: Float[Tensor, "..."]) -> Float[Tensor, "*k d"]:
        """What explanation maps (..., h, w) give to each player: the sums over the player's positions."""
        axes = self.regions.ndim
        if explanation.shape[-axes:] != self.regions.shape:
            raise ValueError(f"got a map of shape {tuple(explanation.shape)}, expected (..., h, w) of {self.layer}")
        flat = explanation.flatten(-axes)
        shares = flat.new_zeros(*flat.shape[:-1], self.players)
        return shares.index_add(-1, self.regions.flatten(), flat)

    def spread(self, values: Values) -> Positions:
        """Values of players on the map, (h, w): each player's is shared evenly by his positions."""
        if values.shape != (self.players,):
            raise ValueError(f"got values of shape {tuple(values.shape)}, expected ({self.players},)")
        sizes = torch.bincount(self.regions.flatten(), minlength=self.players)
        return (values / sizes.to(values))[self.regions]

    def _worth(self, coalitions: Coalitions) -> Utilities:
        with torch.inference_mode(False), torch.no_grad():
            logits = self.tail.of(lambda: self.maps * coalitions[:, None, self.regions])
            targets = torch.full((len(logits),), self.target, device=logits.device)
            return worth(logits, targets, self.function)


def game(
    model: Model | nn.Module,
    image: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    target: int | str | Tensor | None = None,
    utility: str | Utility = "rest",
    players: int | Tensor | Sequence[Any] | None = None,
) -> Game:
    """The game that a network plays on one image; costs one forward pass.

    Parameters
    ----------
    model, layer, layout, output, utility
        As in `explain`.
    image
        (channels, H, W) or (1, channels, H, W), preprocessed; or the inputs of a network for one image, as in `explain`.
    target
        The class: None for the predicted one, "least" for the least likely, or an index.
    players
        None for each position by itself, a number g for a grid of g x g groups, or a label map: of the layer's (h, w), or of any
        larger size, the image's say, of which each position takes the label at its middle. Players are numbered in the order of
        their labels; a label at no position's middle has none.

    Raises
    ------
    ValueError
        For more than one image, and as `explain`.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> model = sc.load_model("resnet18", weights="random")
    >>> played = sc.game(model, torch.rand(3, 64, 64), players=2)
    >>> values = sc.exact(played).values
    >>> bool((values.sum() - (played.full - played.empty)).abs() < 1e-4)
    True
    """
    given = batched(model, as_inputs(image))
    cut = cut_network(model, layer, layout, given, output)
    if len(given) != 1:
        raise ValueError(f"a game has one image, got {len(given)}; play one after the other: for image in images")
    name, function = resolve_utility(utility)
    forward = run(cut, given, replay=True)
    assert forward.tail is not None
    logits = forward.logits.detach()
    classes = resolve_targets(target, logits, function)
    function = settled(function, logits, classes)
    maps = forward.leaf.detach()
    regions = _regions(players, forward.layer.positions).to(maps.device)
    with torch.inference_mode(False), torch.no_grad():
        ends = forward.tail.of(lambda: torch.cat([maps, torch.zeros_like(maps)]))
        full, empty = worth(ends, classes.expand(2), function)
    return Game(
        forward.layer,
        int(classes),
        name,
        regions,
        maps,
        logits,
        full,
        empty,
        given.detach().clone(),
        cut,
        forward.tail,
        function,
    )


def exact(game: Game) -> ShapleyValues:
    """The Shapley values of up to 20 players, Eq. (7) with the inverse of the binomial, by playing all 2^d coalitions.

    Raises
    ------
    ValueError
        For more players; then `sampled` estimates, or `game(..., players=4)` groups the positions.
    """
    return exact_values(game)


def sampled(
    game: Game,
    *,
    tolerance: float = 0.02,
    budget: int = 20_000,
    method: Literal["permutations", "kernel"] = "permutations",
    seed: int = 0,
    progress: Progress | None = None,
) -> ShapleyValues:
    """Estimates of the Shapley values of any number of players, with standard errors; they add up exactly.

    Parameters
    ----------
    tolerance
        Stop once the length of the standard errors is this share of that of the values.
    budget
        Coalitions to play at most, if that is enough for a first estimate.
    method
        "permutations" in antithetic pairs, or "kernel" for KernelSHAP with paired sampling; `benchmarks.fidelity` compares them.
    seed
        The same seed gives the same numbers.
    progress
        Called now and then with the coalitions played so far, and the budget.

    Raises
    ------
    ValueError
        For an unknown method, or a tolerance or budget that is negative.
    """
    if method not in SAMPLERS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(SAMPLERS)}")
    if not tolerance >= 0 or budget < 0:
        raise ValueError(f"tolerance is {tolerance} and budget {budget}, expected neither to be negative")
    return SAMPLERS[method](game, budget, tolerance, seed, **({} if progress is None else {"progress": progress}))


def interactions(game: Game, kind: Literal["quadratic", "exact"] = "quadratic") -> Float[Tensor, "d d"]:
    """How much each two players need each other, in units of the utility; negative where they are redundant.

    "quadratic" is X_i^T H X_j, with X_i the maps where only player i plays and H the Hessian of the utility at A, by batched
    Hessian-vector products: the interactions of the game's second-order expansion. Its diagonal is X_i^T H X_i. "exact" is the
    Shapley interaction index (Grabisch and Roubens 1999) of up to 20 players, by playing all coalitions; zero diagonal.

    Raises
    ------
    ValueError
        For an unknown kind, or more than 20 players and "exact".
    """
    if kind == "exact":
        return exact_interactions(game)
    if kind != "quadratic":
        raise ValueError(f'kind is {kind!r}, expected "quadratic" or "exact"')
    forward = run(game.cut, game.image, second_order=True, replay=True)
    alone = torch.stack([game.regions == player for player in range(game.players)])
    rows = [
        game.of((mixed_curvatures(forward, game.target, game.function, some[:, None]) * game.maps).sum(1))
        for some in alone.split(max(1, ROOM // game.maps.numel()))
    ]
    return torch.cat(rows)


def _regions(players: int | Tensor | Sequence[Any] | None, size: tuple[int, ...]) -> Tensor:
    positions = " x ".join(map(str, size))
    if players is None:
        return torch.arange(prod(size)).view(size)
    if isinstance(players, int) and not isinstance(players, bool):
        grid = " x ".join([str(players)] * len(size))
        if not 1 <= players <= min(size):
            raise ValueError(f"players is a grid of {grid}, expected 1 to {min(size)} for {positions} positions")
        regions = torch.zeros(size, dtype=torch.int64)
        for axis, side in enumerate(size):
            along = torch.arange(side) * players // side
            regions = regions * players + along.view(-1, *[1] * (len(size) - 1 - axis))
        return regions
    try:
        labels = torch.as_tensor(players)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"players is {players!r}, expected None, a whole number, or a label map of integers") from error
    smaller = labels.ndim != len(size) or any(side < n for side, n in zip(labels.shape, size, strict=False))
    if smaller or labels.is_floating_point():
        raise ValueError(
            f"players is a label map of shape {tuple(labels.shape)}, {labels.dtype}, expected integers of at least {positions}"
        )
    middles = [((torch.arange(n) + 0.5) * side / n).long() for n, side in zip(size, labels.shape, strict=True)]
    numbered: Tensor = labels.cpu()[torch.meshgrid(*middles, indexing="ij")].unique(return_inverse=True)[1]
    return numbered
