"""A picture expanded once: every class, utility and method after that costs the tail alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from threading import Lock, RLock
from time import monotonic

import torch
from PIL import Image
from torch import Tensor

from ..batch import Explanation, explained, explanations_of, ingredients_of
from ..measurement import Measurements, measure
from ..network.arguments import cut_network, opposite, resolve_targets, resolve_utility, run
from ..network.cut import CutNetwork, Pass
from ..network.expand import expand, worth
from ..network.pictures import read_picture
from ..network.zoo import Model
from ..network_game import Game, exact, interactions, sampled
from ..theory.axes import Images, Maps
from ..theory.draws import checksums, random_weights
from ..theory.shapley import ShapleyValues
from ..theory.utility import settled, shares

SIDE = 4096
"""Pixels; a larger picture is reduced before anything else."""
BUDGET = 4_000
"""Coalitions that the page plays for one set of Shapley values."""
_NUMBERS = count()


@dataclass
class Look:
    """One picture in front of one model, cut at one layer; for one user, whose requests wait for each other."""

    model: Model
    picture: Image.Image
    """What was opened, of no more than `SIDE` pixels a side."""
    view: Image.Image
    """What the network saw."""
    images: Images
    cut: CutNetwork
    forward: Pass
    target: int
    """The class that the user looks at."""
    offered: list[int]
    """The classes that he can choose by a click: the likeliest, and those that he searched for."""
    utility: str = "rest"
    number: int = field(default_factory=lambda: next(_NUMBERS))
    """No other look's."""
    turns: int = 0
    """How often he asked for what is shown."""
    measured: dict[tuple[int, str], dict[str, list[float]]] = field(default_factory=dict, repr=False)
    """Metrics of each method, by class and utility."""
    lock: RLock = field(default_factory=RLock, repr=False)
    _games: dict[tuple[int, str], Game] = field(default_factory=dict, repr=False)
    _values: dict[tuple[int, str], ShapleyValues] = field(default_factory=dict, repr=False)
    _needs: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)

    @property
    def positions(self) -> tuple[int, int]:
        """(h, w) of the layer's maps."""
        h, w = self.forward.layer.positions
        return h, w

    @property
    def probabilities(self) -> Tensor:
        """Of each class, (c,)."""
        return shares(self.forward.logits.detach(), self.utility)[0]

    def likeliest(self) -> list[tuple[int, str, float]]:
        """Index, name and probability of the five likeliest classes."""
        return self.named(self.probabilities.topk(min(5, len(self.model.class_names))).indices.tolist())

    def named(self, classes: Sequence[int]) -> list[tuple[int, str, float]]:
        """Index, name and probability of classes."""
        return [(i, self.model.class_names[i], float(self.probabilities[i])) for i in classes]

    def opposite(self, target: int) -> int:
        """The least likely class; the likeliest one where that is the target."""
        logits = self.forward.logits.detach()
        return int(opposite(logits, torch.tensor([target], device=logits.device)))

    def explain(self, methods: Sequence[str], target: int | None, utility: str) -> Explanation:
        """As `sc.explain`, from the pass that is there."""
        with self.lock:
            classes = resolve_targets(target, self.forward.logits.detach())
            named = resolve_utility(utility)

            def keys() -> Tensor:
                return checksums(self.images)

            def noise() -> Maps:
                return random_weights(keys(), self.forward.leaf)

            expansion = expand(self.forward, classes, named[1], ingredients_of(methods), noise, again=True)
            given = self.cut, self.images, methods, named[1], keys, 0, self.forward, classes, expansion
            out = explained(
                self.model, self.cut, self.images, explanations_of(*given), named, self.forward, classes, expansion
            )
            # U(0) by the tail, so that the efficiency gap costs no pass of the network.
            return replace(out, nobody=replace(out.nobody, known=self.game(int(classes), utility).empty[None]))

    def measure(self, methods: Sequence[str], target: int | None, utility: str) -> Measurements:
        """The six metrics; runs the network 1 + 2 m times."""
        return measure(
            self.model, self.images, methods=methods, layer=self.forward.layer.name, targets=target, utility=utility
        )

    def game(self, target: int, utility: str) -> Game:
        """The game between all positions, whose coalitions are replays of the tail."""
        with self.lock:
            if (target, utility) not in self._games:
                assert self.forward.tail is not None
                maps, logits = self.forward.leaf.detach(), self.forward.logits.detach()
                classes = torch.tensor([target], device=logits.device)
                name, function = resolve_utility(utility)
                function = settled(function, logits, classes)
                with torch.inference_mode(False), torch.no_grad():
                    ends = self.forward.tail.of(lambda: torch.cat([maps, torch.zeros_like(maps)]))
                    full, empty = worth(ends, classes.expand(2), function)
                h, w = self.positions
                regions = torch.arange(h * w, device=maps.device).view(h, w)
                self._games[target, utility] = Game(
                    self.forward.layer, target, name, regions, maps, logits, full, empty, self.images, self.cut,
                    self.forward.tail, function,
                )  # fmt: skip
            return self._games[target, utility]

    def without(self, gone: Sequence[int], target: int, utility: str) -> tuple[float, float, int, float]:
        """Utility and probability of the target, the likeliest class and its probability, with some positions gone."""
        with self.lock:
            game = self.game(target, utility)
            here = self._here(gone, game.players)
            with torch.inference_mode(False), torch.no_grad():
                logits = game.tail.of(lambda: game.maps * here[:, None, game.regions])
                worths = worth(logits, torch.tensor([target], device=logits.device), game.function)
                likely = shares(logits, utility)
                sure, (best, top) = float(likely[0, target]), likely.max(1)
            return float(worths), sure, int(top), float(best)

    def values(self, target: int, utility: str, progress: Callable[[int, int], object] | None = None) -> ShapleyValues:
        """The Shapley values, exact for few positions, else sampled."""
        with self.lock:
            if (target, utility) not in self._values:
                game = self.game(target, utility)
                self._values[target, utility] = (
                    exact(game)
                    if 2**game.players <= 2 * BUDGET
                    else sampled(game, budget=BUDGET, tolerance=0.02, progress=progress)
                )
            return self._values[target, utility]

    @property
    def best(self) -> int | None:
        """The player of the greatest value in the game that the user looks at; None until that was worked out."""
        known = self._values.get((self.target, self.utility))
        return None if known is None else int(known.values.argmax())

    def curve(self, order: Sequence[int], target: int, utility: str) -> list[float]:
        """The utility while positions leave in this order: with none gone, one gone, ..., all gone."""
        with self.lock:
            game = self.game(target, utility)
            ranks = torch.empty(game.players, dtype=torch.int64)
            ranks[torch.tensor(list(order))] = torch.arange(game.players)
            stays = ranks >= torch.arange(game.players + 1)[:, None]
            return [float(each) for each in game.worth(stays)]

    def needs(self, player: int, target: int, utility: str) -> Tensor:
        """What a player and each other one add to each other, (h, w): positive where they need each other."""
        with self.lock:
            game = self.game(target, utility)
            if (target, utility) not in self._needs:
                self._needs[target, utility] = interactions(game)
            return game.spread(self._needs[target, utility][player])

    def _here(self, gone: Sequence[int], players: int) -> Tensor:
        here = torch.ones(1, players, dtype=torch.bool, device=self.forward.leaf.device)
        if any(not 0 <= each < players for each in gone):
            raise ValueError(f"players {list(gone)} are out of range; there are 0 to {players - 1}")
        here[0, list(gone)] = False
        return here


def look(model: Model, picture: str | Path | Image.Image, layer: str | None = None) -> Look:
    """Read a picture and run the network on it, once.

    Raises
    ------
    PictureError
        For a file that is no picture, or too large a one.
    ValueError
        For a layer without a grid of positions.
    """
    seen = read_picture(picture)
    if max(seen.size) > SIDE:
        seen.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    images = model.images([seen])
    cut = cut_network(model, layer, None, images)
    forward = run(cut, images, second_order=True, replay=True)
    if len(forward.layer.positions) != 2:
        raise ValueError(f"{forward.layer} has no grid of positions to play on; expected a network of images")
    opened = Look(model, seen, model.preprocess.crop(seen), images, cut, forward, int(forward.logits.argmax()), [])
    opened.offered.extend(i for i, _, _ in opened.likeliest())
    return opened


class Looks:
    """What every user has open, by his session: the oldest go first, those who leave go at once, the idle after an hour."""

    def __init__(self, most: int = 32, idle: float = 3600) -> None:
        self._most, self._idle, self._open, self._lock = most, idle, OrderedDict[str, tuple[float, Look]](), Lock()

    def put(self, session: str, look: Look) -> None:
        """Keep a user's picture, in place of the one that he had."""
        with self._lock:
            self._open.pop(session, None)
            self._open[session] = monotonic(), look
            while len(self._open) > self._most or next(iter(self._open.values()))[0] < monotonic() - self._idle:
                self._open.popitem(last=False)

    def get(self, session: str) -> Look | None:
        """A user's picture; None if there is none, or no longer."""
        with self._lock:
            if session not in self._open:
                return None
            look = self._open.pop(session)[1]
            self._open[session] = monotonic(), look
            return look

    def drop(self, session: str) -> None:
        """Forget a user who left."""
        with self._lock:
            self._open.pop(session, None)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def sessions(self) -> frozenset[str]:
        """Who has a picture open."""
        with self._lock:
            return frozenset(self._open)
