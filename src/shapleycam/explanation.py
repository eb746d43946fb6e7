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
from .network.expand import expand
from .network.preprocess import Preprocess
from .network.zoo import Model
from .theory.axes import Heatmaps, Images, Logits, Maps, Targets
from .theory.cams import Method, explanation, resolve_methods
from .theory.crg import INGREDIENTS, Expansion
from .theory.draws import uniform
from .theory.heatmap import heatmap
from .theory.utility import Utility

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
        )

    @cached_property
    def warnings(self) -> tuple["ImageWarning", ...]:
        """Why a heatmap is blank or must not be trusted; one entry an image and reason, in the order of the images."""
        return tuple(sorted(_warnings(self), key=lambda warning: warning.image))


@dataclass(frozen=True)
class ImageWarning:
    """A reason not to trust the heatmaps of one image."""

    image: int
    """Its place in the batch."""
    method: str | None
    """The method concerned; None for all."""
    reason: Literal["blank", "constant", "saturated", "non-finite", "linear"]
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
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> Explanation:
    """Heatmaps of what a classifier looked at: one forward pass, and one or two backward passes behind the cut.

    The model is left as it was: modes, hooks, gradients, flags. Autocast is off inside.

    Parameters
    ----------
    model
        What `load_model` gives, or any module that makes logits (b, c) of images.
    images
        (b, channels, H, W), preprocessed, on the model's device and of its dtype.
    methods
        A name in `METHODS`, "paper" or "all", or a list of them.
    layer
        "gap" (the default) or "conv" where the zoo knows them, a dotted name, or a submodule.
    layout
        "bnhw" (maps first) or "bhwn" (channels last) of the layer's output; None finds out.
    targets
        The class to explain: None for the predicted one, "least" for the least likely, an index, or one an image.
    utility
        "rest", "pre-softmax", "post-softmax", "log-softmax", or a function (logits, targets) -> (b,).
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
    name, worth = resolve_utility(utility)
    check_images(model, images)
    expanded = expand_images(cut, images, rows, targets, worth, resolve_keys(keys, images), seed)
    out = explained(model, images, rows, name, *expanded)
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
) -> tuple[Pass, Targets, Expansion]:
    """One forward pass, the classes to explain, and all that the rows may look at; a stream of its own is another draw."""
    ingredients = frozenset[str]().union(*(INGREDIENTS[row.order] for row in rows))
    forward = run(cut, images, second_order="hvp" in ingredients)
    classes = resolve_targets(targets, forward.logits.detach())

    def noise() -> Maps:
        return uniform(keys(), forward.layer.maps, seed, stream)[:, :, None, None]

    return forward, classes, expand(forward, classes, utility, ingredients, noise)


def explained(
    model: Model | nn.Module,
    images: Images,
    rows: Sequence[Method],
    utility: str,
    forward: Pass,
    targets: Targets,
    expansion: Expansion,
) -> Explanation:
    """What `expand_images` gave, explained by each row; heatmaps are made whenever they are asked for, and not kept."""
    explanations = {row.name: explanation(row, expansion) for row in rows}
    return Explanation(
        heatmaps=_Heatmaps(explanations, (images.shape[-2], images.shape[-1])),
        explanations=explanations,
        targets=targets,
        logits=forward.logits.detach(),
        layer=forward.layer,
        utility=utility,
        preprocess=model.preprocess if isinstance(model, Model) else None,
        signs=_signs(expansion),
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
    ingredients = {"maps": expansion.maps, "gradient": expansion.gradient, "hvp": expansion.hvp}
    # One pass each: a sum of magnitudes, in a type in which it cannot overflow.
    sizes = {
        name: vector_norm(each.flatten(1), 1, 1, dtype=torch.float64)
        for name, each in ingredients.items()
        if each is not None
    }
    finite = torch.stack(list(sizes.values())).isfinite().all(0)
    return {"finite": finite} | {f"{name} is zero": size == 0 for name, size in sizes.items()}


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
