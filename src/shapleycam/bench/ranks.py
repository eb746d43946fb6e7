"""Ranks that torchrun starts: each is a process of its own, and they share the parts through the run's folder alone."""

import os
import time
from dataclasses import dataclass, replace

from .claims import POLL
from .configuration import Machine
from .places import Place


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a job this is."""

    number: int
    local: int
    """Its number on its machine."""

    def device(self, named: str) -> str:
        """The device of its own where there are several: cuda is cuda:3 for the fourth process of a machine."""
        return f"cuda:{self.local}" if named == "cuda" else named

    def machine(self, machine: Machine) -> Machine:
        """How this rank measures."""
        return replace(machine, device=self.device(machine.device))

    def wait(self, run: Place, seconds: float) -> None:
        """Until the first rank has begun the run, so that models are tried once; torchrun ends all if it fails.

        Raises
        ------
        TimeoutError
            When that takes longer than `seconds`.
        """
        since = time.monotonic()
        while self.number and not (run / "run.json").exists():
            if time.monotonic() - since > seconds:
                raise TimeoutError(
                    f"rank 0 has not begun the run in {str(run)!r} for {seconds:g} s (--stall); all ranks must see the same "
                    "folder (--out)"
                )
            time.sleep(POLL)


def rank() -> Rank:
    """This process's.

    Raises
    ------
    ValueError
        When torchrun did not start it.
    """
    try:
        return Rank(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            "RANK and LOCAL_RANK are not set, so this process is no rank; start it so: "
            "torchrun --nproc-per-node 8 -m shapleycam bench ... --engine torchrun"
        ) from error
