"""What the page's events do, each for the user whose session it names."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from time import time
from typing import Any

import numpy as np
from PIL import Image

from ..batch import Explanation
from ..network.pictures import PictureError
from ..network.zoo import Model
from ..render import blend, sheet
from ..theory.cams import METHODS, SETS
from . import drawings
from .look import Look, Looks, look

SORTS = {"method": 0, "ADCC": -1, "average drop": 1, "coherency": -1, "complexity": 1}
"""What to sort by: the sign brings the best first."""
HELD = 2**29
"""Bytes that the page's folder may hold, about."""
CLOSED = "Open a picture first: drop one, paste one, or take an example."


class Page:
    """What the page's events call; every user's picture is kept by his session."""

    def __init__(self, models: Mapping[str, Model], folder: Path) -> None:
        self.models, self.folder, self.looks = dict(models), folder, Looks()

    def open(self, picture: str | Path | Image.Image, model: str, layer: str | None, session: str) -> Look:
        """Read a picture and run the network on it, once.

        Raises
        ------
        gr.Error
            With the reason, when it is no picture or the layer does not fit.
        """
        try:
            opened = look(self.models[model], picture, layer or None)
        except (PictureError, ValueError) as error:
            words = str(error)
            raise said(
                words if isinstance(picture, Image.Image) else words.replace(str(picture), Path(picture).name)
            ) from None
        self._tidy()
        self.looks.put(session, opened)
        return opened

    def _tidy(self) -> None:
        """Delete the oldest uploads and drawings where there are more than `HELD` bytes of them; the newest may be in use."""
        files = sorted((each.stat().st_mtime, each) for each in self.folder.rglob("*") if each.is_file())
        total, now = sum(each.stat().st_size for _, each in files), time()
        for made, each in files:
            if total <= HELD or now - made < 60:
                break
            total -= each.stat().st_size
            each.unlink(missing_ok=True)

    def of(self, session: str) -> Look:
        """The picture that a user has open."""
        found = self.looks.get(session)
        if found is None:
            raise said(CLOSED)
        return found

    def leave(self, session: str) -> None:
        """Forget a user, and what he could download."""
        self.looks.drop(session)
        shutil.rmtree(self.folder / "downloads" / Path(session).name, ignore_errors=True)

    def shown(
        self, session: str, method: str, target: int | None, utility: str, opacity: float, colours: str
    ) -> tuple[Image.Image, Image.Image, str]:
        """The overlay, the signed map, and what is to be said of them."""
        seen = self.of(session)
        out = seen.explain([method], target, utility)
        name = seen.model.class_names[int(out.targets[0])]
        over = blend(seen.view, out.heatmaps[method][0], opacity, colours)
        signed = drawings.signed(seen.view, out.explanations[method][0], f"{utility}", f"{method} for {name}")
        return over, signed, _words(seen, out, method)

    def downloads(
        self, session: str, method: str, target: int | None, utility: str, opacity: float, colours: str
    ) -> list[str]:
        """A PNG, an NPZ and a JSON file of what is shown, in a folder of this user's that holds no more than them."""
        seen = self.of(session)
        out = seen.explain([method], target, utility)
        mine = self.folder / "downloads" / Path(session).name
        mine.mkdir(parents=True, exist_ok=True)
        before, folder = list(mine.iterdir()), Path(mkdtemp(dir=mine))  # one that is being fetched is not written into
        for each in before:
            shutil.rmtree(each, ignore_errors=True)
        blend(seen.view, out.heatmaps[method][0], opacity, colours).save(folder / "overlay.png")
        np.savez_compressed(
            folder / "map.npz",
            heatmap=out.heatmaps[method][0].float().cpu().numpy(),
            explanation=out.explanations[method][0].cpu().numpy(),
        )
        (folder / "explanation.json").write_text(json.dumps(facts(seen, out), indent=1, ensure_ascii=False), "utf-8")
        return [str(folder / name) for name in ("overlay.png", "map.npz", "explanation.json")]

    def compared(
        self, session: str, which: str, targets: Sequence[int | None], utility: str, sort: str, opacity: float, colours: str
    ) -> Image.Image:  # fmt: skip
        """All methods of a set in one sheet, a part for each class; sorted by a metric where that was measured."""
        seen = self.of(session)
        pages = []
        for target in targets:
            out = seen.explain(SETS[which], target, utility)
            rows = {str(row[0]): row for row in seen.measured.get((predicted(seen, target), utility), [])}
            place = list(SORTS).index(sort)
            known = place and all(name in rows for name in out.heatmaps)
            order = (
                sorted(out.heatmaps, key=lambda m: SORTS[sort] * float(rows[m][place])) if known else [*out.heatmaps]
            )
            captions = {name: f"{name} {rows[name][place]}" if known else name for name in order}
            tiles = [(captions[name], blend(seen.view, out.heatmaps[name][0], opacity, colours)) for name in order]
            title = f"{seen.model.class_names[int(out.targets[0])]}, {out.layer.name}, {utility}"
            pages.append(sheet([("picture", seen.view), *tiles], title))
        whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), "white")
        top = 0
        for page in pages:
            whole.paste(page, (0, top))
            top += page.height
        return whole

    def measured(
        self, session: str, which: str, target: int | None, utility: str, sort: str, progress: Any
    ) -> list[list[str | float]]:
        """A row of metrics for each method, in percent, sorted; measured once for a class and utility."""
        seen = self.of(session)
        rows = seen.measured.setdefault((predicted(seen, target), utility), [])
        missing = [name for name in SETS[which] if name not in {row[0] for row in rows}]
        for place, name in enumerate(missing):
            progress((place, len(missing)), desc=name)
            found = seen.measure([name], target, utility)
            scores = (found.adcc, found.average_drop, found.coherency, found.complexity)
            rows.append([name, *(round(100 * float(each.flatten()[0]), 2) for each in scores)])
        place = list(SORTS).index(sort)
        shown = [row for row in rows if row[0] in SETS[which]]
        return sorted(shown, key=lambda row: SORTS[sort] * float(row[place])) if place else shown

    def valued(
        self, session: str, target: int | None, utility: str, progress: Any
    ) -> tuple[Image.Image, Image.Image, str]:
        """The Shapley values, the curves of the utility in each method's order, and the values' errors in words."""
        seen = self.of(session)
        target = predicted(seen, target)
        found = seen.values(target, utility, lambda done, all_: progress((done, all_)))
        game = seen.game(target, utility)
        values = game.spread(found.values)
        name = seen.model.class_names[target]
        picture = drawings.signed(seen.view, values, utility, f"Shapley values for {name}")
        out = seen.explain(SETS["paper"], target, utility)
        orders = {"Shapley values": found.values, **{m: e[0].flatten() for m, e in out.explanations.items()}}
        utilities = {
            m: seen.curve(each.argsort(descending=True).tolist(), target, utility) for m, each in orders.items()
        }
        best = int(found.values.argmax())
        h, w = seen.positions
        errors = "exact" if found.noise == 0 else f"standard errors up to {float(found.errors.max()):.3g}"
        words = (
            f"{found.evaluations} coalitions played, {errors}. The values add up to {float(found.values.sum()):.4f}, the utility "
            f"of all less that of none. The network can least do without row {best // w + 1}, column {best % w + 1} of {h} x {w}."
        )
        if self.looks.get(session) is not seen:
            raise said("Another picture was opened meanwhile; work out its values anew.")
        return picture, drawings.curves(utilities, utility), words

    def without(self, session: str, gone: Sequence[int], target: int | None, utility: str) -> dict[str, Any]:
        """What the board shows when some players have left."""
        seen = self.of(session)
        worth, sure, top, best = seen.without(gone, predicted(seen, target), utility)
        return {"utility": worth, "probability": sure, "top": seen.model.class_names[top], "sure": best}


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


def predicted(seen: Look, target: int | None) -> int:
    """The target, or the class that is predicted."""
    return int(seen.probabilities.argmax()) if target is None else target


def _words(seen: Look, out: Explanation, method: str) -> str:
    known = METHODS[method]
    target = int(out.targets[0])
    empty = float(seen.game(target, out.utility).empty)
    total, earned = float(out.explanations[method].sum()), float(out.full[0]) - empty
    adds = known.weights.__name__ in ("identity", "mean") and not known.relu_inside and known.order != "none"
    lines = [
        f"**{method}** at `{out.layer}`: {seen.model.class_names[target]}, probability {float(seen.probabilities[target]):.2%}."
    ]
    if adds:
        gap = abs(total - earned) / max(abs(earned), 1e-6)
        lines.append(
            f"Its shares add up to {total:.3f}; there is {earned:.3f} to share: an efficiency gap of {gap:.1%}."
        )
    else:
        lines.append("This method does not claim that its shares add up, so it has no efficiency gap.")
    lines += [f"Warning: {warning}" for warning in dict.fromkeys(each.message for each in out.warnings)]
    return "\n\n".join(lines)


def said(message: str) -> Exception:
    """An error that the page shows to its user."""
    import gradio as gr

    error: Exception = gr.Error(message, print_exception=False)
    return error
