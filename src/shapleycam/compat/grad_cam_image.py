"""Pictures as `pytorch_grad_cam.utils.image` prepares and shows them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from ..theory.axes import Images

Picture = Float[np.ndarray, "H W 3"]


def show_cam_on_image(
    img: Picture, mask: Float[np.ndarray, "H W"], use_rgb: bool = False, colormap: int = 2, image_weight: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """A heatmap laid over a picture with values in [0, 1], for `PIL.Image.fromarray`; BGR unless `use_rgb`.

    `colormap` is one of OpenCV's, 2 for its jet, which alone is to be had without OpenCV.
    """
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight is {image_weight}, expected 0 to 1")
    if img.max() > 1:
        raise ValueError(f"img has values up to {img.max()}, expected 0 to 1; use numpy.float32(img) / 255")
    colours = _colours(colormap)[(255 * mask).astype(np.uint8)]
    heatmap = (colours if use_rgb else colours[..., ::-1]).astype(np.float32) / 255
    seen = (1 - image_weight) * heatmap + image_weight * img
    shown: NDArray[np.uint8] = (255 * (seen / seen.max())).astype(np.uint8)
    return shown


def preprocess_image(
    img: NDArray[Any], mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Images:
    """A picture (H, W, channels) as a normalised batch of one; integers are taken to reach from 0 to 255."""
    values = torch.from_numpy(img.copy()).movedim(-1, 0)
    values = values.float() / 255 if values.dtype == torch.uint8 else values
    shift, scale = (torch.tensor(each, dtype=values.dtype)[:, None, None] for each in (mean, std))
    return ((values - shift) / scale)[None]


def _colours(colormap: int) -> UInt8[np.ndarray, "256 3"]:
    if colormap == 2:
        ramp = 382.5 - np.abs(4 * np.arange(256)[:, None] - 255 * np.array([3, 2, 1]))
        jet: NDArray[np.uint8] = np.rint(ramp.clip(0, 255)).astype(np.uint8)
        jet[159, 2] = 1  # a half, which OpenCV's table has a rounding error below
        return jet
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"colormap {colormap} needs OpenCV: pip install opencv-python-headless") from error
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colormap)[:, 0, ::-1]
    return table.astype(np.uint8)
