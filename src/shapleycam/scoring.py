"""Heatmaps scored on the network that they explain: masked images, passes, and what the metrics make of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .batch import Explanation, expand_images, explanations_of
from .curves import deletion, insertion
from .imputation import road
from .network.cut import CutNetwork
from .network.zoo import Model
from .playground import Progress
from .theory import metrics
from .theory.axes import Heatmaps, Images, Logits, Targets, Utilities
from .theory.baselines import BASELINES
from .theory.cams import nearest
from .theory.heatmap import coherency, heatmap, rescale
from .theory.utility import Utility, confidence, fixed

Masking = Literal["normalised", "raw"]
Metric = Callable[..., Utilities]
EQUAL = 1e-6
"""Heatmaps that differ by no more than this are measured once."""
CLOSE = 1e-5
"""Explanation maps scaled to [0, 1] that differ by more than this have heatmaps that differ by more than `EQUAL`."""
MORE: Mapping[str, Metric] = {"insertion": insertion, "deletion": deletion, "road": road}
"""Metrics of a heatmap beside the six, which cost passes of their own."""


def resolve_metrics(metrics: str | Iterable[str]) -> tuple[str, ...]:
    """The names of metrics beside the six: those of `MORE`, and "randomisation"; in order, each once.

    Raises
    ------
    ValueError
        For an unknown name, with the nearest names.
    """
    names, known = ([metrics] if isinstance(metrics, str) else list(metrics)), (*MORE, "randomisation")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown metric {unknown[0]!r}; {nearest(unknown[0], known)}")
    return tuple(dict.fromkeys(names))


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


@dataclass(frozen=True)
class Scoring:
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
    plain: Callable[[Tensor], Tensor]
    """Logits of images, for `more`."""
    searching: tuple[Progress | None, int | None] = (None, None)
    """Progress and budget of what is in `SEARCHES`."""

    @cached_property
    def share(self) -> Callable[[Logits, Int64[Tensor, " k"]], Utilities]:
        """The targets' probabilities of logits (k, c) of the images at k places."""
        return confidence(self.utility, self.out.logits, self.out.targets)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def table(self) -> Float[Tensor, "scores m b"]:
        """kept, deleted, coherency, complexity, and more, of each method and image; equal heatmaps are measured once."""
        first = _first_of_equals(self.names, self.out, self.size)
        distinct = (first == torch.arange(len(self.names), device=first.device)[:, None]).nonzero()
        scores = torch.cat([self._score(*some.T) for some in distinct.split(len(self.images))], 1)
        table = scores.new_empty(len(scores), *first.shape)
        table[:, distinct[:, 0], distinct[:, 1]] = scores
        return table.gather(1, first.expand(len(table), -1, -1))

    def _score(self, which: Int64[Tensor, " k"], place: Int64[Tensor, " k"]) -> Float[Tensor, "scores k"]:
        """The same of the heatmaps of method `which[i]` on image `place[i]`."""
        groups = list(self._groups(which))
        maps = _joined([self._heatmaps(name, place[rows]) for name, rows in groups])
        whole = len(which) == len(self.images) and which[0] == which[-1]  # one method, all images in their order
        images, targets = self.images if whole else self.images[place], self.out.targets[place]
        explanation_maps = masked(images, maps, self.background)
        both = images if self.background is None else images + self.background
        anti = both - explanation_maps  # x * (1 - H), without another product, which is slow where channels are last
        kept, coherency = self._explain_again(explanation_maps, targets, groups, place)
        deleted = self.share(self.infer(anti), place)
        with torch.autocast(images.device.type, enabled=False):
            more = [metric(_Plain(self.plain), images, maps, targets, utility=self.utility) for metric in self.more]
        return torch.stack([kept, deleted, coherency, metrics.complexity(maps), *more])

    def _explain_again(
        self, kept: Images, targets: Targets, groups: Sequence[tuple[str, slice]], place: Tensor
    ) -> tuple[Utilities, Utilities]:
        """Probabilities of the targets on explanation maps, and how far the same methods explain these alike: see `coherency`."""
        names = [name for name, _ in groups if name not in BASELINES]
        keys = lambda: self.keys()[place]  # noqa: E731
        utility = fixed(self.utility, self.out.logits[place], targets)  # which asks what was asked of the whole image
        forward, _, expansion = expand_images(self.cut, kept, names, targets, utility, keys, self.seed, stream=1)
        found = explanations_of(
            self.cut, kept, names, utility, keys, self.seed, forward, targets, expansion, *self.searching
        )
        share = self.share(forward.logits.detach(), place)

        def alike(name: str, rows: slice) -> Utilities:
            if name in BASELINES:  # which are always the same
                return torch.ones_like(share[rows])
            return coherency(self.out.explanations[name][place[rows]], found[name][rows], self.size).to(share)

        return share, _joined([alike(*group) for group in groups])

    def _groups(self, which: Tensor) -> Iterator[tuple[str, slice]]:
        """The methods of k pairs that are in their order, each with its rows."""
        start = 0
        for i, count in zip(*(each.tolist() for each in which.unique_consecutive(return_counts=True)), strict=True):
            yield self.names[i], slice(start, start + count)
            start += count

    def _heatmaps(self, name: str, place: Int64[Tensor, " k"]) -> Heatmaps:
        if name in BASELINES:
            wide = torch.promote_types(self.images.dtype, torch.float32)
            return BASELINES[name](*self.size).to(place.device, wide).expand(len(place), -1, -1)
        return heatmap(self.out.explanations[name][place], self.size)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Plain(nn.Module):
    """Logits, whatever the network puts out, as a network of its own."""

    def __init__(self, infer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.infer = infer

    def forward(self, images: Tensor) -> Tensor:
        return self.infer(images)


def _first_of_equals(names: Sequence[str], out: Explanation, size: tuple[int, int]) -> Int64[Tensor, "m b"]:
    """For each method and image the first method in the list with the same heatmap there."""
    # A random map that happens to be another's is drawn anew for the explanation map.
    maps = [(i, out.explanations[n]) for i, n in enumerate(names) if n in out.explanations and n != "RandomCAM"]
    methods = [(place, each, rescale(each.relu())) for place, each in maps]
    first = torch.arange(len(names), device=out.logits.device)[:, None].repeat(1, len(out.targets))
    for (earlier, one, scaled), (later, other, beside) in combinations(methods, 2):
        if one.shape != other.shape:  # one lies on the maps, the other on the image
            continue
        # Heatmaps are a thousand times as large as explanation maps, so they are compared only where the latter are close.
        close = (scaled - beside).abs().amax((-2, -1)) <= CLOSE
        rest = (close & (first[earlier] == earlier) & (first[later] == later)).nonzero()[:, 0]
        if len(rest):
            gap = (heatmap(one[rest], size) - heatmap(other[rest], size)).abs().amax((-2, -1))
            first[later, rest[gap <= EQUAL]] = earlier
    return first
