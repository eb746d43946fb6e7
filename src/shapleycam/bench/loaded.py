"""A model made ready for a run: its weights, precision and memory format, and the batch that suits this machine."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..measurement import measure
from ..network.zoo import Model, load_model
from ..sanity import redrawn
from ..theory.cams import METHODS
from .configuration import Configuration, Machine
from .datasets import Item, Label

MOST = 64
"""Pictures in the largest batch that is tried."""
GAIN = 1.02
"""How many times as fast something must be to be chosen."""
PATIENCE = 2.0
"""Seconds of a trial after which no larger one is made."""
TURNS = 3
"""Times that each of several things is tried, in turn with the others; the fastest counts, for the speed of machines drifts."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model, ready to be measured."""

    model: Model
    sha256: str
    """Of its weights, before they are cast."""
    device: torch.device
    dtype: torch.dtype
    infer: Callable[[Tensor], Tensor] | None = None
    """The compiled network, without a graph; None where nothing is compiled."""
    seed: int = 0
    """Of the weights in `randomised`."""

    @property
    def channels_last(self) -> bool:
        """The memory format of its images and weights."""
        return bool(self.model.channels_last)

    def images(self, crops: Sequence[Tensor]) -> Tensor:
        """Pixels of several crops, 0 to 255, as the network takes them."""
        return self.formatted(self.model.preprocess.of_pixels(crops, self.device).to(self.dtype))

    @cached_property
    def randomised(self) -> nn.Module:
        """The network with other weights, as `measure` would draw them for each batch."""
        return redrawn(self.model.module, (3, *self.model.input_size), self.seed + 1)

    def formatted(self, images: Tensor) -> Tensor:
        """The same images in the memory format."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def noise(self) -> Tensor:
        """An image on which no map is flat, to try things with."""
        blank = self.blank(1)
        return torch.randn(blank.shape, generator=torch.Generator().manual_seed(0)).to(blank)

    def blank(self, pictures: int) -> Tensor:
        """Images to try things with."""
        return self.formatted(torch.zeros(pictures, 3, *self.model.input_size, dtype=self.dtype, device=self.device))


def load(name: str, configuration: Configuration, machine: Machine, channels_last: bool | None = None) -> Loaded:
    """A model by name, or by MODULE:FUNCTION; `channels_last` None finds out what is faster.

    Raises
    ------
    ValueError, WeightsError
        As `load_model`.
    TypeError
        When the function gives no Model.
    """
    if ":" in name:
        model = _called(name)
        model = replace(model, module=model.module.eval().to(machine.device))
    else:
        model = load_model(
            name,
            weights=machine.weights_of(name),
            preprocess=configuration.preprocess,
            seed=configuration.seed,
            device=machine.device,
        )
    sha256, dtype = model.weights_hash, _DTYPES[configuration.precision]
    loaded = Loaded(replace(model, module=model.module.to(dtype)), sha256, torch.device(machine.device), dtype)
    chosen = machine.channels_last if channels_last is None else channels_last
    if chosen is None:
        chosen = _faster_last(loaded)
    loaded.model.module.to(memory_format=torch.channels_last if chosen else torch.contiguous_format)
    model = replace(loaded.model, channels_last=chosen)
    return there(replace(loaded, model=model, seed=configuration.seed), machine.device, configuration.compile)


def tried_on(machine: Machine) -> Machine:
    """Where models are tried before a run begins: on the CPU, where the driver of Ray has no GPU as its actors have.

    Raises
    ------
    ValueError
        When the batch is to be found out there.
    """
    if machine.engine != "ray" or not machine.device.startswith("cuda") or torch.cuda.is_available():
        return machine
    if machine.batch == "auto":
        raise ValueError(
            "this driver has no GPU to find a batch on for those of the actors; name one, such as --batch 32"
        )
    return replace(machine, device="cpu")


def there(loaded: Loaded, device: str, compile: bool) -> Loaded:
    """A model on a device, compiled there if asked for."""
    module = loaded.model.module.to(device)
    infer = _compiled(module) if compile else None
    return replace(loaded, model=replace(loaded.model, module=module), device=torch.device(device), infer=infer)


def one_of_each_order(methods: Iterable[str]) -> tuple[str, ...]:
    """Methods to try a network with, for not all networks have second derivatives; none where all are of another kind."""
    return tuple({METHODS[name].order: name for name in methods if name in METHODS}.values())


def choose_batch(loaded: Loaded, methods: Iterable[str], layer: str, utility: str, most: int) -> int:
    """The batch after which pictures/s hardly grow: one picture, twice, four times as many, ..., as long as memory lasts."""
    tried = one_of_each_order(methods) or ("GradCAM",)

    def trial(pictures: int) -> float:
        images = loaded.blank(pictures)
        return _seconds(lambda: measure(loaded.model, images, methods=tried, layer=layer, utility=utility).kept)

    return fastest_batch(trial, min(most, MOST))


def seconds_of_pass(loaded: Loaded, pictures: int) -> float:
    """The time of a forward pass of so many pictures."""
    images = loaded.blank(pictures)
    with torch.inference_mode():
        return min([_seconds(lambda: loaded.model.module(images)) for _ in range(TURNS)][1:])


def fastest_batch(trial: Callable[[int], float], most: int) -> int:
    """The smallest power of two that no other beats by `GAIN` in pictures/s; `trial` gives the seconds of a batch."""
    seconds: dict[int, float] = {}
    for pictures in (2**k for k in range(most.bit_length())):
        try:
            seconds[pictures] = trial(pictures)
            if seconds[pictures] > PATIENCE:  # unless a device woke up
                seconds[pictures] = trial(pictures)
        except torch.cuda.OutOfMemoryError:
            break
        if seconds[pictures] > PATIENCE:
            break
    for pictures in [*seconds] * (TURNS - 1) if len(seconds) > 1 else ():
        seconds[pictures] = min(trial(pictures), seconds[pictures])
    rates = {pictures: pictures / least for pictures, least in seconds.items()}
    return min((pictures for pictures, rate in rates.items() if rate * GAIN >= max(rates.values())), default=1)


def class_index(model: Model, label: Label | None) -> int | None:
    """The logit that a label means: an index, a WordNet identifier, or a class name that one class alone has."""
    if isinstance(label, int):
        return label if 0 <= label < len(model.class_names) else None
    for names in (model.wnids, model.class_names):
        if label and names and (place := _places(tuple(names)).get(label.lower())) is not None:
            return place
    return None


@lru_cache(16)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    """Where each name is, in small letters, that is there once."""
    lower = [name.lower() for name in names]
    often = Counter(lower)
    return {name: place for place, name in enumerate(lower) if often[name] == 1}


def class_indices(model: Model, items: Iterable[Item]) -> dict[str, int | None]:
    """The class of each picture, by its name."""
    found = {label: class_index(model, label) for label in {item.label for item in items}}
    return {item.name: found[item.label] for item in items}


def _called(name: str) -> Model:
    module, _, function = name.partition(":")
    with _importable(Path.cwd()):
        try:
            model = getattr(import_module(module), function)()
        except (ModuleNotFoundError, AttributeError) as error:
            raise ValueError(
                f"model {name!r} is not to be had: {error}; expected MODULE:FUNCTION, as Python imports it"
            ) from error
    if not isinstance(model, Model):
        raise TypeError(f"{name} gave a {type(model).__name__}, expected a shapleycam.Model")
    return replace(model, name=name)


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    # Freezing takes the parameters as constants, so that normalisation is folded into convolutions.
    compiled = torch.compile(module, options={"freezing": True})

    def infer(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = compiled(images)
            return logits

    return infer


@contextmanager
def _importable(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _faster_last(loaded: Loaded) -> bool:
    """Whether the network is faster with channels last."""
    module, images = loaded.model.module, loaded.blank(4)
    times: dict[torch.memory_format, list[float]] = {torch.contiguous_format: [], torch.channels_last: []}
    for _ in range(TURNS):
        for form, each in times.items():
            module.to(memory_format=form)
            formed = images.contiguous(memory_format=form)
            with torch.no_grad():  # twice, for the weights' new form is in no cache yet
                each += [_seconds(lambda formed=formed: module(formed)) for _ in range(2)]  # type: ignore[misc]
    return min(times[torch.channels_last]) * GAIN < min(times[torch.contiguous_format])


def _seconds(run: Callable[[], Tensor]) -> float:
    """The time of a run, and of waiting for the device."""
    start = perf_counter()
    run().sum().item()
    return perf_counter() - start
