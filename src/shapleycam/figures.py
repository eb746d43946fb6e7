"""Figures that set methods side by side, as Figs. 1 and 3 to 6 of the paper do, of anybody's pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .gallery import check_folder, find_target
from .measurement import Measurements, measure
from .network.pictures import RGB, PictureError
from .network.zoo import Model
from .playground import Progress
from .render import blend
from .scoring import Masking, background, masked
from .theory import metrics
from .theory.baselines import BASELINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".png", ".pdf", ".svg")
DPI = 144
MAPS = ("explanation map", "visual explanation", "anti-explanation map")

_GAP, _HEAD, _LINE, _FOOT = 6, 30, 22, 30
"""Pixels between tiles, above them for the columns' names, for each line of a row's label, below for the caption."""


@dataclass(frozen=True)
class Tile:
    """A picture with a few characters in its upper left corner."""

    picture: RGB
    corner: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles side by side, with a label of one or more lines."""

    label: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Comparison:
    """What a figure shows: rows of as many tiles as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str
    failed: tuple[str, ...] = ()
    """Why pictures are not in it, a sentence each."""


def draw_pictures(
    model: Model,
    pictures: Sequence[Path],
    out: Path,
    *,
    methods: str | Iterable[str] = "paper",
    targets: Sequence[str] = ("predicted",),
    layer: str | None = None,
    utilities: Sequence[str] = ("rest",),
    masking: Masking = "normalised",
    maps: bool = False,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
    budget: int | None = None,
) -> tuple[str, ...]:
    """Compare pictures, see `compare`, and draw the figure into a file, see `write_figure`; gives what failed."""
    _check_kind(out)
    check_folder(out.parent)
    comparison = compare(
        model, pictures, methods=methods, targets=targets, layer=layer, utilities=utilities, masking=masking, maps=maps,
        seed=seed, done=done, progress=progress, budget=budget,
    )  # fmt: skip
    write_figure(comparison, out)
    return comparison.failed


def compare(
    model: Model,
    pictures: Sequence[Path],
    *,
    methods: str | Iterable[str] = "paper",
    targets: Sequence[str] = ("predicted",),
    layer: str | None = None,
    utilities: Sequence[str] = ("rest",),
    masking: Masking = "normalised",
    maps: bool = False,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
    budget: int | None = None,
) -> Comparison:
    """A row for each picture, target and utility, a column for each method, the picture's own ADCC x 100 in the corner.

    Figs. 1, 3 and 5; with several utilities Fig. 6. With `maps`, Fig. 4: a row a method too, and in three columns its
    explanation map x * H, the overlay, and its anti-explanation map x * (1 - H), with the target's probability on both.

    Parameters
    ----------
    targets
        Each an index, a wnid, a class name, "least", or "predicted".
    done
        Called once a picture, target and utility is measured.
    progress, budget
        As in `explain`; a slow method is asked twice for each of these.

    Raises
    ------
    ValueError
        As `measure`; when there is no picture, target, utility or method.
    PictureError
        When none of the pictures can be read; otherwise those that cannot are left out, see `Comparison.failed`.
    """
    for name, given in (("picture", pictures), ("target", targets), ("utility", utilities)):
        if not given:
            raise ValueError(f"no {name} was given; name one or more")
    wanted = {target: find_target(model, None if target == "predicted" else target) for target in targets}
    rows: list[Row] = []
    failed: list[PictureError] = []
    for picture in pictures:
        try:
            images = model.images(picture)
        except PictureError as error:
            failed.append(error)
            continue
        for target, utility in product(wanted, dict.fromkeys(utilities)):
            found = measure(
                model, images, methods=methods, layer=layer, targets=wanted[target], utility=utility, masking=masking,
                seed=seed, progress=progress, budget=budget,
            )  # fmt: skip
            done()
            said = (
                *([Path(picture).stem] if len(pictures) > 1 else []),
                model.class_names[int(found.targets)],
                f"p = {float(found.full):.3g}",
                *([utility] if len(utilities) > 1 else []),
            )
            view = model.preprocess.crop(picture)
            if maps:
                several = len(found.methods) > 1
                behind = background(model, masking)
                rows += [
                    Row((*said, name) if several else said, _maps(model, found, name, view, images, behind))
                    for name in found.methods
                ]
            else:
                rows.append(Row(said, (Tile(view), *(_overlay(found, name, view) for name in found.methods))))
    if not rows:
        raise failed[0]
    corner = "p: the class's probability; ADCC" if maps else "in the corners: ADCC"
    return Comparison(
        columns=MAPS if maps else ("picture", *found.methods),
        rows=tuple(rows),
        caption=f"{model.name}, {found.out.layer.name}, {', '.join(utilities)}; {corner} x 100 of the single picture",
        failed=tuple(map(str, failed)),
    )


def draw(comparison: Comparison) -> "Figure":
    """The figure: at `DPI` dots an inch each pixel of a tile is one pixel of the figure."""
    from matplotlib.figure import Figure

    w, h = comparison.rows[0].tiles[0].picture.size
    lines = [[line for part in row.label for line in wrap(part, max(h // 9, 12))] for row in comparison.rows]
    left = _GAP + _LINE * max(map(len, lines))
    width = left + len(comparison.columns) * (w + _GAP)
    caption = wrap(comparison.caption, max((width - left) // 8, 12))
    foot = _FOOT + _LINE * (len(caption) - 1)
    height = _HEAD + len(comparison.rows) * (h + _GAP) + foot
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    room = min(1.0, h / 112, *(w / (11 * len(column)) for column in comparison.columns))

    def write(x: int | float, y: int | float, text: str, size: int | float, **how: Any) -> None:
        figure.text(x / width, 1 - y / height, text, size=size, parse_math=False, **how)

    for i, column in enumerate(comparison.columns):
        write(left + i * (w + _GAP) + w / 2, _HEAD - 6, column, 9 * room, ha="center", va="bottom")
    for j, row in enumerate(comparison.rows):
        y = _HEAD + j * (h + _GAP)
        write(
            left - _GAP,
            y + h / 2,
            "\n".join(lines[j]),
            8 * room,
            rotation=90,
            ha="right",
            va="center",
            multialignment="center",
        )
        for i, tile in enumerate(row.tiles):
            x = left + i * (w + _GAP)
            axes = figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
            axes.imshow(tile.picture, interpolation="none", aspect="auto")
            axes.axis("off")
            if tile.corner:
                box = {"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 2}
                axes.text(6, 6, tile.corner, size=8 * min(1.0, h / 112), color="white", ha="left", va="top", bbox=box)
    write(left, height - foot / 2 + 2, "\n".join(caption), 7, color="dimgrey", ha="left", va="center")
    return figure


def write_figure(comparison: Comparison, out: Path) -> None:
    """Draw into a PNG, PDF or SVG file, by its suffix; the same comparison gives the same bytes.

    Raises
    ------
    ValueError
        For another suffix.
    OSError
        When the file cannot be written.
    """
    _check_kind(out)
    from matplotlib import rc_context

    out.parent.mkdir(parents=True, exist_ok=True)
    undated: Mapping[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    # Text stays text, to be searched and edited.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "shapleycam", "pdf.fonttype": 42}):
        draw(comparison).savefig(out, dpi=DPI, metadata=undated.get(out.suffix.lower()))


def _check_kind(out: Path) -> None:
    if out.suffix.lower() not in KINDS:
        raise ValueError(f"out is {str(out)!r}, expected a file ending in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if out.is_dir():
        raise IsADirectoryError(f"{str(out)!r} is a folder; name a file to write to")


def _overlay(found: Measurements, name: str, view: RGB) -> Tile:
    adcc = metrics.adcc_per_image(found.average_drop, found.coherency, found.complexity)[0, found.methods.index(name)]
    return Tile(
        blend(view, _heatmap(found, name, view)[0]), f"{100 * float(adcc):.1f}" if adcc.isfinite() else "not a number"
    )


def _maps(
    model: Model, found: Measurements, name: str, view: RGB, images: Tensor, behind: Tensor | None
) -> tuple[Tile, Tile, Tile]:
    column = found.methods.index(name)
    heatmap = _heatmap(found, name, view)

    def tile(shares: Tensor, probability: Tensor) -> Tile:
        seen = model.preprocess.denormalise(masked(images, shares, behind))[0]
        pixels = (seen * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Tile(Image.fromarray(pixels), f"p = {float(probability):.3g}")

    kept, deleted = tile(heatmap, found.kept[0, column]), tile(1 - heatmap, found.deleted[0, column])
    return kept, _overlay(found, name, view), deleted


def _heatmap(found: Measurements, name: str, view: RGB) -> Tensor:
    if name in BASELINES:
        return BASELINES[name](view.height, view.width)[None].to(found.kept)
    return found.out.heatmaps[name]
