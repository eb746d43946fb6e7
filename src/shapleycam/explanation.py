"""`explain`: a batch of images and a classifier in, the heatmaps of any number of methods out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.linalg import vector_norm

from .network.arguments import check_images, cut_network, resolve_keys, resolve_targets, resolve_utility, run
from .network.cut import CutNetwork, Layout, Pass, TargetLayer
from .network.expand import Nodes, empty_worth, expand, worth
from .network.preprocess import Preprocess
from .network.zoo import Model
from .theory.axes import Heatmaps, Images, Logits, Maps, Targets, Utilities
from .theory.cams import METHODS, Method, explanation, identity, mean, resolve_methods
from .theory.crg import INGREDIENTS, Expansion, Order, efficiency_gap
from .theory.draws import uniform
from .theory.heatmap import heatmap
from .theory.utility import Utility

_EIGHT = Nodes()
GAP = 0.05
"""An efficiency gap of the path row above which its nodes count as too few."""
SATURATED = 1e-6
"""A distance from probability 1 below which the gradient through a softmax counts as vanished."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` found for a batch of b images; tensors are on the images' device and carry no graph."""

    heatmaps: Mapping[str, Heatmaps]
    """For each method (b, H, W) in [0, 1]."""
    explanations: Mapping[str, Float[Tensor, "b h w"]]
    """For each method E, (b, h, w): signed, before the last ReLU, in units of the utility."""
    targets: Targets
    """The class explained, an image each."""
    logits: Logits
    layer: TargetLayer
    utility: str
    """The utility's name; a function's own name where one was passed."""
    preprocess: Preprocess | None = field(repr=False)
    """How the model's pictures were made images; None for a module of one's own."""
    signs: Mapping[str, Tensor] = field(repr=False)
    """What the warnings are made of, an image each: see `_signs`."""
    full: Utilities
    """U(A), what all positions together are worth, (b,)."""
    nobody: "_Nobody" = field(repr=False)

    @cached_property
    def empty(self) -> Utilities:
        """U(0), what is left when no position plays, (b,).

        Known where a method of the path row was asked for. Otherwise the network runs once more when this is asked for, as it
        and the images are then.
        """
        return self.nobody.worth()

    @cached_property
    def efficiency_gap(self) -> Mapping[str, Utilities]:
        """For each method |sum_j E_j - (U(A) - U(0))| / |U(A) - U(0)|, (b,): whether E shares out what there is to share.

        0 is best, and necessary for Shapley values, not sufficient. NaN for methods that do not claim to: those with a ReLU
        or a division inside, and Type II rows where W is not the same at all positions. Costs what `empty` costs.
        """
        gaps = {}
        for name, each in self.explanations.items():
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
            signs=part(self.signs),
            full=self.full[one],
            nobody=self.nobody[one],
        )

    @cached_property
    def warnings(self) -> tuple["ImageWarning", ...]:
        """Why a heatmap is blank or must not be trusted; one entry an image and reason, in the order of the images."""
        return tuple(sorted(_warnings(self), key=lambda warning: warning.image))


@dataclass(frozen=True)
class _Nobody:
    """What gives U(0) when it is asked for."""

    cut: CutNetwork
    images: Images
    targets: Targets
    utility: Utility
    known: Utilities | None
    version: int | None

    def __getitem__(self, one: slice) -> "_Nobody":
        known = None if self.known is None else self.known[one]
        return replace(self, images=self.images[one], targets=self.targets[one], known=known)

    def worth(self) -> Utilities:
        if self.known is not None:
            return self.known
        if self.version != _version(self.images):
            raise ValueError("the images were written to since they were explained; ask for the efficiency gap before")
        return empty_worth(run(self.cut, self.images, replay=True), self.targets, self.utility)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class ImageWarning:
    """A reason not to trust the heatmaps of one image."""

    image: int
    """Its place in the batch."""
    method: str | None
    """The method concerned; None for all."""
    reason: Literal["blank", "constant", "saturated", "non-finite", "linear", "path"]
    message: str

    def __str__(self) -> str:
        return f"image {self.image}{f', {self.method}' if self.method else ''}: {self.message}"


def explain(
    model: Model | nn.Module,
    images: Float[Tensor, "..."],
    *,
    methods: str | Iterable[str] = "ShapleyCAM",
    layer: str | nn.Module | None = None,
    layout: Layout | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    nodes: int = 8,
    tolerance: float | None = None,
    max_nodes: int = 256,
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> Explanation:
    """Heatmaps of what a classifier looked at: one forward pass, and one or two backward passes behind the cut.

    The path row, AumannCAM and its kin, takes `nodes` + 1 forward and backward passes behind the cut, in one batch.

    The model is left as it was: modes, hooks, gradients, flags. Autocast is off inside.

    Parameters
    ----------
    model
        What `load_model` gives, or any module that makes logits (b, c) of images.
    images
        (b, channels, H, W), preprocessed, on the model's device and of its dtype.
    methods
        A name in `METHODS`, "paper", "path" or "all", or a list of them.
    layer
        "gap" (the default) or "conv" where the zoo knows them, a dotted name, or a submodule.
    layout
        "bnhw" (maps first) or "bhwn" (channels last) of the layer's output; None finds out.
    targets
        The class to explain: None for the predicted one, "least" for the least likely, an index, or one an image.
    utility
        "rest", "pre-softmax", "post-softmax", "log-softmax", or a function (logits, targets) -> (b,).
    nodes, tolerance, max_nodes
        Of the path row's quadrature. With a tolerance nodes are doubled until an image's efficiency gap is within it, up to
        `max_nodes`; an entry in `warnings` says where they were too few.
    seed, keys
        Of RandomCAM's weights; `keys` names the images, without it a checksum of their values does.

    Raises
    ------
    ValueError
        For images, targets, methods, layers or utilities that do not fit, with what was expected and what to do.
    TypeError
        For a model or a target of the wrong kind.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> network = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    ... )
    >>> out = sc.explain(network, torch.rand(2, 3, 32, 32), layer="1", methods=["GradCAM", "ShapleyCAM"])
    >>> out.heatmaps["ShapleyCAM"].shape
    torch.Size([2, 32, 32])
    """
    rows = resolve_methods(methods)
    cut = cut_network(model, layer, layout)
    named = resolve_utility(utility)
    check_images(model, images)
    path = Nodes(nodes, tolerance, max(nodes, max_nodes))
    expanded = expand_images(cut, images, rows, targets, named[1], resolve_keys(keys, images), seed, nodes=path)
    out = explained(model, cut, images, rows, named, *expanded, path)
    return replace(out, heatmaps=dict(out.heatmaps))


def expand_images(
    cut: CutNetwork,
    images: Images,
    rows: Sequence[Method],
    targets: int | str | Sequence[int] | Tensor | None,
    utility: Utility,
    keys: Callable[[], Tensor],
    seed: int,
    stream: int = 0,
    nodes: Nodes = _EIGHT,
) -> tuple[Pass, Targets, Expansion]:
    """One forward pass, the classes to explain, and all that the rows may look at; a stream of its own is another draw."""
    ingredients = frozenset[str]().union(*(INGREDIENTS[row.order] for row in rows))
    forward = run(cut, images, second_order="hvp" in ingredients, replay="path" in ingredients)
    classes = resolve_targets(targets, forward.logits.detach())

    def noise() -> Maps:
        return uniform(keys(), forward.layer.maps, seed, stream)[:, :, None, None]

    return forward, classes, expand(forward, classes, utility, ingredients, noise, nodes)


def explained(
    model: Model | nn.Module,
    cut: CutNetwork,
    images: Images,
    rows: Sequence[Method],
    utility: tuple[str, Utility],
    forward: Pass,
    targets: Targets,
    expansion: Expansion,
    nodes: Nodes = _EIGHT,
) -> Explanation:
    """What `expand_images` gave, explained by each row; heatmaps are made whenever they are asked for, and not kept."""
    explanations = {row.name: explanation(row, expansion) for row in rows}
    full, signs = worth(forward.logits.detach(), targets, utility[1]), _signs(expansion) | _flat(rows, expansion)
    if expansion.path is not None and expansion.empty is not None:
        shared = (expansion.path * expansion.maps).flatten(1).sum(1)
        signs["path gap"] = efficiency_gap(shared, full, expansion.empty)
        signs["path limit"] = torch.full_like(full, nodes.tolerance or GAP)
    return Explanation(
        heatmaps=_Heatmaps(explanations, (images.shape[-2], images.shape[-1])),
        explanations=explanations,
        targets=targets,
        logits=forward.logits.detach(),
        layer=forward.layer,
        utility=utility[0],
        preprocess=model.preprocess if isinstance(model, Model) else None,
        signs=signs,
        full=full,
        nobody=_Nobody(cut, images, targets, utility[1], expansion.empty, _version(images)),
    )


@dataclass(frozen=True)
class _Heatmaps(Mapping[str, Tensor]):
    """Heatmaps made of explanation maps on demand: at the image's resolution they are a thousand times as large."""

    explanations: Mapping[str, Tensor]
    size: tuple[int, int]

    def __getitem__(self, method: str) -> Heatmaps:
        return heatmap(self.explanations[method], self.size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.explanations)

    def __len__(self) -> int:
        return len(self.explanations)


def _signs(expansion: Expansion) -> dict[str, Tensor]:
    """For each image: whether all is finite, whether U' and HX are zero throughout."""
    ingredients = {
        "maps": expansion.maps,
        "gradient": expansion.gradient,
        "hvp": expansion.hvp,
        "path": expansion.path,
    }
    # One pass each: a sum of magnitudes, in a type in which it cannot overflow.
    sizes = {
        name: vector_norm(each.flatten(1), 1, 1, dtype=torch.float64)
        for name, each in ingredients.items()
        if each is not None
    }
    finite = torch.stack(list(sizes.values())).isfinite().all(0)
    return {"finite": finite} | {f"{name} is zero": size == 0 for name, size in sizes.items()}


def _flat(rows: Sequence[Method], expansion: Expansion) -> dict[str, Tensor]:
    """For each Type II method and image, whether W is the same at all positions of each map, so that Type I is the same."""
    flat: dict[Order, Tensor] = {}
    for order in {row.order for row in rows if row.weights is mean and row.order != "none"}:
        parts = (getattr(expansion, each).flatten(2) for each in INGREDIENTS[order])
        flat[order] = torch.stack([(part == part[..., :1]).flatten(1).all(1) for part in parts]).all(0)
    return {f"{row.name} is flat": flat[row.order] for row in rows if row.weights is mean and row.order in flat}


def _warnings(out: Explanation) -> Iterator[ImageWarning]:
    signs = {name: values.tolist() for name, values in out.signs.items()}
    confident = out.logits.to(torch.float64).softmax(1).gather(1, out.targets[:, None])[:, 0].tolist()
    for image, (finite, target) in enumerate(zip(signs["finite"], out.targets.tolist(), strict=True)):
        if not finite:
            yield ImageWarning(
                image, None, "non-finite", f"NaN or infinity in the maps or gradients of {out.layer.name}"
            )
        elif out.utility in ("post-softmax", "log-softmax") and 1 - confident[image] < SATURATED:
            yield ImageWarning(
                image,
                None,
                "saturated",
                f"class {target} has a probability of {confident[image]:.8f}, where the softmax is flat and the gradient of "
                f'{out.utility} vanishes; utility="rest" does not saturate',
            )
        if signs.get("hvp is zero", [False] * (image + 1))[image]:
            yield ImageWarning(
                image,
                None,
                "linear",
                "HX is zero: the utility is linear in the maps, so second order equals first order",
            )
        if "path gap" in signs and not (gap := signs["path gap"][image]) <= signs["path limit"][image]:
            yield ImageWarning(
                image,
                None,
                "path",
                f"the path row misses {gap:.1%} of the utility (a normalisation behind the target makes it steep near zero); "
                "give it more nodes: tolerance=0.01 doubles them until they are enough",
            )
    for method, explanations in out.explanations.items():
        low, high = (reduce(explanations, (-2, -1)).tolist() for reduce in (torch.amin, torch.amax))
        for image, finite in enumerate(signs["finite"]):
            if finite and not isfinite(high[image] - low[image]):
                yield ImageWarning(
                    image, method, "non-finite", "NaN or infinity in the map, made of finite maps and gradients"
                )
            elif finite and high[image] <= 0:
                yield ImageWarning(image, method, "blank", _blank(out, image, low[image], high[image]))
            elif finite and high[image] == low[image]:
                yield ImageWarning(
                    image, method, "constant", f"the map has the same value, {high[image]:.3g}, at every position"
                )


def _blank(out: Explanation, image: int, low: float, high: float) -> str:
    if low == high == 0:
        return (
            f"the map is zero throughout: {out.layer.name} puts out zeros, or {out.utility} does not change with them"
        )
    return (
        f"the map is blank: it ranges from {low:.3g} to {high:.3g}, so every position speaks against class "
        f"{int(out.targets[image])}, and the ReLU leaves nothing; see `explanations` for the signed map"
    )
