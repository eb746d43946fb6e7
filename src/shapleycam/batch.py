"""One batch of images, expanded once and explained by every method that was asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from .image_warnings import GAP, ImageWarning, find_warnings, signs_of
from .network.arguments import resolve_targets, run
from .network.cut import CutNetwork, Pass
from .network.expand import Nodes, empty_worth, expand, worth
from .network.inputs import Given, size_of
from .network.layout import TargetLayer
from .network.preprocess import Preprocess
from .network.zoo import Model
from .playground import Network, Progress, play_with
from .searches import SEARCHES
from .theory.axes import ExplanationMaps, Heatmaps, Logits, Maps, Targets, Utilities
from .theory.cams import METHODS, explanation, identity, mean
from .theory.crg import INGREDIENTS, Expansion, efficiency_gap
from .theory.draws import random_weights
from .theory.heatmap import heatmap
from .theory.utility import Utility

_EIGHT = Nodes()


@dataclass(frozen=True)
class Explanation:
    """What `explain` found for a batch of b images; tensors are on the images' device and carry no graph."""

    heatmaps: Mapping[str, Heatmaps]
    """For each method (b, H, W) in [0, 1]."""
    explanations: Mapping[str, ExplanationMaps]
    """For each method E, (b, h, w) or whatever the positions are: signed, before the last ReLU, in units of the utility."""
    targets: Targets
    """The class explained, an image each."""
    logits: Logits
    layer: TargetLayer
    utility: str
    """The utility's name; a function's own name where one was passed."""
    preprocess: Preprocess | None = field(repr=False)
    """How the model's pictures were made images; None for a module of one's own."""
    look: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    """Gives `signs`; keeps the maps and derivatives for that."""
    nobody: "_Nobody" = field(repr=False)
    deviations: Mapping[str, ExplanationMaps] = field(default_factory=dict, repr=False)
    """For each method the standard deviation of E over noisy images, where `samples` were asked for; E is then their mean."""

    @cached_property
    def signs(self) -> Mapping[str, Tensor]:
        """What the warnings are made of, an image each, found out when asked for: see `signs_of`."""
        return self.look()

    @cached_property
    def full(self) -> Utilities:
        """U(A), what all positions together are worth, (b,)."""
        known = self.nobody.full
        return worth(self.logits, self.targets, self.nobody.utility) if known is None else known

    @cached_property
    def empty(self) -> Utilities:
        """U(0), what is left when no position plays, (b,).

        Known where a method of the path row was asked for. Otherwise the network runs once more when this is asked for, as it
        and the images are then.
        """
        return self.nobody.worth()

    @cached_property
    def efficiency_gap(self) -> Mapping[str, Utilities]:
        """For each method |sum_j E_j - (U(A) - U(0))| / max(|U(A) - U(0)|, 1e-6), (b,): whether shares add up.

        0 is best, and necessary for Shapley values, not sufficient. NaN for methods that do not claim to: those with a ReLU
        or a division inside, Type II rows where W is not the same at all positions, what is in `SEARCHES`, and means
        over noisy images. Costs what `empty` costs.
        """
        gaps = {name: torch.full_like(self.full, torch.nan) for name in self.explanations}
        for name, each in self.explanations.items():
            if name not in METHODS or self.deviations:
                continue
            shared = METHODS[name].weights in (identity, mean) and not METHODS[name].relu_inside
            flat = (
                self.signs[f"{name} is flat"]
                if METHODS[name].weights is mean
                else torch.ones_like(self.signs["finite"])
            )
            gap = efficiency_gap(each.flatten(1).sum(1), self.full, self.empty)
            gaps[name] = gap.where(flat & shared & (METHODS[name].order != "none"), torch.nan)
        return gaps

    def __getitem__(self, image: int) -> "Explanation":
        """One image's explanation, as a batch of one."""
        place = range(len(self.targets))[image]  # IndexError ends a loop over the images
        one = slice(place, place + 1)

        def part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[one] for name, tensor in tensors.items()}

        return replace(
            self,
            heatmaps=part(self.heatmaps),
            explanations=part(self.explanations),
            targets=self.targets[one],
            logits=self.logits[one],
            look=part(self.signs).copy,
            deviations=part(self.deviations),
            nobody=self.nobody[one],
        )

    @cached_property
    def warnings(self) -> tuple[ImageWarning, ...]:
        """Why a heatmap is blank or must not be trusted; one entry an image and reason, in the order of the images."""
        return tuple(sorted(find_warnings(self), key=lambda warning: warning.image))


@dataclass(frozen=True)
class _Nobody:
    """What gives U(0) when it is asked for."""

    cut: CutNetwork
    images: Given
    targets: Targets
    utility: Utility
    full: Utilities | None
    known: Utilities | None
    version: int | None

    def __getitem__(self, one: slice) -> "_Nobody":
        full, known = (None if each is None else each[one] for each in (self.full, self.known))
        return replace(self, images=self.images[one], targets=self.targets[one], full=full, known=known)

    def worth(self) -> Utilities:
        if self.known is not None:
            return self.known
        if self.version != _version(self.images):
            raise ValueError("the images were written to since they were explained; ask for the efficiency gap before")
        return empty_worth(run(self.cut, self.images, replay=True), self.targets, self.utility)


def _version(tensor: Given) -> int | None:
    return None if tensor.is_inference() else tensor._version


def expand_images(
    cut: CutNetwork,
    images: Given,
    names: Sequence[str],
    targets: int | str | Sequence[int] | Tensor | None,
    utility: Utility,
    keys: Callable[[], Tensor],
    seed: int,
    stream: int = 0,
    nodes: Nodes = _EIGHT,
    *,
    again: bool = False,
    create_graph: bool = False,
) -> tuple[Pass, Targets, Expansion]:
    """One forward pass, the classes to explain, and all that the methods may look at; a stream of its own is another draw.

    `again` keeps the graph of the pass, to `expand` it for other classes.
    """
    ingredients = ingredients_of(names)
    forward = run(
        cut,
        images,
        second_order=create_graph or "hvp" in ingredients,
        replay="path" in ingredients or not SEARCHES.keys().isdisjoint(names),
        create_graph=create_graph,
    )
    classes = resolve_targets(targets, forward.logits.detach(), utility)

    def noise() -> Maps:
        return random_weights(keys(), forward.leaf, seed, stream)

    expansion = expand(forward, classes, utility, ingredients, noise, nodes, again=again, create_graph=create_graph)
    return forward, classes, expansion


def ingredients_of(names: Sequence[str]) -> frozenset[str]:
    """What the methods need of an `Expansion` beside the maps."""
    return frozenset[str]().union(*(INGREDIENTS[METHODS[name].order] for name in names if name in METHODS))


def explanations_of(
    cut: CutNetwork,
    images: Given,
    names: Sequence[str],
    utility: Utility,
    keys: Callable[[], Tensor],
    seed: int,
    forward: Pass,
    targets: Targets,
    expansion: Expansion,
    progress: Progress | None = None,
    budget: int | None = None,
    infer: Network | None = None,
) -> dict[str, ExplanationMaps]:
    """E of each method: of the expansion, or of what those in `SEARCHES` find out from the network."""
    play = None
    if not SEARCHES.keys().isdisjoint(names):
        play = play_with(
            cut, forward, images, targets, utility, keys=keys, seed=seed, progress=progress, budget=budget, infer=infer
        )
    return {
        name: explanation(METHODS[name], expansion) if name in METHODS or play is None else SEARCHES[name].explain(play)
        for name in names
    }


def explained(
    model: Model | nn.Module,
    cut: CutNetwork,
    images: Given,
    explanations: Mapping[str, ExplanationMaps],
    utility: tuple[str, Utility],
    forward: Pass,
    targets: Targets,
    expansion: Expansion,
    nodes: Nodes = _EIGHT,
) -> Explanation:
    """All that is known of a batch; heatmaps are made whenever they are asked for, and not kept."""
    rows = [METHODS[name] for name in explanations if name in METHODS]
    vars(expansion).pop("reserved", None)  # the signs do without it, and keep the rest
    return Explanation(
        heatmaps=LazyHeatmaps(explanations, size_of(images)),
        explanations=explanations,
        targets=targets,
        logits=forward.logits.detach(),
        layer=forward.layer,
        utility=utility[0],
        preprocess=model.preprocess if isinstance(model, Model) else None,
        look=partial(signs_of, expansion, rows, nodes.tolerance or GAP),
        nobody=_Nobody(cut, images, targets, utility[1], expansion.full, expansion.empty, _version(images)),
    )


@dataclass(frozen=True)
class LazyHeatmaps(Mapping[str, Tensor]):
    """Heatmaps made of explanation maps on demand: at the image's resolution they are a thousand times as large."""

    explanations: Mapping[str, Tensor]
    size: tuple[int, ...]

    def __getitem__(self, method: str) -> Heatmaps:
        return heatmap(self.explanations[method], self.size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.explanations)

    def __len__(self) -> int:
        return len(self.explanations)
