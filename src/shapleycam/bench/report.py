"""A run as one HTML file that asks for nothing else: tables, plots, the best and the worst pictures with their overlays."""

import io
import struct
import warnings
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from .captions import coinciding
from .datasets import Item, find_pictures
from .formats import Grid
from .places import Place, locate, store_errors
from .scores import BASELINES, METRICS, Scores
from .store import explanation_map, parts, read_configuration, read_part
from .tables import absent_notes, make_grids, read_groups, scores_in_order

SHOWN = 3
"""Pictures shown as the best, and as the worst, of each network, target layer and utility."""
WIDTH = 224
"""Pixels of the longer side of a picture that has no known size."""
COLOURS = "inferno"
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    *(SyntaxError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for damaged files, as `network.pictures` has it, which needs torch."""


@dataclass(frozen=True)
class Section:
    """One network, target layer and utility."""

    grid: Grid
    bars: tuple["Bar", ...]
    pictures: tuple[tuple[str, list[list[tuple[str, str]]]], ...]
    """Titles, and below each the strips of captioned images, as data URLs."""
    agreement: Grid | None = None
    """What the run says of the methods and the game."""


@dataclass(frozen=True)
class Bar:
    """What the plot draws of a method: ADCC of the means with its interval, and the spread of single pictures' ADCCs."""

    method: str
    mean: float
    low: float
    high: float
    single: tuple[float, ...]
    """The 5, 25, 50, 75 and 95 % quantiles."""


def write_report(run: Place, out: Path, pictures: Place | None = None) -> None:
    """Write the report of a run to `out`.

    Parameters
    ----------
    pictures
        Where the pictures are now, in the form in which `bench` took them; where the run found them if None. Those that
        are not there are left out, and their overlays lie on grey.

    Raises
    ------
    ValueError, OSError
        When there is no run, it has no rows, or `out` cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    facts = read_configuration(run)
    sources = _sources(pictures or facts.get("source", ""), required=pictures is not None)
    sections = []
    groups = read_groups(run)
    for scores in scores_in_order(groups):
        where = scores.model, scores.layer, scores.utility
        grid, *beside = make_grids({where: lambda scores=scores: scores}, facts["configuration"], ci=True)  # type: ignore[misc]
        section = _section(grid, scores, run, facts, sources)
        sections.append(replace(section, agreement=beside[0] if beside else None))
    if absent := absent_notes(groups, facts["configuration"]):
        last = sections[-1]
        sections[-1] = replace(last, grid=replace(last.grid, notes=(*last.grid.notes, *absent)))
    page = Environment(
        loader=PackageLoader("shapleycam", "bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page.render(run=run.name, facts=_facts(facts), sections=sections), encoding="utf-8")


def _section(grid: Grid, scores: Scores, run: Place, facts: Mapping[str, Any], sources: Mapping[str, Item]) -> Section:
    listed = [name for name in coinciding(scores) if name not in BASELINES]
    adcc = dict(zip(scores.methods, np.nan_to_num(scores.means[:, METRICS.index("ADCC")], nan=-1), strict=True))
    best = max((name for name in listed if name != "RandomCAM"), key=lambda name: adcc[name], default=None)
    if best is None:
        return Section(grid, _bars(grid, scores), ())
    single = scores.adcc_per_image[:, scores.methods.index(best)]
    order = [int(place) for place in np.argsort(-single, kind="stable") if np.isfinite(single[place])]
    several = min(SHOWN, len(order) // 2) or len(order)
    chosen = {"Best": order[:several], "Worst": order[::-1][:several] if len(order) > 1 else []}
    names = [scores.pictures[place] for places in chosen.values() for place in places]
    maps = _maps(run, scores, names)
    about = facts.get("models", {}).get(scores.model, {})
    groups = [
        (
            f"{which} pictures of {best}, by the ADCC of the single picture",
            [_strip(scores, place, listed, maps, about, sources) for place in places],
        )
        for which, places in chosen.items()
        if places
    ]
    return Section(grid, _bars(grid, scores), tuple(groups))


def _strip(
    scores: Scores,
    place: int,
    methods: Sequence[str],
    maps: Mapping[tuple[str, str], Mapping[str, Any]],
    about: Mapping[str, Any],
    sources: Mapping[str, Item],
) -> list[tuple[str, str]]:
    """The picture and its overlays, each with a caption."""
    name = scores.pictures[place]
    view = _view(sources.get(name), about.get("preprocess"))
    shown = view or Image.new("RGB", _size(about.get("preprocess")), "#808080")
    strip = [
        (_said(name, next((row for (p, _), row in maps.items() if p == name), {}), about), _url(view) if view else "")
    ]
    for method in methods:
        row = maps.get((name, method))
        explanation = explanation_map(row) if row else None
        if explanation is not None:
            adcc = scores.adcc_per_image[place, scores.methods.index(method)]
            strip.append((f"{method}, ADCC {adcc:.1f}", _url(_overlay(shown, explanation))))
    return strip


def _said(name: str, row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The picture's name, and the class that was explained."""
    target, full, classes = row.get("target"), row.get("full"), about.get("classes") or ()
    if target is None or full is None:
        return name
    known = classes[target] if 0 <= target < len(classes) else f"class {target}"
    return f"{name}: {known}, probability {full:.3f}"


def _overlay(view: Image.Image, explanation: NDArray[np.float32]) -> Image.Image:
    """A picture under H = ReLU(E), scaled to [0, 1] and resized, as `theory.heatmap` has it."""
    from matplotlib import colormaps

    positive = np.nan_to_num(explanation).clip(0)
    coarse = (positive - positive.min()) / (np.ptp(positive) + 1e-7)
    fine = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(view.size, Image.Resampling.BILINEAR))
    heat = (fine - fine.min()) / (np.ptp(fine) + 1e-7)
    colours = Image.fromarray((colormaps[COLOURS](heat)[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(view, colours, 0.5)


def _view(item: Item | None, preprocess: Mapping[str, Any] | None) -> Image.Image | None:
    """What the network saw of a picture; None where it is no longer to be had."""
    if item is None:
        return None
    upright = None
    with suppress(*store_errors(), *_DAMAGE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and damaged metadata
        opened = item.open()
        with Image.open(io.BytesIO(opened) if isinstance(opened, bytes) else opened) as file:
            upright = _upright(file)
    if upright is None:
        return None
    w, h = _size(preprocess)
    white = Image.new("RGBA", upright.size, "white")
    seen = Image.alpha_composite(white, upright).convert("RGB")
    if preprocess is None:
        return ImageOps.fit(seen, (w, h))
    resize = preprocess["resize"]
    if isinstance(resize, int):
        resize = [int(side * resize / min(seen.size)) for side in reversed(seen.size)]
    if resize:
        seen = seen.resize((resize[1], resize[0]))
    left, top = round((seen.width - w) / 2), round((seen.height - h) / 2)
    return seen.crop((left, top, left + w, top + h))


def _upright(file: Image.Image) -> Image.Image:
    """A picture as its EXIF block turns it, as it lies where the block is unreadable; read_picture would need torch."""
    plain = file.convert("RGBA")
    plain.info.clear()  # exif_transpose writes a block anew, which fails for damaged ones
    with suppress(*_DAMAGE):
        plain.getexif()[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
    return ImageOps.exif_transpose(plain)


def _size(preprocess: Mapping[str, Any] | None) -> tuple[int, int]:
    h, w = (preprocess or {}).get("size", (WIDTH, WIDTH))
    return int(w), int(h)


def _bars(grid: Grid, scores: Scores) -> tuple[Bar, ...]:
    place = 1 + METRICS.index("ADCC")
    bars = []
    for row in grid.rows:
        cell = row[place]
        single = scores.adcc_per_image[:, scores.methods.index(str(row[0]))]
        if not isinstance(cell, str) and cell.interval and np.isfinite(cell.value):
            spread = tuple(float(each) for each in np.nanpercentile(single, (5, 25, 50, 75, 95)))
            bars.append(Bar(str(row[0]), cell.value, *cell.interval, spread))
    return tuple(bars)


def _maps(run: Place, scores: Scores, names: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of some pictures with their maps, by picture and method; parts are read one after the other."""
    wanted = pa.array(names, pa.string())
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in parts(run)[scores.model, scores.layer, scores.utility]:
        rows = read_part(path, ("picture", "method", "target", "full", "map", "map_scale", "map_h", "map_w"))
        mine = rows.filter(pc.is_in(rows["picture"], value_set=wanted))
        found |= {(row["picture"], row["method"]): row for row in mine.to_pylist()}
    return found


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _sources(source: str | Place, *, required: bool) -> dict[str, Item]:
    away: tuple[type[Exception], ...] = () if required else (OSError, *store_errors(), ValueError)
    with suppress(*away):
        return {item.name: item for item in find_pictures(locate(source))} if source else {}
    return {}


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, with what, as lines."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {said(each)}" for name, each in value.items() if each is not None)
        return ", ".join(map(said, value)) if isinstance(value, list) else str(value)

    shown = dict(facts.get("configuration", {})) | {
        name: facts[name] for name in ("source", "weights", "versions", "device", "batch", "times") if name in facts
    }
    return [(name.replace("_", " "), said(value)) for name, value in shown.items()]
