"""Preprocessing, bit for bit against torchvision's transforms, and what cannot be preprocessed."""

import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shapleycam.network import preprocess as module
from shapleycam.network.pictures import PictureError, read_picture
from shapleycam.network.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAT = Path(inspect.getfile(Preprocess)).parents[1] / "data" / "cat.jpg"


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def own(size: tuple[int, int] = (6, 6), resize: Any = 8, interpolation: Any = "bilinear") -> Preprocess:
    return Preprocess(size, resize, interpolation, MEAN, STD)


def torchvisions(preprocess: Preprocess) -> tuple[Any, Any]:
    """torchvision's transforms to the crop, and all of them."""
    from torchvision import transforms as T

    resize = [T.Resize(preprocess.resize, T.InterpolationMode(preprocess.interpolation))] if preprocess.resize else []
    crop = [*resize, T.CenterCrop(preprocess.size)]
    return T.Compose(crop), T.Compose([*crop, T.ToTensor(), T.Normalize(preprocess.mean, preprocess.std)])


def assert_torchvision_agrees(preprocess: Preprocess, picture: Image.Image) -> None:
    crop, whole = torchvisions(preprocess)
    np.testing.assert_array_equal(np.asarray(preprocess.crop(picture)), np.asarray(crop(picture)))
    assert torch.equal(preprocess(picture), whole(picture)[None])


# Against torchvision

lengths = st.integers(1, 12)


@settings(max_examples=150)
@given(
    picture=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(lengths, lengths),
    spare=st.integers(0, 9),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@example(
    picture=(11, 55), size=(12, 12), spare=0, interpolation="bilinear"
)  # 12 * 55 / 11 is 60, 12 / 11 * 55 is 59.99
@example(picture=(55, 11), size=(12, 12), spare=0, interpolation="bilinear")
def test_the_shorter_side_is_resized_and_the_middle_cropped_as_torchvision_does(
    picture: tuple[int, int], size: tuple[int, int], spare: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    assert_torchvision_agrees(own(size, max(size) + spare, interpolation), noise(*picture))


@settings(max_examples=50)
@given(
    picture=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(lengths, lengths),
    spare=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_pair_ignores_proportions_as_torchvision_does(
    picture: tuple[int, int], size: tuple[int, int], spare: tuple[int, int], interpolation: Any
) -> None:
    assert_torchvision_agrees(own(size, (size[0] + spare[0], size[1] + spare[1]), interpolation), noise(*picture))


@pytest.mark.parametrize("picture", [(9, 11), (12, 6), (6, 6), (7, 10)])
def test_without_resizing_only_the_middle_is_cropped_as_torchvision_does(picture: tuple[int, int]) -> None:
    assert_torchvision_agrees(own((6, 6), None), noise(*picture))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (224, 235), (240, 274), (299, 342), (224, 224)])
def test_a_photograph_comes_out_as_from_torchvision(size: int, resize: int, interpolation: Any, turned: bool) -> None:
    picture = Image.open(CAT).convert("RGB")
    picture = picture.transpose(Image.Transpose.ROTATE_90) if turned else picture
    assert_torchvision_agrees(own((size, size), resize, interpolation), picture)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_normalising_is_torchvisions(dtype: torch.dtype) -> None:
    from torchvision.transforms.functional import normalize

    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(own().normalise(images), normalize(images, MEAN, STD))


# Properties


def test_one_picture_and_many_of_any_kind_give_the_same_images(tmp_path: Path) -> None:
    pictures = [noise(9, 12, seed) for seed in range(3)]
    (path := tmp_path / "a.png").touch()
    pictures[0].save(path)
    together = own()(picture for picture in (path, pictures[1], np.asarray(pictures[2])))
    assert torch.equal(together, torch.cat([own()(picture) for picture in pictures]))
    assert torch.equal(own()(path), own()(str(path)))
    assert torch.equal(own()([path]), own()(path))


def test_images_are_float32_in_one_block_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        images = own()([noise(9, 12), noise(12, 9)])
    finally:
        torch.set_default_dtype(torch.float32)
    assert images.dtype == torch.float32
    assert images.is_contiguous()


def test_denormalise_undoes_normalise_and_clips_what_no_picture_holds() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[0, :, 0, :2] = torch.tensor([0.0, 1.0])
    back = own().denormalise(own().normalise(images))
    torch.testing.assert_close(back, images, rtol=0, atol=1e-15)
    outside = own().denormalise(torch.full((1, 3, 1, 2), 100.0) * torch.tensor([-1.0, 1.0]))
    assert torch.equal(outside, torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2))


def test_what_the_network_sees_is_what_the_crop_shows() -> None:
    shown = torch.from_numpy(np.array(own().crop(CAT))).permute(2, 0, 1) / 255
    torch.testing.assert_close(own().denormalise(own()(CAT))[0], shown, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["normalise", "denormalise"])
def test_normalising_keeps_its_argument_the_dtype_and_the_device(change: str) -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = images.clone()
    assert getattr(own(), change)(images).dtype == torch.float64
    assert torch.equal(images, before)
    assert getattr(own(), change)(torch.empty(2, 3, 4, 5, device="meta")).device.type == "meta"


def test_a_crop_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = noise(9, 12)
    picture.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(own()(tmp_path / "a.png"), own()(picture.transpose(Image.Transpose.ROTATE_270)))


# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (0, 4)}, r"size is \(0, 4\), expected \(H, W\)"),
        ({"size": (4, 6), "resize": 5}, r"resize is 5, too small for a crop of \(4, 6\); resize to more"),
        ({"size": (6, 4), "resize": 5}, r"resize is 5, too small for a crop of \(6, 4\)"),
        ({"size": (4, 6), "resize": (4, 5)}, r"resize is \(4, 5\), too small for a crop of \(4, 6\)"),
        ({"size": (6, 4), "resize": (5, 4)}, r"resize is \(5, 4\), too small"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest', expected 'bilinear' or 'bicubic'"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\) and std .*, expected 3 numbers each"),
        ({"std": (0.5, 0.5)}, r"mean is .* and std \(0.5, 0.5\), expected 3 numbers each"),
        ({"std": (0.5, 0.0, 0.5)}, r"std \(0.5, 0.0, 0.5\), .* above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    usual = {"size": (6, 6), "resize": 8, "interpolation": "bilinear", "mean": MEAN, "std": STD}
    make = inspect.unwrap(Preprocess.__init__)  # without the type checks of the suite
    with pytest.raises(ValueError, match=words):
        make(object.__new__(Preprocess), **(usual | settings))


@pytest.mark.parametrize("nothing", [[], (), iter(())])
def test_no_picture_at_all_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match="expected at least one picture, but got none; check"):
        own()(nothing)


@pytest.mark.parametrize("source", [3, None, [3.5], torch.zeros(1, 3, 4, 4), bytearray(b"a.png")])
def test_what_is_no_picture_is_refused(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_picture", inspect.unwrap(read_picture))  # without the type checks of the suite
    monkeypatch.setattr(Preprocess, "crop", inspect.unwrap(Preprocess.crop))
    with pytest.raises(TypeError, match=r"expected a path, a PIL image or a uint8 array, but got"):
        inspect.unwrap(Preprocess.__call__)(own(), source)


def test_the_one_unreadable_picture_among_many_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"no.png', but there is no such file"):
        own()([CAT, tmp_path / "no.png"])


def test_a_picture_smaller_than_the_crop_is_refused_where_nothing_is_resized(tmp_path: Path) -> None:
    noise(5, 9).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a.png' has 9 x 5 pixels, expected at least 6 x 6; resize"):
        own((6, 6), None)(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"the PIL image has 5 x 9 pixels, expected at least 6 x 6"):
        own((6, 6), None)(noise(9, 5))


@pytest.mark.parametrize(("picture", "resized"), [((10_000_000, 1), "80000000 x 8"), ((1, 10_000_000), "8 x 80000000")])
def test_a_picture_too_elongated_to_be_resized_is_refused(picture: tuple[int, int], resized: str) -> None:
    with pytest.raises(PictureError, match=f"the PIL image would be resized to {resized} pixels; crop it first"):
        own().crop(Image.new("L", picture))


def test_integer_images_are_refused() -> None:
    normalise = inspect.unwrap(Preprocess.normalise)
    with pytest.raises(
        TypeError, match=r"expected floating-point images in \[0, 1\], but got torch.uint8; use images / 255"
    ):
        normalise(own(), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
