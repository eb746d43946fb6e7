"""`fidelity`: how close each method's explanation is to the Shapley values of the game that it claims to explain."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .batch import Explanation, expand_images
from .explanation import explain
from .network.arguments import cut_network, resolve_keys, resolve_utility
from .network.expand import Nodes
from .network.inputs import Inputs, Output, as_inputs
from .network.layout import Axes, Layout
from .network.zoo import Model
from .network_game import Game, exact, game, sampled
from .searches import SEARCHES, on_image
from .theory.agreement import AGREEMENTS, deviation, relative_error
from .theory.cams import explanation, identity, mean, resolve_methods, resolve_names
from .theory.shapley import MOST, Progress, ShapleyValues
from .theory.utility import Utility

Scores = Float[Tensor, "b m"]
ROUNDING = 1e-6
"""A relative error that single precision makes."""


@dataclass(frozen=True)
class Fidelity:
    """What `fidelity` found for b images and m methods; (b, m) but where it says otherwise, on the images' device."""

    methods: tuple[str, ...]
    """The names of the columns."""
    error: Scores
    """Relative L2 error |E - phi| / |phi|; 0 is best."""
    pearson: Scores
    """Pearson's correlation with the Shapley values, in [-1, 1]; NaN where either is constant."""
    spearman: Scores
    """The same of the ranks."""
    sign: Scores
    """Share of the players whose sign is right, in [0, 1]."""
    uncertainty: dict[str, Scores] = field(repr=False)
    """For each of the four its standard deviation under the sampling error of the reference."""
    noise: Float[Tensor, " b"]
    """|standard errors| / |phi|: the relative L2 error that the reference itself has; 0 where it is exact."""
    evaluations: int
    """Coalitions that were played, over all images."""
    values: tuple[ShapleyValues, ...] = field(repr=False)
    """The reference, an image each."""
    games: tuple[Game, ...] = field(repr=False)
    out: Explanation = field(repr=False)
    """The explanation that was checked."""

    @property
    def within_noise(self) -> Bool[Tensor, "b m"]:
        """Whether the error is no larger than twice the reference's own, or than rounding, so that none is proved."""
        return self.error <= 2 * self.noise[:, None] + ROUNDING


def fidelity(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    methods: str | Iterable[str] = "all",
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    players: int | Tensor | Sequence[Any] | None = None,
    tolerance: float = 0.02,
    budget: int = 20_000,
    nodes: int = 8,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Fidelity:
    """Each method's explanation against the Shapley values of the game: exact for up to 20 players, else sampled.

    Parameters are those of `explain`, `game` and `sampled`; `progress` is told the coalitions played of each image.

    Raises
    ------
    ValueError
        As `explain`, `game` and `sampled`.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> model = sc.load_model("resnet18", weights="random")
    >>> found = sc.fidelity(model, torch.rand(1, 3, 64, 64), methods=["HiResCAM", "AumannCAM-H"])
    >>> bool(found.error[0, 1] < found.error[0, 0])
    True
    """
    given = as_inputs(images)
    asked = resolve_names(methods, SEARCHES)
    if apart := [name for name in asked if on_image(name)]:
        raise ValueError(f"{apart[0]} explains pixels, not the layer's positions that play the game; leave it out")
    out = explain(
        model, given, methods=asked, layer=layer, layout=layout, output=output, targets=targets, utility=utility,
        nodes=nodes, seed=seed, keys=keys,
    )  # fmt: skip
    games = [
        game(
            model, given[i : i + 1], layer=out.layer.name, layout=out.layer.as_layout, output=output, target=int(target),
            utility=utility, players=players,
        )
        for i, target in enumerate(out.targets)
    ]  # fmt: skip
    values = tuple(_reference(each, tolerance, budget, seed, progress) for each in games)
    names = tuple(out.explanations)
    scores: dict[str, list[Tensor]] = {name: [] for name in AGREEMENTS}
    spreads: dict[str, list[Tensor]] = {name: [] for name in AGREEMENTS}
    for image, (played, reference) in enumerate(zip(games, values, strict=True)):
        maps = torch.stack([played.of(out.explanations[name][image].to(torch.float64)) for name in names])
        for name, agreement in AGREEMENTS.items():
            scores[name].append(agreement(maps, reference.values))
            spreads[name].append(deviation(agreement, maps, reference, seed))
    return Fidelity(
        methods=names,
        **{name: torch.stack(rows) for name, rows in scores.items()},
        uncertainty={name: torch.stack(rows) for name, rows in spreads.items()},
        noise=torch.tensor([each.noise for each in values], dtype=torch.float64, device=out.targets.device),
        evaluations=sum(each.evaluations for each in values),
        values=values,
        games=tuple(games),
        out=out,
    )


def _reference(
    played: Game, tolerance: float, budget: int, seed: int, progress: Progress | None = None
) -> ShapleyValues:
    """The Shapley values: exact where all coalitions can be played, else sampled."""
    if played.players <= MOST:
        return exact(played)
    return sampled(played, tolerance=tolerance, budget=budget, seed=seed, progress=progress)


@dataclass(frozen=True)
class Kind:
    """What an explanation turned out to be, for each of b images; an explanation may be several, or none."""

    type_one: Bool[Tensor, " b"]
    """E_j = sum_i W_ij A_ij: each position has its own coefficient."""
    type_two: Bool[Tensor, " b"]
    """E = sum_i a_i A^i: each map has one coefficient, the mean of W over the positions."""
    optimal: Bool[Tensor, " b"]
    """E_j is the Shapley value of position j: exactly, or within twice the noise of the sampled ones."""


def classify(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    method: str,
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    tolerance: float = 1e-4,
    budget: int = 20_000,
    nodes: int = 8,
    seed: int = 0,
) -> Kind:
    """Whether a method's explanation is of Type I, Type II, optimal, by numbers and not by name, Definition 2.

    Parameters are those of `fidelity`; `tolerance` is the relative L2 difference that counts as none.

    Raises
    ------
    ValueError
        For a method without coefficients, RandomCAM; and as `fidelity`.
    """
    rows = resolve_methods(method)
    if len(rows) != 1:
        raise ValueError(f"method is {method!r}, which is {len(rows)} methods; expected one")
    row = rows[0]
    if row.order == "none":
        raise ValueError(f"{row.name} has no coefficients W, so no type; expected a method of first order or higher")
    inputs = as_inputs(images)
    cut, (_, function) = cut_network(model, layer, layout, inputs, output), resolve_utility(utility)
    forward, classes, expansion = expand_images(
        cut,
        inputs,
        [row.name],
        targets,
        function,
        resolve_keys(None, inputs),
        seed,
        nodes=Nodes(nodes, None, max(nodes, 256)),
    )
    given, *plain = (
        explanation(each, expansion).flatten(1).to(torch.float64)
        for each in (row, *(replace(row, weights=weights, relu_inside=False) for weights in (identity, mean)))
    )
    one, two = ((given - each).norm(dim=1) <= tolerance * given.norm(dim=1) for each in plain)
    optimal = []
    chosen = forward.layer
    for i, (target, each) in enumerate(zip(classes, given, strict=True)):
        played = game(
            model, inputs[i : i + 1], layer=chosen.name, layout=chosen.as_layout, output=output, target=int(target),
            utility=utility,
        )  # fmt: skip
        found = _reference(played, tolerance, budget, seed)
        optimal.append(relative_error(each, found.values) <= max(tolerance, 2 * found.noise))
    return Kind(one, two, torch.stack(optimal))
