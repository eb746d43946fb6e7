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
SIDE = 448
"""Pixels of a picture that is looked at."""
HIDDEN = "{ __type__: 'update', value: null, visible: false }"
"""What takes a block off the page, in JavaScript."""


def signed(view: Image.Image, explanation: Tensor, unit: str, title: str) -> Image.Image:
    """An explanation map over the picture, red where positions speak for the class, with a scale in units of the utility."""
    h, w = view.height, view.width
    figure = _figure(SIDE / 100, SIDE / 100 * h / w + 0.7)
    picture, scale = figure.subplots(2, height_ratios=(SIDE / 100 * h / w, 0.2))
    values = explanation.detach().cpu().double().numpy()
    most = float(np.abs(values).max()) or 1.0
    picture.imshow(view.convert("L"), cmap="gray", extent=(0, w, h, 0))
    shown = picture.imshow(
        values, cmap=SIGNED, vmin=-most, vmax=most, alpha=0.7, extent=(0, w, h, 0), interpolation="nearest"
    )
    picture.set_axis_off()
    figure.colorbar(shown, cax=scale, label=f"{title}, in units of {unit}", orientation="horizontal")
    return _image(figure)


def curves(utilities: Mapping[str, Sequence[float]], unit: str) -> Image.Image:
    """The utility while players leave in each method's order, most important first."""
    figure = _figure(5.2, 4.4)
    axes = figure.subplots()
    for name, values in utilities.items():
        axes.plot(range(len(values)), values, label=name, linewidth=2.5 if name == "Shapley values" else 1.2)
    axes.set_xlabel("players that have left, best first")
    axes.set_ylabel(unit)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    return _image(figure)


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture of `SIDE` pixels across, to be looked at."""
    return picture.resize((SIDE, round(SIDE * picture.height / picture.width)), Image.Resampling.BICUBIC)


def as_url(picture: Image.Image) -> str:
    """A picture inside a page."""
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=90)
    return "data:image/jpeg;base64," + b64encode(held.getvalue()).decode()


def frame(gr: Any, label: str, name: str, visible: bool = True) -> Any:
    """Where the page shows a picture."""
    return gr.Image(
        label=label, show_label=False, interactive=False, format="png", elem_id=name, buttons=["fullscreen"],
        min_width=300, visible=visible,
    )  # fmt: skip


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it is not for threads
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure((width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.04))


def _image(figure: Any) -> Image.Image:
    held = io.BytesIO()
    figure.savefig(held, format="png")
    held.seek(0)
    return Image.open(held).convert("RGB")
