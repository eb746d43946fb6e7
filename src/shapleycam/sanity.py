"""`randomisation`: do heatmaps change when the network forgets what it learned? The check of Adebayo et al. 2018."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .batch import Explanation
from .explanation import explain
from .network.arguments import resolve_utility
from .network.cut import CutNetwork
from .network.ends import ends
from .network.inputs import Output
from .network.layout import Axes, Layout
from .network.twin import deep_copy, unwrap
from .network.weights import draw as draw_weights
from .network.weights import randomise
from .network.zoo import Model
from .theory.agreement import spearman
from .theory.axes import Images, Utilities
from .theory.utility import Utility, fixed


@dataclass(frozen=True)
class Randomisation:
    """What `randomisation` found for b images and k layers."""

    layers: tuple[str, ...]
    """In the order in which they were drawn anew, each on top of those before it; the last one first."""
    correlations: Mapping[str, Float[Tensor, "b k"]]
    """For each method Spearman's rank correlation of the trained network's heatmap and that of the network whose first
    1, ..., k of `layers` are random, in [-1, 1]; NaN where either is constant. What explains the learned falls to 0."""


def randomisation(
    model: Model | nn.Module,
    images: Images,
    *,
    methods: str | Iterable[str] = "ShapleyCAM",
    layer: str | nn.Module | None = None,
    layout: Axes | Layout | None = None,
    output: Output | None = None,
    targets: int | str | Sequence[int] | Tensor | None = None,
    utility: str | Utility = "rest",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    draw: Callable[[nn.Module, int], None] = randomise,
) -> Randomisation:
    """How much of the heatmaps outlasts the weights that are drawn anew, from the last layer down to the first.

    Costs one explanation a layer, and a second copy of the weights; the model itself is not touched. The classes explained are
    those of the trained network throughout.

    Parameters
    ----------
    model, images, methods, layer, layout, output, targets, utility
        As in `explain`.
    layers
        Names of submodules to draw anew, one after the other, each with all that is in it: ("fc", "layer4", "layer3"). None takes
        all that hold weights and ran, from the last down.
    seed, draw
        `draw(layer, seed)` gives a layer new weights in place; `randomise` unless told otherwise.

    Raises
    ------
    ValueError
        For a name that is no layer, and as `explain`.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> model = sc.load_model("resnet18", weights="random")
    >>> sc.randomisation(model, torch.rand(1, 3, 64, 64), layers=["fc", "layer4"]).correlations["ShapleyCAM"].shape
    torch.Size([1, 2])
    """
    wanted = [methods] if isinstance(methods, str) else list(methods)
    trained = explain(
        model, images, methods=wanted, layer=layer, layout=layout, output=output, targets=targets, utility=utility
    )
    module = unwrap(model.module if isinstance(model, Model) else model)
    names = list(layers) if layers is not None else weighted(module, images)
    found: dict[str, list[Tensor]] = {name: [] for name in trained.heatmaps}
    for forgetful in cascade(module, names, draw, seed):
        for name, each in outlasting(model, images, trained, forgetful, output=output, utility=utility).items():
            found[name].append(each)
    return Randomisation(tuple(names), {name: torch.stack(rows, 1) for name, rows in found.items()})


def outlasting(
    model: Model | nn.Module,
    images: Images,
    trained: Explanation,
    randomised: nn.Module | None = None,
    *,
    output: Output | None = None,
    utility: str | Utility = "rest",
    seed: int = 0,
    keys: Sequence[str] | None = None,
    budget: int | None = None,
) -> dict[str, Utilities]:
    """For each method Spearman's rank correlation of an explanation's heatmaps and those of the network with other weights.

    In [-1, 1], NaN where either is constant. `randomised` None draws all weights anew, from seed + 1, so that a network drawn
    from the seed gets others.
    """
    if randomised is None:
        randomised = redrawn(model.module if isinstance(model, Model) else model, images.shape[1:], seed + 1)
    other = replace(model, module=randomised) if isinstance(model, Model) else randomised
    names, layer = tuple(trained.explanations), trained.layer
    if not names:
        return {}
    out = explain(
        other, images, methods=names, layer=layer.name, layout=layer.as_layout, output=output, targets=trained.targets,
        utility=fixed(resolve_utility(utility)[1], trained.logits, trained.targets),  # the random network is asked the same
        seed=seed, keys=keys, budget=budget,
    )  # fmt: skip
    return {name: spearman(*(each.heatmaps[name].flatten(1) for each in (trained, out))) for name in names}


def redrawn(module: nn.Module, shape: Sequence[int], seed: int) -> nn.Module:
    """A copy of a network for images of a shape (channels, H, W), all its weights drawn as weights="random" draws them."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(next(module.parameters()).device.type, enabled=False),
    ):
        copy = deep_copy(unwrap(module)).eval()
        draw_weights(copy, shape, seed)
    return copy


def cascade(
    module: nn.Module, names: Sequence[str], draw: Callable[[nn.Module, int], None] = randomise, seed: int = 0
) -> Iterator[nn.Module]:
    """One copy of a network, in which after each step one more of the named layers has new weights.

    Raises
    ------
    ValueError
        For a name that is no layer.
    """
    targets = [CutNetwork(module, name).name for name in names]
    with torch.inference_mode(False), torch.no_grad():
        forgetful = deep_copy(module)
    for place, name in enumerate(targets):
        draw(forgetful.get_submodule(name), seed + place)
        yield forgetful


def weighted(module: nn.Module, images: Images) -> list[str]:
    """Names of the modules that hold weights of their own, the one that ends last first; those that do not run are left out."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        _, ended = ends(unwrap(module), images[:1].clone())
    holding = (each.name for each in reversed(ended) if next(each.module.parameters(False), None) is not None)
    return list(dict.fromkeys(holding))
