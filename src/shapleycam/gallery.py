"""Pictures explained into a folder: sheets and overlays to look at, arrays and facts to work with."""

import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, count
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .batch import Explanation
from .explanation import explain
from .network.layout import TargetLayer
from .network.pictures import RGB, PictureError, pixels
from .network.zoo import Model
from .playground import Progress
from .render import blend, sheet
from .theory.cams import nearest
from .theory.utility import shares

_NOTHING = "blank: see warnings"


@dataclass(frozen=True)
class Written:
    """What became of one picture."""

    picture: Path
    line: str
    """For a person: class, probability, layer; or why it failed."""
    failed: bool = False


def write_explanations(
    model: Model,
    pictures: Sequence[Path],
    out: Path,
    *,
    methods: Sequence[str],
    layer: str | None = None,
    utility: str = "rest",
    target: str | None = None,
    top: int = 1,
    seed: int = 0,
    batch: int = 8,
    samples: int = 0,
    progress: Progress | None = None,
    budget: int | None = None,
) -> Iterator[Written]:
    """Explain pictures into `out`, a folder for each: yields as they are written, in their order.

    A folder holds `sheet.png`, a PNG and an NPZ a method (heatmap, explanation, and its deviation over samples), and
    `explanation.json`; with `top` above 1 one such folder for each of the likeliest classes. A picture that cannot be read is
    reported and does not stop the others.

    Raises
    ------
    ValueError
        For an unknown target, or both `target` and `top`.
    OSError
        When `out` cannot be written.
    """
    if target is not None and top != 1:
        raise ValueError("give a target or a number of likeliest classes, not both")
    wanted = find_target(model, target)
    if not 1 <= top <= len(model.class_names):
        raise ValueError(f"top is {top}, expected a number of classes from 1 to {len(model.class_names)}")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of pictures, at least 1")
    check_folder(out)
    folders, options = folder_names(pictures), {"target": target, "top": top, "samples": samples, "budget": budget}

    chosen: TargetLayer | None = None

    def asked(images: Tensor, targets: int | str | Tensor | None) -> Explanation:
        nonlocal chosen
        found = explain(
            model, images, methods=methods, layer=chosen.name if chosen else layer,
            layout=chosen.as_layout if chosen else None, utility=utility, targets=targets, seed=seed,
            samples=samples, progress=progress, budget=budget,
        )  # fmt: skip
        chosen = chosen or found.layer  # the first picture's, where it is found: one command explains one layer
        return replace(found, layer=chosen)

    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        read = [_read(model, picture) for picture in some]
        seen = [pixels(crop) for crop in read if not isinstance(crop, PictureError)]
        found = _explain(asked, model.formed(model.preprocess.of_pixels(seen)), wanted, top) if seen else []
        places = iter(range(len(seen)))
        for picture, folder, crop in zip(some, folders[start:], read, strict=False):
            if isinstance(crop, PictureError):
                yield Written(picture, str(crop), failed=True)
                continue
            place = next(places)
            for rank, explained in enumerate(found):
                inner = f"{rank + 1}-{_slug(model.class_names[int(explained.targets[place])])}" if top > 1 else ""
                into = out / folder / inner
                try:
                    into.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError) as error:
                    where = f"the folder {str(into)!r} cannot be made, for {error.filename!r} is a file"
                    yield Written(picture, f"{picture}: {where}; move it, or name another folder", failed=True)
                    continue
                yield Written(picture, _write(model, explained[place], picture, crop, into, seed, options))


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it.

    Raises
    ------
    OSError
        With the reason.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{str(out)!r} is a file; name a folder to write to, it is made if need be")
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    why = (
        "Not a directory" if not there.is_dir() else "" if os.access(there, os.W_OK | os.X_OK) else "Permission denied"
    )
    if why:
        done = "written to" if there == out else "made"
        raise OSError(f"the folder {str(out)!r} cannot be {done}: {why}; name another to write to")


def find_target(model: Model, target: str | None) -> int | str | None:
    """A class index from an index, a WordNet identifier or a class name; None and "least" as they are.

    Raises
    ------
    ValueError
        For a name that no class or several classes have, and for a model without classes.
    """
    if not model.class_names:
        raise ValueError(
            f"{model.name} puts out features and no classes, so there is no class to explain; in Python give explain a utility "
            "of the features, see docs/any-network.md"
        )
    if target is None or target == "least":
        return target
    if re.fullmatch("-?[0-9]+", target):
        if not 0 <= int(target) < len(model.class_names):
            raise ValueError(
                f"target {target} is out of range; {model.name} has classes 0 to {len(model.class_names) - 1}"
            )
        return int(target)
    if model.wnids and target in model.wnids:
        return model.wnids.index(target)
    named = [index for index, name in enumerate(model.class_names) if name.lower() == target.lower()]
    if len(named) == 1:
        return named[0]
    if named:
        choice = " or ".join(f"{index} ({model.wnids[index]})" if model.wnids else str(index) for index in named)
        raise ValueError(f"several classes are called {target!r}: give {choice}")
    raise ValueError(f"unknown target {target!r}, no index, wnid or class name; {nearest(target, model.class_names)}")


def _read(model: Model, picture: Path) -> RGB | PictureError:
    try:
        return model.preprocess.crop(picture)
    except PictureError as error:
        return error


def _explain(
    asked: Callable[..., Explanation], images: Tensor, target: int | str | None, top: int
) -> list[Explanation]:
    first = asked(images, targets=target)
    likeliest = first.logits.topk(top, 1).indices
    return [first] + [asked(images, targets=likeliest[:, rank]) for rank in range(1, top)]


def _write(
    model: Model, out: Explanation, picture: Path, crop: RGB, folder: Path, seed: int, options: Mapping[str, Any]
) -> str:
    """The files of one picture, whose explanation is a batch of one; gives the line to say of it."""
    overlays = {method: blend(crop, heatmaps[0]) for method, heatmaps in out.heatmaps.items()}
    for method, tile in overlays.items():
        tile.save(folder / f"{method}.png")
        several = {"heatmap": out.heatmaps[method].float(), "explanation": out.explanations[method]}
        several |= {"deviation": out.deviations[method]} if out.deviations else {}
        np.savez_compressed(folder / f"{method}.npz", **{name: each[0].cpu().numpy() for name, each in several.items()})  # type: ignore[arg-type]
    facts = {**_facts(model, out, picture), "seed": seed, "options": dict(options)}
    target = facts["target"]
    chance = "not a number" if target["probability"] is None else f"{target['probability']:.4f}"
    said = f"{picture.name}: {target['name']} ({target['index']}), probability {chance}"
    title = f"{said}\n{model.name}, {out.layer}, {out.utility}"
    blank = {warning.method for warning in out.warnings if warning.reason in ("blank", "constant", "non-finite")}
    said_of = {method: f"{method} ({_NOTHING})" if {method, None} & blank else method for method in overlays}
    tiles = [(said_of[method], tile) for method, tile in overlays.items()]
    sheet([("picture", crop), *tiles], title).save(folder / "sheet.png")
    written = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    # What is no text in a file's name is escaped as JSON has it.
    (folder / "explanation.json").write_bytes(written.encode(errors="backslashreplace"))
    return "\n  warning: ".join([f"{said}, layer {out.layer.name} -> {folder}", *facts["warnings"]])


def _facts(model: Model, out: Explanation, picture: Path) -> dict[str, Any]:
    probabilities = shares(out.logits.cpu().double(), out.utility)[0]

    def one(index: int) -> dict[str, Any]:
        wnid = {"wnid": model.wnids[index]} if model.wnids else {}
        chance = float(probabilities[index])  # JSON has no NaN
        return {
            "index": index, **wnid, "name": model.class_names[index], "probability": chance if isfinite(chance) else None
        }  # fmt: skip

    return {
        "picture": str(picture),
        "model": model.name,
        "weights": {"origin": model.weights, "sha256": model.weights_hash},
        "layer": {
            "name": out.layer.name,
            "layout": out.layer.layout,
            "maps": out.layer.maps,
            "positions": list(out.layer.positions),
            "prefix": out.layer.prefix,
            "reason": out.layer.reason,
        },
        "device": str(out.logits.device),
        "utility": out.utility,
        "target": one(int(out.targets[0])),
        "likeliest": [one(int(index)) for index in probabilities.topk(min(5, len(probabilities))).indices],
        "methods": list(out.heatmaps),
        "preprocess": asdict(model.preprocess),
        "versions": {name: version(name) for name in ("shapleycam", "torch", "timm", "pillow")}
        | {"python": platform.python_version()},
        "warnings": [f"{w.method}: {w.message}" if w.method else w.message for w in out.warnings],
    }


def folder_names(pictures: Sequence[Path]) -> list[str]:
    """A folder name for each picture: its stem, numbered where several share it, on disks that do not mind case too."""
    names: dict[str, str] = {}
    for picture in pictures:
        tried = chain([picture.stem], (f"{picture.stem}-{again}" for again in count(2)))
        name = next(name for name in tried if name.casefold() not in names)
        names[name.casefold()] = name
    return list(names.values())


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
