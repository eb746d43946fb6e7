"""`explain`: a batch of images and a classifier in, the heatmaps of any number of methods out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from .image_warnings import GAP, ImageWarning, find_warnings, flatness, signs_of
from .layered import Layered
from .network.arguments import cut_network, resolve_keys, resolve_targets, resolve_utility, run
from .network.cut import CutNetwork, Pass
from .network.expand import Nodes, empty_worth, expand, worth
from .network.inputs import Given, Inputs, Output, as_inputs, size_of
from .network.layout import Axes, Layout, TargetLayer
from .network.preprocess import Preprocess
from .network.zoo import Model
from .theory.axes import ExplanationMaps, Heatmaps, Logits, Maps, Targets, Utilities
from .theory.cams import METHODS, Method, explanation, identity, mean, resolve_methods
from .theory.crg import INGREDIENTS, Expansion, efficiency_gap
from .theory.draws import uniform
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
    signs: Mapping[str, Tensor] = field(repr=False)
    """What the warnings are made of, an image each: see `signs_of`."""
    nobody: "_Nobody" = field(repr=False)

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


@overload
def explain(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    methods: str | Iterable[str] = "ShapleyCAM",
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    nodes: int = 8,
    tolerance: float | None = None,
    max_nodes: int = 256,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    create_graph: bool = False,
) -> Explanation: ...


@overload
def explain(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    methods: str | Iterable[str] = "ShapleyCAM",
    layer: list[str] | list[nn.Module] | list[str | nn.Module] | tuple[str | nn.Module, ...],
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    nodes: int = 8,
    tolerance: float | None = None,
    max_nodes: int = 256,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    create_graph: bool = False,
) -> Layered: ...


def explain(
    model: Model | nn.Module,
    images: Tensor | Inputs | tuple[Any, ...] | Mapping[str, Any],
    *,
    methods: str | Iterable[str] = "ShapleyCAM",
    layer: str | nn.Module | Sequence[Any] | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    nodes: int = 8,
    tolerance: float | None = None,
    max_nodes: int = 256,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    create_graph: bool = False,
) -> Explanation | Layered:
    """Heatmaps of what a classifier looked at: one forward pass, and one or two backward passes behind the cut.

    The path row, AumannCAM and its kin, takes `nodes` + 1 forward and backward passes behind the cut,
    batched as far as they fit into caches.

    The model is left as it was: modes, hooks, gradients, flags. Autocast is off inside.

    Parameters
    ----------
    model
        What `load_model` gives, or any module that makes logits (b, c) of images.
    images
        (b, channels, H, W), preprocessed, on the model's device and of its dtype; signals (b, channels, t) and volumes
        (b, channels, D, H, W) where the network takes them. A network of several inputs takes a tuple (its arguments), a mapping
        (its keyword arguments), or `sc.Inputs(images, mask=m)`; heatmaps lie on the first floating-point tensor.
    methods
        A name in `METHODS`, "paper", "path" or "all", or a list of them.
    layer
        "gap" (the default) or "conv" where the zoo knows them, a dotted name, or a submodule. None finds, for other models, the
        layer that feeds the last spatial reduction, by one more forward and backward pass: see `suggest_layers`. Several in a
        list give `Layered`: an explanation a layer, and their mean.
    layout
        "bnhw" (maps first), "bhwn" (channels last), "btn" (tokens) and so on of the layer's output, or `sc.Layout` with the grid
        and the prefix of its tokens; None finds out.
    output
        Makes logits (b, c) of what the network puts out; None takes a tensor, the first of a tuple, or `logits`.
    targets
        The class to explain: None for the predicted one, "least" for the least likely, an index, or one an image.
    utility
        "rest", "pre-softmax", "post-softmax", "log-softmax", or a function (logits, targets) -> (b,).
    nodes, tolerance, max_nodes
        Of the path row's quadrature. With a tolerance nodes are doubled until an image's efficiency gap is within it, up to
        `max_nodes`; an entry in `warnings` says where they were too few.
    seed, keys
        Of RandomCAM's weights; `keys` names the images, without it a checksum of their values does.
    create_graph
        Whether heatmaps, explanations and logits carry a graph to the parameters and images, so that one can train on them:
        first order and path. The whole network then runs with a graph, in eval mode.

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
    if layer is not None and not isinstance(layer, str | nn.Module):
        one = partial(
            explain, model, images, methods=methods, layout=layout, output=output, targets=targets, utility=utility,
            nodes=nodes, tolerance=tolerance, max_nodes=max_nodes, seed=seed, keys=keys, create_graph=create_graph,
        )  # fmt: skip
        if not layer:
            raise ValueError("layer is an empty list; expected one or more layers, or None")
        return Layered({found.layer.name: found for found in (one(layer=each) for each in layer)})
    rows = resolve_methods(methods)
    if create_graph and (second := [row.name for row in rows if row.order == "second"]):
        raise ValueError(
            f"create_graph=True covers methods of first order and of the path, not {', '.join(second)}: training on HX takes third "
            "derivatives, which PyTorch gets wrong behind a LayerNorm"
        )
    named = resolve_utility(utility)
    given = as_inputs(images)
    cut = cut_network(model, layer, layout, given, output)
    path = Nodes(nodes, tolerance, max(nodes, max_nodes))
    expanded = expand_images(
        cut,
        given,
        rows,
        targets,
        named[1],
        resolve_keys(keys, given),
        seed,
        nodes=path,
        create_graph=create_graph,
    )
    out = explained(model, cut, given, rows, named, *expanded, path)
    return replace(out, heatmaps=dict(out.heatmaps))


def expand_images(
    cut: CutNetwork,
    images: Given,
    rows: Sequence[Method],
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
    """One forward pass, the classes to explain, and all that the rows may look at; a stream of its own is another draw.

    `again` keeps the graph of the pass, to `expand` it for other classes.
    """
    ingredients = frozenset[str]().union(*(INGREDIENTS[row.order] for row in rows))
    twice = create_graph or "hvp" in ingredients
    forward = run(cut, images, second_order=twice, replay="path" in ingredients, create_graph=create_graph)
    classes = resolve_targets(targets, forward.logits.detach())

    def noise() -> Maps:
        drawn: Maps = uniform(keys(), forward.layer.maps, seed, stream)
        return drawn.view(*drawn.shape, *[1] * len(forward.layer.positions))

    return (
        forward,
        classes,
        expand(forward, classes, utility, ingredients, noise, nodes, again=again, create_graph=create_graph),
    )


def explained(
    model: Model | nn.Module,
    cut: CutNetwork,
    images: Given,
    rows: Sequence[Method],
    utility: tuple[str, Utility],
    forward: Pass,
    targets: Targets,
    expansion: Expansion,
    nodes: Nodes = _EIGHT,
) -> Explanation:
    """What `expand_images` gave, explained by each row; heatmaps are made whenever they are asked for, and not kept."""
    explanations = {row.name: explanation(row, expansion) for row in rows}
    full, signs = expansion.full, signs_of(expansion) | flatness(rows, expansion)
    if expansion.path is not None and full is not None and expansion.empty is not None:
        shared = (expansion.path * expansion.maps).flatten(1).sum(1)
        signs["path gap"] = efficiency_gap(shared, full, expansion.empty)
        signs["path limit"] = torch.full_like(full, nodes.tolerance or GAP)
    return Explanation(
        heatmaps=_Heatmaps(explanations, size_of(images)),
        explanations=explanations,
        targets=targets,
        logits=forward.logits if forward.leaf.grad_fn is not None else forward.logits.detach(),
        layer=forward.layer,
        utility=utility[0],
        preprocess=model.preprocess if isinstance(model, Model) else None,
        signs=signs,
        nobody=_Nobody(cut, images, targets, utility[1], full, expansion.empty, _version(images)),
    )


@dataclass(frozen=True)
class _Heatmaps(Mapping[str, Tensor]):
    """Heatmaps made of explanation maps on demand: at the image's resolution they are a thousand times as large."""

    explanations: Mapping[str, Tensor]
    size: tuple[int, ...]

    def __getitem__(self, method: str) -> Heatmaps:
        return heatmap(self.explanations[method], self.size)

    def __iter__(self) -> Iterator[str]:
        return iter(self.explanations)

    def __len__(self) -> int:
        return len(self.explanations)
