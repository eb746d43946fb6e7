"""Measurements of a batch as rows of a part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..faithfulness import Fidelity
from ..measurement import Measurements
from ..theory.agreement import AGREEMENTS
from .store import OK, SCHEMA, Unit, pack

_NUMBERS = ("full", "kept", "deleted", "coherency", "complexity", "discrimination")


def failed_rows(unit: Unit, failures: Sequence[tuple[str, int | None, str]]) -> pa.Table:
    """A row without a method for each picture that could not be measured: its name, its label, and the reason."""
    rows = [
        {
            "model": unit.model,
            "layer": unit.layer,
            "utility": unit.utility,
            "method": "",
            "picture": name,
            "label": label,
        }
        | {"status": " ".join(reason.split())}
        for name, label, reason in failures
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def measured_rows(
    unit: Unit,
    methods: Sequence[str],
    names: Sequence[str],
    labels: Sequence[int | None],
    measurements: Sequence[Measurements],
    fidelities: Sequence[Fidelity] = (),
) -> pa.Table:
    """A row for each picture and method, methods in their order; each is looked up in the measurements that have it.

    A number that is not finite is null, and the status says which ones are not.
    """
    b, m = len(names), len(methods)
    homes = [
        next((each, each.methods.index(name)) for each in measurements if name in each.methods) for name in methods
    ]
    numbers = {name: _column(homes, name) for name in (*_NUMBERS, *measurements[0].more)}
    maps = _maps(homes, methods, b)
    status = [
        _status([name for name in numbers if not np.isfinite(numbers[name][k])] + ["map"] * (not each.finite))
        for k, each in enumerate(maps)
    ]
    first = measurements[0]
    columns: Mapping[str, Any] = {
        **{name: [getattr(unit, name)] * (b * m) for name in ("model", "layer", "utility")},
        "method": list(methods) * b,
        "picture": [name for name in names for _ in methods],
        "label": [label for label in labels for _ in methods],
        "predicted": np.repeat(first.out.logits.argmax(1).cpu().numpy(), m),
        "target": np.repeat(first.targets.cpu().numpy(), m),
        **{name: pa.array(column, pa.float32(), mask=~np.isfinite(column)) for name, column in numbers.items()},
        **_agreement(methods, fidelities, b),
        "map": [each.values for each in maps],
        "map_scale": [each.scale for each in maps],
        "map_h": [each.h for each in maps],
        "map_w": [each.w for each in maps],
        "status": status,
    }
    blank = [None] * (b * m)
    return pa.table({each.name: pa.array(columns.get(each.name, blank), each.type) for each in SCHEMA}, schema=SCHEMA)


def problems(rows: pa.Table) -> tuple[str, ...]:
    """Why rows are not to be used: each picture and reason once."""
    bad = {
        (picture, status): None
        for picture, status in zip(rows["picture"].to_pylist(), rows["status"].to_pylist(), strict=True)
        if status != OK
    }
    return tuple(f"{picture}: {status}" for picture, status in bad)


def _column(homes: Sequence[tuple[Measurements, int]], name: str) -> NDArray[np.float32]:
    """One number of all pictures and methods, picture by picture."""
    scores = [(found.more[name] if name in found.more else getattr(found, name), place) for found, place in homes]
    return _array(torch.stack([each if name == "full" else each[:, place] for each, place in scores], 1)).ravel()


def _agreement(methods: Sequence[str], fidelities: Sequence[Fidelity], b: int) -> dict[str, Any]:
    """The scores of `fidelity`, picture by picture; null for baselines, and where they were not asked for."""
    found: dict[str, Any] = {}
    for name in (*AGREEMENTS, "noise"):
        column = np.full((b, len(methods)), np.nan, np.float32)
        for each in fidelities:
            for place, method in enumerate(each.methods):
                score = each.noise if name == "noise" else getattr(each, name)[:, place]
                column[:, methods.index(method)] = _array(score)
        found[name] = pa.array(column.ravel(), pa.float32(), mask=~np.isfinite(column.ravel()))
    return found


@dataclass(frozen=True)
class _Map:
    """The map of one row; a baseline's has nothing in it."""

    values: NDArray[np.float16] | None = None
    scale: np.float32 | None = None
    h: int | None = None
    w: int | None = None
    finite: bool = True


def _maps(homes: Sequence[tuple[Measurements, int]], methods: Sequence[str], b: int) -> list[_Map]:
    """The maps of all pictures and methods, picture by picture."""
    columns = []
    for (found, _), name in zip(homes, methods, strict=True):
        if name in found.out.explanations:
            arrays = _array(found.out.explanations[name])
            h, w = arrays.shape[1:]
            columns.append(
                [
                    _Map(packed.ravel(), scale, h, w, bool(np.isfinite(array).all()))
                    for array, packed, scale in zip(arrays, *pack(arrays), strict=True)
                ]
            )
        else:
            columns.append([_Map()] * b)
    return [column[place] for place in range(b) for column in columns]


def _status(wrong: Sequence[str]) -> str:
    return f"NaN or infinity in {', '.join(wrong)}" if wrong else OK


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.to(torch.float32).cpu().numpy()
    return array
