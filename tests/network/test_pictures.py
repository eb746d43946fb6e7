"""Pictures of every kind, made up here: what is read, checked pixel by pixel, and what is refused, by its words."""

import inspect
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from time import sleep
from typing import IO, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from shapleycam.network import pictures
from shapleycam.network.pictures import MEGAPIXELS, PictureError, label, middle, pixels, read_picture

# Without the type checks of the suite: users pass anything.
read_anything = inspect.unwrap(read_picture)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read_array(source: object) -> np.ndarray:
    picture = read_anything(source)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """The definition of a transparent picture on white paper, in float64."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written from the format's definition."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


# Sources


def test_a_path_a_string_a_pil_image_and_an_array_give_the_same_picture(tmp_path: Path) -> None:
    array = noise(5, 7, 3)
    path = saved(tmp_path / "a.png", Image.fromarray(array))
    for source in (path, str(path), Image.fromarray(array), Image.open(path), array):
        np.testing.assert_array_equal(read_array(source), array)


def test_any_os_path_is_a_path(tmp_path: Path) -> None:
    array = noise(5, 7, 3)
    path = saved(tmp_path / "a.png", Image.fromarray(array))

    class Entry:
        def __fspath__(self) -> str:
            return str(path)

    np.testing.assert_array_equal(read_array(Entry()), array)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_a_grey_array_has_three_equal_channels(shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    np.testing.assert_array_equal(read_array(array), np.broadcast_to(array.reshape(5, 7, 1), (5, 7, 3)))


def test_an_array_of_four_channels_is_rgb_and_opacity() -> None:
    array = noise(5, 7, 4)
    assert np.abs(read_array(array) - on_white(array)).max() <= 1


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (6, 8, 4)])
def test_a_view_of_an_array_is_read_like_its_copy_and_shares_nothing_with_the_picture(shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    view = array[::-1, 1::2]
    view.flags.writeable = False
    picture = read_picture(view)
    np.testing.assert_array_equal(np.asarray(picture), read_array(view.copy()))
    before = array.copy()
    picture.paste((1, 2, 3), (0, 0, 4, 6))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int8", "int64", "bool"])
def test_an_array_of_other_numbers_is_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"expected an array of uint8 values, 0 to 255, but got {dtype}"):
        read_picture(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 5), (3, 224, 224), (2, 4, 4, 3), (0, 4), (4, 0, 3)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an array of shape \(H, W\).*but got \(.*pass several"):
        read_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("source", [None, 3, bytearray(b"a.png"), ["a.png"], torch.zeros(3, 4, 4)])
def test_another_kind_of_source_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match=rf"expected a path, .* or a uint8 array, but got {type(source).__name__}"):
        read_anything(source)


def test_a_pil_image_without_pixels_is_refused() -> None:
    with pytest.raises(PictureError, match=r"the PIL image.*has no pixels"):
        read_picture(Image.new("RGB", (0, 3)))


# Colours


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_is_shown_on_white(mode: str, as_file: bool, tmp_path: Path) -> None:
    rgba = noise(16, 16, 4)
    if mode == "LA":
        rgba[..., 1:3] = rgba[..., :1]
    picture = Image.fromarray(rgba if mode == "RGBA" else rgba[..., [0, 3]], mode)
    shown = read_array(saved(tmp_path / "a.png", picture) if as_file else picture)
    assert np.abs(shown - on_white(rgba)).max() <= 1


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("transparency", [1, b"\x40\x00\xff"])
def test_a_palette_with_transparency_is_shown_on_white(
    transparency: int | bytes, as_file: bool, tmp_path: Path
) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    picture.info["transparency"] = transparency
    opacity = [255, 0, 255] if transparency == 1 else list(b"\x40\x00\xff")
    rgba = np.array([[(10, 20, 30, opacity[0]), (40, 50, 60, opacity[1]), (70, 80, 90, opacity[2])]])
    shown = read_array(saved(tmp_path / "a.png", picture) if as_file else picture)
    assert np.abs(shown - on_white(rgba)).max() <= 1


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(
    ("mode", "colours", "transparent", "shown"),
    [
        ("RGB", [(9, 8, 7), (1, 2, 3)], (9, 8, 7), [(255, 255, 255), (1, 2, 3)]),
        ("L", [9, 1], 9, [(255, 255, 255), (1, 1, 1)]),
        ("1", [0, 0], 0, [(255, 255, 255), (255, 255, 255)]),
        ("I;16", [9, 5 * 257], 9, [(255, 255, 255), (5, 5, 5)]),
    ],
)
def test_a_colour_declared_transparent_is_shown_white(
    mode: str, colours: list[object], transparent: object, shown: list[object], as_file: bool, tmp_path: Path
) -> None:
    picture = Image.new(mode, (2, 1))
    for x, colour in enumerate(colours):
        picture.putpixel((x, 0), colour)
    picture.info["transparency"] = transparent
    source = saved(tmp_path / "a.png", picture, transparency=transparent) if as_file else picture
    np.testing.assert_array_equal(read_array(source), [shown])


def test_a_gif_with_transparency_is_shown_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((0, 0), 0)
    path = saved(tmp_path / "a.gif", picture, transparency=0)
    np.testing.assert_array_equal(read_array(path), [[(255, 255, 255), (200, 0, 0)]])


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([2, 0, 1])
    expected = [[(70, 80, 90), (10, 20, 30), (40, 50, 60)]]
    np.testing.assert_array_equal(read_array(picture), expected)
    np.testing.assert_array_equal(read_array(saved(tmp_path / "a.png", picture)), expected)


def test_8_bit_grey_is_kept(tmp_path: Path) -> None:
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path / "a.png", Image.fromarray(array))
    np.testing.assert_array_equal(read_array(path), array[..., None].repeat(3, 2))


def test_1_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = noise(9, 11) > 127
    path = saved(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(read_array(path), 255 * bits[..., None].repeat(3, 2).astype(np.uint8))


def test_cmyk_is_light_that_the_inks_leave() -> None:
    inks = noise(16, 16, 4)
    left = 255 - inks.astype(np.float64)
    shown = read_array(Image.fromarray(inks, "CMYK"))
    assert np.abs(shown - left[..., :3] * left[..., 3:] / 255).max() <= 1


def test_an_adobe_jpeg_which_stores_its_inks_inverted_has_the_right_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(read_array(path).astype(int) - (255, 0, 0)).max() <= 2


SIXTEEN = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SCALED = np.array([round(value / 257) for value in range(65536)]).reshape(256, 256, 1).repeat(3, 2)


def test_16_bit_grey_is_divided_by_257_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(256, 256, 16, 0, b"".join(b"\0" + row.tobytes() for row in SIXTEEN.astype(">u2"))))
    np.testing.assert_array_equal(read_array(path), SCALED)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_every_16_bit_mode_is_divided_by_257(mode: str, dtype: str) -> None:
    picture = Image.frombytes(mode, (256, 256), SIXTEEN.astype(dtype).tobytes())
    np.testing.assert_array_equal(read_array(picture), SCALED)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_16_bit_tiff_of_either_byte_order_is_divided_by_257(order: str, tmp_path: Path) -> None:
    mode = "I;16" if order == "<" else "I;16B"
    path = saved(tmp_path / "a.tif", Image.frombytes(mode, (256, 256), SIXTEEN.astype(f"{order}u2").tobytes()))
    np.testing.assert_array_equal(read_array(path), SCALED)


def test_a_dark_16_bit_picture_stays_dark() -> None:
    dark = Image.fromarray(np.array([[0, 128, 129, 255]], np.uint16))
    np.testing.assert_array_equal(read_array(dark)[..., 0], [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 255], [0, 1, 255]),
        ([0, 128, 256], [0, 0, 1]),
        ([-100, 0, 100], [0, 128, 255]),
        ([0, 50_000, 100_000], [0, 128, 255]),
        ([-(2**31), -1, 2**31 - 1], [0, 127, 255]),
        ([70_000, 70_000, 70_000], [0, 0, 0]),
    ],
)
def test_mode_i_takes_the_first_range_that_holds_its_values(values: list[int], expected: list[int]) -> None:
    picture = Image.fromarray(np.array([values], np.int32))
    np.testing.assert_array_equal(read_array(picture)[0], np.array(expected)[:, None].repeat(3, 1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.25, 0.5], [0, 64, 128]),
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 1, 2], [0, 128, 255]),
        ([-3, -2, -1], [0, 128, 255]),
        ([-3e38, 0, 3e38], [0, 128, 255]),
        ([0.5, 0.5, 0.5], [128, 128, 128]),
        ([7, 7, 7], [0, 0, 0]),
    ],
)
def test_mode_f_is_the_unit_interval_or_its_own_range(values: list[float], expected: list[int], tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([values], np.float32))
    for source in (picture, saved(tmp_path / "a.tif", picture)):
        np.testing.assert_array_equal(read_array(source)[0], np.array(expected)[:, None].repeat(3, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_picture_with_nan_or_infinity_is_refused(value: float) -> None:
    with pytest.raises(PictureError, match="holds NaN or infinity"):
        read_picture(Image.fromarray(np.array([[0, value]], np.float32)))


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg"])
def test_ordinary_photographs_are_read_as_pillow_reads_them(name: str) -> None:
    path = Path(inspect.getfile(read_anything)).parents[1] / "data" / name
    np.testing.assert_array_equal(read_array(path), np.asarray(Image.open(path).convert("RGB")))


def test_pictures_of_the_imagenet_sample_are_read_as_pillow_reads_them(shared_data: Path) -> None:
    paths = sorted((shared_data / "imagenet-sample").iterdir())[:20]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(read_array(path), np.asarray(Image.open(path).convert("RGB")))


# Orientation and frames

# EXIF 2.32, tag 274: where the stored picture's first row and first column belong.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_applied_once(orientation: int, suffix: str, opened: bool, tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 6, 3))
    stored = np.asarray(Image.open(saved(tmp_path / f"plain.{suffix}", picture)))
    path = saved(tmp_path / f"turned.{suffix}", picture, exif=exif(orientation))
    upright = read_picture(Image.open(path) if opened else path)
    np.testing.assert_array_equal(np.asarray(upright), UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(read_array(upright), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"])
def test_the_exif_orientation_is_applied_in_every_mode(mode: str) -> None:
    picture = Image.fromarray(noise(4, 6)).convert("L" if mode == "I;16B" else mode)
    if mode == "I;16B":
        picture = Image.frombytes(mode, (6, 4), noise(4, 12).tobytes())
    stored = read_array(picture)
    picture.info["exif"] = exif(6).tobytes()
    np.testing.assert_array_equal(read_array(picture), np.rot90(stored, -1))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_unknown_orientation_is_ignored(orientation: int, tmp_path: Path) -> None:
    array = noise(4, 6, 3)
    path = saved(tmp_path / "a.png", Image.fromarray(array), exif=exif(orientation))
    np.testing.assert_array_equal(read_array(path), array)


@pytest.mark.parametrize("filters", ["error", "always"])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_damaged_metadata_neither_warns_nor_costs_the_picture(
    suffix: str, filters: Literal["error", "always"], tmp_path: Path
) -> None:
    picture = Image.fromarray(noise(4, 6, 3))
    with Image.open(saved(tmp_path / f"plain.{suffix}", picture)) as plain:
        stored = np.asarray(plain)
    block = exif(6).tobytes()
    for damaged in (block[:14], block[:20], block[:6] + b"XX" + block[8:], block[:6] + b"\xff" * 20, b"Exif\0\0"):
        for dpi in ((72, 72), None):  # where a JPEG has none, Pillow looks for it in the EXIF block when it opens
            options = {"dpi": dpi} if dpi and suffix == "jpg" else {}
            path = saved(tmp_path / f"damaged.{suffix}", picture, exif=damaged, **options)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter(filters)
                np.testing.assert_array_equal(read_array(path), stored)
            assert caught == []


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_an_animated_file_gives_its_first_frame(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as opened:
        assert opened.n_frames == 3
    np.testing.assert_array_equal(read_array(path), np.asarray(frames[0]))


def test_an_animated_pil_image_gives_the_frame_it_stands_at_and_stays_there(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    path = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as opened:
        opened.seek(1)
        np.testing.assert_array_equal(read_array(opened), np.asarray(frames[1]))
        assert opened.tell() == 1


# Size


def test_a_single_pixel_is_a_picture(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    np.testing.assert_array_equal(read_array(path), [[(1, 2, 3)]])


def test_108_megapixels_are_read_in_8_bytes_a_pixel_without_a_warning(tmp_path: Path) -> None:
    width, height = 12_000, 9_000
    path = saved(tmp_path / "a.png", Image.new("L", (width, height), 77), compress_level=1)
    before = peak_memory(reset=True)
    picture = read_picture(path)
    assert peak_memory() - before < 8.2 * width * height
    assert picture.size == (width, height)
    assert picture.getpixel((width - 1, height - 1)) == (77, 77, 77)


def peak_memory(reset: bool = False) -> int:
    """Bytes this process held at most since the last reset; 0 where only Linux could tell."""
    if not sys.platform.startswith("linux"):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("width", [13_400, 20_000, 2**31 - 1])
def test_more_than_the_limit_is_refused_from_the_header(
    width: int, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "huge.png"
    path.write_bytes(png(width, 13_300, 8, 2, b""))  # nothing to decode: decoding would end in another error
    with pytest.raises(PictureError, match=rf"huge.png'.* more than {MEGAPIXELS} megapixels \(.*shrink it first"):
        read_picture(path)


def test_the_limit_holds_to_the_pixel_for_every_kind_of_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MEGAPIXELS", 1)
    assert read_picture(np.zeros((500, 2000), np.uint8)).size == (2000, 500)
    for source in (np.zeros((501, 2000), np.uint8), Image.new("1", (2000, 501))):
        with pytest.raises(PictureError, match="2000 x 501 pixels"):
            read_picture(source)


def test_threads_that_meet_at_a_large_header_get_no_warning_and_leave_the_filters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 5 x 7 pixels now warn as 90 megapixels do
    path = saved(tmp_path / "a.png", Image.fromarray(noise(5, 7, 3)))
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path):
        pass
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file: sleep(0.02) or real(file))  # all are inside at once, but for a lock
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert [picture.size for picture in pool.map(read_picture, [path] * 4)] == [(7, 5)] * 4
    assert warnings.filters == before


# What is left behind


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F", "I;16", "YCbCr", "HSV"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_callers_pil_image_is_not_changed(mode: str, orientation: int) -> None:
    grey = mode in ("LA", "I;16", "I", "F")
    source = Image.fromarray(noise(4, 6, 3)).convert("L" if grey else mode).convert(mode)
    source.info["exif"] = exif(orientation).tobytes()
    if mode == "P":
        source.info["transparency"] = b"\0\x40"
    before = source.copy()
    result = read_picture(source)
    result.paste((9, 9, 9), (0, 0, *result.size))
    assert source == before  # mode, size, pixels, palette, info
    if mode == "P":
        assert source.palette.mode == "RGB"
        assert source.im.getpalettemode() == before.im.getpalettemode()


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
@pytest.mark.parametrize("damage", ["none", "truncated", "no picture"])
def test_no_file_stays_open_after_success_or_failure(
    suffix: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise(40, 40, 3)))
    whole = path.read_bytes()
    path.write_bytes({"none": whole, "truncated": whole[:-999], "no picture": b"no picture"}[damage])
    handles: list[IO[bytes]] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda *given: handles.append(real(*given)) or handles[-1])
    if damage == "none":
        assert read_picture(path).size == (40, 40)
    else:
        with pytest.raises(PictureError):
            read_picture(path)
    assert [handle.closed for handle in handles] == [True]


# Refusals


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"no.png', but there is no such file; check the path") as caught:
        read_picture(tmp_path / "no.png")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="but it is a directory; name a picture in it") as caught:
        read_picture(tmp_path)
    assert isinstance(caught.value.__cause__, IsADirectoryError)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # the permissions themselves do not bind who runs as root
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "a.png", Image.new("L", (1, 1)))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PictureError, match=r"a.png', but it may not be read; change its permissions"):
        read_picture(path)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("no picture")
    with pytest.raises(PictureError, match=r"a.txt', but it is no picture that Pillow knows.*save it as"):
        read_picture(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(PictureError, match=r"a.png', but it is empty or ends in its header; fetch it again"):
        read_picture(path)


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp"])
def test_a_truncated_file_is_refused(suffix: str, opened: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise(40, 40, 3)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        pytest.raises(PictureError, match=rf"a.{suffix}', but it could not be decoded \(.+fetch it again") as caught,
        Image.open(path) if opened else nullcontext(path) as source,
    ):
        read_picture(source)
    assert caught.value.__cause__ is not None
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_pil_image_that_is_closed_is_refused(tmp_path: Path) -> None:
    picture = Image.open(saved(tmp_path / "a.png", Image.new("RGB", (4, 4))))
    picture.close()
    with pytest.raises(PictureError, match=r"a.png', but it could not be decoded"):
        read_picture(picture)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    picture = Image.fromarray(noise(12, 10, 3))
    files = {
        suffix: folder / f"a.{suffix}" for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm", "ico", "tga")
    }
    return {suffix: saved(path, picture, exif=exif(6)).read_bytes() for suffix, path in files.items()}


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_gives_a_picture_or_a_picture_error_and_nothing_else(
    data: st.DataObject, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix = data.draw(st.sampled_from(sorted(whole)))
    damaged = bytearray(whole[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(damaged)
    try:
        picture = read_picture(path)
    except PictureError as error:
        message = str(error)
    else:
        message = f"{path} is {picture.mode}"
    assert str(path) in message


# Parts


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (9, 11)])
def test_the_middle_of_a_picture_is_cut_as_numpy_cuts_it(size: tuple[int, int]) -> None:
    array = noise(9, 11, 3)
    top, left = round((9 - size[0]) / 2), round((11 - size[1]) / 2)
    cut = middle(Image.fromarray(array), (9, 11), size, "bicubic")
    np.testing.assert_array_equal(np.asarray(cut), array[top : top + size[0], left : left + size[1]])


def test_pixels_are_channels_first_and_in_one_block() -> None:
    array = noise(4, 6, 3)
    values = pixels(Image.fromarray(array))
    assert values.is_contiguous()
    assert values.tolist() == [[[int(array[y, x, c]) for x in range(6)] for y in range(4)] for c in range(3)]


def test_a_picture_is_called_by_its_file_where_that_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (1, 1)))
    assert label(path) == label(str(path)) == repr(str(path))
    with Image.open(path) as picture:
        assert label(picture) == repr(str(path))
    assert label(Image.new("L", (1, 1))) == "the PIL image"
    assert label(noise(2, 3)) == "the array of shape (2, 3)"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(b"x")

    writer = Thread(target=write, daemon=True)
    writer.start()
    with pytest.raises(PictureError, match="it can be read only once, as a pipe; write it to a file first"):
        read_picture(pipe)
    writer.join(10)
