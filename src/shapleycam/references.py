"""Attributions on the input that are no CAMs, to compare with: Integrated Gradients, RISE and KernelSHAP on superpixels."""

from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from .playground import Playground, undisturbed
from .theory.axes import Heatmaps, Images, Utilities, wide
from .theory.crg import quadrature
from .theory.draws import uniform
from .theory.shapley import Coalitions, by_kernel

_STREAM = 2**17
"""Of random numbers; explaining and smoothing have streams below."""
BUDGET = 4000
"""Forward passes an image that a method takes which is not told how many."""
SUPERPIXELS, LEAST = 49, 80
"""The most superpixels that are played unless others are given, and the fewest passes for each."""


@undisturbed
def integrated_gradients(play: Playground, *, nodes: int = 50, baseline: Images | None = None) -> Heatmaps:
    """(x - x') times the mean of dU/dx on the line from x' to x, summed over channels: Eq. (1) of Sundararajan et al. 2017.

    The baseline x' is zero, the mean colour, if none is given. By Gauss-Legendre quadrature; adds up to U(x) - U(x'). Costs
    `nodes` forward and backward passes of the whole network.

    Raises
    ------
    ValueError
        For fewer than one node, or a baseline that does not fit.
    """
    if nodes < 1:
        raise ValueError(f"nodes is {nodes}, expected 1 or more")
    start = torch.zeros_like(play.images) if baseline is None else baseline
    if start.shape != play.images.shape:
        raise ValueError(
            f"baseline has shape {tuple(start.shape)}, expected that of the images {tuple(play.images.shape)}"
        )
    step, total = play.images - start, torch.zeros_like(wide(play.images))
    points, weights = (each.to(step) for each in quadrature(nodes))
    for some in play.parts(nodes, step.numel()):
        part = slice(some.start, some.stop)
        at = start + points[part].view(-1, *[1] * step.ndim) * step
        with torch.enable_grad():
            rows = at.flatten(0, 1).requires_grad_()
            utilities = play.worth(play.network(rows), play.each.repeat(len(some)))
            (slopes,) = torch.autograd.grad((utilities * weights[part].repeat_interleave(len(step))).sum(), rows)
        total += wide(slopes).view(len(some), *step.shape).sum(0)
    return (total * step).sum(1)


@undisturbed
def rise(play: Playground, *, masks: int | None = None, cells: int = 7, share: float = 0.5) -> Heatmaps:
    """The mean of U(x * M) M over random masks M, over their mean `share`, as Petsiuk et al. 2018.

    A mask is a grid of `cells` x `cells` that are on with probability `share`, enlarged, and moved by less than a cell; an
    image's masks hang on its key and the seed only. The source's U is a probability; a utility that
    falls below 0 is lifted until it does not, for a pixel's mean says nothing by itself. Costs `masks` forward passes, None for
    the playground's budget, or 4,000.

    Raises
    ------
    ValueError
        For no mask, no cell, or a share that is not between 0 and 1; for images that are not (b, channels, H, W).
    """
    masks = (play.budget or BUDGET) if masks is None else masks
    if play.images.ndim != 4:
        raise ValueError(
            f"RISE lays masks on pictures (b, channels, H, W), got images of shape {tuple(play.images.shape)}; KernelSHAP takes "
            "signals and volumes too"
        )
    if masks < 1 or cells < 1 or not 0 < share < 1:
        raise ValueError(
            f"got masks={masks}, cells={cells}, share={share}, expected masks and cells of 1 or more, and a share between 0 and 1"
        )
    b, size = len(play.images), (play.images.shape[2], play.images.shape[3])
    drawn = (uniform(play.keys(), masks * (cells**2 + 2), play.seed, _STREAM) + 1) / 2
    drawn = drawn.view(b, masks, -1)
    found = []
    for some in play.parts(masks, play.images.numel()):
        given = drawn[:, some.start : some.stop]
        seen = play.images[:, None] * masks_of(given.flatten(0, 1), size, share).view(b, -1, 1, *size)
        logits = play.infer(seen.flatten(0, 1).to(play.images.dtype))
        found.append(play.worth(logits, play.each.repeat_interleave(len(some))).view(b, -1))
    worths = torch.cat(found, 1)
    worths = worths - worths.amin(1, keepdim=True).clamp(max=0)
    total = worths.new_zeros(b, *size)
    for some in replace(play, progress=None).parts(
        masks, play.images.numel()
    ):  # masks are cheaper to make anew than to keep
        part = slice(some.start, some.stop)
        total += torch.einsum(
            "bk,bkhw->bhw",
            worths[:, part],
            masks_of(drawn[:, part].flatten(0, 1), size, share).view(b, -1, *size).to(worths),
        )
    return total / (share * masks)


def masks_of(drawn: Float[Tensor, "k d"], size: tuple[int, int], share: float) -> Float[Tensor, "k H W"]:
    """RISE's masks, in [0, 1], from numbers in [0, 1): those of g x g cells, and how far to move down and right."""
    cells = round((drawn.shape[1] - 2) ** 0.5)
    h, w = size
    cell = -(-h // cells), -(-w // cells)
    on = (drawn[:, :-2] < share).to(drawn.dtype).view(-1, 1, cells, cells)
    large = interpolate(on, ((cells + 1) * cell[0], (cells + 1) * cell[1]), mode="bilinear", align_corners=False)[:, 0]
    down, right = ((drawn[:, i] * side).long() for i, side in ((-2, cell[0]), (-1, cell[1])))
    rows = down[:, None, None] + torch.arange(h, device=drawn.device)[:, None]
    columns = right[:, None, None] + torch.arange(w, device=drawn.device)
    return large[torch.arange(len(large), device=drawn.device)[:, None, None], rows, columns]


@undisturbed
def kernel_shap(
    play: Playground,
    *,
    superpixels: int | Int64[Tensor, "*p"] | None = None,
    budget: int | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "b *p"]:
    """Shapley values of superpixels by KernelSHAP (Lundberg and Lee 2017), each shared evenly by its pixels.

    A superpixel that does not play is zero, the mean colour. They add up to U(x) - U(0). Superpixels are a grid of g cells a
    side, segments of signals and blocks of volumes too, or a map of labels; None for as many as the budget pays for, 7 x 7 of
    4,000. Costs up to `budget` forward passes an image, None for the playground's or 4,000, and no fewer than 80 a superpixel.

    Raises
    ------
    ValueError
        For superpixels that do not fit the images, and a budget that does not pay for two a side.
    """
    budget, size = (play.budget or BUDGET) if budget is None else budget, tuple(play.images.shape[2:])
    labels = _labels(_side(budget, size) if superpixels is None else superpixels, size).to(play.images.device)
    found, b = [], len(play.images)
    for i in range(b):
        game = Superpixels(play, i, labels)

        def progress(played: int, most: int, i: int = i) -> None:
            if play.progress is not None:
                play.progress(i * most + min(played, most), b * most)

        values = by_kernel(game, budget, tolerance, play.seed, progress).values
        found.append((values / torch.bincount(labels.flatten()).to(values))[labels])
    return torch.stack(found)


@dataclass(frozen=True)
class Superpixels:
    """The game between the superpixels of one image."""

    play: Playground
    image: int
    labels: Int64[Tensor, "*p"]
    """Which player each pixel belongs to, from 0 on."""

    @property
    def players(self) -> int:
        return int(self.labels.max()) + 1

    def worth(self, coalitions: Coalitions) -> Utilities:
        image, which = self.play.images[self.image], self.play.each[self.image]
        coalitions, found = coalitions.to(image.device), []
        for some in replace(self.play, progress=None).parts(len(coalitions), image.numel()):
            shares = coalitions[some.start : some.stop, None, self.labels]
            found.append(self.play.worth(self.play.infer(image * shares), which.expand(len(some))))
        return torch.cat(found) if found else image.new_empty(0)


def _side(budget: int, size: tuple[int, ...]) -> int:
    """How many superpixels a side a budget pays for, at most as many as cells of 7 x 7."""
    side = int((min(SUPERPIXELS, budget // LEAST) + 0.5) ** (1 / len(size)))
    if side < 2:
        raise ValueError(
            f"the budget is {budget}, expected {LEAST * 2 ** len(size)} or more: KernelSHAP spends {LEAST} passes a superpixel"
        )
    return min(side, *size)


def _labels(superpixels: int | Tensor, size: tuple[int, ...]) -> Tensor:
    if isinstance(superpixels, int) and 1 <= superpixels <= min(size):
        places = (torch.arange(side) * superpixels // side for side in size)
        return reduce(lambda labels, place: labels[..., None] * superpixels + place, places)
    if isinstance(superpixels, Tensor) and tuple(superpixels.shape) == size and not superpixels.is_floating_point():
        labels: Tensor = superpixels.unique(return_inverse=True)[1]
        return labels
    got = f"labels of shape {tuple(superpixels.shape)}" if isinstance(superpixels, Tensor) else repr(superpixels)
    raise ValueError(
        f"superpixels is {got}, expected the side of a grid, 1 to {min(size)}, or integer labels of the images' shape {size}"
    )
