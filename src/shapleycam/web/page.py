"""The users of the page: what each has open, what he is shown of it, and the folder that holds his files."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from math import isnan
from pathlib import Path
from tempfile import mkdtemp
from time import time
from typing import Any

import numpy as np
from PIL import Image

from ..batch import Explanation
from ..network.pictures import PictureError
from ..network.zoo import Model
from ..render import blend
from . import drawings
from .look import Look, Looks, look

HELD = 2**29
"""Bytes that the page's folder may hold, about."""
CLOSED = "Open a picture first: drop one, paste one, or take an example."
GONE_ON = "Another picture or class was chosen meanwhile; ask anew."


class Page:
    """What the page's events call; every user's picture is kept by his session."""

    def __init__(self, models: Mapping[str, Model], folder: Path) -> None:
        self.models, self.folder, self.looks = dict(models), folder, Looks()
        self._opening: dict[str, object] = {}

    def open(self, picture: str | Path | Image.Image, model: str, layer: str | None, session: str) -> Look:
        """Read a picture and run the network on it, once; kept for its user, if he neither left nor opened another meanwhile.

        Raises
        ------
        gr.Error
            With the reason, when it is no picture or the layer does not fit.
        """
        mine = self._opening[session] = object()
        try:
            opened = self.read(picture, model, layer)
        finally:
            current = self._opening.get(session) is mine
            if current:
                del self._opening[session]
        if current:
            self.looks.put(session, opened)
        return opened

    def read(self, picture: str | Path | Image.Image, model: str, layer: str | None = None) -> Look:
        """The same, kept for nobody."""
        self._tidy()
        try:
            return look(self.models[model], picture, layer or None)
        except (PictureError, ValueError) as error:
            words = str(error)
            raise said(
                words if isinstance(picture, Image.Image) else words.replace(str(picture), Path(picture).name)
            ) from None

    def _tidy(self) -> None:
        """Delete the oldest uploads and drawings where there are more than `HELD` bytes of them; the newest may be in use."""
        files = sorted(_files(self.folder))
        total, now = sum(size for _, size, _ in files), time()
        for made, size, each in files:
            if total <= HELD or now - made < 60:
                break
            total -= size
            each.unlink(missing_ok=True)

    def of(self, session: str) -> Look:
        """The picture that a user has open."""
        found = self.looks.get(session)
        if found is None:
            raise said(CLOSED)
        return found

    def stay(self, session: str, seen: Look, target: int, utility: str) -> None:
        """End what takes long where its user has left, or gone on to something else: somebody else may wait for the place.

        Raises
        ------
        gr.Error
            Then.
        """
        if self.looks.get(session) is not seen or (seen.target, seen.utility) != (target, utility):
            raise said(GONE_ON)

    def leave(self, session: str) -> None:
        """Forget a user, and what he could download."""
        self._opening.pop(session, None)
        self.looks.drop(session)
        shutil.rmtree(self._folder_of(session), ignore_errors=True)

    def _folder_of(self, session: str) -> Path:
        """A user's folder; browsers choose what sessions are called."""
        return self.folder / "downloads" / sha256(session.encode()).hexdigest()

    def shown(
        self, session: str, method: str, target: int | None, utility: str, opacity: float, colours: str
    ) -> tuple[Image.Image, Image.Image, str]:
        """The overlay, the signed map, and what is to be said of them."""
        seen = self.of(session)
        out = seen.explain([method], target, utility)
        name = seen.model.class_names[int(out.targets[0])]
        over = drawings.enlarged(blend(seen.view, out.heatmaps[method][0], opacity, colours))
        signed = drawings.signed(seen.view, out.explanations[method][0], utility, f"{method} for {name}")
        return over, signed, _words(seen, out, method)

    def downloads(
        self, session: str, method: str, target: int | None, utility: str, opacity: float, colours: str
    ) -> list[str]:
        """A PNG, an NPZ and a JSON file of what is shown, in a folder of this user's that holds no more than them."""
        seen = self.of(session)
        out = seen.explain([method], target, utility)
        try:
            return _written(
                self._folder_of(session), seen, out, blend(seen.view, out.heatmaps[method][0], opacity, colours)
            )
        except FileNotFoundError:  # he left meanwhile, and his folder with him
            raise said(GONE_ON) from None


def _written(mine: Path, seen: Look, out: Explanation, overlay: Image.Image) -> list[str]:
    mine.mkdir(parents=True, exist_ok=True)
    before, folder = list(mine.iterdir()), Path(mkdtemp(dir=mine))  # one that is being fetched is not written into
    for each in before:
        shutil.rmtree(each, ignore_errors=True)
    (method,) = out.explanations
    overlay.save(folder / "overlay.png")
    np.savez_compressed(
        folder / "map.npz",
        heatmap=out.heatmaps[method][0].float().cpu().numpy(),
        explanation=out.explanations[method][0].cpu().numpy(),
    )
    (folder / "explanation.json").write_text(json.dumps(facts(seen, out), indent=1, ensure_ascii=False), "utf-8")
    return [str(folder / name) for name in ("overlay.png", "map.npz", "explanation.json")]


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was made, its bytes, and where it is; some go while one looks."""
    for inner, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found = (Path(inner) / name).stat()
                yield found.st_mtime, found.st_size, Path(inner) / name


def facts(seen: Look, out: Explanation) -> dict[str, Any]:
    """All there is to say of an explanation, for a file."""
    return {
        "model": seen.model.name,
        "weights": seen.model.weights,
        "layer": str(out.layer),
        "utility": out.utility,
        "target": {"index": int(out.targets[0]), "name": seen.model.class_names[int(out.targets[0])]},
        "likeliest": [{"index": i, "name": name, "probability": p} for i, name, p in seen.likeliest()],
        "full": float(out.full[0]),
        "methods": list(out.heatmaps),
        "warnings": [str(warning) for warning in out.warnings],
    }


def _words(seen: Look, out: Explanation, method: str) -> str:
    target, gap = int(out.targets[0]), float(out.efficiency_gap[method][0])
    lines = [
        f"**{method}** at `{out.layer}`: {seen.model.class_names[target]}, probability {float(seen.probabilities[target]):.2%}."
    ]
    if isnan(gap):
        lines.append("This method does not claim that its shares add up, so it has no efficiency gap.")
    else:
        total, earned = float(out.explanations[method].sum()), float(out.full[0]) - float(out.empty[0])
        lines.append(
            f"Its shares add up to {total:.3f}; there is {earned:.3f} to share: an efficiency gap of {gap:.1%}, best is 0."
        )
    lines += [f"Warning: {warning}" for warning in dict.fromkeys(each.message for each in out.warnings)]
    return "\n\n".join(lines)


def said(message: str) -> Exception:
    """An error that the page shows to its user."""
    import gradio as gr

    error: Exception = gr.Error(message, print_exception=False)
    return error
