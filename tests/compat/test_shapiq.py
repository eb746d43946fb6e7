"""The adapter to shapiq, against shapiq itself."""

import numpy as np
import pytest
import shapiq
import torch
from torch import nn

import shapleycam as sc
from shapleycam.compat.shapiq import to_shapiq
from theory.games import Curved, images, network


@pytest.fixture(scope="module")
def game() -> sc.Game:
    return sc.game(network(Curved(), 0), images(1, b=1), layer="maps", layout="bnhw")


def test_worths_are_those_of_the_game_less_the_empty_coalitions(game: sc.Game) -> None:
    coalitions = np.random.default_rng(0).random((20, game.players)) < 0.5
    wanted = game.worth(torch.from_numpy(coalitions)) - game.empty
    assert to_shapiq(game)(coalitions) == pytest.approx(wanted.numpy(), abs=1e-12)


def test_exact_values_and_interactions_are_shapiqs(game: sc.Game) -> None:
    computer = shapiq.ExactComputer(to_shapiq(game), n_players=game.players)
    values = computer("SV", order=1)
    pairs = computer("SII", order=2)
    exact, table = sc.exact(game).values, sc.interactions(game, "exact")
    for i in range(game.players):
        assert values[(i,)] == pytest.approx(float(exact[i]), abs=1e-10)
        for j in range(i):
            assert pairs[(j, i)] == pytest.approx(float(table[i, j]), abs=1e-10)


def test_an_approximator_of_shapiq_comes_near_the_exact_values(game: sc.Game) -> None:
    found = shapiq.KernelSHAP(n=game.players, random_state=0).approximate(400, to_shapiq(game))
    exact = sc.exact(game).values
    near = torch.tensor([found[(i,)] for i in range(game.players)], dtype=torch.float64)
    assert (near - exact).norm() <= 0.05 * exact.norm()


def test_it_takes_groups_of_positions_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    played = to_shapiq(sc.game(net, torch.rand(3, 32, 32), layer="0", players=2))
    assert played.n_players == 4
