"""What is measured, and on what: the flags of `shapleycam bench`, which are the keys of its TOML file too."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .paper import NAMES


@dataclass(frozen=True)
class Configuration:
    """What is measured. Rows depend on this, the pictures and the weights alone; a name may be several with commas."""

    models: tuple[str, ...] = ("efficientnet_lite0",)
    """Names that `shapleycam models` lists, paper for the paper's twelve, timm tags, torchvision/NAME, or MODULE:FUNCTION, which
    gives a shapleycam.Model."""
    layers: tuple[str, ...] = ("gap",)
    """gap, conv, or names that `shapleycam layers MODEL` lists."""
    utilities: tuple[str, ...] = ("rest",)
    """rest, pre-softmax, post-softmax, log-softmax."""
    methods: tuple[str, ...] = ("paper",)
    """Names that `shapleycam methods` lists, FakeCAM, Gaussian, or paper or all."""
    baselines: bool = False
    """Measure FakeCAM and Gaussian too: what a method must beat before its scores mean anything."""
    targets: Literal["predicted", "label", "least"] = "predicted"
    """The class to explain: the predicted one, the true one, or the least likely one."""
    labels: Path | None = None
    """A text or CSV file with a label for each picture."""
    masking: Literal["normalised", "raw"] = "normalised"
    """What is masked takes the mean colour, as in the published numbers, or turns black."""
    preprocess: Literal["own", "paper"] = "own"
    """Each network's own preprocessing, or the paper's."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of parameters, images and derivatives."""
    compile: bool = False
    """Compile the passes that need no derivative."""
    as_published: bool = False
    """Let second-order methods see maps after an in-place ReLU, as the published code did; for reproduction only."""
    part: int = 64
    """Pictures a part: what a killed run does again at most."""
    seed: int = 0
    """Of RandomCAM, of sampled Shapley values, and of random weights."""
    fidelity: int = 0
    """Coalitions to play at most of each picture's game, to compare every method with its Shapley values; 0 for none."""
    metrics: tuple[str, ...] = ()
    """Beside the paper's: insertion, deletion, road, for 102, 102, 19 forward passes a heatmap; randomisation, one a picture."""
    budget: int | None = None
    """Forward passes a picture that RISE and KernelSHAP may spend each time; 4,000 if not given."""

    def __post_init__(self) -> None:
        for name in ("models", "layers", "utilities", "methods"):
            object.__setattr__(self, name, _split(name, getattr(self, name)))
        named = [NAMES if name == "paper" else (name,) for name in self.models]
        object.__setattr__(self, "models", tuple(dict.fromkeys(name for some in named for name in some)))
        object.__setattr__(self, "metrics", _split("metrics", self.metrics) if self.metrics else ())
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}")
        if self.fidelity < 0:
            raise ValueError(f"fidelity is {self.fidelity}, expected a number of coalitions, some thousands, or 0")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget is {self.budget}, expected a number of forward passes, at least 1")
        if self.part < 1:
            raise ValueError(f"part is {self.part}, expected a number of pictures, at least 1")

    def facts(self, methods: Sequence[str], pictures: dict[str, Any]) -> dict[str, Any]:
        """What `run.json` holds, and the hash is made of: sets of methods by their names, pictures by their checksum."""
        apart = ("labels", "baselines", "metrics", "budget")
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        # Without these the hash is what it was before there were any, so that older runs can be gone on with.
        more: dict[str, Any] = {"metrics": sorted(self.metrics)} if self.metrics else {}
        more |= {} if self.budget is None else {"budget": self.budget}
        return {**plain, "methods": list(methods), "pictures": pictures, **more}


@dataclass(frozen=True)
class Machine:
    """How it is measured here; all but batch, memory format and device leave numbers as they are, on as many threads."""

    batch: str = "auto"
    """Pictures that run through the network together: a number, or auto, which tries and keeps its choice in the run."""
    channels_last: bool | None = None
    """The memory format of images and convolutions; the faster one if not given."""
    workers: int | None = None
    """Threads that decode pictures ahead of the network; one for each core, at most 8, if not given."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    weights: tuple[str, ...] = ()
    """MODEL=FILE or MODEL=random, with commas, or random for all models; the published weights if not given."""
    shard: str = "1/1"
    """i/N measures the i-th of N shares of the parts, i from 1 to N: for job arrays whose folders are not shared."""
    engine: Literal["local", "torchrun", "ray"] = "local"
    """This process; a rank that torchrun started; or actors of Ray, anywhere in a cluster."""
    address: str = "local"
    """Of a Ray cluster: auto for the one of this machine, or HOST:PORT of its head; local starts one on this machine."""
    actors: int = 2
    """Processes of Ray that measure; each takes a GPU where the device is cuda."""
    stall: float = 1800.0
    """Seconds in which a process must finish a batch, or it is taken to hang: its parts go to others; Ray's run ends."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _split("weights", self.weights) if self.weights else ())
        object.__setattr__(self, "batch", str(self.batch))
        if self.batch != "auto" and not (self.batch.isdecimal() and int(self.batch) > 0):
            raise ValueError(f"batch is {self.batch!r}, expected auto or a number of pictures, at least 1")
        if self.engine not in ("local", "torchrun", "ray"):
            raise ValueError(f"engine is {self.engine!r}, expected local or torchrun or ray")
        if self.engine == "ray" and self.device.startswith("cuda:"):
            raise ValueError(f"device is {self.device!r}, expected cuda or cpu: Ray gives each actor a GPU of its own")
        if self.actors < 1:
            raise ValueError(f"actors is {self.actors}, expected a number of processes, at least 1")
        if not self.stall > 0:
            raise ValueError(f"stall is {self.stall}, expected a number of seconds")
        if self.address.startswith("ray://"):
            raise ValueError(
                f"address is {self.address!r}, and Ray Data does not run through Ray's client; start this on a node of the "
                "cluster with --address auto, or hand it in with `ray job submit`"
            )
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}, expected a number of threads, at least 1")
        if any(each != "random" and not re.fullmatch(r"[^=]+=.+", each) for each in self.weights):
            raise ValueError(f"weights is {','.join(self.weights)!r}, expected MODEL=FILE, MODEL=random, or random")
        _ = self.share

    @property
    def share(self) -> tuple[int, int]:
        """(i, N) of the shard, i from 0."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        i, n = (int(each) for each in found.groups()) if found else (0, 0)
        if not 1 <= i <= n:
            raise ValueError(f"shard is {self.shard!r}, expected i/N with i from 1 to N, such as 1/4")
        return i - 1, n

    @property
    def threads(self) -> int:
        """The number of decoding threads."""
        return self.workers or min(8, os.cpu_count() or 1)

    def weights_of(self, model: str) -> str | None:
        """What `load_model` takes: a file, "random", or None for the published ones."""
        named = dict(each.split("=", 1) for each in self.weights if each != "random")
        return named.get(model, "random" if "random" in self.weights else None)


_CHOICES = {
    "targets": ("predicted", "label", "least"),
    "masking": ("normalised", "raw"),
    "preprocess": ("own", "paper"),
    "precision": ("fp32", "bf16", "fp16"),
}


def _split(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    several = [given] if isinstance(given, str) else given
    found = tuple(dict.fromkeys(each.strip() for one in several for each in str(one).split(",") if each.strip()))
    if not found:
        raise ValueError(f"{name} is empty, expected one or more names with commas")
    return found
