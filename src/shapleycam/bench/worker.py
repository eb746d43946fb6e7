"""A process that works on a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Worker:
    """What a process says of itself in the run's folder."""

    id: str
    name: str
    """Its rank, or its machine and process."""
    alone: bool = False
    """Whether it deals out the parts itself, so that no other may take any."""
    shard: str = "1/1"
    """Which share of the parts it does."""
    beat: int = 0
    pictures: int = 0
    """Measured since it was started."""
    problems: int = 0
