"""Integrated Gradients, RISE and KernelSHAP against captum, shapiq and slow loops; what they cost and refuse."""

from collections.abc import Callable
from itertools import product
from math import comb
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

import shapleycam as sc
from playing import images, network, play
from shapleycam import measurement
from shapleycam.network.weights import randomise
from shapleycam.playground import remembered
from shapleycam.references import Superpixels, integrated_gradients, kernel_shap, masks_of, rise
from shapleycam.theory.agreement import pearson
from shapleycam.theory.draws import checksums, uniform
from shapleycam.theory.utility import UTILITIES

TARGETS = [4, 0, 1]


def worth(net: nn.Module, image: Tensor, target: int, utility: str) -> float:
    return float(UTILITIES[utility](net(image[None]), torch.tensor([target])).detach())


# Integrated Gradients


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("given", [False, True])
def test_integrated_gradients_are_captums(given: bool, act: Callable[[], nn.Module]) -> None:
    net, x = network(act).double(), images().double()
    baseline = 0.3 * images(seed=2).double() if given else torch.zeros_like(x)
    expected = IntegratedGradients(net).attribute(
        x, baseline, target=torch.tensor(TARGETS), n_steps=20, method="gausslegendre"
    )
    ground = play(net, "4", x, TARGETS, room=3 * 5 * x[0].numel())
    found = integrated_gradients(ground, nodes=20, baseline=baseline if given else None)
    torch.testing.assert_close(found, expected.sum(1))
    assert not found.requires_grad


@pytest.mark.parametrize("utility", ["rest", "post-softmax"])
def test_integrated_gradients_add_up(utility: str) -> None:
    net, x = network(nn.GELU).double(), images().double()
    found = integrated_gradients(play(net, "4", x, TARGETS, utility))
    for j, target in enumerate(TARGETS):
        earned = worth(net, x[j], target, utility) - worth(net, 0 * x[j], target, utility)
        assert float(found[j].sum()) == pytest.approx(earned, rel=1e-6)


# RISE


def slow_mask(cells: list[list[float]], size: tuple[int, int], move: tuple[float, float]) -> Tensor:
    """A grid of cells enlarged pixel by pixel, from centre to centre, and cut out `move` of a cell further on."""
    g, (h, w) = len(cells), size
    cell = (-(-h // g), -(-w // g))
    mask = torch.zeros(h, w).double()
    for i, j in product(range(h), range(w)):
        value, at = 0.0, []
        for place, side, moved in ((i, cell[0], move[0]), (j, cell[1], move[1])):
            # (g + 1) cells' pixels lie on g cells, half a pixel from the edge
            spot = (place + int(moved * side) + 0.5) * g / ((g + 1) * side) - 0.5
            spot = min(max(spot, 0), g - 1)
            low = min(int(spot), g - 1)
            at.append(((low, 1 - (spot - low)), (min(low + 1, g - 1), spot - low)))
        for (row, a), (column, b) in product(*at):
            value += a * b * cells[row][column]
        mask[i, j] = value
    return mask


@pytest.mark.parametrize("utility", ["post-softmax", "log-softmax"])
def test_rise_is_a_loop_over_masks_and_pixels(utility: str) -> None:
    net, x, keys = network().double(), images().double(), torch.tensor([5, 6, 7])
    ground = play(net, "4", x, TARGETS, utility, keys=lambda: keys, seed=3, room=9 * 4 * x[0].numel())
    found = rise(ground, masks=13, cells=4, share=0.4)
    drawn = ((uniform(keys, 13 * 18, 3, 2**17) + 1) / 2).view(3, 13, 18).tolist()
    for j, target in enumerate(TARGETS):
        masks = []
        for numbers in drawn[j]:
            cells = [[float(n < 0.4) for n in numbers[4 * row : 4 * row + 4]] for row in range(4)]
            masks.append(slow_mask(cells, (12, 16), (numbers[16], numbers[17])))
        worths = [worth(net, x[j] * mask, target, utility) for mask in masks]
        least = min(0.0, *worths)
        expected = sum((u - least) * mask for u, mask in zip(worths, masks, strict=True)) / (13 * 0.4)
        torch.testing.assert_close(found[j], expected, rtol=1e-4, atol=1e-6)
        assert float(expected.std()) > 1e-3


def test_rise_finds_the_only_pixels_that_a_network_looks_at() -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen = self.conv(x)[:, 0, 2:6, 10:14].mean((1, 2))
            return 5 * torch.stack([seen - 0.5, 0.5 - seen], 1)

    found = rise(play(Corner().eval(), "conv", torch.ones(1, 3, 12, 16), [0], "post-softmax"), masks=2000)[0]
    inside = torch.zeros(12, 16, dtype=torch.bool)
    inside[2:6, 10:14] = True
    assert float(found[inside].min()) > float(found[~inside].quantile(0.95))


def test_rises_masks_have_the_mean_that_is_asked_for() -> None:
    drawn = (uniform(torch.tensor([1]), 3000 * 51, 0, 0) + 1) / 2
    masks = masks_of(drawn.view(3000, 51), (30, 41), 0.3)
    assert float(masks.amin()) >= 0
    assert float(masks.amax()) <= 1 + 1e-6
    assert float((masks.mean(0) - 0.3).abs().amax()) < 0.04


def test_rise_of_an_image_hangs_on_its_key_and_the_seed_and_on_no_other_image() -> None:
    net, x = network(), images()
    whole = rise(play(net, "4", x, TARGETS, "post-softmax"), masks=20)
    for j, target in enumerate(TARGETS):
        alone = rise(play(net, "4", x[j : j + 1], [target], "post-softmax"), masks=20)
        torch.testing.assert_close(whole[j], alone[0])
    keyed = rise(play(net, "4", x, TARGETS, "post-softmax", keys=lambda: checksums(x)), masks=20)
    other = rise(play(net, "4", x, TARGETS, "post-softmax", seed=1), masks=20)
    assert torch.equal(whole, keyed)
    assert float((whole - other).abs().max()) > 1e-3


# KernelSHAP


def shapley(net: nn.Module, image: Tensor, target: int, labels: Tensor, utility: str) -> list[float]:
    d = int(labels.max()) + 1
    played = {c: worth(net, image * torch.tensor(c)[labels], target, utility) for c in product((0.0, 1.0), repeat=d)}
    values = [0.0] * d
    for c, without in played.items():
        for j in range(d):
            if c[j] == 0:
                joined = (*c[:j], 1.0, *c[j + 1 :])
                values[j] += (played[joined] - without) / (d * comb(d - 1, int(sum(c))))
    return values


@pytest.mark.parametrize("superpixels", [2, torch.tensor([[7, 7, 9, 1]] * 12).repeat_interleave(4, 1)])
def test_kernel_shap_gives_the_shapley_values_of_superpixels_shared_by_their_pixels(superpixels: Any) -> None:
    net, x = network(nn.GELU).double(), images().double()
    found = kernel_shap(play(net, "4", x, TARGETS, "rest", room=10**5), superpixels=superpixels, budget=6000)
    grid = torch.tensor([[0] * 8 + [1] * 8] * 6 + [[2] * 8 + [3] * 8] * 6)
    labels = grid if isinstance(superpixels, int) else torch.tensor([[1] * 8 + [2] * 4 + [0] * 4] * 12)
    for j, target in enumerate(TARGETS):
        values = shapley(net, x[j], target, labels, "rest")
        for player, value in enumerate(values):
            mine = found[j][labels == player]
            assert float(mine.std()) < 1e-12
            assert float(mine.sum()) == pytest.approx(value, abs=0.02 * max(map(abs, values)))
        earned = worth(net, x[j], target, "rest") - worth(net, 0 * x[j], target, "rest")
        assert float(found[j].sum()) == pytest.approx(earned)


def test_kernel_shap_of_an_image_does_not_hang_on_its_batch_and_progress_covers_all_images() -> None:
    net, x, told = network(), images(), []
    ground = play(net, "4", x, TARGETS, progress=lambda done, most: told.append((done, most)))
    whole = kernel_shap(ground, superpixels=3, budget=800)
    for j, target in enumerate(TARGETS):
        alone = kernel_shap(play(net, "4", x[j : j + 1], [target]), superpixels=3, budget=800)
        torch.testing.assert_close(whole[j], alone[0], rtol=1e-3, atol=1e-5)
    assert [most for _, most in told] == [2400] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] > 1600


def test_superpixels_play_as_shapiq_plays_them() -> None:
    """An independent library's exact Shapley values of the same game."""
    shapiq = pytest.importorskip("shapiq")
    net, x = network(nn.GELU).double(), images(1).double()
    ground = play(net, "4", x, [4], "rest")
    labels = torch.arange(12 * 16).view(12, 16) * 6 // (12 * 16)
    game = Superpixels(ground, 0, labels)

    def value(coalitions: Any) -> Any:
        return game.worth(torch.as_tensor(coalitions)).numpy()

    found = kernel_shap(ground, superpixels=labels, budget=6000)[0]
    computer = shapiq.game_theory.ExactComputer(n_players=6, game=value)
    expected = computer("SV", order=1).get_n_order_values(1)
    got = [float(found[labels == player].sum()) for player in range(6)]
    assert got == pytest.approx(expected.tolist(), abs=0.02 * float(abs(expected).max()))


def test_kernel_shap_plays_segments_of_a_signal_and_blocks_of_a_volume() -> None:
    for kind, shape in ((nn.Conv1d, (2, 13)), (nn.Conv3d, (2, 5, 4, 7))):
        net = nn.Sequential(
            kind(2, 6, 3, padding=1), nn.GELU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 5)
        )
        randomise(net, 0)
        net = net.double().eval()
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double()
        layout = "bnt" if kind is nn.Conv1d else "bndhw"
        found = kernel_shap(play(net, "1", x, [1, 4], layout=layout), superpixels=2, budget=6000)
        places = [torch.tensor([int(2 * i >= side) for i in range(side)]) for side in shape[1:]]
        labels = places[0] if len(places) == 1 else 4 * places[0][:, None, None] + 2 * places[1][:, None] + places[2]
        for j, target in enumerate([1, 4]):
            values = shapley(net, x[j], target, labels, "pre-softmax")
            got = [float(found[j][labels == player].sum()) for player in range(len(values))]
            assert got == pytest.approx(values, abs=0.02 * max(map(abs, values)))


# Budgets


def passes(net: nn.Module, call: Callable[[], Any]) -> int:
    seen: list[int] = []
    handle = net[0].register_forward_hook(lambda module, given, output: seen.append(len(output)))
    call()
    handle.remove()
    return sum(seen)


def test_rise_spends_the_budget_and_kernel_shap_plays_as_many_superpixels_as_it_pays_for() -> None:
    net, x = network(), images()
    given: dict[str, Any] = {"layer": "4", "targets": TARGETS, "utility": "post-softmax"}
    found = sc.explain(net, x, methods=["RISE", "KernelSHAP"], budget=800, **given)
    ground = play(net, "4", x, TARGETS, "post-softmax", keys=lambda: checksums(x))
    torch.testing.assert_close(found.explanations["RISE"], rise(ground, masks=800))
    torch.testing.assert_close(found.explanations["KernelSHAP"], kernel_shap(ground, superpixels=3, budget=800))
    spent = passes(net, lambda: sc.explain(net, x, methods="RISE", budget=20, **given))
    assert spent == 3 * (1 + 20)
    spent = passes(net, lambda: sc.explain(net, x, methods="KernelSHAP", budget=400, **given))
    assert 3 * 300 < spent <= 3 * (1 + 400)


def test_measuring_keeps_to_the_budget_each_time() -> None:
    net, x = network(), images()
    given: dict[str, Any] = {"layer": "4", "targets": TARGETS, "methods": "RISE", "budget": 20}
    assert passes(net, lambda: sc.measure(net, x, **given)) == 3 * (1 + 20 + 1 + 20 + 1)
    more = passes(net, lambda: sc.measure(net, x, metrics="randomisation", **given))
    # The new weights are scaled by a pass of four images.
    assert more == 3 * (1 + 20 + 1 + 20 + 1) + 3 * 21 + 4


# Refusals


@pytest.mark.parametrize(
    ("explain", "options", "words"),
    [
        (integrated_gradients, {"nodes": 0}, "nodes is 0, expected 1 or more"),
        (
            integrated_gradients,
            {"baseline": torch.zeros(1, 3, 4, 4)},
            r"baseline has shape \(1, 3, 4, 4\), expected that",
        ),
        (rise, {"masks": 0}, "got masks=0, cells=7, share=0.5, expected masks and cells of 1 or more"),
        (
            kernel_shap,
            {"budget": 319},
            "the budget is 319, expected 320 or more: KernelSHAP spends 80 passes a superpixel",
        ),
        (rise, {"share": 1.0}, "a share between 0 and 1"),
        (
            kernel_shap,
            {"superpixels": 13},
            "superpixels is 13, expected the side of a grid, 1 to 12, or integer labels",
        ),
        (
            kernel_shap,
            {"superpixels": torch.zeros(4, 4, dtype=torch.int64)},
            r"superpixels is labels of shape \(4, 4\)",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    explain: Callable[..., Tensor], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        explain(play(network(), "4", images(), TARGETS), **options)


def test_rise_on_a_signal_and_a_budget_of_nothing_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 3), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    with pytest.raises(
        ValueError, match=r"RISE lays masks on pictures .* got images of shape \(1, 2, 13\); KernelSHAP takes"
    ):
        sc.explain(net, torch.ones(1, 2, 13), methods="RISE")
    with pytest.raises(ValueError, match="budget is 0, expected a number of forward passes an image"):
        sc.explain(network(), images(), methods="RISE", layer="4", budget=0)


def test_masked_images_run_once_for_both_classes_and_every_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, methods = network(), images(), ["RISE", "KernelSHAP", "ScoreCAM"]
    given: dict[str, Any] = {"layer": "4", "targets": TARGETS, "methods": methods, "budget": 400}
    found = sc.measure(net, x, **given)
    with monkeypatch.context() as patched:
        patched.setattr(measurement, "remembered", lambda infer: infer)
        again = sc.measure(net, x, **given)
    assert torch.equal(found.discrimination, again.discrimination)
    least = sc.explain(net, x, **given | {"targets": "least"})
    for method, column in zip(methods, found.discrimination.T, strict=True):
        both = found.out.explanations[method], least.explanations[method]
        expected = pearson(*(each.relu().flatten(1) for each in both)).nan_to_num(0)
        torch.testing.assert_close(column, expected.to(column))


def test_what_there_is_no_room_for_is_run_again() -> None:
    runs: list[int] = []

    def infer(some: torch.Tensor) -> torch.Tensor:
        runs.append(len(some))
        return some.flatten(1)[:, :5]

    recall, x = remembered(infer, room=12), images()
    first = [recall(x), recall(x[:2]), recall(x + 1)]
    again = [recall(x), recall(x[:2]), recall(x + 1)]
    assert runs == [3, 2, 3, 3]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
