"""Shapley values of any game: against their definition, their axioms, another library, and what samplers say of themselves."""

import math
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import pytest
import shapiq
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shapleycam.theory.shapley import SAMPLERS, ShapleyValues, by_kernel, by_permutations, exact, exact_interactions
from theory.games import shapley_values

SEEDS = st.integers(0, 2**31)
PLAYERS = st.integers(1, 7)
BOTH = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


@dataclass
class Table:
    """A game that knows the worth of each coalition; player j is bit j of the place."""

    worths: Tensor
    played: list[int] = field(default_factory=list)

    @property
    def players(self) -> int:
        return len(self.worths).bit_length() - 1

    def worth(self, coalitions: Tensor) -> Tensor:
        self.played.append(len(coalitions))
        return self.worths[(coalitions.long() << torch.arange(self.players)).sum(1)]

    def of(self, coalition: frozenset[int]) -> float:
        return self.worths[sum(1 << player for player in coalition)].item()


def drawn(players: int, seed: int) -> Table:
    return Table(torch.randn(2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def members(players: int) -> Tensor:
    """All coalitions, (2^d, d), in the order of the places."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1


def smooth(players: int, seed: int) -> Table:
    """A game as networks play: a curved function of weighed sums, not additive, with gains of all sizes."""
    weights = torch.randn(players, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = members(players).double() @ weights
    return Table(sums[:, 0] + sums[:, 1] * sums[:, 2].tanh() + 2 * sums[:, 3].sigmoid())


@given(players=PLAYERS, seed=SEEDS)
def test_exact_values_are_the_sum_over_all_coalitions(players, seed):
    game = drawn(players, seed)
    found = exact(game)
    torch.testing.assert_close(found.values, shapley_values(game.of, players), rtol=1e-12, atol=1e-12)
    assert found.values.dtype == torch.float64
    assert found.errors.eq(0).all()
    assert found.noise == 0
    assert game.played == [found.evaluations] == [2**players]


@pytest.mark.parametrize("players", [1, 2, 3, 5, 6])
def test_exact_values_are_the_mean_over_all_orders(players):
    game = drawn(players, seed=players)
    gains = torch.zeros(players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            gains[player] += (game.of(before | {player}) - game.of(before)) / len(orders)
    torch.testing.assert_close(exact(game).values, gains, rtol=1e-12, atol=1e-12)


@given(players=PLAYERS, seed=SEEDS)
def test_efficiency(players, seed):
    game = drawn(players, seed)
    torch.testing.assert_close(exact(game).values.sum(), game.worths[-1] - game.worths[0], rtol=0, atol=1e-12)


@given(players=PLAYERS, seed=SEEDS, worth=st.floats(-3, 3), data=st.data())
def test_dummy_player_earns_what_it_is_worth_alone(players, seed, worth, data):
    player, game = data.draw(st.integers(0, players - 1)), drawn(players, seed)
    places = torch.arange(2**players)
    dummy = Table(game.worths[places & ~(1 << player)] + worth * (places >> player & 1).double())
    assert exact(dummy).values[player].item() == pytest.approx(worth, abs=1e-12)


@given(players=st.integers(2, 7), seed=SEEDS, data=st.data())
def test_players_that_are_worth_the_same_to_all_earn_the_same(players, seed, data):
    one, other = data.draw(st.permutations(range(players)))[:2]
    game, places = drawn(players, seed), torch.arange(2**players)
    differ = ((places >> one) ^ (places >> other)) & 1
    swapped = game.worths[places ^ (differ << one) ^ (differ << other)]
    values = exact(Table(game.worths + swapped)).values
    assert values[one].item() == pytest.approx(values[other].item(), abs=1e-12)


@given(players=PLAYERS, seed=SEEDS, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_values_of_a_mixture_of_games_are_the_mixture_of_values(players, seed, a, b):
    one, other = drawn(players, seed), drawn(players, seed + 1)
    mixed = exact(Table(a * one.worths + b * other.worths)).values
    torch.testing.assert_close(mixed, a * exact(one).values + b * exact(other).values, rtol=0, atol=1e-11)


def theirs(game: Table, index: str, order: int) -> shapiq.InteractionValues:
    def worth(coalitions: np.ndarray) -> np.ndarray:
        return game.worth(torch.tensor(coalitions, dtype=torch.bool)).numpy()

    return shapiq.ExactComputer(worth, n_players=game.players)(index, order)


@pytest.mark.parametrize("players", [2, 3, 6, 9])
def test_exact_values_are_shapiqs(players):
    game = drawn(players, seed=players)
    found = theirs(game, "SV", 1)
    wanted = torch.tensor([found[(j,)] for j in range(players)], dtype=torch.float64)
    torch.testing.assert_close(exact(game).values, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("players", [2, 3, 6, 9])
def test_exact_interactions_are_shapiqs(players):
    game = drawn(players, seed=players)
    found, table = theirs(game, "SII", 2), exact_interactions(game)
    for i in range(players):
        assert table[i, i] == 0
        for j in range(i):
            assert table[i, j].item() == table[j, i].item() == pytest.approx(found[(j, i)], abs=1e-10)


def test_interactions_of_a_quadratic_game_are_its_mixed_coefficients():
    q = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = members(6).double()
    table = exact_interactions(Table(x.sum(1) + torch.einsum("ki,ij,kj->k", x, q, x)))
    wanted = q + q.T
    torch.testing.assert_close(table, wanted - wanted.diag().diag(), rtol=0, atol=1e-12)


def test_games_of_21_players_are_refused_with_what_to_do_instead():
    class Crowd:
        players = 21

        def worth(self, coalitions: Tensor) -> Tensor:
            raise AssertionError

    for solve in (exact, exact_interactions):
        with pytest.raises(
            ValueError, match=r"21 players, so 2\^21 coalitions; expected at most 20\. Sample it with"
        ) as e:
            solve(Crowd())
        assert "shapleycam.game(..., players=4) for a grid of 4 x 4" in str(e.value)


def test_single_player_interacts_with_nobody():
    with pytest.raises(ValueError, match="a single player has nobody to interact with"):
        exact_interactions(drawn(1, 0))


# Samplers


@BOTH
@given(players=PLAYERS, seed=SEEDS)
def test_sampled_values_add_up_and_end_up_at_the_exact_ones(sampler, players, seed):
    game = drawn(players, seed)
    few, many = sampler(game, 100, seed=seed), sampler(game, 20_000, seed=seed)
    for found in (few, many):
        assert found.values.dtype == torch.float64
        torch.testing.assert_close(found.values.sum(), game.worths[-1] - game.worths[0], rtol=0, atol=1e-9)
    assert ((many.values - exact(game).values).abs() <= 6 * many.errors + 1e-9).all()
    assert many.errors.norm() <= few.errors.norm() + 1e-12


@BOTH
def test_sampled_values_depend_on_the_seed_and_on_nothing_else(sampler):
    game, state = smooth(8, 0), torch.get_rng_state()
    one, again, other = (sampler(game, 2_000, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.values, again.values)
    assert torch.equal(one.errors, again.errors)
    assert (one.values - other.values).abs().max() > 1e-6
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
@pytest.mark.parametrize("budget", [0, 100, 1_000, 3_333, 10_000])
def test_budget_is_kept_and_used(sampler, budget):
    game, told = smooth(9, 0), []
    found = sampler(game, budget, progress=lambda played, most: told.append((played, most)))
    least = 2 + (4 * 2 * 8 if sampler is by_permutations else 20 * 2 * 18)
    step = 2 * 8 if sampler is by_permutations else 20 * 2 * 18 * 2
    assert found.evaluations == sum(game.played) == told[-1][0]
    assert found.evaluations <= max(budget, 2 + 20 * 4 * 9)
    assert found.evaluations > budget - step or found.evaluations >= least > budget
    assert [most for _, most in told] == [budget] * len(told)
    assert [played for played, _ in told] == sorted({played for played, _ in told})


@BOTH
def test_sampling_stops_at_the_tolerance_and_not_before(sampler):
    game = smooth(8, 1)
    loose, tight = (sampler(game, 10**6, tolerance=tolerance) for tolerance in (0.2, 0.02))
    assert tight.noise <= 0.02
    assert loose.noise <= 0.2
    assert loose.evaluations < tight.evaluations < 10**6
    short = sampler(game, tight.evaluations // 2, tolerance=0.02)
    assert short.noise > 0.02


@BOTH
def test_additive_game_has_no_sampling_error(sampler):
    weights = torch.tensor([0.5, -1, 2, 0, 3], dtype=torch.float64)
    found = sampler(Table(members(5).double() @ weights), 1_000, tolerance=1e-6)
    torch.testing.assert_close(found.values, weights, rtol=0, atol=1e-9)
    assert found.errors.max() < 1e-9


@BOTH
def test_single_player_earns_everything(sampler):
    found = sampler(Table(torch.tensor([1.0, 4.0])), 100)
    assert found.values.tolist() == [3]
    assert found.errors.tolist() == [0]


COVERED = {by_permutations: (400, 2_000), by_kernel: (2_000, 8_000)}


@pytest.mark.parametrize("kind", [smooth, drawn])
@pytest.mark.parametrize(("sampler", "budget"), [(each, budget) for each in COVERED for budget in COVERED[each]])
def test_nine_of_ten_values_are_within_196_standard_errors(sampler, budget, kind):
    """All (run, player) values of 100 seeded runs: 90 to 98 %, where 95 % are to be expected."""
    game = kind(10, 0)
    wanted = exact(game).values
    runs = [sampler(game, budget, seed=seed) for seed in range(100)]
    within = [((run.values - wanted).abs() <= 1.96 * run.errors).double().mean().item() for run in runs]
    assert 0.90 <= sum(within) / 100 <= 0.98


def test_noise_is_the_relative_length_of_the_errors():
    values, errors = torch.tensor([3.0, -4.0]), torch.tensor([0.6, 0.8])
    assert ShapleyValues(values, errors, 10).noise == pytest.approx(0.2)
    assert ShapleyValues(0 * values, errors, 10).noise == 1
    assert ShapleyValues(0 * values, 0 * errors, 10).noise == 0


def test_the_noise_of_what_is_not_known_is_not_known() -> None:
    nothing = torch.full((4,), torch.nan, dtype=torch.float64)
    assert math.isnan(ShapleyValues(nothing, nothing, 16).noise)
