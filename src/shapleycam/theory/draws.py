"""Random numbers that depend on a key and nothing else: neither on the batch, nor the order, nor the device.

A counter is scrambled as in SplitMix64 (Steele, Lea and Flood 2014), in integers that wrap around, so that a whole batch
is drawn at once wherever its tensors are, and no generator has a state that could be left behind.
"""

from hashlib import blake2b

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .axes import Images, Maps, Weights

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def uniform(keys: Int64[Tensor, " b"], count: int, seed: int, stream: int = 0) -> Float[Tensor, "b count"]:
    """`count` float32 numbers in [-1, 1) for each key; other seeds and streams give other numbers."""
    start = _scramble(keys + _scramble(torch.tensor([_signed(seed)], device=keys.device)) + stream * 2**32)
    bits = _scramble(start[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN)
    return _shift(bits, 40).to(torch.float32) / 2**23 - 1


def random_weights(keys: Int64[Tensor, " b"], maps: Maps, seed: int = 0, stream: int = 0) -> Weights:
    """RandomCAM's weights: one number in [-1, 1) for each image's key and each of its maps, (b, n, 1, ...)."""
    drawn = uniform(keys, maps.shape[1], seed, stream)
    return drawn.view(*drawn.shape, *[1] * (maps.ndim - 2))


def checksums(images: Images) -> Int64[Tensor, " b"]:
    """A key for each image, made of its values as float32; every place counts with an odd number of its own."""
    words = images.detach().to(torch.float32).flatten(1).contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, 2 * words.shape[1], 2, device=images.device).mul_(_GOLDEN)
    return _scramble(words.mul_(places).sum(1))  # in place: a tensor twice as large as the images is not made anew


def key(name: str) -> int:
    """A key for a name, as a signed 64-bit integer."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def _scramble(bits: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


def _shift(bits: Int64[Tensor, "..."], by: int) -> Int64[Tensor, "..."]:
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
