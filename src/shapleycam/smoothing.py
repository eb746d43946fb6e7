"""SmoothGrad for every method: explanations of an image with noise on it, their mean and their spread."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import tau

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .playground import Progress
from .theory.axes import ExplanationMaps, Images
from .theory.draws import uniform

_STREAM = 2**16
"""Of random numbers: the first of as many as there are samples; explaining has those below."""


@dataclass(frozen=True)
class Smoothed:
    """Explanations over noisy images, for each method."""

    mean: Mapping[str, ExplanationMaps]
    """As Smilkov et al. 2017, of E instead of the gradient."""
    deviation: Mapping[str, ExplanationMaps]
    """Standard deviation over the samples; over sqrt(samples - 1) it is the mean's standard error."""


@torch.inference_mode(False)
@torch.no_grad()
def smoothed(
    explain: Callable[[Images], Mapping[str, ExplanationMaps]],
    images: Images,
    keys: Int64[Tensor, " b"],
    *,
    samples: int = 16,
    level: float = 0.15,
    seed: int = 0,
    progress: Progress | None = None,
) -> Smoothed:
    """The mean and standard deviation of what `explain` gives of `samples` noisy batches; costs as many explanations.

    `explain` must ask for the same classes each time: a noisy image may be predicted as another. `level` is the noise's standard
    deviation as a share of the image's own range; the source finds 0.1 to 0.2 best.

    Raises
    ------
    ValueError
        For no sample, or a level that is not a number of 0 or more.
    """
    if samples < 1 or not 0 <= level < float("inf"):
        raise ValueError(f"got samples={samples} and level={level}, expected 1 or more, and a share of 0 or more")
    mean: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for sample in range(samples):
        for name, each in explain(noisy(images, keys, level, seed, sample)).items():
            before = mean.get(name, torch.zeros_like(each))
            mean[name] = before + (each - before) / (sample + 1)
            # Welford 1962: no difference of large numbers.
            squares[name] = squares.get(name, torch.zeros_like(each)) + (each - before) * (each - mean[name])
        if progress is not None:
            progress(sample + 1, samples)
    return Smoothed(mean, {name: (each / samples).sqrt() for name, each in squares.items()})


def noisy(images: Images, keys: Int64[Tensor, " b"], level: float, seed: int, sample: int) -> Images:
    """Images with normal noise that hangs on an image's key, the seed and the sample, and on nothing else."""
    flat = images.flatten(1)
    spread = level * (flat.amax(1) - flat.amin(1))
    noise = normal(keys, flat.shape[1], seed, _STREAM + sample).to(images.dtype)
    return images + (spread[:, None] * noise).view_as(images)


def normal(keys: Int64[Tensor, " b"], count: int, seed: int, stream: int) -> Float[Tensor, "b count"]:
    """`count` standard normal float32 numbers for each key, by the transform of Box and Muller 1958."""
    pairs = uniform(keys, 2 * count, seed, stream)
    radius, angle = (1 - pairs[:, :count]) / 2, tau / 2 * pairs[:, count:]  # the radius's number in (0, 1]
    return (-2 * radius.log()).sqrt() * angle.cos()
