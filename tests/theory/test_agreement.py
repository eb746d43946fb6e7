"""How well an explanation agrees with Shapley values, against scipy and sums written out."""

from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from shapleycam.theory.agreement import (
    AGREEMENTS,
    deviation,
    pearson,
    ranks,
    relative_error,
    sign_agreement,
    spearman,
)
from shapleycam.theory.shapley import ShapleyValues

SEEDS = st.integers(0, 2**31)


def pair(seed: int, players: int, ties: bool = False) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((2 * a).round(), (2 * b).round()) if ties else (a, b)


@given(seed=SEEDS, players=st.integers(1, 50))
def test_relative_error_is_the_root_of_the_squared_differences_over_that_of_the_squares(seed, players):
    given_, reference = pair(seed, players)
    wanted = sqrt(sum((e - phi) ** 2 for e, phi in zip(given_.tolist(), reference.tolist(), strict=True)))
    wanted /= sqrt(sum(phi**2 for phi in reference.tolist()))
    assert relative_error(given_, reference).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@given(seed=SEEDS, players=st.integers(3, 50))
def test_correlations_are_scipys(ties, seed, players):
    a, b = pair(seed, players, ties)
    assume(a.unique().numel() > 1 and b.unique().numel() > 1)
    assert pearson(a, b).item() == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert spearman(a, b).item() == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_ranks_are_scipys_also_where_values_are_equal(values):
    assert ranks(torch.tensor(values).double()).tolist() == stats.rankdata(values).tolist()


@given(seed=SEEDS, players=st.integers(1, 30))
def test_sign_agreement_is_the_share_of_equal_signs(seed, players):
    a, b = pair(seed, players, ties=True)
    same = sum((x > 0) - (x < 0) == (y > 0) - (y < 0) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert sign_agreement(a, b).item() == pytest.approx(same / players)


@pytest.mark.parametrize("score", [pearson, spearman])
def test_correlation_with_a_constant_is_nan(score):
    flat, varied = torch.full((5,), 0.3), torch.arange(5.0)
    for a, b in ((flat, varied), (varied, flat), (flat, flat)):
        assert score(a, b).isnan()
    assert score(varied, varied) == 1
    assert score(varied, -varied) == -1


@pytest.mark.parametrize("name", AGREEMENTS)
def test_scores_broadcast_over_all_axes_but_the_last(name):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 7, generator=generator)
    b = torch.randn(2, 1, 7, generator=generator)
    found = AGREEMENTS[name](a, b)
    for i in range(2):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(AGREEMENTS[name](a[i, j], b[i, 0]).item(), abs=1e-6)


@pytest.mark.parametrize("name", AGREEMENTS)
def test_deviation_is_zero_for_an_exact_reference(name):
    a, b = pair(0, 9)
    assert deviation(AGREEMENTS[name], a[None], ShapleyValues(b, 0 * b, 512), seed=0).tolist() == [0]


def test_deviation_is_the_spread_of_the_score_over_redrawn_references():
    """Of an explanation far off, the error moves by the reference's noise along the difference; here by hand for one player."""
    reference = ShapleyValues(torch.tensor([2.0, 0.0]).double(), torch.tensor([0.02, 0.0]).double(), 10)
    given_ = torch.tensor([[0.0, 0.0], [5.0, 0.0]]).double()
    found = deviation(relative_error, given_, reference, seed=0)
    assert found[0] == pytest.approx(0, abs=1e-12)  # |0 - phi| / |phi| is 1 whatever phi
    assert found[1].item() == pytest.approx(5 / 2**2 * 0.02, rel=0.15)  # the slope of 5 / phi - 1
    assert torch.equal(found, deviation(relative_error, given_, reference, seed=0))
    assert not torch.equal(found, deviation(relative_error, given_, reference, seed=1))


def test_ranks_of_half_precision_go_beyond_its_largest_number():
    values = torch.arange(70_000).remainder(1024).to(torch.float16)
    found = ranks(values)
    assert found.dtype == torch.float32
    assert found.max() == ranks(values.float()).max()
