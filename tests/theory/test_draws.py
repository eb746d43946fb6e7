"""Draws against SplitMix64 in Python's own integers, which know no overflow."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from shapleycam.theory.draws import checksums, key, uniform

KEYS = st.integers(-(2**63), 2**63 - 1)
SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**16)

GOLDEN = 0x9E3779B97F4A7C15


def mix(bits: int) -> int:
    """The scrambler of SplitMix64 on an unsigned 64-bit integer."""
    bits %= 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


def splitmix64(state: int, count: int) -> list[int]:
    """The first numbers of the generator: its state grows by the golden ratio, and is scrambled."""
    return [mix(state + number * GOLDEN) for number in range(1, count + 1)]


def oracle(key: int, count: int, seed: int, stream: int) -> list[float]:
    start = mix(key + mix(seed) + stream * 2**32)
    return [(bits >> 40) / 2**23 - 1 for bits in splitmix64(start, count)]


def keys(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_oracle_is_splitmix64_as_published():
    """The numbers that Vigna's splitmix64.c gives for the seed 1234567; Rosetta Code lists them too."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published


@given(k=KEYS, seed=SEEDS, stream=STREAMS, count=st.integers(1, 20))
def test_draws_are_splitmix64_bit_for_bit(k, seed, stream, count):
    assert uniform(keys(k), count, seed, stream)[0].tolist() == oracle(k, count, seed, stream)


@given(ks=st.lists(KEYS, min_size=1, max_size=6), seed=SEEDS, data=st.data())
def test_draws_do_not_depend_on_the_batch_or_its_order(ks, seed, data):
    order = data.draw(st.permutations(range(len(ks))))
    together = uniform(keys(*ks), 8, seed)
    assert torch.equal(uniform(keys(*(ks[place] for place in order)), 8, seed), together[order])
    for place, k in enumerate(ks):
        assert torch.equal(uniform(keys(k), 8, seed)[0], together[place])


@given(k=KEYS, seed=SEEDS)
def test_fewer_draws_are_the_beginning_of_more(k, seed):
    assert torch.equal(uniform(keys(k), 5, seed), uniform(keys(k), 50, seed)[:, :5])


def test_draws_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = uniform(keys(1, 2), 9, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(uniform(keys(1, 2), 9, seed=3), first)


@pytest.mark.parametrize("other", [{"k": 8}, {"seed": 4}, {"stream": 1}])
def test_another_key_seed_or_stream_gives_unrelated_draws(other):
    def draws(k: int = 7, seed: int = 3, stream: int = 0) -> torch.Tensor:
        return uniform(keys(k), 10_000, seed, stream)[0].double()

    both = torch.stack([draws(), draws(**other)])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / 10_000**0.5


@pytest.mark.parametrize("axis", ["along one key", "across keys that count up", "across seeds that count up"])
def test_draws_are_uniform_between_minus_one_and_one(axis):
    n = 20_000
    if axis == "along one key":
        draws = uniform(keys(5), n, seed=0)[0]
    elif axis == "across keys that count up":
        draws = uniform(torch.arange(n), 1, seed=0)[:, 0]
    else:
        draws = torch.cat([uniform(keys(5), 1, seed=seed)[0] for seed in range(n // 10)])
    draws = draws.double()
    assert draws.min() >= -1
    assert draws.max() < 1
    assert draws.mean().abs() < 4 * (1 / 3 / len(draws)) ** 0.5
    assert (draws**2).mean() == pytest.approx(1 / 3, abs=4 * (4 / 45 / len(draws)) ** 0.5)
    assert torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1].abs() < 4 / len(draws) ** 0.5
    assert kstest(draws.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=12))
def test_checksum_is_the_scrambled_sum_of_words_times_odd_numbers(values):
    words = struct.unpack(f"{len(values)}i", struct.pack(f"{len(values)}f", *values))
    wanted = mix(sum(word * (2 * place + 1) * GOLDEN for place, word in enumerate(words)))
    got = checksums(torch.tensor(values).view(1, 1, 1, -1))
    assert got.item() % 2**64 == wanted


@given(seed=st.integers(0, 2**31), data=st.data())
def test_checksums_differ_when_pixels_change_places(seed, data):
    image = random_images(seed, 1, 3, 4, 4)
    here, there = data.draw(st.lists(st.integers(0, 47), min_size=2, max_size=2, unique=True))
    swapped = image.flatten(1).clone()
    swapped[0, [here, there]] = swapped[0, [there, here]]
    assert checksums(swapped.view_as(image)) != checksums(image)


@pytest.mark.parametrize("change", [lambda x: x.flip(1), lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT])
def test_checksums_differ_for_a_mirrored_image_and_swapped_channels(change):
    image = random_images(0, 1, 3, 4, 4)
    assert checksums(change(image)) != checksums(image)


def test_checksums_differ_for_one_value_changed_by_the_least_amount():
    image = random_images(0, 1, 3, 4, 4)
    nudged = image.clone()
    nudged[0, 1, 2, 3] = torch.nextafter(nudged[0, 1, 2, 3], torch.tensor(torch.inf))
    assert checksums(nudged) != checksums(image)


def test_checksums_ignore_the_memory_format_strides_and_wider_types():
    images = random_images(0, 2, 3, 4, 5)
    wanted = checksums(images)
    assert torch.equal(checksums(images.to(memory_format=torch.channels_last)), wanted)
    assert torch.equal(checksums(images.mT.contiguous().mT), wanted)
    assert torch.equal(checksums(images.repeat_interleave(2, 0)[::2]), wanted)
    assert torch.equal(checksums(images.double().requires_grad_()), wanted)


def test_checksums_do_not_depend_on_the_rest_of_the_batch():
    images = random_images(0, 5, 3, 4, 4)
    assert torch.equal(torch.cat([checksums(image[None]) for image in images]), checksums(images))
    assert checksums(images).unique().numel() == 5


def test_key_of_a_name_is_its_blake2_sum():
    """As `printf %s tench | b2sum -l 64` gives it, the lowest byte first; Python's own hash() is salted in each process."""
    sums = {"": "e4a6a0577479b2b4", "n01440764_tench.JPEG": "af51433bcecfee57", "Ähre": "1e411313eef85ece"}
    for name, wanted in sums.items():
        assert key(name).to_bytes(8, "little", signed=True).hex() == wanted


@given(names=st.lists(st.text(), min_size=2, max_size=6, unique=True))
def test_keys_of_different_names_differ_and_fit_a_tensor(names):
    found = [key(name) for name in names]
    assert len(set(found)) == len(names)
    assert keys(*found).tolist() == found
