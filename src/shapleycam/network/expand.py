"""The utility expanded around the whole coalition: the only place where networks are differentiated."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..theory.axes import Logits, Maps, Targets, Utilities, wide
from ..theory.crg import Expansion, efficiency_gap, quadrature
from ..theory.utility import Utility, settled
from .cut import Pass
from .tail import Tail

ROOM = 2**20
"""Numbers of the maps that a tail is given at a time with a graph: bounds memory, and fits into caches."""


@dataclass(frozen=True)
class Nodes:
    """Where U' is taken on the path from no activation to all, and how often."""

    first: int = 8
    """K: nodes to begin with."""
    tolerance: float | None = None
    """Efficiency gap that an image must keep below, or its nodes are doubled; None for no doubling."""
    most: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.first, int) or not 1 <= self.first <= self.most:
            raise ValueError(f"nodes is {self.first}, expected a whole number from 1 to max_nodes, {self.most}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance is {self.tolerance}, expected a share of the utility above 0, or None")


_EIGHT = Nodes()


def expand(
    forward: Pass,
    targets: Targets,
    utility: Utility,
    ingredients: frozenset[str],
    noise: Callable[[], Maps],
    nodes: Nodes = _EIGHT,
    *,
    again: bool = False,
    create_graph: bool = False,
) -> Expansion:
    """U' and, if asked for, HX and the path of each image's utility, by backward passes over the tail.

    `noise` is called if asked for. A utility that is linear in the maps has HX = 0. `again` keeps the graph, to expand the same
    pass once more for other targets. `create_graph` gives everything a graph of its own, to train on.

    Raises
    ------
    ValueError
        When the utility does not give one number an image, or does not depend on the maps.
    """
    gradient = hvp = path = full = empty = None
    kept = (lambda tensor: tensor) if create_graph else Tensor.detach
    second, utility = "hvp" in ingredients, settled(utility, forward.logits, targets)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(forward.leaf.device.type, enabled=False):
        if "path" in ingredients:
            full = worth(kept(forward.logits), targets, utility)
            path, empty = _path(forward, targets, utility, full, nodes, create_graph)
        if "gradient" in ingredients:
            utilities = worth(forward.logits, targets, utility)
            slope = _slope(forward, utilities, forward.leaf, create_graph=second or create_graph, again=again)
            gradient, full = wide(kept(slope)), kept(utilities)
            if second:
                hvp = wide(_curvature(slope, forward.leaf, forward.leaf.detach(), again))
    return Expansion(
        maps=wide(kept(forward.leaf)),
        gradient=gradient,
        hvp=hvp,
        path=path,
        full=full,
        empty=empty,
        noise=noise() if "noise" in ingredients else None,
    )


def worth(logits: Logits, targets: Targets, utility: Utility) -> Utilities:
    """U of each row of logits, in float32 or wider, with their graph.

    Raises
    ------
    ValueError
        When the utility does not give one number an image.
    """
    with torch.autocast(logits.device.type, enabled=False):
        utilities = utility(wide(logits), targets)
    if not isinstance(utilities, Tensor) or utilities.shape != targets.shape:
        got = f"shape {tuple(utilities.shape)}" if isinstance(utilities, Tensor) else f"a {type(utilities).__name__}"
        raise ValueError(
            f"the utility gave {got} for logits {tuple(logits.shape)}, expected one number an image, "
            f"{tuple(targets.shape)}"
        )
    return utilities


def empty_worth(forward: Pass, targets: Targets, utility: Utility) -> Utilities:
    """U(0) of each image: what is left when no position plays."""
    with torch.no_grad():
        utility = settled(utility, forward.logits, targets)
        return worth(_tail(forward)(torch.zeros_like(forward.leaf)), targets, utility)


def mixed_curvatures(forward: Pass, target: int, utility: Utility, shares: Bool[Tensor, "k 1 *p"]) -> Maps:
    """H X_S for k coalitions of one image's positions, (k, n, h, w): the Hessian at A times the maps where S plays."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(forward.leaf.device.type, enabled=False):
        maps = forward.leaf.detach()
        rows = maps.repeat(len(shares), *[1] * (maps.ndim - 1)).requires_grad_()
        logits = _tail(forward).of(rows.clone)
        utilities = worth(logits, torch.full((len(rows),), target, device=logits.device), utility)
        return wide(_curvature(_slope(forward, utilities, rows, create_graph=True), rows, maps * shares))


def _path(
    forward: Pass, targets: Targets, utility: Utility, full: Utilities, nodes: Nodes, create_graph: bool
) -> tuple[Maps, Utilities]:
    """The mean of U'(tA) over t, and U(0); an image's nodes are doubled until its efficiency gap is within the tolerance."""
    maps = wide(forward.leaf.detach())
    mean, empty = _mean_slope(forward, targets, utility, nodes.first, create_graph)
    count = nodes.first
    while nodes.tolerance is not None and 2 * count <= nodes.most:
        gap = _gap(mean, maps, full, empty)
        rest = gap > nodes.tolerance
        if not rest.any():
            break
        count *= 2
        finer, _ = _mean_slope(forward, targets, utility, count, create_graph)
        rest &= _gap(finer, maps, full, empty) < gap  # quadrature may get worse before it gets better
        mean = torch.where(rest.view(-1, *[1] * (mean.ndim - 1)), finer, mean)  # no image hangs on another's
    return mean, empty


def _gap(mean: Maps, maps: Maps, full: Utilities, empty: Utilities) -> Utilities:
    return efficiency_gap((mean * maps).flatten(1).sum(1), full, empty)


def _mean_slope(
    forward: Pass, targets: Targets, utility: Utility, nodes: int, create_graph: bool
) -> tuple[Maps, Utilities]:
    maps, tail = forward.leaf if create_graph else forward.leaf.detach(), _tail(forward)
    points, weights = quadrature(nodes)
    mean, nobody = wide(torch.zeros_like(maps)), torch.zeros_like(maps)
    empty: Utilities | None = None
    size = max(1, ROOM // maps.numel())
    for some, shares in zip(points.to(maps).split(size), weights.to(mean).split(size), strict=True):
        with torch.enable_grad():
            # The slope at a step away from the whole path is the mean of the slopes on it.
            step = torch.zeros_like(maps).requires_grad_()
            rows = partial(torch.addcmul, step, some.view(-1, *[1] * maps.ndim), maps)
            # Nobody plays in the first rows: they are out of the graph, for a tail may have no slope there.
            before = [nobody] if empty is None else []
            utilities = worth(
                tail.of(lambda: torch.cat([*before, rows().flatten(0, 1)])),  # noqa: B023
                targets.repeat(len(some) + len(before)),
                utility,
            )
            if empty is None:
                empty, utilities = utilities.split([len(maps), len(some) * len(maps)])
            # A node's share is small: slopes of half precision would vanish.
            shared = utilities * (nodes * shares).repeat_interleave(len(maps))
            mean = mean + wide(_slope(forward, shared, step, create_graph=create_graph)) / nodes
    assert empty is not None
    return mean, empty if create_graph else empty.detach()


def _tail(forward: Pass) -> Tail:
    if forward.tail is None:
        raise ValueError("the pass has no tail; ask for it with replay=True")
    return forward.tail


def _slope(forward: Pass, utilities: Tensor, at: Tensor, *, create_graph: bool = False, again: bool = False) -> Tensor:
    slope = None
    if utilities.requires_grad:
        (slope,) = torch.autograd.grad(
            utilities.sum(), at, retain_graph=create_graph or again, create_graph=create_graph, allow_unused=True
        )
    if slope is None:
        raise ValueError(
            f"the utility does not depend on layer {forward.layer.name!r}: no gradient path leads from the logits to its "
            "output; name a layer that the logits are made of, and no torch.no_grad() or detach() behind it"
        )
    return slope


def _curvature(slope: Tensor, at: Tensor, direction: Tensor, again: bool = False) -> Tensor:
    hvp = None
    if slope.requires_grad:
        if _ends_in_error(slope):
            raise _derived_once("a function marked with @once_differentiable")
        try:
            (hvp,) = torch.autograd.grad(slope, at, direction, retain_graph=again, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            if not any(each in str(error) for each in ("double backward", "differentiate twice", "not implemented")):
                raise
            raise _derived_once(error) from error
    return torch.zeros_like(slope) if hvp is None else hvp


def _derived_once(why: object) -> ValueError:
    return ValueError(
        f"second order needs a second derivative, and the network has an operation without one ({why}); take a method of first "
        "order, such as GradCAM or LayerCAM"
    )


def _ends_in_error(slope: Tensor) -> bool:
    """Whether a way down the graph ends in what raises: `grad` goes the other ways alone, and would leave a share out."""
    seen, queue = set[Any](), list[Any]([slope.grad_fn])
    while queue:
        node = queue.pop()
        if node.name() == "torch::autograd::Error":
            return True
        before = {each for each, _ in node.next_functions} - seen - {None}
        seen |= before
        queue += before
    return False
