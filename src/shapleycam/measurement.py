"""`measure`: a batch of images and a classifier in, the six metrics of any number of methods out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .batch import Explanation, expand_images, explained, explanations_of, ingredients_of
from .curves import deletion, insertion
from .imputation import road
from .network.arguments import cut_network, opposite, resolve_keys, resolve_utility
from .network.cut import CutNetwork
from .network.expand import expand
from .network.inputs import Output
from .network.layout import Axes, Layout
from .network.zoo import Model
from .searches import SEARCHES
from .theory import metrics
from .theory.agreement import pearson
from .theory.axes import Heatmaps, Images, Maps, Targets, Utilities
from .theory.baselines import BASELINES
from .theory.cams import nearest, resolve_names
from .theory.heatmap import heatmap, rescale
from .theory.utility import Utility, probability

Scores = Float[Tensor, "b m"]
Masking = Literal["normalised", "raw"]
Metric = Callable[[nn.Module, Images, Heatmaps, Targets], Utilities]
EQUAL = 1e-6
"""Heatmaps that differ by no more than this are measured once."""
CLOSE = 1e-3
"""Explanation maps scaled to [0, 1] that differ by more than this have heatmaps that differ by more than `EQUAL`."""
MORE: Mapping[str, Metric] = {"insertion": insertion, "deletion": deletion, "road": road}
"""Metrics beside the six, which cost passes of their own."""


@dataclass(frozen=True)
class Measurements:
    """What `measure` found for b images and m methods; tensors are on the images' device."""

    methods: tuple[str, ...]
    """The names of the columns."""
    targets: Targets
    full: Utilities
    """The target's probability on the image, (b,)."""
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
    """Insertion, deletion and ROAD as far as `metrics` named them: see the functions of these names."""

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
) -> Measurements:
    """The metrics of each method's heatmaps: 1 + 2 m forward passes for m distinct heatmaps, and passes over the tail.

    Parameters are those of `explain`; `methods` may also name baselines, "FakeCAM" and "Gaussian". What is in `SEARCHES` costs
    its own passes three times: on the image, for the other class, and on the explanation map.

    Parameters
    ----------
    masking
        "normalised" multiplies the images as they are, so that what is masked takes the mean colour, as the published
        numbers were made; "raw" multiplies pixel values, so that it turns black.
    infer
        What gives the logits of anti-explanation maps, which need no derivative: a compiled copy of the model, say; None
        for the model itself.
    metrics
        Any of "insertion", "deletion" and "road", as their functions give them unless told otherwise, into `more`. A distinct
        heatmap then costs 102, 102 and 19 forward passes more, and "road" the painting of 18 images.

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
    behind, wanted = background(model, masking), resolve_metrics(metrics)
    maps = [name for name in names if name not in BASELINES]
    cut = cut_network(model, layer, layout, images, output)
    named = resolve_utility(utility)
    images, keyed = images.detach(), cache(resolve_keys(keys, images))
    # The pass and its graph must not outlive this line, or they would add to the memory of every pass below.
    out, discrimination = _explained_twice(model, cut, images, maps, targets, named, keyed, seed)
    plain = cut.inference()
    more = tuple(wanted.values())
    measured = _Measured(
        names, images, behind, cut.kept(), infer or plain, named[1], keyed, seed, out, more, _Plain(plain)
    )
    first = _first_of_equals(names, out, measured.size)
    distinct = (first == torch.arange(len(names), device=first.device)[:, None]).nonzero()
    scores = torch.cat([measured(*some.T) for some in distinct.split(len(images))], 1)
    table = scores.new_empty(len(scores), *first.shape)
    table[:, distinct[:, 0], distinct[:, 1]] = scores
    kept, deleted, coherency, complexity, *others = table.gather(1, first.expand(len(table), -1, -1)).mT
    full = probability(out.logits, out.targets)
    apart = torch.stack([discrimination.get(name, torch.ones_like(full)) for name in names], 1)
    beside = dict(zip(wanted, others, strict=True))
    return Measurements(names, out.targets, full, kept, deleted, coherency, complexity, apart, out, beside)


def resolve_metrics(metrics: str | Iterable[str]) -> Mapping[str, Metric]:
    """What scores heatmaps beside the six, by name: in order, each once.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest names.
    """

    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if unknown := [name for name in names if name not in MORE]:
        raise ValueError(f"unknown metric {unknown[0]!r}; {nearest(unknown[0], MORE)}")
    return {name: MORE[name] for name in names}


def _explained_twice(
    model: Model | nn.Module,
    cut: CutNetwork,
    images: Images,
    names: Sequence[str],
    targets: int | str | Sequence[int] | Tensor | None,
    utility: tuple[str, Utility],
    keys: Callable[[], Tensor],
    seed: int,
) -> tuple[Explanation, dict[str, Utilities]]:
    """The explanation, and for each method how alike its maps for the class explained and the least likely one are."""
    forward, classes, expansion = expand_images(cut, images, names, targets, utility[1], keys, seed, again=True)
    given = cut, images, names, utility[1], keys, seed, forward

    def noise() -> Maps:
        assert expansion.noise is not None
        return expansion.noise

    explanations = explanations_of(*given, classes, expansion)
    other = opposite(forward.logits.detach(), classes)
    unlike = explanations_of(*given, other, expand(forward, other, utility[1], ingredients_of(names), noise))
    out = explained(model, cut, images, explanations, utility, forward, classes, expansion)
    both = explanations, unlike
    return out, {n: pearson(*(each[n].relu().flatten(1) for each in both)).nan_to_num(0) for n in names}


def background(model: Model | nn.Module, masking: str) -> Tensor | None:
    """What a masked pixel becomes: None for zero, the mean colour; (1, 3, 1, 1) for black.

    Raises
    ------
    ValueError
        For a masking that is none, or raw masking with a module of one's own, whose normalisation is not known.
    """
    if masking == "normalised":
        return None
    if masking != "raw":
        raise ValueError(f'masking is {masking!r}, expected "normalised" or "raw"')
    if not isinstance(model, Model):
        raise ValueError('masking="raw" needs to know how images were normalised; pass what load_model gives')
    parameter = next(model.module.parameters())
    return model.preprocess.normalise(parameter.new_zeros(1, 3, 1, 1))


def masked(images: Images, heatmaps: Heatmaps, background: Float[Tensor, "1 channels 1 1"] | None = None) -> Images:
    """The explanation map x * H, Eq. (18): the image where the heatmap is 1, the background, None for 0, where it is 0."""
    shares = heatmaps[:, None]
    seen = images * shares.to(images.dtype)
    return seen if background is None else seen + background * (1 - shares).to(images.dtype)


class _Plain(nn.Module):
    """Logits, whatever the network puts out, as a network of its own."""

    def __init__(self, infer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.infer = infer

    def forward(self, images: Tensor) -> Tensor:
        return self.infer(images)


@dataclass(frozen=True)
class _Measured:
    """What scores heatmaps, any methods' of any of the images, in chunks no larger than the batch."""

    names: tuple[str, ...]
    images: Images
    background: Tensor | None
    cut: CutNetwork
    infer: Callable[[Tensor], Tensor]
    utility: Utility
    keys: Callable[[], Tensor]
    seed: int
    out: Explanation
    more: tuple[Metric, ...]
    network: nn.Module

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def __call__(self, which: Int64[Tensor, " k"], place: Int64[Tensor, " k"]) -> Float[Tensor, "scores k"]:
        """kept, deleted, coherency, complexity, and more, of the heatmaps of method `which[i]` on image `place[i]`."""
        maps = self._each_by_its_method(which, lambda name: self.out.explanations[name][place])
        whole = len(which) == len(self.images) and which[0] == which[-1]  # one method, all images in their order
        images, targets = self.images if whole else self.images[place], self.out.targets[place]
        kept, again = self._explain_again(masked(images, maps, self.background), targets, which, place)
        deleted = probability(self.infer(masked(images, 1 - maps, self.background)), targets)
        with torch.autocast(images.device.type, enabled=False):
            more = [metric(self.network, images, maps, targets) for metric in self.more]
        return torch.stack([kept, deleted, metrics.coherency(maps, again), metrics.complexity(maps), *more])

    def _explain_again(
        self, kept: Images, targets: Targets, which: Tensor, place: Tensor
    ) -> tuple[Utilities, Heatmaps]:
        """Probabilities of the targets on explanation maps, and their own heatmaps by the same methods."""
        names = [name for i in which.unique().tolist() if (name := self.names[i]) not in BASELINES]
        keys, utility = (lambda: self.keys()[place]), self.utility
        forward, _, expansion = expand_images(self.cut, kept, names, targets, utility, keys, self.seed, stream=1)
        found = explanations_of(self.cut, kept, names, utility, keys, self.seed, forward, targets, expansion)
        again = self._each_by_its_method(which, found.__getitem__)
        return probability(forward.logits.detach(), targets), again

    def _each_by_its_method(self, which: Tensor, explain: Callable[[str], Tensor]) -> Heatmaps:
        """Heatmaps of k pairs in the order of their methods, each by its own; a baseline's is always the same."""
        parts: list[Tensor] = []
        for i, count in zip(*(each.tolist() for each in which.unique_consecutive(return_counts=True)), strict=True):
            start = sum(map(len, parts))
            if (name := self.names[i]) in BASELINES:
                baseline = BASELINES[name](*self.size).to(
                    which.device, torch.promote_types(self.images.dtype, torch.float32)
                )
                parts.append(baseline.expand(count, -1, -1))
            else:
                parts.append(heatmap(explain(name)[start : start + count], self.size))
        return torch.cat(parts)


def _first_of_equals(names: Sequence[str], out: Explanation, size: tuple[int, int]) -> Int64[Tensor, "m b"]:
    """For each method and image the first method in the list with the same heatmap there."""
    methods = [(place, out.explanations[name]) for place, name in enumerate(names) if name in out.explanations]
    first = torch.arange(len(names), device=out.logits.device)[:, None].repeat(1, len(out.targets))
    for (earlier, one), (later, other) in combinations(methods, 2):
        if one.shape != other.shape:  # one lies on the maps, the other on the image
            continue
        # Heatmaps are a thousand times as large as explanation maps, so they are compared only where the latter are close.
        close = (rescale(one.relu()) - rescale(other.relu())).abs().amax((-2, -1)) <= CLOSE
        rest = (close & (first[earlier] == earlier) & (first[later] == later)).nonzero()[:, 0]
        if len(rest):
            gap = (heatmap(one[rest], size) - heatmap(other[rest], size)).abs().amax((-2, -1))
            first[later, rest[gap <= EQUAL]] = earlier
    return first
