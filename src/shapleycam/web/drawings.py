"""What the page draws: signed maps with a scale, Shapley values, and curves of the utility while players leave."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

COLOURS = ("inferno", "viridis", "cividis", "magma", "jet")
SIGNED = "RdBu_r"


def signed(view: Image.Image, explanation: Tensor, unit: str, title: str) -> Image.Image:
    """An explanation map over the picture, red where positions speak for the class, with a scale in units of the utility."""
    figure = _figure(5.2, 4.2)
    axes = figure.subplots()
    values = explanation.detach().cpu().double().numpy()
    most = float(np.abs(values).max()) or 1.0
    h, w = view.height, view.width
    axes.imshow(view.convert("L"), cmap="gray", extent=(0, w, h, 0))
    shown = axes.imshow(
        values, cmap=SIGNED, vmin=-most, vmax=most, alpha=0.7, extent=(0, w, h, 0), interpolation="nearest"
    )
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    figure.colorbar(shown, ax=axes, label=unit, fraction=0.046)
    return _image(figure)


def curves(utilities: Mapping[str, Sequence[float]], unit: str) -> Image.Image:
    """The utility while players leave in each method's order, most important first."""
    figure = _figure(5.2, 3.6)
    axes = figure.subplots()
    for name, values in utilities.items():
        axes.plot(range(len(values)), values, label=name, linewidth=2.5 if name == "Shapley values" else 1.2)
    axes.set_xlabel("players that have left, best first")
    axes.set_ylabel(unit)
    axes.legend(fontsize=7, loc="lower left")
    return _image(figure)


def as_url(picture: Image.Image) -> str:
    """A picture inside a page."""
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + b64encode(held.getvalue()).decode()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it is not for threads

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _image(figure: Any) -> Image.Image:
    held = io.BytesIO()
    figure.savefig(held, format="png")
    held.seek(0)
    return Image.open(held).convert("RGB")
