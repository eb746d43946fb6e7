"""Runs made by hand: rows as dictionaries, and folders that look as `shapleycam bench` leaves them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shapleycam.bench import store
from shapleycam.bench.places import write_whole

WHERE = {"model": "resnet18", "layer": "gap", "utility": "rest"}


def rows(entries: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows with what the entries say, the rest null."""
    return pa.Table.from_pylist([{**dict.fromkeys(store.SCHEMA.names), **e} for e in entries], schema=store.SCHEMA)


def drawn(methods: Sequence[str], pictures: int = 20, seed: int = 0, **where: str) -> list[dict[str, Any]]:
    """Entries with numbers drawn at random; maps are 7 x 7, baselines have none."""
    rng = np.random.default_rng(seed)
    full = rng.uniform(0.3, 1, pictures)
    return [
        {
            **WHERE,
            **where,
            "method": method,
            "picture": f"{p:03d}.jpg",
            "label": p % 3,
            "predicted": p % 2,
            "target": p % 2,
            "full": full[p],
            **{name: rng.uniform(0.1, 0.9) for name in ("kept", "deleted", "coherency", "complexity")},
            **({} if method in ("FakeCAM", "Gaussian") else {"map": rng.normal(size=49).astype(np.float16)}),
            "map_scale": 1.0,
            "map_h": 7,
            "map_w": 7,
            "status": "ok",
        }
        for method in methods
        for p in range(pictures)
    ]


def write_part(path: Path, some: pa.Table, footer: store.Footer) -> None:
    """A part, as a run writes it."""
    write_whole(path, store.part_bytes(some, footer))


def write_run(folder: Path, entries: Sequence[Mapping[str, Any]], **facts: Any) -> Path:
    """A finished run of these entries, a part for each network, target layer and utility."""
    configuration = {"preprocess": "own", "pictures": {"count": len({e["picture"] for e in entries})}}
    whole = {"configuration": configuration, "hash": store.fingerprint(configuration), "weights": {}, **facts}
    store.begin(folder, whole)
    units = {tuple(e[name] for name in WHERE) for e in entries}
    for unit in units:
        mine = [e for e in entries if tuple(e[name] for name in WHERE) == unit]
        footer = store.Footer(whole["hash"], "weights", complete=True, pictures=len(mine), errors=0)
        write_part(store.Unit(*unit, 0).path(folder), rows(mine), footer)
    return folder
