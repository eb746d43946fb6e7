"""Runs on disk: a folder with `run.json` and Parquet parts, each of them written at once or not at all.

Any number of processes may write into one folder, and be killed. Reading needs no network: see `read_rows`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .places import Place, create, store_errors, write_whole

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("model", "layer", "utility", "method", "picture")),
        *(pa.field(name, pa.int32()) for name in ("label", "predicted", "target")),
        *(
            pa.field(name, pa.float32())
            for name in ("full", "kept", "deleted", "coherency", "complexity", "discrimination")
        ),
        *(pa.field(name, pa.float32()) for name in ("error", "pearson", "spearman", "sign", "noise")),
        *(pa.field(name, pa.float32()) for name in ("insertion", "deletion", "road", "randomisation")),
        pa.field("map", pa.list_(pa.float16())),
        pa.field("map_scale", pa.float32()),
        pa.field("map_h", pa.int16()),
        pa.field("map_w", pa.int16()),
        pa.field("status", pa.string()),
    ]
)
"""A row for each picture and method; a picture that could not be read has one row, its method "".

`label`, `predicted` and `target` are class indices. The signed explanation E is `map * map_scale`, see
`explanation_map`; baselines have none. `error` to `noise`, see `Fidelity`, and `insertion` to `randomisation`, see
`measure`, are null unless the run was asked for them.
`status` is "ok" or the reason why a row's numbers are not to be used.
"""

_WORDS = [each.name for each in SCHEMA if each.type == pa.string()]
"""Columns whose values recur; a dictionary of numbers takes time and room."""
Where: TypeAlias = tuple[str, str, str]
"""A model, target layer and utility."""
OK = "ok"
_KEY = b"shapleycam"


@dataclass(frozen=True, order=True)
class Unit:
    """What one part holds: a shard of the pictures, for one model, layer and utility."""

    model: str
    layer: str
    utility: str
    part: int

    def path(self, run: Place) -> Place:
        """Its file in the run's folder."""
        return run / "parts" / self.file

    @property
    def file(self) -> str:
        """The same below the folder of the parts."""
        return "/".join((*self.folders, f"{self.part:05d}.parquet"))

    @property
    def folders(self) -> tuple[str, str, str]:
        """Model, layer and utility as names of folders."""
        return quote(self.model, safe=""), quote(self.layer, safe=""), quote(self.utility, safe="")


@dataclass(frozen=True)
class Footer:
    """What a part says of itself."""

    configuration: str
    """The hash of the configuration that it was made with."""
    weights: str
    """The hash of the model's weights."""
    complete: bool
    """Whether all pictures of the unit are in it; a run that was interrupted leaves one that is not."""
    pictures: int
    errors: int
    """Rows whose status is not "ok"."""


def fingerprint(facts: object) -> str:
    """SHA-256 of anything JSON can hold, in hexadecimal; the order of keys does not matter."""
    return sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def read_configuration(run: Place) -> dict[str, Any]:
    """What `run.json` says: configuration and its hash, pictures, versions, models, weights, batch, device, times.

    Raises
    ------
    FileNotFoundError
        When the folder holds no run.
    ValueError
        When `run.json` is damaged, of another program, or was changed by hand.
    """
    file = run / "run.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{str(run)!r} holds no run, there is no run.json in it; expected the folder given to `shapleycam bench --out`"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged, it is no JSON: {error}") from error
    if not isinstance(found, dict) or not {"configuration", "hash"} <= set(found):
        raise ValueError(f"{str(file)!r} is not a run's: expected the keys configuration and hash")
    if fingerprint(found["configuration"]) != found["hash"]:
        raise ValueError(
            f"the configuration in {str(file)!r} does not have the hash beside it, so it was changed after the run; "
            "undo that, or run the new configuration into another folder"
        )
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two configurations differ in, a phrase each."""
    return [
        f"{name} is {json.dumps(new.get(name), ensure_ascii=False)}, there {json.dumps(old.get(name), ensure_ascii=False)}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def begin(run: Place, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `run.json`, unless another process was first: gives what it says in the end."""
    create(run / "run.json", _json(facts))
    return read_configuration(run)


def rewrite(run: Place, facts: Mapping[str, Any]) -> None:
    """Write `run.json` anew."""
    write_whole(run / "run.json", _json(facts))


def part_bytes(rows: pa.Table, footer: Footer) -> bytes:
    """A part as its file holds it."""
    table = rows.replace_schema_metadata({_KEY: json.dumps(asdict(footer)).encode()})
    written = io.BytesIO()
    pq.write_table(table, written, compression="zstd", use_dictionary=_WORDS)
    return written.getvalue()


def read_footer(path: Place) -> Footer | None:
    """What a part says of itself; None if it is missing, damaged, or no part."""
    try:
        metadata = pq.read_schema(_file(path)).metadata or {}
        return Footer(**json.loads(metadata[_KEY]))
    except (OSError, *store_errors(), pa.ArrowException, KeyError, ValueError, TypeError):
        return None


def read_part(path: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part; columns that it does not have yet, for an older version made it, are null."""
    wanted = pa.schema(SCHEMA if columns is None else [SCHEMA.field(name) for name in columns])
    found = pq.ParquetFile(_file(path)).read(columns=wanted.names).replace_schema_metadata()
    for field in wanted:
        if field.name not in found.column_names:
            found = found.append_column(field, pa.nulls(len(found), field.type))
    return found.select(wanted.names)


def read_rows(run: Place, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
    """All rows of a run, or those of one model, layer and utility, or some of their columns.

    Files that are still being written are passed over.

    Raises
    ------
    FileNotFoundError
        When there is no run, or no part in it yet.
    ValueError
        For parts that are damaged, of another configuration, or made with other weights, by name.
    """
    facts = read_configuration(run)
    unknown = sorted(set(columns or ()) - set(SCHEMA.names))
    if unknown:
        raise ValueError(f"rows have no column {unknown[0]!r}; there are {', '.join(SCHEMA.names)}")
    tables = []
    weights: dict[str, str] = {model: each["sha256"] for model, each in facts.get("weights", {}).items()}
    found = parts(run)
    for path in found.get(where, ()) if where else chain.from_iterable(found.values()):
        footer, name = read_footer(path), "/".join(path.parts[-4:])
        if footer is None:
            raise ValueError(f"{name} in {str(run)!r} is damaged; the same bench command again makes it anew")
        if footer.configuration != facts["hash"]:
            raise ValueError(f"{name} was made with another configuration than {str(run / 'run.json')!r}; remove it")
        model = unquote(path.parts[-4])
        if weights.setdefault(model, footer.weights) != footer.weights:
            raise ValueError(f"{name} was made with other weights of {model} than the rest of {str(run)!r}; remove it")
        tables.append(read_part(path, columns))
    if not tables:
        raise FileNotFoundError(f"the run in {str(run)!r} has no rows yet; wait for its first part, or start it again")
    return pa.concat_tables(tables)


def parts(run: Place) -> dict[Where, list[Place]]:
    """The finished files of each model, layer and utility of a run, in a lasting order."""
    found: dict[Where, list[Place]] = {}
    files: list[Place] = list(run.glob("parts/*/*/*/*.parquet"))
    for path in sorted(files, key=lambda each: tuple(each.parts)):
        model, layer, utility = (unquote(name) for name in path.parts[-4:-1])
        found.setdefault((model, layer, utility), []).append(path)
    return found


def explanation_map(row: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """E of a row, (h, w), signed and in units of the utility, to 11 bits; None for a baseline."""
    if row["map"] is None:
        return None
    values = np.asarray(row["map"], dtype=np.float32) * np.float32(row["map_scale"])
    return values.reshape(row["map_h"], row["map_w"])


def pack(maps: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Maps (k, h, w) as float16 and the power of two to multiply each by, such that none overflows or fades to zero."""
    top = np.abs(maps).max((1, 2), initial=0)
    exponents = np.where(np.isfinite(top) & (top > 0), np.frexp(top)[1], 0).clip(-125, 127)
    scales = np.ldexp(np.float32(1), exponents).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return (maps / scales[:, None, None]).astype(np.float16), scales


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()


def _file(path: Place) -> Path | io.BytesIO:
    """What Parquet reads: a part from an object store comes in one request."""
    return path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
