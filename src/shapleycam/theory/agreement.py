"""How well an explanation agrees with Shapley values: players in the last axis, everything before it broadcast."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from .shapley import ShapleyValues

Given = Float[Tensor, "*k d"]
Reference = Float[Tensor, "*#k d"]
Scores = Float[Tensor, "*k"]
DRAWS = 200
"""References drawn to see what the sampling error of one does to a score."""


def relative_error(given: Given, reference: Reference) -> Scores:
    """|E - phi| / |phi| in the L2 norm; lower is better."""
    error: Tensor = vector_norm(given - reference, dim=-1) / vector_norm(reference, dim=-1)
    return error


def pearson(given: Given, reference: Reference) -> Scores:
    """Pearson's correlation, in [-1, 1]; higher is better; NaN where either is constant."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (given, reference))
    r: Tensor = (a * b).sum(-1) / (vector_norm(a, dim=-1) * vector_norm(b, dim=-1))
    varied = (given.amin(-1) < given.amax(-1)) & (reference.amin(-1) < reference.amax(-1))
    return r.clamp(-1, 1).where(varied, torch.nan)


def spearman(given: Given, reference: Reference) -> Scores:
    """Spearman's rank correlation, in [-1, 1], equal values sharing their ranks; higher is better; NaN as `pearson`."""
    return pearson(ranks(given), ranks(reference))


def sign_agreement(given: Given, reference: Reference) -> Scores:
    """Share of the players to which both give the same sign, in [0, 1]; higher is better."""
    return (given.sign() == reference.sign()).to(given).mean(-1)


def ranks(values: Given) -> Given:
    """Places in the order of the values, from 1; equal values share the mean of theirs."""
    ordered = values.sort(-1).values.contiguous()
    below, upto = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (below + upto + 1).to(torch.promote_types(values.dtype, torch.float32)) / 2  # half precision ends at 65,504


def deviation(score: Callable[[Tensor, Tensor], Tensor], given: Given, reference: ShapleyValues, seed: int) -> Scores:
    """Standard deviation of a score over references drawn with the reference's standard errors; 0 where it is exact."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(DRAWS, len(reference.values), generator=generator, dtype=torch.float64).to(given.device)
    drawn = (reference.values + noise * reference.errors).view(DRAWS, *[1] * (given.ndim - 1), -1)
    scores = score(given.expand(DRAWS, *given.shape), drawn)
    return (scores - scores[0]).std(0)  # exactly zero where all are equal


AGREEMENTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"error": relative_error, "pearson": pearson, "spearman": spearman, "sign": sign_agreement}
)
"""The scores of `fidelity` by name."""
