"""`fidelity` and `classify` on networks small enough to play, and the efficiency gap that every explanation knows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from theory.games import Curved, Head, images, network, played
from unchecked import library

METHODS, UTILITIES, classify, explain, fidelity = (
    library.METHODS, library.UTILITIES, library.classify, library.explain, library.fidelity,
)  # fmt: skip


class Square(nn.Module):
    """Logits that are quadratic in the maps, other coefficients at each position."""

    def __init__(self, positions: int = 9) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5 * positions, 4), nn.Linear(5 * positions, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.left(maps.flatten(1)) * self.right(maps.flatten(1))


class Linear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(5 * 9, 4))


def test_fidelity_is_each_explanation_against_the_games_exact_values() -> None:
    net, x = network(Curved(), 0), images(1)
    found = fidelity(net, x, layer="maps", targets=[2, 0])
    out = explain(net, x, layer="maps", targets=[2, 0], methods="all")
    assert found.methods == tuple(METHODS) == tuple(found.out.explanations)
    assert found.evaluations == 2 * 2**9
    for image, target in enumerate([2, 0]):
        phi = played(net, x[image], UTILITIES["rest"], target).flatten()
        torch.testing.assert_close(found.values[image].values, phi, rtol=1e-9, atol=1e-12)
        for column, name in enumerate(found.methods):
            e = out.explanations[name][image].flatten()
            wanted = {
                "error": ((e - phi).norm() / phi.norm()).item(),
                "pearson": stats.pearsonr(e, phi).statistic,
                "spearman": stats.spearmanr(e, phi).statistic,
                "sign": (e.sign() == phi.sign()).double().mean().item(),
            }
            for score, value in wanted.items():
                assert getattr(found, score)[image, column].item() == pytest.approx(value, rel=1e-9), (name, score)
    assert found.noise.tolist() == [0, 0]
    assert list(found.uncertainty) == ["error", "pearson", "spearman", "sign"]
    assert all(each.eq(0).all() for each in found.uncertainty.values())
    assert not found.within_noise.any()


def test_fidelity_of_groups_is_that_of_what_the_explanation_gives_to_each_group() -> None:
    net, x = network(Curved(), 0), images(1, b=1, size=(8, 8))
    found = fidelity(net, x, layer="maps", layout="bnhw", targets=2, players=2, methods=["HiResCAM"])
    e = found.out.explanations["HiResCAM"][0].view(2, 2, 2, 2).sum((1, 3)).flatten()
    phi = library.exact(library.game(net, x, layer="maps", layout="bnhw", target=2, players=2)).values
    assert found.error.item() == pytest.approx(((e - phi).norm() / phi.norm()).item(), rel=1e-9)
    assert found.evaluations == 2**4


def test_error_below_twice_that_of_a_sampled_reference_is_within_noise() -> None:
    """30 players, a quadratic utility: ShapleyCAM-H and the path are right, whatever the reference's noise."""
    net, x = network(Square(30), 0), images(1, size=(10, 12))
    found = fidelity(net, x, layer="maps", layout="bnhw", targets=2, utility="pre-softmax", tolerance=0.1, seed=1)
    assert (found.noise <= 0.1).all()
    assert all(each.noise == noise for each, noise in zip(found.values, found.noise.tolist(), strict=True))
    within = dict(zip(found.methods, found.within_noise.all(0).tolist(), strict=True))
    assert [name for name, each in within.items() if each] == ["ShapleyCAM-H", "AumannCAM-H"]
    column = found.methods.index("ShapleyCAM-H")
    assert (found.uncertainty["error"][:, column] > 0).all()
    assert found.evaluations == sum(each.evaluations for each in found.values)


def test_within_noise_ends_at_twice_the_noise_of_each_image() -> None:
    found = fidelity(network(Curved(), 0), images(1), layer="maps", methods="HiResCAM")
    made = replace(found, error=torch.tensor([[0.19, 0.21], [0.19, 0.0]]), noise=torch.tensor([0.1, 0.05]))
    assert made.within_noise.tolist() == [[True, False], [False, True]]


# Types


def kinds(tail: nn.Module, method: str, utility: str = "rest", **arguments: Any) -> list[tuple[bool, bool, bool]]:
    kind = classify(network(tail, 0), images(1), layer="maps", targets=2, method=method, utility=utility, **arguments)
    return list(zip(kind.type_one.tolist(), kind.type_two.tolist(), kind.optimal.tolist(), strict=True))


@pytest.mark.parametrize(
    ("tail", "method", "utility", "kind"),
    [
        (Head, "GradCAM", "pre-softmax", (True, True, True)),
        (Head, "HiResCAM", "pre-softmax", (True, True, True)),
        (Head, "ShapleyCAM", "rest", (True, True, False)),
        (Head, "LayerCAM", "pre-softmax", (False, False, False)),
        (Linear, "HiResCAM", "pre-softmax", (True, False, True)),
        (Linear, "GradCAM", "pre-softmax", (False, True, False)),
        (Linear, "AumannCAM-H", "pre-softmax", (True, False, True)),
        (Curved, "HiResCAM", "rest", (True, False, False)),
        (Curved, "GradCAM", "rest", (False, True, False)),
        (Curved, "ShapleyCAM-H", "rest", (True, False, False)),
        (Curved, "AumannCAM", "rest", (False, True, False)),
        (Curved, "LayerCAM", "rest", (False, False, False)),
        (Curved, "GradCAM-E", "rest", (False, False, False)),
        (Curved, "GradCAM++", "rest", (False, False, False)),
        (Square, "ShapleyCAM-H", "pre-softmax", (True, False, True)),
        (Square, "AumannCAM-H", "pre-softmax", (True, False, True)),
        (Square, "HiResCAM", "pre-softmax", (True, False, False)),
    ],
)
def test_type_is_decided_by_numbers(tail: Any, method: str, utility: str, kind: tuple[bool, bool, bool]) -> None:
    assert kinds(tail(), method, utility) == [kind, kind]


def test_optimal_within_twice_the_noise_of_sampled_values() -> None:
    net, x = network(Square(30), 0), images(1, b=1, size=(10, 12))
    for method, optimal in (("ShapleyCAM-H", True), ("HiResCAM", False)):
        kind = classify(
            net, x, layer="maps", layout="bnhw", targets=2, method=method, utility="pre-softmax", budget=2_000
        )
        assert kind.optimal.tolist() == [optimal]


def test_method_without_coefficients_has_no_type() -> None:
    with pytest.raises(
        ValueError, match="RandomCAM has no coefficients W, so no type; expected a method of first order"
    ):
        kinds(Head(), "RandomCAM")


# The efficiency gap


def worths(net: nn.Sequential, x: Tensor, utility: str, targets: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        maps = net.maps(x)
        full, empty = (UTILITIES[utility](net.tail(each), targets) for each in (maps, torch.zeros_like(maps)))
    return full, empty


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("methods", ["paper", "all"])
def test_efficiency_gap_is_what_the_shares_miss_of_the_utility(methods: str, utility: str) -> None:
    net, x = network(Curved(), 0), images(1)
    out = explain(net, x, layer="maps", methods=methods, utility=utility)
    full, empty = worths(net, x, utility, out.targets)
    torch.testing.assert_close(out.full, full)
    torch.testing.assert_close(out.empty, empty)
    assert list(out.efficiency_gap) == list(out.explanations)
    for name, gap in out.efficiency_gap.items():
        if name in ("HiResCAM", "ShapleyCAM-H", "AumannCAM-H"):
            shares = out.explanations[name].flatten(1).sum(1)
            wanted = (shares - (full - empty)).abs() / (full - empty).abs().clamp(min=1e-6)
            torch.testing.assert_close(gap, wanted, rtol=1e-9, atol=1e-12)
            assert (gap > 1e-3).all() or name == "AumannCAM-H"
        else:
            assert gap.isnan().all(), name


@pytest.mark.parametrize(
    ("two", "one"), [("GradCAM", "HiResCAM"), ("ShapleyCAM", "ShapleyCAM-H"), ("AumannCAM", "AumannCAM-H")]
)
def test_gap_of_type_two_is_that_of_type_one_where_w_is_the_same_at_all_positions(two: str, one: str) -> None:
    net, x = network(Head(), 0), images(1)
    gaps = explain(net, x, layer="maps", methods="all").efficiency_gap
    assert gaps[one].isfinite().all()
    torch.testing.assert_close(gaps[two], gaps[one], rtol=1e-9, atol=1e-12)
    never = ("RandomCAM", "GradCAM-E", "LayerCAM", "XGradCAM", "GradCAM++", "ShapleyCAM-E", "AumannCAM-E")
    assert all(gaps[name].isnan().all() for name in never)


@pytest.mark.parametrize("methods", ["ShapleyCAM-H", ["HiResCAM", "AumannCAM-H"]])
def test_gap_of_an_item_is_that_of_its_image(methods: Any) -> None:
    net, x = network(Curved(), 0), images(1, b=3)
    out = explain(net, x, layer="maps", methods=methods)
    for name, gap in out.efficiency_gap.items():
        items = torch.cat([out[image].efficiency_gap[name] for image in range(3)])
        torch.testing.assert_close(items, gap, rtol=1e-9, atol=1e-12)


def test_gap_costs_a_pass_when_it_is_asked_for_and_none_where_the_path_knows() -> None:
    net, x = network(Curved(), 0), images(1)
    passes: list[int] = []
    net.maps.register_forward_hook(lambda module, given, output: passes.append(1))
    for methods, more in (("HiResCAM", 1), (["HiResCAM", "AumannCAM"], 0)):
        passes.clear()
        out = explain(net, x, layer="maps", methods=methods)
        assert len(passes) == 1
        assert out.efficiency_gap is out.efficiency_gap
        assert len(passes) == 1 + more


def test_gap_of_images_that_were_written_to_in_between_is_refused() -> None:
    net, x = network(Curved(), 0), images(1)
    out, known = (explain(net, x, layer="maps", methods=method) for method in ("HiResCAM", "AumannCAM-H"))
    wanted = explain(net, x.clone(), layer="maps", methods="AumannCAM-H").efficiency_gap["AumannCAM-H"]
    x.mul_(2)
    with pytest.raises(
        ValueError, match="the images were written to since they were explained; ask for the efficiency"
    ):
        _ = out.efficiency_gap
    assert torch.equal(known.efficiency_gap["AumannCAM-H"], wanted)


def test_a_method_that_explains_pixels_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ValueError, match="RISE explains pixels, not the layer's positions that play the game"):
        fidelity(network(Curved(), 0), images(1), layer="maps", methods=["GradCAM", "RISE"])
