"""The path row: Gauss-Legendre quadrature of U' along tA, the Shapley value where the utility is multilinear (Owen 1972)."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shapleycam import UTILITIES, explain
from shapleycam.theory.crg import efficiency_gap, quadrature
from theory.games import Curved, Head, explained, images, network, played

PRE = UTILITIES["pre-softmax"]


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 9, 32, 256])
def test_quadrature_is_numpys_on_the_unit_interval(nodes):
    points, weights = np.polynomial.legendre.leggauss(nodes)
    found = quadrature(nodes)
    np.testing.assert_allclose(found[0].numpy(), (points + 1) / 2, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[1].numpy(), weights / 2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_quadrature_is_exact_below_degree_2k_and_not_at_it(nodes):
    points, weights = quadrature(nodes)
    for degree in range(2 * nodes):
        assert (weights * points**degree).sum().item() == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert (weights * points ** (2 * nodes)).sum().item() != pytest.approx(1 / (2 * nodes + 1), abs=1e-8)


class Multilinear(nn.Module):
    """Logits that are multilinear in the players: for each set of positions the product of weighed sums of their maps."""

    def __init__(self, h: int, w: int) -> None:
        super().__init__()
        players = range(h * w)
        sets = [each for size in range(h * w + 1) for each in combinations(players, size)]
        self.member = torch.tensor([[j in each for j in players] for each in sets])
        self.sums = nn.Parameter(torch.zeros(5, h, w))
        self.shares = nn.Parameter(torch.zeros(4, len(sets)))

    def forward(self, maps: Tensor) -> Tensor:
        sums = 5 * (maps * self.sums).sum(1).flatten(1)
        products = sums[:, None].where(self.member, 1).prod(2)
        return products @ self.shares.T


SIZES = pytest.mark.parametrize(("h", "w"), [(1, 3), (2, 2), (1, 5), (2, 3), (2, 4), (3, 3)])


def error(h: int, w: int, nodes: int, seed: int) -> float:
    """Largest relative L2 error of AumannCAM-H among two images, against all coalitions of the network's own game."""
    net = network(Multilinear(h, w), seed)
    x = images(seed + 1, size=(2 * h, 2 * w))
    e = explain(net, x, layer="maps", methods="AumannCAM-H", nodes=nodes, utility="pre-softmax", targets=2)
    phi = torch.stack([played(net, each, PRE, target=2) for each in x])
    return ((e.explanations["AumannCAM-H"] - phi).flatten(1).norm(dim=1) / phi.flatten(1).norm(dim=1)).max().item()


@SIZES
@pytest.mark.parametrize("seed", [0, 10])
def test_path_is_the_shapley_value_of_a_multilinear_utility_of_up_to_2k_players_and_not_with_k_one_smaller(h, w, seed):
    nodes = (h * w + 1) // 2
    assert error(h, w, nodes, seed) < 1e-10
    assert error(h, w, nodes + 1, seed) < 1e-10
    assert error(h, w, nodes - 1, seed) > 1e-6


@pytest.mark.parametrize("order", ["HiResCAM", "ShapleyCAM-H"])
def test_first_and_second_order_are_not_the_shapley_value_of_a_multilinear_utility(order):
    net, x = network(Multilinear(2, 2), 0), images(1, size=(4, 4))
    e = explained(net, x, order, PRE, target=2)
    phi = torch.stack([played(net, each, PRE, target=2) for each in x])
    assert ((e - phi).flatten(1).norm(dim=1) > 0.01 * phi.flatten(1).norm(dim=1)).all()


def test_all_three_orders_are_the_shapley_value_of_a_linear_utility():
    net, x = network(nn.Sequential(nn.Flatten(), nn.Linear(5 * 6, 4)), 0), images(1, size=(4, 6))
    out = explain(net, x, layer="maps", methods="all", utility="pre-softmax", targets=2, nodes=1).explanations
    phi = torch.stack([played(net, each, PRE, target=2) for each in x])
    for names in (
        ("HiResCAM", "ShapleyCAM-H", "AumannCAM-H"),
        ("GradCAM", "ShapleyCAM", "AumannCAM"),
        ("GradCAM-E", "ShapleyCAM-E", "AumannCAM-E"),
    ):
        for name in names:
            torch.testing.assert_close(out[name], out[names[0]], rtol=0, atol=1e-12)
    torch.testing.assert_close(out["AumannCAM-H"], phi, rtol=0, atol=1e-12)


def test_one_node_is_enough_for_a_quadratic_utility_as_the_second_order_is():
    """GAP and a linear layer, squared: one node integrates a linear U'."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, maps: Tensor) -> Tensor:
            return self.head(maps) ** 2

    net, x = network(Square(), 0), images(1)
    one, second = (
        explain(net, x, layer="maps", methods=method, utility="pre-softmax", nodes=1).explanations[method]
        for method in ("AumannCAM-H", "ShapleyCAM-H")
    )
    torch.testing.assert_close(one, second, rtol=0, atol=1e-12)


def slow_rows(net: nn.Sequential, x: Tensor, utility: str, nodes: int) -> dict[str, Tensor]:
    """The three methods by loops over images, nodes, maps and positions; U' from a tail called with one image's maps."""
    maps = net.maps(x).detach()
    points, weights = np.polynomial.legendre.leggauss(nodes)
    rows = {name: torch.zeros(len(x), *maps.shape[2:], dtype=torch.float64) for name in ("M", "H", "E")}
    for image, a in enumerate(maps):
        w = torch.zeros_like(a)
        for point, weight in zip(points, weights, strict=True):
            leaf = ((point + 1) / 2 * a).requires_grad_()
            UTILITIES[utility](net.tail(leaf[None]), torch.tensor([2])).sum().backward()
            w += weight / 2 * leaf.grad
        for i in range(a.shape[0]):
            alpha = sum(w[i].flatten().tolist()) / w[i].numel()
            for row in range(a.shape[1]):
                for column in range(a.shape[2]):
                    product = w[i, row, column] * a[i, row, column]
                    rows["M"][image, row, column] += alpha * a[i, row, column]
                    rows["H"][image, row, column] += product
                    rows["E"][image, row, column] += max(product, 0)
    return rows


@pytest.mark.parametrize("utility", UTILITIES)
def test_the_three_methods_are_the_loops_over_their_equations(utility):
    net, x = network(Curved(), 0), images(1, b=3, size=(4, 6))
    wanted = slow_rows(net, x, utility, 3)
    found = explain(net, x, layer="maps", methods="path", utility=utility, nodes=3, targets=2).explanations
    assert list(found) == ["AumannCAM", "AumannCAM-H", "AumannCAM-E"]
    for got, each in zip(found.values(), wanted.values(), strict=True):
        torch.testing.assert_close(got, each, rtol=0, atol=1e-12)


def test_efficiency_gap_falls_with_the_nodes_to_nothing():
    net, x = network(Curved(), 0), images(1)
    gaps = []
    for nodes in (1, 2, 4, 8, 16, 32):
        out = explain(net, 3 * x, layer="maps", methods="AumannCAM-H", nodes=nodes)
        with torch.no_grad():
            maps = net.maps(3 * x)
            full, empty = (UTILITIES["rest"](net.tail(each), out.targets) for each in (maps, 0 * maps))
        shared = out.explanations["AumannCAM-H"].flatten(1).sum(1)
        gaps.append(efficiency_gap(shared, full, empty).max().item())
        assert out.efficiency_gap["AumannCAM-H"].max().item() == pytest.approx(gaps[-1], abs=1e-12)
    assert gaps[0] > 0.01
    assert all(finer < coarser for coarser, finer in pairwise(gaps[:4]))
    assert gaps[-1] < 1e-9


class Steep(nn.Module):
    """A normalisation right behind the target, so that the utility is steep near no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(maps / (maps.pow(2).mean((1, 2, 3), keepdim=True) + 0.003).sqrt())


def test_tolerance_doubles_the_nodes_of_each_image_by_itself():
    """Images of sizes so different that one needs 1 node and another 64."""
    net = network(Steep(), 0)
    net.maps.bias.data.zero_()
    x = images(1, b=4) * torch.tensor([0.001, 0.1, 0.5, 2.0]).view(4, 1, 1, 1)
    arguments = {"layer": "maps", "methods": "AumannCAM-H", "targets": 1}
    fixed = {k: explain(net, x, **arguments, nodes=k) for k in (1, 2, 4, 8, 16, 32, 64)}
    first = [
        next((k for k, out in fixed.items() if out.efficiency_gap["AumannCAM-H"][image] <= 0.01), 64)
        for image in range(4)
    ]
    assert len(set(first)) >= 3
    out = explain(net, x, **arguments, nodes=1, tolerance=0.01, max_nodes=64)
    for image, nodes in enumerate(first):
        wanted = fixed[nodes].explanations["AumannCAM-H"][image]
        torch.testing.assert_close(out.explanations["AumannCAM-H"][image], wanted, rtol=0, atol=1e-12)
        alone = explain(net, x[image : image + 1], **arguments, nodes=1, tolerance=0.01, max_nodes=64)
        torch.testing.assert_close(alone.explanations["AumannCAM-H"][0], wanted, rtol=0, atol=1e-12)
    assert not [each for each in out.warnings if each.reason == "path"]


def test_too_few_nodes_are_named_in_a_warning_of_the_image_that_needs_more():
    net = network(Steep(), 0)
    net.maps.bias.data.zero_()
    x = images(1) * torch.tensor([0.001, 10.0]).view(2, 1, 1, 1)
    out = explain(net, x, layer="maps", methods=["AumannCAM-H", "HiResCAM"], nodes=2, targets=1)
    (warning,) = [each for each in out.warnings if each.reason == "path"]
    gap = out.efficiency_gap["AumannCAM-H"][1].item()
    assert (warning.image, warning.method) == (1, None)
    assert f"the path row misses {gap:.1%} of the utility" in str(warning)
    assert "tolerance=0.01 doubles them up to max_nodes" in str(warning)
    short = explain(net, x, layer="maps", methods="AumannCAM", nodes=2, targets=1, tolerance=1e-9, max_nodes=5)
    assert [each.image for each in short.warnings if each.reason == "path"] == [1]
    for tolerance, images_warned in ((0.95 * gap, [1]), (1.05 * gap, [])):
        near = explain(net, x, layer="maps", methods="AumannCAM", nodes=2, targets=1, tolerance=tolerance, max_nodes=2)
        assert [each.image for each in near.warnings if each.reason == "path"] == images_warned
    plain = explain(net, x, layer="maps", methods="HiResCAM", targets=1)
    assert not [each for each in plain.warnings if each.reason == "path"]


def test_chunks_of_nodes_change_nothing(monkeypatch):
    net, x = network(Curved(), 0), images(1)
    whole = explain(net, x, layer="maps", methods="path", nodes=7).explanations
    monkeypatch.setattr("shapleycam.network.expand.ROOM", 2 * 2 * 5 * 9)  # two nodes at a time
    for name, each in explain(net, x, layer="maps", methods="path", nodes=7).explanations.items():
        torch.testing.assert_close(each, whole[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nodes": 0}, r"nodes is 0, expected a whole number from 1 to max_nodes, 256"),
        ({"tolerance": 0.0}, r"tolerance is 0.0, expected a share of the utility above 0, or None"),
    ],
)
def test_nodes_and_tolerances_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        explain(network(Curved(), 0), images(1), layer="maps", methods="path", **arguments)
