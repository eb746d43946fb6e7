"""What `run.json` says of a run that begins: its models and layers, each tried once, so that nothing fails in the middle."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ..explanation import explain
from ..measurement import measure
from ..network.cut import CutNetwork
from . import store
from .configuration import Configuration, Machine
from .datasets import GROUND_TRUTH, Item
from .loaded import Loaded, choose_batch, class_index, load, one_of_each_order, tried_on
from .places import Place
from .published import overwriting_layer

CHOOSY = ("CAM", "LIFT-CAM")
"""Methods that refuse some layers, of which a run is to know before it begins."""


def begin(
    source: Place,
    items: tuple[Item, ...],
    wanted: dict[str, Any],
    configuration: Configuration,
    machine: Machine,
    methods: tuple[str, ...],
) -> dict[str, Any]:
    """What `run.json` is to say: every model is loaded, and every layer tried, before anything is measured."""
    here = tried_on(machine)
    models, weights, batches = {}, {}, {}
    labels = {item.label: item for item in items if item.label is not None}
    known = not labels or (configuration.labels is None and configuration.targets != "label")
    for name in configuration.models:
        loaded = load(name, configuration, here)
        known = known or any(class_index(loaded.model, label) is not None for label in labels)
        models[name] = _facts(loaded, configuration, methods)
        weights[name] = {"origin": loaded.model.weights, "sha256": loaded.sha256}
        batches[name] = (
            choose_batch(
                loaded, methods, configuration.layers[0], configuration.utilities[0], max(1, configuration.part // 2)
            )
            if machine.batch == "auto"
            else int(machine.batch)
        )
        if labels.keys() <= {*range(1, 1001)} and 1000 in labels and len(loaded.model.class_names) == 1000:
            raise ValueError(f"{str(configuration.labels or source)!r} {GROUND_TRUTH}")
    if not known:
        label, item = next(iter(labels.items()))
        raise ValueError(
            f"no label is a class of {' or '.join(configuration.models)}, such as {label!r} of {item.name}; expected class "
            "indices, WordNet identifiers or class names (--labels FILE)"
        )
    return {
        "configuration": wanted,
        "hash": store.fingerprint(wanted),
        "source": str(source.absolute()),
        "labels": str(configuration.labels.absolute()) if configuration.labels else None,
        "versions": {
            name: version(name) for name in ("shapleycam", "torch", "torchvision", "timm", "pillow", "pyarrow")
        }
        | {"python": platform.python_version()},
        "weights": weights,
        "models": models,
        "seed": configuration.seed,
        "device": machine.device,
        "batch": batches,
        "times": {"started": now()},
    }


def _facts(loaded: Loaded, configuration: Configuration, methods: tuple[str, ...]) -> dict[str, Any]:
    model, blank = loaded.model, loaded.blank(1)
    choosy = [*(name for name in methods if name in CHOOSY), *one_of_each_order(methods)]
    layers: dict[str, Any] = {}
    for layer in configuration.layers:
        layers[layer] = asdict(measure(model, blank, methods="GradCAM", layer=layer, utility="pre-softmax").out.layer)
        if choosy:
            explain(model, loaded.noise(), methods=choosy, layer=layer, utility=configuration.utilities[0])
    facts = {
        "layers": layers,
        "channels_last": loaded.channels_last,
        "preprocess": asdict(model.preprocess),
        "classes": list(model.class_names),
        "wnids": list(model.wnids) if model.wnids else None,
    }
    if configuration.as_published:
        facts["published_layers"] = {
            layer: written
            for layer, at in layers.items()
            if (written := overwriting_layer(model.module, at["name"], blank)) != at["name"]
        }
    return facts


def changed(loaded: Loaded, begun: dict[str, Any]) -> list[str]:
    """What of a model's own is not as it was when the run began: preprocessing, classes, and what it knows as gap or conv."""
    model = loaded.model
    here = {"preprocessing": asdict(model.preprocess), "classes": list(model.class_names)}
    then = {"preprocessing": begun.get("preprocess"), "classes": begun.get("classes")}
    found = [f"the {what}" for what in here if then[what] and json.loads(json.dumps(here[what])) != then[what]]
    at = {name: layer["name"] for name, layer in begun.get("layers", {}).items() if name in ("gap", "conv")}
    known = {name: CutNetwork(model.module, model.layers[name]).name for name in at if name in model.layers}
    return found + [f"the layer {name}" for name in known if known[name] != at[name]]


def now() -> str:
    """The time in UTC, as `run.json` has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
