"""`explain`: a batch of images and a classifier in, the heatmaps of any number of methods out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

from torch import Tensor, nn

from .batch import Explanation, LazyHeatmaps, expand_images, explained, explanations_of
from .layered import Layered
from .network.arguments import cut_network, resolve_keys, resolve_utility
from .network.expand import Nodes
from .network.inputs import Inputs, Output, as_inputs, size_of
from .network.layout import Axes, Layout
from .network.zoo import Model
from .playground import Progress
from .searches import SEARCHES
from .smoothing import smoothed
from .theory.cams import METHODS, resolve_names
from .theory.utility import Utility, fixed


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
    samples: int = 0,
    level: float = 0.15,
    progress: Progress | None = None,
    budget: int | None = None,
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
    samples: int = 0,
    level: float = 0.15,
    progress: Progress | None = None,
    budget: int | None = None,
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
    samples: int = 0,
    level: float = 0.15,
    progress: Progress | None = None,
    budget: int | None = None,
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
        A name in `METHODS` or `SEARCHES`, "paper", "path" or "all", or a list of them. What is in `SEARCHES`, ScoreCAM or RISE
        say, costs many passes and is in no set.
    layer
        "gap" (the default) or "conv" where the zoo knows them, a dotted name, or a submodule. None finds, for other models, the
        layer that feeds the last spatial reduction, by one more forward and backward pass: see `suggest_layers`. Several in a
        list give `Layered`: an explanation a layer, and their mean.
    layout
        "bnhw" (maps first), "bhwn" (channels last), "btn" (tokens) and so on of the layer's output, or `sc.Layout` with the grid
        and the prefix of its tokens; None finds out.
    output
        Makes logits (b, c) of what the network puts out; None takes a tensor, the one (b, c) in a tuple, or `logits`.
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
    samples, level
        SmoothGrad (Smilkov et al. 2017) for every method: E is the mean over so many images with noise on them, `level` being
        its standard deviation as a share of the image's range, and `deviations` has the spread. 0 for the image itself.
    progress
        Told now and then how much of a slow method is done, of how much.
    budget
        Forward passes an image that RISE and KernelSHAP may spend; 4,000 each if None.

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
        if not isinstance(layer, list | tuple):
            raise TypeError(
                f"layer is a {type(layer).__name__}, expected a dotted name, a submodule, or a list of them"
            )
        one = partial(
            explain, model, images, methods=methods, layout=layout, output=output, targets=targets, utility=utility,
            nodes=nodes, tolerance=tolerance, max_nodes=max_nodes, seed=seed, keys=keys, create_graph=create_graph,
            samples=samples, level=level, progress=progress, budget=budget,
        )  # fmt: skip
        if not layer:
            raise ValueError("layer is an empty list; expected one or more layers, or None")
        return Layered({found.layer.name: found for found in (one(layer=each) for each in layer)})
    if not isinstance(samples, int) or samples < 0:
        raise ValueError(f"samples is {samples!r}, expected a number of noisy images, 0 for none")
    names = resolve_names(methods, SEARCHES)
    if create_graph:
        _refuse_untrainable(names, samples)
    named = resolve_utility(utility)
    given = as_inputs(images)
    cut = cut_network(model, layer, layout, given, output, names)
    path, keyed = Nodes(nodes, tolerance, max(nodes, max_nodes)), resolve_keys(keys, given)
    found = expand_images(cut, given, names, targets, named[1], keyed, seed, nodes=path, create_graph=create_graph)
    explanations = explanations_of(cut, given, names, named[1], keyed, seed, *found, progress, budget)
    out = explained(model, cut, given, explanations, named, *found, path)
    if samples:
        if not isinstance(given, Tensor):
            raise ValueError("samples puts noise on images, expected a tensor of them, got several inputs")
        again = partial(
            explain, model, methods=names, layer=out.layer.name, layout=out.layer.as_layout, output=output,
            targets=out.targets, utility=fixed(named[1], out.logits, out.targets),
            nodes=nodes, tolerance=tolerance, max_nodes=max_nodes, seed=seed,
            keys=[str(each) for each in keyed().tolist()] if keys is None else keys, budget=budget,
        )  # fmt: skip
        smooth = smoothed(
            lambda some: again(some).explanations,
            given,
            keyed(),
            samples=samples,
            level=level,
            seed=seed,
            progress=progress,
        )
        lazy = LazyHeatmaps(smooth.mean, size_of(given))
        out = replace(out, explanations=smooth.mean, heatmaps=lazy, deviations=smooth.deviation)
    return replace(out, heatmaps=dict(out.heatmaps), logits=found[0].logits if create_graph else out.logits)


def _refuse_untrainable(names: Sequence[str], samples: int) -> None:
    if second := [name for name in names if name not in METHODS or METHODS[name].order == "second"]:
        raise ValueError(
            f"create_graph=True covers methods of first order and of the path, not {', '.join(second)}: training on HX takes "
            "third derivatives, which PyTorch gets wrong behind a LayerNorm, and what is in SEARCHES has no graph"
        )
    if samples:
        raise ValueError("create_graph=True does not go with samples: noisy images are explained without a graph")
