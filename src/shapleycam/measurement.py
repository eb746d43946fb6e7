"""`measure`: a batch of images and a classifier in, the six metrics of any number of methods out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .batch import Explanation, expand_images, explained, explanations_of, ingredients_of
from .network.arguments import check_pictures, cut_network, opposite, resolve_keys, resolve_utility
from .network.cut import CutNetwork
from .network.expand import expand
from .network.inputs import Output
from .network.layout import Axes, Layout
from .network.zoo import Model
from .playground import Network, Progress, remembered
from .sanity import outlasting
from .scoring import MORE, Masking, Scoring, background, resolve_metrics
from .searches import SEARCHES
from .theory import metrics
from .theory.agreement import pearson
from .theory.axes import Images, Maps, Targets, Utilities
from .theory.baselines import BASELINES
from .theory.cams import resolve_names
from .theory.utility import Utility

Scores = Float[Tensor, "b m"]


@dataclass(frozen=True)
class Measurements:
    """What `measure` found for b images and m methods; tensors are on the images' device."""

    methods: tuple[str, ...]
    """The names of the columns."""
    targets: Targets
    full: Utilities
    """The target's probability on the image, (b,): by the softmax, or for "rest-sigmoid" and its kin by the sigmoid, of the side
    that is explained."""
    kept: Scores
    """The same on the explanation map x * H."""
    deleted: Scores
    """The same on the anti-explanation map x * (1 - H)."""
    coherency: Scores
    """Eq. (19), in [0, 1]; higher is better."""
    complexity: Scores
    """Eq. (20), in [0, 1]; lower is better."""
    discrimination: Scores
    """Pearson's correlation of ReLU(E) for the class explained and for the least likely one (for the predicted one, where that is
    explained), Section 5; 0 where either map is constant. A method that tells classes apart has a low one; baselines have 1."""
    out: Explanation = field(repr=False)
    """The explanation that was measured."""
    more: Mapping[str, Scores] = field(default_factory=dict)
    """Insertion, deletion, ROAD and randomisation as far as `metrics` named them: see `measure`."""

    @property
    def average_drop(self) -> Scores:
        """Eq. (18), in [0, 1]; lower is better."""
        return metrics.average_drop(self.full[:, None], self.kept)

    @property
    def increase_in_confidence(self) -> Scores:
        """Eq. (22), 0 or 1; higher is better."""
        return metrics.increase_in_confidence(self.full[:, None], self.kept)

    @property
    def average_drop_in_deletion(self) -> Scores:
        """Eq. (23), in [0, 1]; higher is better."""
        return metrics.average_drop_in_deletion(self.full[:, None], self.deleted)

    @property
    def adcc(self) -> Float[Tensor, " m"]:
        """Eq. (21) of each method's means over the images, in [0, 1]; higher is better."""
        return metrics.adcc(self.average_drop, self.coherency, self.complexity)


def measure(
    model: Model | nn.Module,
    images: Float[Tensor, "..."],
    *,
    methods: str | Iterable[str] = "paper",
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    masking: Masking = "normalised",
    seed: int = 0,
    keys: Sequence[str] | None = None,
    infer: Callable[[Tensor], Tensor] | None = None,
    metrics: str | Iterable[str] = (),
    randomised: nn.Module | None = None,
    progress: Progress | None = None,
    budget: int | None = None,
) -> Measurements:
    """The metrics of each method's heatmaps: 1 + 2 m forward passes for m distinct heatmaps, and passes over the tail.

    Parameters are those of `explain`; `methods` may also name baselines, "FakeCAM" and "Gaussian". What is in `SEARCHES` costs
    its own passes twice: on the image, for both classes, and on the explanation map.

    Parameters
    ----------
    masking
        "normalised" multiplies the images as they are, so that what is masked takes the mean colour, as the published
        numbers were made; "raw" multiplies pixel values, so that it turns black.
    infer
        What gives the logits of anti-explanation maps, which need no derivative: a compiled copy of the model, say; None
        for the model itself. With one, images stay in the memory format in which they come.
    metrics
        Any of "insertion", "deletion" and "road", as their functions give them unless told otherwise, into `more`. A distinct
        heatmap then costs 102, 102 and 19 forward passes more, and "road" the painting of 18 images. And "randomisation",
        Spearman's rank correlation of the heatmap and that of the network with all its weights drawn anew, in [-1, 1]; lower
        is better, for what is left had no part in what was learned. It is 0 where either map is constant, 1 for
        baselines; the last step of the cascade of Adebayo et al. 2018, all of which is in `randomisation`. Costs explaining
        once more, a forward pass and passes over the tail, and a pass of four images to draw the weights.
    randomised
        The network with other weights that "randomisation" compares with; None draws them from seed + 1 as `load_model(...,
        weights="random")` does, on a copy that is dropped after the call.

    Raises
    ------
    ValueError
        As `explain`; for an unknown metric; and for raw masking with a module of one's own, whose normalisation is not known.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> model = sc.load_model("resnet18", weights="random")
    >>> found = sc.measure(model, torch.rand(1, 3, 64, 64), methods=["GradCAM", "FakeCAM"])
    >>> found.methods, found.kept.shape
    (('GradCAM', 'FakeCAM'), torch.Size([1, 2]))
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images is a {type(images).__name__}, expected a tensor: measuring masks images, and nothing else"
        )
    names = resolve_names(methods, (*SEARCHES, *BASELINES))
    check_pictures(model, images)
    behind, asked = background(model, masking), resolve_metrics(metrics)
    maps = [name for name in names if name not in BASELINES]
    cut = cut_network(model, layer, layout, images, output, names if infer is None else None)
    named = resolve_utility(utility)
    images, keyed = cut.formatted(images.detach()), cache(resolve_keys(keys, images))
    plain = cut.inference()
    # The pass and its graph must not outlive this line, or they would add to the memory of every pass below.
    out, discrimination = _explained_twice(
        model, cut, images, maps, targets, named, keyed, seed, (progress, budget, remembered(plain))
    )
    more = {name: MORE[name] for name in asked if name in MORE}
    kept_cut = cut.kept(own=SEARCHES.keys().isdisjoint(maps))
    scoring = Scoring(
        names, images, behind, kept_cut, infer or plain, named[1], keyed, seed, out, tuple(more.values()), plain,
        (progress, budget),
    )  # fmt: skip
    kept, deleted, coherency, complexity, *others = scoring.table().mT
    full = scoring.share(out.logits, torch.arange(len(images), device=out.targets.device))

    def column(known: Mapping[str, Utilities]) -> Scores:
        return torch.stack([known.get(name, torch.ones_like(full)) for name in names], 1)

    beside = dict(zip(more, others, strict=True))
    if "randomisation" in asked:
        lasting = outlasting(
            model, images, out, randomised, output=output, utility=utility, seed=seed, keys=keys, budget=budget
        )
        beside["randomisation"] = column({name: each.nan_to_num(0) for name, each in lasting.items()})
    apart = column(discrimination)
    extra = {name: beside[name] for name in asked}
    return Measurements(names, out.targets, full, kept, deleted, coherency, complexity, apart, out, extra)


def _explained_twice(
    model: Model | nn.Module,
    cut: CutNetwork,
    images: Images,
    names: Sequence[str],
    targets: int | str | Sequence[int] | Tensor | None,
    utility: tuple[str, Utility],
    keys: Callable[[], Tensor],
    seed: int,
    searching: tuple[Progress | None, int | None, Network],
) -> tuple[Explanation, dict[str, Utilities]]:
    """The explanation, and for each method how alike its maps for the class explained and the least likely one are."""
    forward, classes, expansion = expand_images(cut, images, names, targets, utility[1], keys, seed, again=True)
    given = cut, images, names, utility[1], keys, seed, forward

    def noise() -> Maps:
        assert expansion.noise is not None
        return expansion.noise

    explanations = explanations_of(*given, classes, expansion, *searching)
    other = opposite(forward.logits.detach(), classes)
    unlike = explanations_of(
        *given, other, expand(forward, other, utility[1], ingredients_of(names), noise), *searching
    )
    out = explained(model, cut, images, explanations, utility, forward, classes, expansion)
    both = explanations, unlike
    return out, {n: pearson(*(each[n].relu().flatten(1) for each in both)).nan_to_num(0) for n in names}
