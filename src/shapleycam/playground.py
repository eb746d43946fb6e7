"""What methods that play with the network may use: one pass of it, its tail to replay, and the network itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from .network.arguments import resolve_keys
from .network.cut import CutNetwork, Pass
from .network.expand import worth
from .network.inputs import Given, call, logits_of
from .network.tail import Tail
from .network.twin import twin
from .theory.axes import Images, Logits, Maps, Targets, Utilities
from .theory.draws import checksums
from .theory.utility import Utility, settled

P = ParamSpec("P")
R = TypeVar("R")
Network = Callable[[Tensor], Tensor]
Places = Int64[Tensor, " k"]
Progress = Callable[[int, int], object]
"""Told now and then how much is done, of how much."""
ROOM = 5 * 2**18
"""Eight images of 224 x 224: what a ResNet's first layers make of more is over 32 MiB, which glibc hands back to the system each
time, to be asked for page by page; see mallopt(3)."""


@dataclass(frozen=True)
class Playground:
    """A network at rest in front of b images; `play_with` makes one."""

    forward: Pass
    """One pass of the images, with its tail."""
    given: Given
    """The images, with whatever else the network is given."""
    targets: Targets
    utility: Utility
    infer: Network
    """Logits (k, c) of k images, without a graph."""
    network: Network
    """The same with a graph."""
    keys: Callable[[], Tensor]
    """What names the images, (b,) int64, so that random numbers hang on neither the batch nor its order."""
    seed: int = 0
    room: int = ROOM
    """Numbers of images or maps that are handed to the network at a time: bounds memory."""
    progress: Progress | None = None
    budget: int | None = None
    """Forward passes an image that methods which sample may spend; None for as many as they take by themselves."""

    @property
    def images(self) -> Images:
        """What can be masked and moved along.

        Raises
        ------
        ValueError
            When the network is given more than images.
        """
        if not isinstance(self.given, Tensor):
            raise ValueError(
                "the method changes the images, expected a tensor of them, got several inputs; wrap the network in a module that "
                "takes images only, or use a method that asks the tail, such as AblationCAM"
            )
        return self.given

    @property
    def maps(self) -> Maps:
        """A, in the network's own precision."""
        return self.forward.leaf.detach()

    @property
    def tail(self) -> Tail:
        if self.forward.tail is None:
            raise ValueError("the pass has no tail; ask for it with replay=True")
        return self.forward.tail

    @property
    def full(self) -> Utilities:
        """U(A) of each image, (b,)."""
        return self.worth(self.forward.logits.detach(), self.each)

    @property
    def each(self) -> Places:
        """The place of every image, (b,)."""
        return torch.arange(len(self.targets), device=self.targets.device)

    def worth(self, logits: Logits, images: Places) -> Utilities:
        """U of each row of logits, made of the images at these places; in float32 or wider."""
        utility = settled(self.utility, self.forward.logits, self.targets, images)
        return worth(logits, self.targets[images], utility)

    def parts(self, count: int, each: int) -> Iterator[range]:
        """`count` things of `each` numbers, as many at a time as there is room for; progress is told of every part."""
        size = max(1, self.room // each)
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield range(start, stop)
            if self.progress is not None:
                self.progress(stop, count)


def undisturbed(
    explain: Callable[Concatenate[Playground, P], R],
) -> Callable[Concatenate[Playground, P], R]:
    """The same whatever surrounds the call: without a graph, outside inference mode, without autocast."""

    @wraps(explain)
    def called(play: Playground, /, *args: P.args, **kwargs: P.kwargs) -> R:
        autocast = torch.autocast(play.forward.leaf.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), autocast:
            return explain(play, *args, **kwargs)

    return called


def play_with(
    cut: CutNetwork,
    forward: Pass,
    images: Given,
    targets: Targets,
    utility: Utility,
    *,
    keys: Callable[[], Tensor] | None = None,
    seed: int = 0,
    room: int = ROOM,
    progress: Progress | None = None,
    budget: int | None = None,
    infer: Network | None = None,
) -> Playground:
    """A playground on private copies of a cut network; without `keys`, checksums of the images name them.

    Raises
    ------
    ValueError
        For a budget of less than one pass.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"budget is {budget}, expected a number of forward passes an image, some thousands, or None")
    with torch.inference_mode(False):
        copy = twin(cut.module, {})
        targets = targets.clone()  # one made in inference mode could not be saved for a backward pass

    def network(some: Tensor) -> Logits:
        with torch.autocast(some.device.type, enabled=False):
            return logits_of(call(copy, cut.formatted(some)), len(some), cut.output)

    return Playground(
        forward,
        images.detach(),
        targets,
        utility,
        infer or cut.inference(),
        network,
        keys or resolve_keys(None, images),
        seed,
        room,
        progress,
        budget,
    )


def remembered(infer: Network, room: int = 2**26) -> Network:
    """The same, but images that come again are not run again: methods mask them alike for any class.

    About `room` numbers of logits are kept; what comes after that is run every time.
    """
    known: dict[tuple[int, ...], Logits] = {}

    def recall(some: Images) -> Logits:
        names = tuple(checksums(some).tolist())
        logits = known[names] if names in known else infer(some)
        if len(known) * logits.numel() < room:
            known[names] = logits
        return logits

    return recall
