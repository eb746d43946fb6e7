"""`game`: coalitions of positions against a network that is patched by hand, their values, and what they need of each other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theory.games import Curved, images, keep, network, played, shapley_values
from unchecked import library

UTILITIES, exact, game, interactions, sampled = (
    library.UTILITIES, library.exact, library.game, library.interactions, library.sampled,
)  # fmt: skip


class Residual(nn.Module):
    """A tail that the target's block skips, and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.maps, self.after = nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.before(x)
        out = self.maps(skip)
        out += skip
        return self.head(F.gelu(self.after(out)).mean((2, 3)))


def residual() -> Residual:
    net = Residual().double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return net


def worth_by_hand(net: nn.Module, x: Tensor, coalition: frozenset[int], utility: str, target: int) -> float:
    """The whole network runs, and the target's output is masked on its way."""
    whole = copy.deepcopy(net)
    whole.get_submodule("maps").register_forward_hook(lambda module, given, output: keep(output[0], coalition)[None])
    with torch.no_grad():
        return UTILITIES[utility](whole(x), torch.tensor([target])).item()


def coalitions(players: int) -> Tensor:
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1


def positions(regions: Tensor, coalition: Tensor) -> frozenset[int]:
    return frozenset(torch.isin(regions.flatten(), coalition.nonzero()[:, 0]).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("players", [None, 2, [[0, 0, 7], [2, 7, 7]]])
@pytest.mark.parametrize("utility", UTILITIES)
def test_worth_is_that_of_the_whole_network_with_the_other_positions_at_zero(utility: str, players: Any) -> None:
    net, x = residual(), images(1, b=1, size=(4, 6))
    made = game(net, x, layer="maps", target=2, utility=utility, players=players)
    every = coalitions(made.players)
    wanted = [worth_by_hand(net, x, positions(made.regions, each), utility, 2) for each in every]
    torch.testing.assert_close(made.worth(every), torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert (made.empty.item(), made.full.item()) == pytest.approx((wanted[0], wanted[-1]), rel=1e-10)
    assert made.players == {None: 6, 2: 4}.get(players if not isinstance(players, list) else 0, 3)
    phi = shapley_values(
        lambda each: worth_by_hand(
            net, x, positions(made.regions, torch.tensor([j in each for j in range(made.players)])), utility, 2
        ),
        made.players,
    )
    torch.testing.assert_close(exact(made).values, phi, rtol=1e-9, atol=1e-12)


def test_worth_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = residual(), images(1, b=1)
    every = coalitions(9)
    whole = game(net, x, layer="maps")
    wanted, table = whole.worth(every), interactions(whole)
    monkeypatch.setattr("unchecked_shapleycam.network_game.ROOM", 7 * 5 * 9)
    made = game(net, x, layer="maps")
    torch.testing.assert_close(made.worth(every), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(interactions(made), table, rtol=1e-12, atol=1e-12)
    assert made.worth(every[:0]).shape == (0,)


def test_players_are_positions_in_row_major_order_or_groups_of_them() -> None:
    net, x = network(Curved(), 0), images(1, b=1, size=(8, 12))  # 4 x 6 positions
    assert game(net, x, layer="maps").regions.tolist() == torch.arange(24).view(4, 6).tolist()
    assert game(net, x, layer="maps", players=2).regions.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2
    pixels = torch.full((8, 12), 5)
    pixels[:, 7:], pixels[5:] = 3, -1  # through the middles of positions
    of_the_image = game(net, x, layer="maps", players=pixels)
    assert of_the_image.regions.tolist() == [[2, 2, 2, 1, 1, 1]] * 2 + [[0] * 6] * 2
    assert of_the_image.players == 3


def test_of_sums_over_a_players_positions_and_spread_shares_evenly_among_them() -> None:
    made = game(network(Curved(), 0), images(1, b=1, size=(4, 6)), layer="maps", players=[[0, 0, 1], [2, 1, 1]])
    e = torch.arange(6.0).view(2, 3)
    assert made.of(e).tolist() == [1, 11, 3]
    assert made.of(torch.stack([e, 2 * e])).tolist() == [[1, 11, 3], [2, 22, 6]]
    assert made.spread(torch.tensor([1.0, 6.0, 3.0])).tolist() == [[0.5, 0.5, 2], [3, 2, 2]]
    assert made.of(made.spread(torch.tensor([1.0, 6.0, 3.0]))).tolist() == [1, 6, 3]


def test_exact_values_of_a_grid_are_those_of_games_played_coalition_by_coalition() -> None:
    net, x = network(Curved(), 0), images(1, b=1)
    made = game(net, x[0], layer="maps", target=2)
    torch.testing.assert_close(
        made.spread(exact(made).values), played(net, x[0], UTILITIES["rest"], 2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("target", "wanted"), [(None, "argmax"), ("least", "argmin"), (1, 1)])
def test_target_is_as_in_explain(target: Any, wanted: Any) -> None:
    net, x = network(Curved(), 0), images(1, b=1)
    logits = net(x)[0]
    assert game(net, x, layer="maps", target=target).target == (
        wanted if isinstance(wanted, int) else int(getattr(logits, wanted)())
    )


@pytest.mark.parametrize("method", ["permutations", "kernel"])
def test_sampled_values_are_the_exact_ones_within_their_errors(method: Any) -> None:
    made = game(residual(), images(1, b=1), layer="maps", target=2)
    told: list[int] = []
    found = sampled(made, tolerance=0.02, method=method, progress=lambda done, most: told.append(done))
    assert 0 < found.noise <= 0.02
    assert ((found.values - exact(made).values).abs() <= 5 * found.errors).all()
    assert found.values.sum().item() == pytest.approx((made.full - made.empty).item(), abs=1e-10)
    assert told[-1] == found.evaluations
    assert torch.equal(sampled(made, tolerance=0.02, method=method).values, found.values)
    assert not torch.equal(sampled(made, tolerance=0.02, method=method, seed=1).values, found.values)


@pytest.mark.parametrize("players", [None, 2])
def test_quadratic_interactions_are_the_hessian_between_what_each_player_adds(players: Any) -> None:
    net, x = network(Curved(), 0), images(1, b=1, size=(4, 6))
    made = game(net, x, layer="maps", target=2, utility="log-softmax", players=players)
    maps = net.maps(x).detach()
    hessian = torch.autograd.functional.hessian(
        lambda a: UTILITIES["log-softmax"](net.tail(a), torch.tensor([2])).sum(), maps
    ).view(maps.numel(), -1)
    alone = torch.stack([(maps * (made.regions == j)).flatten() for j in range(made.players)])
    torch.testing.assert_close(interactions(made), alone @ hessian @ alone.T, rtol=1e-9, atol=1e-12)


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5 * 6, 4), nn.Linear(5 * 6, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.left(maps.flatten(1)) * self.right(maps.flatten(1))


def test_quadratic_interactions_of_a_quadratic_utility_are_the_exact_ones_off_the_diagonal() -> None:
    made = game(network(Square(), 0), images(1, b=1, size=(4, 6)), layer="maps", target=2, utility="pre-softmax")
    quadratic, true = interactions(made), interactions(made, "exact")
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(quadratic[off], true[off], rtol=0, atol=1e-11)
    assert true[off].abs().max() > 1e-3
    assert true.diagonal().eq(0).all()
    curved = game(network(Curved(), 0), images(1, b=1, size=(4, 6)), layer="maps")
    assert not torch.allclose(interactions(curved)[off], interactions(curved, "exact")[off], rtol=0.01)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": torch.zeros(2, 3, 4, 6).double()}, ValueError, r"a game has one image, got 2; play one after the other"),
    ({"players": 3}, ValueError, r"players is a grid of 3 x 3, expected 1 to 2 for 2 x 3 positions"),
    ({"players": 0}, ValueError, r"players is a grid of 0 x 0, expected 1 to 2"),
    (
        {"players": torch.zeros(2, 3)},
        ValueError,
        r"players is a label map of shape \(2, 3\), torch.float32, expected int",
    ),
    (
        {"players": [[0, 1]]},
        ValueError,
        r"players is a label map of shape \(1, 2\).*expected integers of at least 2 x 3",
    ),
    ({"target": 9}, ValueError, r"out of range; the network has classes 0 to 3"),
    ({"utility": "best"}, ValueError, r"unknown utility 'best'"),
    ({"layer": "nowhere"}, ValueError, r"the network has no layer 'nowhere'"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED)
def test_game_that_cannot_be_played_is_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"image": images(1, b=1, size=(4, 6)), "layer": "maps"} | arguments
    with pytest.raises(error, match=words):
        game(network(Curved(), 0), given.pop("image"), **given)


def test_coalitions_and_questions_that_make_no_sense_are_refused() -> None:
    made = game(network(Curved(), 0), images(1, b=1, size=(10, 12)), layer="maps", layout="bnhw")
    with pytest.raises(TypeError, match=r"coalitions are torch.float32, expected a torch.bool tensor"):
        made.worth(torch.zeros(1, 30))
    with pytest.raises(TypeError, match=r"coalitions are a list, expected a torch.bool tensor"):
        made.worth([[True] * 30])
    with pytest.raises(ValueError, match=r"coalitions have shape \(1, 24\), expected \(k, 30\)"):
        made.worth(torch.zeros(1, 24, dtype=torch.bool))
    for solve in (exact, lambda each: interactions(each, "exact")):
        with pytest.raises(ValueError, match=r"the game has 30 players, so 2\^30 coalitions; expected at most 20"):
            solve(made)
    with pytest.raises(ValueError, match=r"method is 'best', expected one of permutations, kernel"):
        sampled(made, method="best")
    for wrong in ({"tolerance": -1.0}, {"budget": -1}, {"tolerance": float("nan")}):
        with pytest.raises(ValueError, match="expected neither to be negative"):
            sampled(made, **wrong)
    with pytest.raises(ValueError, match='kind is \'cubic\', expected "quadratic" or "exact"'):
        interactions(made, "cubic")


def test_game_leaves_the_model_and_the_image_as_they_were() -> None:
    net, x = residual().train(), images(1, b=1)
    state, kept = copy.deepcopy(net.state_dict()), x.clone()
    with torch.inference_mode():
        game(net, x, layer="maps")
    made = game(net, x, layer="maps")
    exact(made), interactions(made)
    assert net.training
    assert torch.equal(x, kept)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for module in net.modules():
        assert not module._forward_hooks
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not made.worth(coalitions(9)).requires_grad
