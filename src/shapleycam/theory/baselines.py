"""Heatmaps that know nothing of the network: what a method must beat before its scores mean anything."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

Picture = Float[Tensor, "H W"]


def fake(height: int, width: int) -> Picture:
    """FakeCAM (Poppi et al. 2021): 1 at every pixel but the first, which is 0; it drops nothing and explains nothing."""
    ones = torch.ones(height, width)
    ones[0, 0] = 0
    return ones


def gaussian(height: int, width: int) -> Picture:
    """A Gaussian in the middle, its standard deviation a quarter of each side, from 0 to 1: photographers' habit."""
    y, x = (torch.linspace(-2, 2, side) for side in (height, width))
    bell = (-(y[:, None] ** 2 + x**2) / 2).exp()
    return (bell - bell.min()) / (bell.max() - bell.min())


BASELINES: Mapping[str, Callable[[int, int], Tensor]] = MappingProxyType({"FakeCAM": fake, "Gaussian": gaussian})
