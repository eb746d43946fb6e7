"""What did an image classifier look at, and can the answer be believed?

Class activation maps as Shapley values of a game between positions (Cai 2025, arXiv:2501.06261). The public names are
resolved on first use, so that `import shapleycam` imports nothing slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Explanation
    from .curves import deletion, insertion
    from .explanation import explain
    from .faithfulness import Fidelity, Kind, classify, fidelity
    from .image_warnings import ImageWarning
    from .imputation import road
    from .layered import Layered, suggest_layers
    from .measurement import Measurements, measure
    from .network import outputs
    from .network.ends import layers
    from .network.inputs import Inputs
    from .network.layout import Layout, TargetLayer
    from .network.pictures import PictureError, read_picture
    from .network.preprocess import Preprocess
    from .network.suggest import Suggestion
    from .network.weights import WeightsError
    from .network.zoo import ZOO, Model, load_model
    from .network_game import Game, exact, game, interactions, sampled
    from .render import overlay, sheet
    from .sanity import Randomisation, randomisation
    from .searches import SEARCHES
    from .theory import metrics
    from .theory.baselines import BASELINES
    from .theory.cams import METHODS, SETS
    from .theory.shapley import ShapleyValues
    from .theory.utility import UTILITIES, contrast
    from .web.serving import serve

__version__ = "0.1.0"

_HOMES = {
    "measurement": ("Measurements", "measure"),
    "theory.baselines": ("BASELINES",),
    "batch": ("Explanation",),
    "curves": ("deletion", "insertion"),
    "explanation": ("explain",),
    "imputation": ("road",),
    "sanity": ("Randomisation", "randomisation"),
    "searches": ("SEARCHES",),
    "image_warnings": ("ImageWarning",),
    "faithfulness": ("Fidelity", "Kind", "classify", "fidelity"),
    "network_game": ("Game", "exact", "game", "interactions", "sampled"),
    "web.serving": ("serve",),
    "theory.shapley": ("ShapleyValues",),
    "network.ends": ("layers",),
    "layered": ("Layered", "suggest_layers"),
    "network.inputs": ("Inputs",),
    "network.layout": ("Layout", "TargetLayer"),
    "network.pictures": ("PictureError", "read_picture"),
    "network.preprocess": ("Preprocess",),
    "network.suggest": ("Suggestion",),
    "network.weights": ("WeightsError",),
    "network.zoo": ("Model", "ZOO", "load_model"),
    "render": ("overlay", "sheet"),
    "theory.cams": ("METHODS", "SETS"),
    "theory.utility": ("UTILITIES", "contrast"),
}
_MODULES = {"metrics": "theory.metrics", "outputs": "network.outputs"}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BASELINES",
    "METHODS",
    "SEARCHES",
    "SETS",
    "UTILITIES",
    "ZOO",
    "Explanation",
    "Fidelity",
    "Game",
    "ImageWarning",
    "Inputs",
    "Kind",
    "Layered",
    "Layout",
    "Measurements",
    "Model",
    "PictureError",
    "Preprocess",
    "Randomisation",
    "ShapleyValues",
    "Suggestion",
    "TargetLayer",
    "WeightsError",
    "classify",
    "contrast",
    "deletion",
    "exact",
    "explain",
    "fidelity",
    "game",
    "insertion",
    "interactions",
    "layers",
    "load_model",
    "measure",
    "metrics",
    "outputs",
    "overlay",
    "randomisation",
    "read_picture",
    "road",
    "sampled",
    "serve",
    "sheet",
    "suggest_layers",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'shapleycam' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
