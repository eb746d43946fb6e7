"""A run before it is measured: its units, its configuration, and what `run.json` says of it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from ..network.arguments import resolve_utility
from ..scoring import resolve_metrics
from ..searches import SEARCHES
from ..theory.baselines import BASELINES
from ..theory.cams import resolve_names
from . import store
from .begun import begin, changed, now
from .configuration import Configuration, Machine
from .datasets import Item, checksum, find_pictures
from .loaded import Loaded, load
from .places import Place, files, sweep
from .store import Footer, Unit

READERS = 16
"""Footers that are read at once."""


@dataclass(frozen=True)
class Plan:
    """A run that can be started, or gone on with: nothing is measured yet."""

    run: Place
    items: tuple[Item, ...]
    configuration: Configuration
    machine: Machine
    facts: dict[str, Any]
    """What `run.json` says."""
    source: Place | None = None
    """Where the pictures are here."""
    _complete: dict[Unit, Footer] = field(default_factory=dict, repr=False, compare=False)
    """Of the units that are known to be on disk in full, and stay so."""

    @cached_property
    def every(self) -> tuple[Unit, ...]:
        """All units, model by model."""
        c = self.configuration
        parts = range(-(-len(self.items) // c.part))
        return tuple(Unit(*each) for each in product(c.models, c.layers, c.utilities, parts))

    @property
    def units(self) -> tuple[Unit, ...]:
        """This shard's units."""
        share, shares = self.machine.share
        return self.every[share::shares]

    def items_of(self, unit: Unit) -> tuple[Item, ...]:
        """The pictures of a unit."""
        size = self.configuration.part
        return self.items[unit.part * size : (unit.part + 1) * size]

    def footer(self, unit: Unit) -> Footer | None:
        """What the unit's part says of itself, if there is one that belongs to the run."""
        if unit in self._complete:
            return self._complete[unit]
        footer = store.read_footer(unit.path(self.run))
        mine = self.facts["hash"], self.facts["weights"][unit.model]["sha256"]
        if footer is None or (footer.configuration, footer.weights) != mine:
            return None
        if footer.complete:
            self._complete[unit] = footer
        return footer

    def complete(self, unit: Unit) -> bool:
        """Whether a unit is on disk in full."""
        footer = self.footer(unit)
        return footer is not None and footer.complete

    def load(self, model: str) -> Loaded:
        """A model, as the run began with it.

        Raises
        ------
        ValueError, WeightsError
            As `load`, and when its weights are others.
        """
        loaded = load(model, self.configuration, self.machine, self.facts["models"][model]["channels_last"])
        if loaded.sha256 != (begun := self.facts["weights"][model]["sha256"]):
            raise ValueError(
                f"the weights of {model} are not those that {str(self.run)!r} began with, sha256 {loaded.sha256[:12]} and "
                f"there {begun[:12]}; give those (--weights {model}=FILE), or name another folder (--out)"
            )
        if others := changed(loaded, self.facts["models"][model]):
            raise ValueError(
                f"{' and '.join(others)} of {model} changed since {str(self.run)!r} began; "
                "take the versions that are in its run.json, or name another folder (--out)"
            )
        return loaded

    def batch(self, model: str) -> int:
        """Pictures that run through the network together."""
        return int(self.facts["batch"][model] if self.machine.batch == "auto" else self.machine.batch)

    def missing(self) -> tuple[Unit, ...]:
        """Units of this shard that are not on disk, or not in full."""
        return self._incomplete(self.units, self._files())

    def whole(self) -> bool:
        """Whether the units of all shards are on disk in full; nothing is read where a file of theirs is missing."""
        there = self._files()
        return all(unit.file in there for unit in self.every) and not self._incomplete(self.every, there)

    @property
    def ended(self) -> bool:
        """Whether the run had been brought to its end before."""
        return "finished" in self.facts["times"]

    def _files(self) -> set[str]:
        return {str(name) for name in files(self.run / "parts")}

    def _incomplete(self, units: tuple[Unit, ...], there: set[str]) -> tuple[Unit, ...]:
        unknown = [unit for unit in units if unit not in self._complete and unit.file in there]
        with ThreadPoolExecutor(READERS) as pool:  # a store takes its time for each
            list(pool.map(self.complete, unknown))
        return tuple(unit for unit in units if unit not in self._complete)

    def finished(self, seconds: float) -> None:
        """Write into `run.json` when the run ended, and how long it took this process."""
        times = store.read_configuration(self.run)["times"]
        total = round(times.get("seconds", 0) + seconds, 1)
        store.rewrite(self.run, {**self.facts, "times": {**times, "finished": now(), "seconds": total}})

    def errors(self) -> int:
        """Rows of this shard on disk that have no numbers."""
        return sum(footer.errors for unit in self.units if (footer := self.footer(unit)))


def plan(source: Place, run: Place, configuration: Configuration, machine: Machine) -> Plan:
    """Find the pictures, begin the run or find what is left of it, and try each model and layer once.

    Raises
    ------
    ValueError
        For anything in the configuration that does not fit, and for a folder with another configuration's run.
    OSError
        When there are no pictures, or the folder cannot be written.
    """
    for utility in configuration.utilities:
        resolve_utility(utility)
    resolve_metrics(configuration.metrics)
    names = method_names(configuration)
    _refuse_unused(configuration, machine)
    if machine.engine == "ray":  # its actors run in other folders
        source = source.absolute()
    items = find_pictures(source, configuration.labels)
    if configuration.targets == "label" and all(item.label is None for item in items):
        raise ValueError("targets is label, but no picture has one; give a file of them with labels (--labels FILE)")
    wanted = configuration.facts(names, {"count": len(items), "sha256": checksum(items)})
    if run.exists() and not run.is_dir():
        raise FileExistsError(f"{str(run)!r} is a file; name a folder for the run, it is made if need be")
    if not (run / "run.json").exists():
        _refuse_foreign(run)
        begun = begin(source, items, wanted, configuration, machine, names)
        facts = store.begin(run, begun)
    else:
        facts = store.read_configuration(run)
    if others := store.differences(facts["configuration"], wanted):
        raise ValueError(
            f"{str(run)!r} holds a run with another configuration: {'; '.join(others)}; name another folder (--out), or "
            "give the configuration that is there to go on with it"
        )
    _refuse_format(run, machine, facts)
    sweep(run)
    made = Plan(run, items, configuration, machine, facts, source)
    _refuse_late_weights(made)
    return made


def method_names(configuration: Configuration) -> tuple[str, ...]:
    """Every method that is measured, by its name."""
    given = [*configuration.methods, *(BASELINES if configuration.baselines else ())]
    return resolve_names(given, (*SEARCHES, *BASELINES))


def _refuse_unused(configuration: Configuration, machine: Machine) -> None:
    """Weights and preprocessing that no model would take are a slip: the run would be of something else."""
    called = [name for name in configuration.models if ":" in name]
    given = [each.partition("=")[0] for each in machine.weights if each != "random"]
    if strays := [name for name in given if name not in configuration.models or name in called]:
        why = "which brings its own" if strays[0] in called else f"not one of {', '.join(configuration.models)}"
        raise ValueError(f"weights are given for {strays[0]!r}, {why}; name models as --models does")
    if called and configuration.preprocess == "paper":
        raise ValueError(f"preprocess is paper, and {called[0]!r} brings its own; leave out --preprocess")


def _refuse_format(run: Place, machine: Machine, facts: dict[str, Any]) -> None:
    """A memory format that is asked for, and is not the one that the run has for its last bits."""
    flags, asked = {True: "--channels-last", False: "--no-channels-last"}, machine.channels_last
    for model, begun in facts["models"].items():
        if asked is not None and begun["channels_last"] != asked:
            raise ValueError(
                f"{flags[asked]} was given, and {str(run)!r} measures {model} with {flags[not asked]}; leave the flag out to "
                "go on with the run, or name another folder (--out)"
            )


def _refuse_late_weights(made: Plan) -> None:
    """Files of weights for models of which nothing is left to measure; other weights are looked at with their next part."""
    named = [model for model in made.configuration.models if made.machine.weights_of(model) not in (None, "random")]
    left = {unit.model for unit in made.missing()} if named else set()
    here = replace(made, machine=replace(made.machine, device="cpu"))  # where there is one of any engine
    for model in named:
        if model not in left:
            here.load(model)


def _refuse_foreign(run: Place) -> None:
    if (run / "parts").exists():
        raise ValueError(f"{str(run)!r} has parts but no run.json that says what they are; name another folder (--out)")
