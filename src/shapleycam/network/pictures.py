"""Pictures: whatever holds one becomes an upright 8-bit RGB picture."""

import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO, UnsupportedOperation
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
RGB: TypeAlias = Image.Image
Interpolation = Literal["bilinear", "bicubic"]

KINDS = (str, os.PathLike, bytes, Image.Image, np.ndarray)
MEGAPIXELS = 178  # Pillow itself refuses above 178,956,970 pixels


class PictureError(ValueError):
    """A picture that cannot be read: which one, why, and what to do."""


def read_picture(source: Picture) -> RGB:
    """An upright 8-bit RGB picture, made anew; the source is left as it was and no file stays open.

    Transparency is shown on white, as viewers do; the EXIF orientation is applied, and ignored where it is unreadable;
    colour profiles are not applied. Of several frames a file gives the first, a PIL image its current one. Deep greys
    are scaled to 8 bits, not clipped:

    - 16 bits: divided by 257;
    - mode I: as 8 bits if all values are in 0 to 255, as 16 bits if they are in 0 to 65535;
    - mode F: times 255 if all values are in [0, 1];
    - modes I and F otherwise: the least value becomes 0, the greatest 255.

    Memory at the peak: 8 bytes a pixel for opaque 8-bit files, 18 at most.

    Parameters
    ----------
    source
        A path, a file's bytes, a PIL image, or a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), which is
        RGBA.

    Raises
    ------
    PictureError
        When there is no picture, it cannot be decoded to its end, or it has more than `MEGAPIXELS`.
    TypeError, ValueError
        For a source of another kind or shape.

    Examples
    --------
    >>> read_picture(np.full((2, 3), 128, dtype=np.uint8)).getpixel((0, 0))
    (128, 128, 128)
    """
    if not isinstance(source, KINDS):
        raise TypeError(f"expected a path, a PIL image or a uint8 array, but got {type(source).__name__}; convert it")
    picture = _from_array(source) if isinstance(source, np.ndarray) else source
    with _refusing(label(source)):
        if isinstance(picture, Image.Image):
            return _upright_rgb(picture)
        with BytesIO(picture) if isinstance(picture, bytes) else Path(picture).open("rb") as file:
            return _upright_rgb(_opened(file))


def middle(picture: RGB, resized: tuple[int, int], size: tuple[int, int], interpolation: Interpolation) -> RGB:
    """The middle `size` of a picture once it is `resized`; both are (H, W), the former no larger than the latter."""
    (height, width), (h, w) = resized, size
    top, left = round((height - h) / 2), round((width - w) / 2)
    kind = Image.Resampling[interpolation.upper()]
    # Pillow resizes rows, rounds, and then columns: those that are cut off need not be.
    columns = picture.resize((width, picture.height), kind).crop((left, 0, left + w, picture.height))
    return columns.resize((w, height), kind).crop((0, top, w, top + h))


def pixels(picture: RGB) -> UInt8[Tensor, "3 H W"]:
    """The values of a picture, 0 to 255."""
    # In NumPy: a parallel operation of PyTorch in a thread of ours gives that thread a pool of its own, and once there are more
    # threads than cores, OpenMP makes those of all pools sleep where they would have spun; convolutions take 1.4 times as long.
    return torch.from_numpy(np.ascontiguousarray(np.array(picture).transpose(2, 0, 1)))


def label(source: Picture) -> str:
    """What messages call a picture: its file if that is known."""
    if isinstance(source, np.ndarray):
        return f"the array of shape {source.shape}"
    if isinstance(source, bytes):
        return f"the {len(source)} bytes"
    path = getattr(source, "filename", "") if isinstance(source, Image.Image) else os.fspath(source)
    return repr(path) if path else "the PIL image"


_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (FileNotFoundError, "there is no such file; check the path"),
    (IsADirectoryError, "it is a directory; name a picture in it"),
    (PermissionError, "it may not be read; change its permissions"),
    (UnsupportedOperation, "it can be read only once, as a pipe; write it to a file first"),
    (EOFError, "it is empty or ends in its header; fetch it again"),
    (UnidentifiedImageError, "it is no picture that Pillow knows, or its header is damaged; save it as PNG or JPEG"),
    (Image.DecompressionBombError, f"it has more than {MEGAPIXELS} megapixels ({{error}}); shrink it first"),
    (Exception, "it could not be decoded ({error}); if it is damaged or cut off, fetch it again"),
)
# What Pillow's decoders raise for damaged files, found by damaging files; a Warning where the user makes them errors.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    *(SyntaxError, struct.error, zlib.error, Image.DecompressionBombError, Warning),
)
_FILTERS = threading.Lock()  # catch_warnings swaps the filters of the whole process
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        words = next(words for kind, words in _REFUSALS if isinstance(error, kind))
        raise PictureError(f"expected a picture in {name}, but {words.format(error=error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings about headers: large pictures (checked by ourselves) and damaged metadata."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _opened(file: BufferedReader | BytesIO) -> Image.Image:
    if not file.seekable():
        raise UnsupportedOperation
    if not file.read(1):
        raise EOFError
    with _quiet():
        return Image.open(file)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(f"expected an array of uint8 values, 0 to 255, but got {array.dtype}; scale and convert it")
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or array.size == 0:
        shapes = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        raise ValueError(f"expected an array of shape {shapes}, but got {array.shape}; pass several arrays as a list")
    return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _upright_rgb(picture: Image.Image) -> RGB:
    width, height = picture.size
    if width * height > MEGAPIXELS * 1_000_000:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if width * height == 0:
        raise ValueError("it has no pixels")
    picture.load()
    turn = _turn(picture.info)
    own = picture.copy() if turn is None else picture.transpose(turn)
    own = _rgb(_grey(own) if own.mode in ("I", "F") or own.mode.startswith("I;16") else own)
    own.info.clear()  # else its orientation would be applied again when it is read again
    return own


def _turn(info: dict[str | tuple[int, int], Any]) -> Image.Transpose | None:
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, which fails for damaged ones. The block is read by a
    # picture made for it, because the caller's would keep what it has read.
    reader = Image.new("1", (1, 1))
    reader.info = info.copy()
    try:
        with _quiet():
            return _TURNS.get(reader.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return None


def _grey(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise ValueError("it holds NaN or infinity")
    for top in {"F": (1,), "I": (255, 65535)}.get(picture.mode, (65535,)):
        if low >= 0 and high <= top:
            low, high = 0, top
            break
    scaled = values.astype(np.float64)
    scaled -= low
    scaled /= (high - low) or 1
    scaled *= 255
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


def _rgb(picture: Image.Image) -> RGB:
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white
