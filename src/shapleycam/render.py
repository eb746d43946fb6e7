"""Heatmaps to pictures: overlays on what the network saw, and sheets that set methods side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .batch import Explanation
from .layered import Layered
from .network.pictures import KINDS, Picture, read_picture

COLOURS = "inferno"
"""matplotlib's perceptually uniform map, black over violet and orange to light yellow."""


def overlay(
    out: Explanation | Layered, pictures: Picture | Sequence[Picture], *, opacity: float = 0.5, colours: str = COLOURS
) -> dict[str, list[Image.Image]]:
    """For each method the pictures under their heatmaps, as the network saw them: (H, W) RGB, one a picture.

    `pictures` are those that `model.preprocess` was given, or one; of several layers the mean is laid on them. For a module of
    one's own they must have the proportions of its images, and are resized to them.

    Raises
    ------
    ValueError
        When there are not as many pictures as images, a picture has other proportions, or opacity is not in [0, 1].
    """
    pictures = [pictures] if isinstance(pictures, KINDS) else pictures
    if len(pictures) != len(out.targets):
        raise ValueError(f"got {len(pictures)} pictures for the {len(out.targets)} images that were explained")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, expected a number in [0, 1]")
    size = next(iter(out.heatmaps.values())).shape[-2:]
    seen = [_seen(out, picture, (size[0], size[1])) for picture in pictures]
    return {
        method: [blend(view, heatmap, opacity, colours) for view, heatmap in zip(seen, heatmaps, strict=True)]
        for method, heatmaps in out.heatmaps.items()
    }


def blend(view: Image.Image, heatmap: Tensor, opacity: float = 0.5, colours: str = COLOURS) -> Image.Image:
    """A picture under one heatmap (H, W) in [0, 1] of its size."""
    from matplotlib import colormaps

    if colours not in colormaps:
        raise ValueError(f"unknown colour map {colours!r}; any of matplotlib's, such as inferno, viridis or jet")
    values = heatmap.detach().cpu().float().numpy()
    colour = Image.fromarray((colormaps[colours](values)[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(view, colour, opacity)


def sheet(tiles: Sequence[tuple[str, Image.Image]], title: str = "", columns: int = 4) -> Image.Image:
    """Captioned pictures of one size in rows, under a title."""
    font = _font()
    w = max(tile.width for _, tile in tiles)
    h = max(tile.height for _, tile in tiles)
    gap, line = 8, 24
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    top = gap + line * (title.count("\n") + 1) if title else gap
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    said = int(draw.multiline_textbbox((gap, gap // 2), title, font, spacing=6)[2])
    width = max(columns * (w + gap), said) + gap
    page = Image.new("RGB", (width, top + rows * (h + line + gap)), "white")
    draw = ImageDraw.Draw(page)
    if title:
        draw.multiline_text((gap, gap // 2), title, "black", font, spacing=6)
    for place, (caption, tile) in enumerate(tiles):
        x, y = gap + place % columns * (w + gap), top + place // columns * (h + line + gap)
        draw.text((x, y), caption, "black", font)
        page.paste(tile, (x, y + line))
    return page


def _seen(out: Explanation | Layered, picture: Picture, size: tuple[int, int]) -> Image.Image:
    if out.preprocess is not None:
        return out.preprocess.crop(picture)
    upright = read_picture(picture)
    w, h = upright.size
    if abs(w * size[0] - h * size[1]) > max(w, h):
        raise ValueError(
            f"a picture is {w} x {h}, the heatmaps {size[1]} x {size[0]}: pass the pictures as the network saw them, cropped"
        )
    return upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _font() -> Any:
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), 15)
