"""CAM, ScoreCAM, AblationCAM and LIFT-CAM against slow loops, grad-cam and captum, and what they cost and refuse."""

import sys
from collections.abc import Callable

import pytest
import pytorch_grad_cam
import torch
from captum.attr import DeepLift
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn.functional import interpolate

import shapleycam as sc
from playing import images, network, play, residual
from shapleycam.gradient_free import ablation_cam, cam, score_cam
from shapleycam.lift import lift_cam, lift_weights
from shapleycam.network.layout import Layout
from shapleycam.network.weights import randomise
from shapleycam.searches import SEARCHES
from shapleycam.theory.heatmap import heatmap
from shapleycam.theory.utility import UTILITIES

TARGETS = [4, 0, 1]


def close(got: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    assert float(expected.std()) > 100 * atol
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# CAM


def test_cam_weighs_maps_with_the_classifiers_weights() -> None:
    net, x = network().double(), images().double()
    found = cam(play(net, "4", x, TARGETS, "rest"))
    maps = net[:5](x).detach()
    for j, target in enumerate(TARGETS):
        expected = sum(float(net[7].weight[target, i].detach()) * maps[j, i] for i in range(9))
        close(found[j], expected)


def test_cam_and_gradcam_give_one_heatmap_behind_a_linear_tail() -> None:
    net, x = network(), images()
    expected = sc.explain(net, x, layer="4", methods="GradCAM", targets=TARGETS, utility="pre-softmax")
    torch.testing.assert_close(
        heatmap(cam(play(net, "4", x, TARGETS)), (12, 16)), expected.heatmaps["GradCAM"], rtol=0, atol=1e-5
    )


class Flat(nn.Sequential):
    """Its last linear layer weighs every position by itself."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 10 * 14, 5))


class Normed(nn.Sequential):
    """A norm behind the pooling."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 5)
        )


class Bent(nn.Sequential):
    """Straight at the maps, which are not negative, and at zero, but not beyond."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.Threshold(-0.01, 0.0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )


@pytest.mark.parametrize(
    ("make", "layer"), [(network, "3"), (network, "1"), (residual, "pool"), (Flat, "1"), (Normed, "1"), (Bent, "1")]
)
def test_cam_refuses_a_tail_that_is_not_pooling_and_a_linear_layer(make: Callable[[], nn.Module], layer: str) -> None:
    with pytest.raises(ValueError, match="CAM needs global average pooling and a linear classifier behind the layer"):
        cam(play(make().eval(), layer, images(), TARGETS))


# ScoreCAM


@pytest.mark.parametrize("utility", ["rest", "pre-softmax", "post-softmax"])
@pytest.mark.parametrize("layer", ["3", "4"])
def test_scorecam_is_a_loop_over_masked_images(layer: str, utility: str) -> None:
    net, x = network().double(), images().double()
    maps = net[: int(layer) + 1](x).detach()
    found = score_cam(play(net, layer, x, TARGETS, utility, room=7 * x[0].numel()))
    for j, target in enumerate(TARGETS):
        scores = []
        for a in maps[j]:
            mask = interpolate(a[None, None], (12, 16), mode="bilinear", align_corners=True)[0, 0]
            mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
            kept = UTILITIES[utility](net(x[j : j + 1] * mask), torch.tensor([target]))
            black = UTILITIES[utility](net(0 * x[j : j + 1]), torch.tensor([target]))
            scores.append(float((kept - black).detach()))
        total = sum(torch.tensor(scores).double().exp())
        expected = sum(torch.tensor(s).double().exp() / total * a for s, a in zip(scores, maps[j], strict=True))
        close(found[j], expected, 1e-7)


@pytest.mark.parametrize("layer", ["3", "4"])
def test_scorecam_gives_grad_cams_heatmaps(layer: str) -> None:
    net, x = network(), images()
    with pytorch_grad_cam.ScoreCAM(net, [net[int(layer)]]) as rival:
        expected = torch.from_numpy(rival(x, [ClassifierOutputTarget(t) for t in TARGETS]))
    found = heatmap(score_cam(play(net, layer, x, TARGETS)), (12, 16))
    close(found, expected, 1e-5)


def test_scorecam_tells_the_maps_masked_so_far_and_never_takes_more_images_than_there_is_room_for() -> None:
    net, x, told, seen = network(), images(), [], []
    ground = play(net, "4", x, TARGETS, room=5 * x[0].numel(), progress=lambda done, most: told.append((done, most)))
    infer = ground.infer
    vars(ground)["infer"] = lambda some: seen.append(len(some)) or infer(some)
    score_cam(ground)
    assert told == [(done, 27) for done in (5, 10, 15, 20, 25, 27)]
    assert seen == [5, 5, 5, 5, 5, 2]


def test_scorecam_on_a_signal_and_on_a_volume_are_loops_too() -> None:
    for conv, pool, shape, mode, layout in (
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (2, 3, 20), "linear", Layout("bnt", positions=(9,))),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (2, 3, 4, 6, 6), "trilinear", Layout("bndhw")),
    ):
        net = nn.Sequential(conv(3, 4, 3, stride=2), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()
        randomise(net, 0)
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()
        found, maps = score_cam(play(net, "1", x, [0, 2], layout=layout)), net[:2](x).detach()
        for j, target in enumerate([0, 2]):
            masks = interpolate(maps[j][:, None], shape[2:], mode=mode, align_corners=True)
            masks = torch.stack([(m - m.min()) / (m.max() - m.min() + 1e-8) for m in masks])
            weights = net(x[j : j + 1] * masks)[:, target].softmax(0).detach()
            close(found[j], torch.tensordot(weights, maps[j], 1))


# AblationCAM


@pytest.mark.parametrize("utility", ["rest", "pre-softmax", "post-softmax", "log-softmax"])
@pytest.mark.parametrize(("make", "layer"), [(network, "1"), (network, "4"), (residual, "norm")])
def test_ablationcam_is_a_loop_over_a_hook_that_sets_a_map_to_zero(
    make: Callable[[], nn.Module], layer: str, utility: str
) -> None:
    net, x = make().double(), images().double()
    target_layer, kept = net.get_submodule(layer), []
    found = ablation_cam(play(net, layer, x, TARGETS, utility, room=2000))

    def worth(image: Tensor, target: int, without: int | None) -> float:
        def hook(module: nn.Module, given: object, output: Tensor) -> Tensor:
            kept.append(output.detach().clone()[0])
            output = output.clone()
            if without is not None:
                output[:, without] = 0
            return output

        handle = target_layer.register_forward_hook(hook)
        try:
            return float(UTILITIES[utility](net(image[None]), torch.tensor([target])).detach())
        finally:
            handle.remove()

    for j, target in enumerate(TARGETS):
        full = worth(x[j], target, None)
        maps = kept[-1]
        expected = sum((full - worth(x[j], target, i)) / abs(full) * a for i, a in enumerate(maps))
        close(found[j], expected)


def test_ablationcam_replays_the_tail_and_never_the_head() -> None:
    net, x, ran = network(), images(), {"0": 0, "7": 0}
    ground = play(net, "4", x, TARGETS)
    for name in ran:

        def count(module: nn.Module, given: object, name: str = name) -> None:
            ran[name] += 1

        net.get_submodule(name).register_forward_pre_hook(count)
    ground = play(net, "4", x, TARGETS, room=4 * ground.maps.numel())
    ran |= {"0": 0, "7": 0}
    ablation_cam(ground)
    assert ran["0"] == 0
    assert ran["7"] >= 3  # nine maps, four at a time


@pytest.mark.parametrize(("layer", "same"), [("4", True), ("0", False)])
def test_ablationcam_is_grad_cams_where_no_map_is_negative_for_else_that_sets_maps_to_a_large_number(
    layer: str, same: bool
) -> None:
    net, x = network(), images(1)
    ours = heatmap(ablation_cam(play(net, layer, x, [4])), (12, 16))
    with pytorch_grad_cam.AblationCAM(net, [net[int(layer)]]) as rival:
        theirs = torch.from_numpy(rival(x, [ClassifierOutputTarget(4)]))
    assert float(theirs.std()) > 0.1
    assert (float((ours - theirs).abs().max()) < 1e-5) is same


# LIFT-CAM


@pytest.mark.parametrize("utility", ["rest", "pre-softmax", "post-softmax", "log-softmax"])
@pytest.mark.parametrize(
    ("make", "layer"),
    [(network, "0"), (network, "3"), (network, "4"), (lambda: network(nn.GELU), "0"), (residual, "stem")],
)
def test_lift_weights_add_up_to_what_the_maps_are_worth(
    make: Callable[[], nn.Module], layer: str, utility: str
) -> None:
    net, x = make().double(), images().double()
    ground = play(net, layer, x, TARGETS, utility)
    empty = ground.worth(ground.tail(torch.zeros_like(ground.maps)), ground.each).detach()
    expected = ground.full - empty
    assert float(expected.abs().min()) > 1e-3
    torch.testing.assert_close(lift_weights(ground).sum(1), expected, rtol=1e-6, atol=1e-9)


def test_lift_weights_are_captums_on_a_module_of_the_tail() -> None:
    net, x = network().double(), images().double()
    ground = play(net, "0", x, TARGETS)
    tail = nn.Sequential(*list(network().double())[1:]).eval()
    maps = ground.maps.clone().requires_grad_()
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        shares = DeepLift(tail).attribute(maps, torch.zeros_like(maps), target=torch.tensor(TARGETS))
    expected = shares.sum((2, 3)).detach()
    close(lift_weights(ground), expected)
    close(lift_cam(ground), (expected[:, :, None, None] * ground.maps).sum(1))


def test_lift_weights_are_slopes_over_relus_worked_out_by_hand() -> None:
    """y = relu(a - 1) + relu(-b) at a = 3, b = 2 has multipliers 2/3 and 0 from zero."""
    net = nn.Sequential(
        nn.Identity(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]).view(2, 2, 1, 1))
        net[1].bias.copy_(torch.tensor([-1.0, 0.0]))
        net[5].weight.fill_(1)
        net[5].bias.zero_()
    x = torch.stack([torch.full((2, 2), 3.0), torch.full((2, 2), 2.0)])[None]
    assert lift_weights(play(net.eval(), "0", x, [0])).tolist() == [[pytest.approx(2), pytest.approx(0)]]


def test_lift_cam_leaves_no_hook_and_no_attribute() -> None:
    net = residual()
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    lift_cam(play(net, "stem", images(), TARGETS))
    for name, module in net.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None]).mean((2, 3)))


def test_lift_cam_refuses_a_tail_whose_products_deeplift_has_no_rule_for() -> None:
    net = Gated().eval()
    randomise(net, 0)
    with pytest.raises(ValueError, match=r"miss U\(A\) - U\(0\) by up to .* the tail multiplies what it computes"):
        lift_cam(play(net, "conv", images(), TARGETS))


def test_lift_cam_without_captum_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r'LIFT-CAM needs captum; pip install "shapleycam\[lift\]"'):
        lift_cam(play(network(), "4", images(), TARGETS))


# All of them


@pytest.mark.parametrize("name", ["CAM", "ScoreCAM", "AblationCAM", "LIFT-CAM", "EigenCAM", "EigenGradCAM", "FullGrad"])
def test_images_of_a_batch_do_not_affect_each_other(name: str) -> None:
    net, x = network(), images()
    whole = SEARCHES[name].explain(play(net, "4", x, TARGETS, room=2000))
    assert not whole.requires_grad
    for j, target in enumerate(TARGETS):
        alone = SEARCHES[name].explain(play(net, "4", x[j : j + 1], [target]))
        torch.testing.assert_close(whole[j], alone[0], rtol=1e-4, atol=1e-5)


def test_methods_that_ask_the_tail_take_any_inputs_and_those_that_mask_images_refuse_them() -> None:
    from shapleycam.network.cut import CutNetwork
    from shapleycam.network.inputs import Inputs
    from shapleycam.playground import play_with

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, add: Tensor) -> Tensor:
            return self.inner(x) + add

    cut, given, targets = (
        CutNetwork(Two().eval(), "inner.4"),
        Inputs(images(), add=torch.zeros(3, 5)),
        torch.tensor(TARGETS),
    )
    ground = play_with(cut, cut(given, replay=True), given, targets, UTILITIES["pre-softmax"])
    torch.testing.assert_close(ablation_cam(ground), ablation_cam(play(network(), "4", images(), TARGETS)))
    with pytest.raises(
        ValueError, match="the method changes the images, expected a tensor of them, got several inputs"
    ):
        score_cam(ground)


@pytest.mark.parametrize("name", ["CAM", "LIFT-CAM"])
def test_a_map_of_half_precision_is_added_up_in_float32(name: str) -> None:
    net, x = network().bfloat16(), images().bfloat16()
    assert SEARCHES[name].explain(play(net, "4", x, TARGETS)).dtype == torch.float32
