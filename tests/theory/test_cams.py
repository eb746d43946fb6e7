"""Every row of METHODS against a loop over images, maps and positions, and what the rows have in common."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, XGradCAM
from torch import Tensor, nn

from shapleycam import METHODS, SETS
from shapleycam.theory.cams import explanation, nearest, resolve_methods
from shapleycam.theory.crg import Expansion
from theory.games import Curved, Head, explained, images, network

Rows = list[list[float]]

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))


def expansion(seed: int, *shape: int) -> Expansion:
    """Ingredients of both signs for maps (b, n, *positions), some of them exactly zero."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.where(torch.rand(shape, generator=generator) < 0.1, 0, normal)

    ones = (1,) * (len(shape) - 2)
    maps, gradient, hvp, path = (numbers(*shape) for _ in range(4))
    return Expansion(maps, gradient, hvp, path=path, noise=numbers(*shape[:2], *ones))


def changed(e: Expansion, change: Callable[[Tensor], Tensor]) -> Expansion:
    found = {field.name: getattr(e, field.name) for field in fields(e)}
    return Expansion(**{name: None if each is None else change(each) for name, each in found.items()})


def signed(method: str, e: Expansion) -> Tensor:
    return explanation(METHODS[method], e)


# Below, one image: maps A and coefficients W as n rows of d positions; what comes out are d numbers.


def type_1(A: Rows, W: Rows) -> list[float]:
    return [sum(W[i][j] * A[i][j] for i in range(len(A))) for j in range(len(A[0]))]


def type_2(A: Rows, alpha: list[float]) -> list[float]:
    return [sum(alpha[i] * A[i][j] for i in range(len(A))) for j in range(len(A[0]))]


def averages(W: Rows) -> list[float]:
    return [sum(row) / len(row) for row in W]


def rectified_inside(A: Rows, W: Rows) -> list[float]:
    return [sum(max(W[i][j] * A[i][j], 0) for i in range(len(A))) for j in range(len(A[0]))]


def halved(U: Rows, HX: Rows) -> Rows:
    return [[U[i][j] - HX[i][j] / 2 for j in range(len(U[0]))] for i in range(len(U))]


def layercam(A: Rows, U: Rows) -> list[float]:
    return [sum(max(U[i][j], 0) * A[i][j] for i in range(len(A))) for j in range(len(A[0]))]


def xgradcam(A: Rows, U: Rows) -> list[float]:
    shares = []
    for i in range(len(A)):
        shares.append(sum(U[i][j] * A[i][j] for j in range(len(A[0]))) / (sum(A[i]) + 1e-7))
    return type_2(A, shares)


def gradcam_plus_plus(A: Rows, U: Rows) -> list[float]:
    weights = []
    for i in range(len(A)):
        weight = 0.0
        for j in range(len(A[0])):
            if U[i][j] > 0:  # alpha is 0 where U' is 0, and a negative U' does not pass the ReLU
                alpha = U[i][j] ** 2 / (2 * U[i][j] ** 2 + sum(A[i]) * U[i][j] ** 3 + 1e-6)
                weight += alpha * U[i][j]
        weights.append(weight)
    return type_2(A, weights)


# Of the maps A, the gradient U', HX, the path P and the noise r (n rows of one number).
ORACLES: dict[str, Callable[[Rows, Rows, Rows, Rows, Rows], list[float]]] = {
    "RandomCAM": lambda A, U, HX, P, r: type_2(A, [row[0] for row in r]),
    "GradCAM": lambda A, U, HX, P, r: type_2(A, averages(U)),
    "HiResCAM": lambda A, U, HX, P, r: type_1(A, U),
    "GradCAM-E": lambda A, U, HX, P, r: rectified_inside(A, U),
    "LayerCAM": lambda A, U, HX, P, r: layercam(A, U),
    "XGradCAM": lambda A, U, HX, P, r: xgradcam(A, U),
    "GradCAM++": lambda A, U, HX, P, r: gradcam_plus_plus(A, U),
    "ShapleyCAM": lambda A, U, HX, P, r: type_2(A, averages(halved(U, HX))),
    "ShapleyCAM-H": lambda A, U, HX, P, r: type_1(A, halved(U, HX)),
    "ShapleyCAM-E": lambda A, U, HX, P, r: rectified_inside(A, halved(U, HX)),
    "AumannCAM": lambda A, U, HX, P, r: type_2(A, averages(P)),
    "AumannCAM-H": lambda A, U, HX, P, r: type_1(A, P),
    "AumannCAM-E": lambda A, U, HX, P, r: rectified_inside(A, P),
}


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, size=SIZES)
def test_method_is_the_loop_over_its_equation(method, seed, size):
    e = expansion(seed, *size)
    got = signed(method, e)
    for image in range(size[0]):
        rows = [part[image].tolist() for part in (e.maps, e.gradient, e.hvp, e.path, e.noise)]
        wanted = torch.tensor(ORACLES[method](*rows), dtype=torch.float64)
        torch.testing.assert_close(got[image], wanted, rtol=1e-9, atol=1e-12 * wanted.abs().max().item())


@pytest.mark.parametrize(
    ("method", "published"), [("GradCAM", GradCAM), ("XGradCAM", XGradCAM), ("GradCAM++", GradCAMPlusPlus)]
)
def test_weights_of_the_maps_are_those_of_the_published_code(method, published):
    e = expansion(0, 3, 20, 5, 4)
    weights = published.get_cam_weights(None, None, None, None, e.maps.numpy(), e.gradient.numpy())
    wanted = torch.einsum("bi,bihw->bhw", torch.tensor(weights), e.maps)
    torch.testing.assert_close(signed(method, e), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_positions_may_have_any_number_of_axes(method):
    e = expansion(0, 2, 3, 4, 5)
    flat = changed(e, lambda maps: maps.flatten(2))
    torch.testing.assert_close(signed(method, e).flatten(1), signed(method, flat), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, size=SIZES)
def test_explanation_of_an_image_does_not_depend_on_the_rest_of_its_batch(method, seed, size):
    e = expansion(seed, *size)
    together = signed(method, e)
    for image in range(size[0]):
        alone = signed(method, changed(e, lambda maps, image=image: maps[image : image + 1]))[0]
        torch.testing.assert_close(together[image], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, size=SIZES, data=st.data())
def test_permuting_the_positions_permutes_the_explanation(method, seed, size, data):
    order = data.draw(st.permutations(range(size[2])))
    e = expansion(seed, *size)
    permuted = changed(e, lambda maps: maps[:, :, order] if maps.shape[2] == size[2] else maps)
    wanted = signed(method, e)[:, order]
    torch.testing.assert_close(signed(method, permuted), wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS, size=SIZES, data=st.data())
def test_permuting_the_maps_leaves_the_explanation(method, seed, size, data):
    order = data.draw(st.permutations(range(size[1])))
    e = expansion(seed, *size)
    wanted = signed(method, e)
    got = signed(method, changed(e, lambda maps: maps[:, order]))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("RandomCAM", "GradCAM++")])
@given(seed=SEEDS, factor=st.floats(1e-6, 1e6))
def test_a_utility_in_other_units_gives_the_explanation_in_those_units(method, seed, factor):
    e = expansion(seed, 2, 3, 4)
    scaled = Expansion(e.maps, e.gradient * factor, e.hvp * factor, path=e.path * factor)
    wanted = signed(method, e) * factor
    torch.testing.assert_close(signed(method, scaled), wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_gradcam_plus_plus_alone_depends_on_the_scale_of_the_utility():
    """Its 1e-6 and its cubes: behind global average pooling, gradients are so small that 1e-6 rules the divisor."""
    e = expansion(0, 2, 3, 4)
    once, twice = (signed("GradCAM++", Expansion(e.maps, e.gradient * factor)) for factor in (1e-5, 2e-5))
    torch.testing.assert_close(twice, 8 * once, rtol=0.01, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_method_writes_into_nothing(method):
    e = expansion(0, 2, 3, 4)
    before = changed(e, Tensor.clone)
    signed(method, e)
    for field in fields(e):
        one, other = getattr(e, field.name), getattr(before, field.name)
        assert one is other is None or torch.equal(one, other)


@given(seed=SEEDS, size=SIZES)
def test_layercam_is_gradcam_e_where_the_maps_are_not_negative(seed, size):
    e = expansion(seed, *size)
    positive = Expansion(e.maps.abs(), e.gradient)
    torch.testing.assert_close(signed("LayerCAM", positive), signed("GradCAM-E", positive), rtol=1e-12, atol=1e-12)


@given(seed=SEEDS)
def test_layercam_is_not_gradcam_e_where_a_map_is_negative(seed):
    e = expansion(seed, 1, 1, 4)
    negative = e.maps[0, 0] < 0
    assume(((e.gradient[0, 0] != 0) & negative).any())
    difference = (signed("LayerCAM", e) - signed("GradCAM-E", e))[0]
    assert difference[~negative].count_nonzero() == 0
    assert (difference[negative] < 0).any()


@given(seed=SEEDS, size=SIZES)
def test_second_order_is_first_order_where_hx_is_zero(seed, size):
    e = expansion(seed, *size)
    flat = Expansion(e.maps, e.gradient, torch.zeros_like(e.maps))
    for second, first in (("ShapleyCAM", "GradCAM"), ("ShapleyCAM-H", "HiResCAM"), ("ShapleyCAM-E", "GradCAM-E")):
        assert torch.equal(signed(second, flat), signed(first, flat))


class Flat(nn.Sequential):
    """A tail as VGG's: every position has its own weights."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(5 * 9, 4))


# Equal behind global average pooling and a linear layer, for any utility: there W does not depend on the position.
EQUAL = [("HiResCAM", "GradCAM"), ("XGradCAM", "GradCAM"), ("ShapleyCAM-H", "ShapleyCAM")]


@pytest.mark.parametrize("utility", ["rest", "pre-softmax", "post-softmax", "log-softmax"])
@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_methods_that_differ_in_their_mean_agree_behind_global_average_pooling(one, other, utility):
    net = network(Head(), seed=0)
    a, b = (explained(net, images(seed=1), method, utility, target=2) for method in (one, other))
    # XGradCAM's 1e-7 in the divisor, against sums of maps of about 1.
    torch.testing.assert_close(a, b, rtol=1e-5 if one == "XGradCAM" else 1e-12, atol=1e-12)


@pytest.mark.parametrize("tail", [Flat, Curved])
@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_methods_that_differ_in_their_mean_disagree_behind_any_other_tail(one, other, tail):
    net = network(tail(), seed=0)
    a, b = (explained(net, images(seed=1), method, "rest", target=2) for method in (one, other))
    assert ((a - b).flatten(1).norm(dim=1) > 0.1 * b.flatten(1).norm(dim=1)).all()


def test_randomcam_knows_nothing_of_the_utility():
    net = network(Curved(), seed=0)
    a = explained(net, images(seed=1), "RandomCAM", "rest", target=0)
    assert torch.equal(a, explained(net, images(seed=1), "RandomCAM", "post-softmax", target=3))


@pytest.mark.parametrize("method", METHODS)
def test_method_without_its_ingredients_says_where_to_look(method):
    bare = Expansion(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="lacks an ingredient of this order; see INGREDIENTS"):
        signed(method, bare)


def test_methods_resolve_to_rows_in_order_and_each_once():
    rows = resolve_methods(["LayerCAM", "paper", "LayerCAM"])
    assert [row.name for row in rows] == ["LayerCAM", *(name for name in SETS["paper"] if name != "LayerCAM")]
    assert resolve_methods("GradCAM++") == (METHODS["GradCAM++"],)
    assert resolve_methods(iter(["HiResCAM"])) == (METHODS["HiResCAM"],)


def test_paper_is_the_ten_methods_of_the_papers_tables():
    first = ["GradCAM", "HiResCAM", "GradCAM-E", "LayerCAM", "XGradCAM", "GradCAM++"]
    assert sorted(SETS["paper"]) == sorted(["RandomCAM", *first, "ShapleyCAM", "ShapleyCAM-H", "ShapleyCAM-E"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("gradcam", r"unknown method 'gradcam'; did you mean GradCAM or "),
        ("GradCAM_E", r"unknown method 'GradCAM_E'; did you mean GradCAM-E or "),
        (["GradCAM", "ShaplyCAM"], r"unknown method 'ShaplyCAM'; did you mean ShapleyCAM or "),
        ("papers", r"unknown method 'papers'; did you mean paper"),
        ("occlusion", r"unknown method 'occlusion'; known are paper, path, all, RandomCAM, .*ShapleyCAM-E"),
        ([], r"no method was given; name one or more of paper, path, all, RandomCAM, .*ShapleyCAM-E"),
    ],
)
def test_unknown_method_is_refused_with_the_nearest_names(asked, words):
    with pytest.raises(ValueError, match=words):
        resolve_methods(asked)


def test_nearest_ignores_case_and_keeps_the_names_as_they_are_written():
    assert nearest("LAYER4.1.CONV2", ["layer4.1.conv2", "stem"]) == "did you mean layer4.1.conv2?"
    assert nearest("zzz", ["layer4", "stem"]) == "known are layer4, stem"
