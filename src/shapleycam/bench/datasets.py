"""Pictures to measure on: a folder of classes, a flat folder, a tar, or a list; each with a lasting name and its label."""

import csv
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath

from .places import Place, beside, files

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
"""Endings of the files in folders and tars that are taken for pictures, in any case."""

Label = int | str
_WNID = re.compile(r"n\d{8}")
_WNID_IN_NAME = re.compile(r"(?:^|_)(n\d{8})(?=[_.])")
_NO_TEXT = re.compile("[\ud800-\udfff]")
"""Bytes of a file's name that are no UTF-8, as Python hands them out."""
_HEADS = {"path", "picture", "image", "file", "filename", "name", "imageid"}
_LABELS = {"label", "class", "target", "wnid", "predictionstring"}
GROUND_TRUTH = (
    "numbers classes from 1 to 1000 in the order of the challenge's own list, which is not the order of the logits; give "
    "WordNet identifiers, as in the file LOC_val_solution.csv, or indices that count from 0 in the order of the identifiers"
)


@dataclass(frozen=True)
class Item:
    """A picture that can be opened any number of times, from any thread."""

    name: str
    """Its path relative to what was given, with slashes: unique, and the same on every machine."""
    label: Label | None
    """A class index, a WordNet identifier or class name, or None where it is not known."""
    open: Callable[[], Path | bytes] = field(repr=False, compare=False)
    """Its file on this machine, or what the file holds."""


def find_pictures(source: Place, labels: Path | None = None) -> tuple[Item, ...]:
    """The pictures of a folder, a tar or a list, ordered by name; those of a list in its order.

    Labels come from `labels`, else from the list, else from a WordNet identifier in the folder's or the file's name, else
    from the name of the folder that a picture lies in.

    Parameters
    ----------
    source
        A folder, searched to its depth; an uncompressed .tar; a .csv with columns path and label; or a text file with a path
        a line, and its label behind a tab, or behind a space if it is an index or an identifier. Paths in lists are relative
        to the list; lines that begin with "# " are passed over.
    labels
        A text or CSV file: a picture's name, or its file's name with or without the ending, and its label in each line; or
        a label for each picture in their order. Pictures that are not named keep the labels that they have.

    Raises
    ------
    FileNotFoundError
        When there is no such file or folder, or no picture in it.
    ValueError
        When a picture occurs twice, labels do not fit, or the tar is compressed or damaged.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"{str(source)!r} is not there; name a folder, a .tar, a .csv or a text file of pictures"
        )
    if source.is_dir():
        items = _folder(source)
    elif source.suffix.lower() in SUFFIXES:
        items = (Item(source.name, _label(PurePosixPath(source.name)), partial(_opened, source)),)
    else:
        items = _tar(source) if _is_tar(source) else _list(source)
    if not items:
        raise FileNotFoundError(f"{str(source)!r} holds no pictures; their names end in {', '.join(sorted(SUFFIXES))}")
    if odd := [item.name for item in items if _NO_TEXT.search(item.name)]:
        raise ValueError(f"the name of {odd[0]!a} is not UTF-8, so that no table can hold it; rename the file")
    return _labelled(items, labels) if labels else items


def checksum(items: Sequence[Item]) -> str:
    """SHA-256 of the names and labels, in hexadecimal: tells one set of pictures from another."""
    return sha256("\n".join(f"{item.name}\t{item.label}" for item in items).encode()).hexdigest()


def _folder(folder: Place) -> tuple[Item, ...]:
    names = sorted(name for name in files(folder, links=True) if _is_picture(name))
    return tuple(Item(str(name), _label(name), partial(_opened, folder / str(name))) for name in names)


def _is_picture(name: PurePosixPath) -> bool:
    """By its ending; nothing hidden, nor in a hidden folder."""
    hidden = any(part.startswith(".") and part != ".." for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _opened(file: Place) -> Path | bytes:
    return file if isinstance(file, Path) else file.read_bytes()


def _label(name: PurePosixPath) -> Label | None:
    return _identifier(name) or name.parent.name or None


def _identifier(name: PurePosixPath) -> Label | None:
    """The WordNet identifier in the folder's or the file's name."""
    if _WNID.fullmatch(name.parent.name):
        return name.parent.name
    in_name = _WNID_IN_NAME.search(name.name)
    return in_name.group(1) if in_name else None


def _is_tar(file: Place) -> bool:
    head = _bytes(file, 0, 512)
    if head[:2] in (b"\x1f\x8b", b"BZ") or head[:6] == b"\xfd7zXZ\x00" or head[:4] == b"\x28\xb5\x2f\xfd":
        raise ValueError(
            f"{str(file)!r} is compressed, so pictures in it cannot be reached one by one; unpack it to a .tar"
        )
    return file.suffix.lower() == ".tar" or head[257:262] == b"ustar"


def _tar(file: Place) -> tuple[Item, ...]:
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isfile() and _is_picture(name):
                    members[str(name)] = member  # as tar itself does, the last of a name counts
    except tarfile.TarError as error:
        raise ValueError(f"{str(file)!r} cannot be read as a tar: {error}; make it anew") from error
    return tuple(
        Item(name, _label(PurePosixPath(name)), partial(_bytes, file, members[name].offset_data, members[name].size))
        for name in sorted(members)
    )


def _bytes(file: Place, start: int, size: int) -> bytes:
    if not isinstance(file, Path):  # opened, a store's file is read by blocks of 50 MiB
        return bytes(file.fs.cat_file(file.path, start=start, end=start + size))
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(size)


def _list(file: Place) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for line, (path, label) in _lines(file):
        name = path if "://" in path else Path(path).as_posix()
        if name in items:
            raise ValueError(f"line {line} of {str(file)!r} lists {name} a second time; remove one of the two")
        known = _identifier(PurePosixPath(name)) if label is None else label
        items[name] = Item(name, known, partial(_opened, beside(file, path)))
    return tuple(items.values())


def _labelled(items: Sequence[Item], file: Path) -> tuple[Item, ...]:
    rows = list(_lines(file))
    lone = [path for _, (path, label) in rows if label is None]
    if len(lone) == len(rows):
        if len(rows) != len(items):
            raise ValueError(
                f"{str(file)!r} has {len(rows)} labels for {len(items)} pictures; give each line a name and a label"
            )
        given = [_parsed(label) for label in lone]
        if set(given) <= set(range(1, 1001)) and 1000 in given:
            raise ValueError(f"{str(file)!r} {GROUND_TRUTH}")
        return tuple(replace(item, label=label) for item, label in zip(items, given, strict=True))
    table: Mapping[str, Label | None] = {Path(path).as_posix(): label for _, (path, label) in rows}

    def find(item: Item) -> Label | None:
        name = PurePosixPath(item.name)
        return next((table[key] for key in (item.name, name.name, name.stem) if key in table), None)

    labels = [find(item) for item in items]
    if all(label is None for label in labels):
        raise ValueError(
            f"{str(file)!r} names none of the {len(items)} pictures, such as {items[0].name}; expected name and label"
        )
    return tuple(
        item if label is None else replace(item, label=label) for item, label in zip(items, labels, strict=True)
    )


def _lines(file: Place) -> Iterator[tuple[int, tuple[str, Label | None]]]:
    """For each line of a list its number, the path and the label; a head and empty lines are passed over."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(file)!r} is no text; expected a folder, a .tar, a .csv or a text file of pictures"
        ) from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("# ")]
    if file.suffix.lower() == ".csv":
        yield from _rows(lines)
        return
    for place, (number, line) in enumerate(lines):
        path, label = _words(line)
        if place or path.lower() not in _HEADS:
            yield number, (path, label)


def _rows(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, tuple[str, Label | None]]]:
    """Of a CSV: the columns that its head calls path and label, else the first two."""
    where, behind = 0, 1
    for place, (number, line) in enumerate(lines):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        heads = [cell.lower() for cell in cells]
        if not place and not _HEADS.isdisjoint(heads):
            where = next(i for i, head in enumerate(heads) if head in _HEADS)
            behind = next((i for i, head in enumerate(heads) if head in _LABELS), where + 1)
            continue
        label = cells[behind] if len(cells) > behind else ""
        # Kaggle's LOC_val_solution.csv has boxes behind the identifier.
        known = _parsed(label.split()[0] if _WNID.match(label) else label) if label else None
        yield number, (cells[where] if len(cells) > where else "", known)


def _words(line: str) -> tuple[str, Label | None]:
    path, tab, label = line.strip().partition("\t")
    if not tab:
        path, _, label = line.strip().rpartition(" ")
        if not path or not (label.isdigit() or _WNID.fullmatch(label)):
            return line.strip(), None
    return path.strip(), _parsed(label.strip()) if label.strip() else None


def _parsed(label: str) -> Label:
    return int(label) if label.isdecimal() else label
