"""What a run will cost, before it starts: passes of each network, hours, rows, and room on the disk."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..measurement import measure
from ..network.zoo import ZOO
from ..searches import SEARCHES
from .configuration import Configuration, Machine
from .datasets import find_pictures
from .loaded import Loaded, load, seconds_of_pass
from .places import Place
from .planned import method_names
from .store import OK, SCHEMA, Footer, pack, part_bytes

METRICS = {"insertion": 102, "deletion": 102, "road": 19}
"""Forward passes that further metrics cost a heatmap."""
TRIED = 8
"""Pictures of a pass that is timed, where no batch is given."""
POSITIONS = 49
"""Of a map, where no model is looked at: 7 x 7, as in most networks at 224 x 224 pixels."""


@dataclass(frozen=True)
class Cost:
    """What one network costs, at most: methods whose heatmaps coincide on a picture are measured once."""

    model: str
    passes: int
    rate: float
    """Passes a second of one process."""
    rows: int
    bytes: int
    """Of the rows on disk."""

    @property
    def hours(self) -> float:
        """Of one process."""
        return self.passes / self.rate / 3600


def estimate(source: Place, configuration: Configuration, machine: Machine, rate: float | None) -> tuple[Cost, ...]:
    """The cost of each network of a run; `source` may be the number of pictures.

    Parameters
    ----------
    rate
        Forward passes a second; None times each network here, with random weights.

    Raises
    ------
    ValueError, OSError
        As `plan`; and for methods whose passes cannot be counted beforehand.
    """
    names = method_names(configuration)
    if slow := [name for name in names if name in SEARCHES]:
        raise ValueError(f"{', '.join(slow)}: passes that cannot be counted beforehand; plan without (--methods)")
    if configuration.fidelity:
        raise ValueError("fidelity replays tails, whose time cannot be counted in passes; plan without (--fidelity)")
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate is {rate}, expected measured or a number of forward passes a second")
    if not (pictures := count_pictures(source, configuration.labels)):
        raise ValueError("pictures is 0, expected where they are, or their number")
    units = len(configuration.layers) * len(configuration.utilities)
    heatmap = 2 + sum(METRICS.get(name, 0) for name in configuration.metrics)
    each = 1 + ("randomisation" in configuration.metrics) + len(names) * heatmap
    found = []
    for model in configuration.models:
        known = model in ZOO and set(configuration.layers) <= {"gap", "conv"}
        speed, positions = (rate, (POSITIONS,)) if rate and known else _looked_at(model, configuration, machine, rate)
        size = sum(_row_bytes(count) for count in positions) / len(positions)
        rows = pictures * units * len(names)
        found.append(Cost(model, pictures * units * each, speed, rows, round(rows * size)))
    return tuple(found)


def _looked_at(
    name: str, configuration: Configuration, machine: Machine, rate: float | None
) -> tuple[float, tuple[int, ...]]:
    """Passes a second, and the positions at each layer."""
    loaded = load(name, configuration, replace(machine, weights=("random",)), machine.channels_last or False)
    batch = TRIED if machine.batch == "auto" else int(machine.batch)
    return rate or batch / seconds_of_pass(loaded, batch), tuple(
        _positions(loaded, layer) for layer in configuration.layers
    )


def _positions(loaded: Loaded, layer: str) -> int:
    found = measure(loaded.model, loaded.blank(1), methods="GradCAM", layer=layer, utility="pre-softmax")
    return int(np.prod(found.out.layer.positions))


def _row_bytes(positions: int, rows: int = 640) -> float:
    """Bytes of a row as Parquet holds it, of a part full of noise."""
    rng = np.random.default_rng(0)
    maps, scales = pack(rng.standard_normal((rows, 1, positions)).astype(np.float32))
    words = {"method": "ShapleyCAM-H", "model": "resnet50", "layer": "gap", "utility": "rest", "status": OK}
    noise = ("full", "kept", "deleted", "coherency", "complexity", "discrimination")
    columns = {
        **{name: [word] * rows for name, word in words.items()},
        **{name: rng.random(rows).astype(np.float32) for name in noise},
        "picture": [f"ILSVRC2012_val_{row // 10:08}.JPEG" for row in range(rows)],
        "map": list(maps[:, 0]),
        "map_scale": scales,
    }
    blank = [None] * rows
    table = pa.table({each.name: pa.array(columns.get(each.name, blank), each.type) for each in SCHEMA}, schema=SCHEMA)
    return len(part_bytes(table, Footer("x" * 64, "x" * 64, True, rows, 0))) / rows


def count_pictures(source: Place, labels: Path | None) -> int:
    """The number of pictures; `source` may be that number."""
    number = str(source).isdecimal() and not source.exists()
    return int(str(source)) if number else len(find_pictures(source, labels))
