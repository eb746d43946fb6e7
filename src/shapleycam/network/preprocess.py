"""From pictures to the images that a network takes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .pictures import KINDS, MEGAPIXELS, RGB, Interpolation, Picture, PictureError, label, middle, pixels, read_picture

RGBImages = Float[Tensor, "b 3 H W"]


@final
@dataclass(frozen=True)
class Preprocess:
    """How a network wants its pictures: resized, cropped to the middle, and normalised channel by channel.

    Pixels agree bit for bit with torchvision's Resize, CenterCrop, ToTensor and Normalize of PIL images.

    Raises
    ------
    ValueError
        When the crop does not fit into the resized picture, or a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> imagenet = Preprocess((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> imagenet([np.zeros((300, 400, 3), dtype=np.uint8)]).shape
    torch.Size([1, 3, 224, 224])
    """

    size: tuple[int, int]
    """(H, W) of the network's input in pixels."""
    resize: int | tuple[int, int] | None
    """Before the crop: the length of the shorter side; (H, W), which ignores proportions; None for no resizing."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """Of each channel, values in [0, 1]."""
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size}, expected (H, W), at least 1 x 1 pixel")
        if isinstance(self.resize, int):
            fits = self.resize >= max(self.size)
        else:
            fits = self.resize is None or (self.resize[0] >= self.size[0] and self.resize[1] >= self.size[1])
        if not fits:
            raise ValueError(f"resize is {self.resize}, too small for a crop of {self.size}; resize to more")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is {self.interpolation!r}, expected 'bilinear' or 'bicubic'")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean is {self.mean} and std {self.std}, expected 3 numbers each, std above 0")

    def __call__(self, pictures: Picture | Iterable[Picture]) -> RGBImages:
        """One picture, or any number of them, as a normalised float32 batch; one decoded picture is held at a time.

        Raises
        ------
        PictureError
            When a picture cannot be read or cropped.
        ValueError
            When there is no picture at all.
        """
        several = pictures if isinstance(pictures, Iterable) and not isinstance(pictures, KINDS) else [pictures]
        crops = [pixels(self.crop(picture)) for picture in several]
        if not crops:
            raise ValueError("expected at least one picture, but got none; check that the list or folder is not empty")
        return self.of_pixels(crops)

    def of_pixels(self, crops: Iterable[UInt8[Tensor, "3 H W"]], device: torch.device | str = "cpu") -> RGBImages:
        """The same of the `pixels` of what `crop` gives."""
        return self.normalise(torch.stack(list(crops)).to(device, torch.float32).div_(255))

    def crop(self, picture: Picture) -> RGB:
        """What the network sees of a picture, as a picture.

        Raises
        ------
        PictureError
            When it cannot be read, is smaller than the crop (`resize` None), or too elongated to be resized.
        """
        upright = read_picture(picture)
        height, width = resized = self._resized(upright.height, upright.width)
        if height * width > MEGAPIXELS * 1_000_000:
            raise PictureError(f"{label(picture)} would be resized to {width} x {height} pixels; crop it first")
        if height < self.size[0] or width < self.size[1]:
            seen = f"{label(picture)} has {width} x {height} pixels"
            raise PictureError(f"{seen}, expected at least {self.size[1]} x {self.size[0]}; resize pictures to more")
        return middle(upright, resized, self.size, self.interpolation)

    def normalise(self, images: RGBImages) -> RGBImages:
        """Values in [0, 1] as the network takes them.

        Raises
        ------
        TypeError
            For integers.
        """
        if not images.is_floating_point():
            raise TypeError(f"expected floating-point images in [0, 1], but got {images.dtype}; use images / 255")
        mean, std = self._constants(images)
        return (images - mean) / std

    def denormalise(self, images: RGBImages) -> RGBImages:
        """What the network takes as values in [0, 1], for people to see; what lies outside is clipped."""
        mean, std = self._constants(images)
        return (images * std + mean).clamp(0, 1)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize or (height, width)
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)

    def _constants(self, images: RGBImages) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(each, dtype=images.dtype, device=images.device) for each in (self.mean, self.std))
        return mean[:, None, None], std[:, None, None]
