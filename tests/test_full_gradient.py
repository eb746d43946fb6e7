"""FullGrad: its completeness theorem in float64, its terms by hand, and grad-cam's heatmaps."""

from collections.abc import Callable

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

from playing import images, network, play, residual
from shapleycam.full_gradient import full_grad, full_gradients
from shapleycam.network.weights import randomise
from shapleycam.theory.heatmap import heatmap

TARGETS = [4, 0, 1]


class InPlace(nn.Sequential):
    """Writes into what a bias was added to; has a norm without weights, a padded convolution, a transposed one without bias."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(inplace=True), nn.BatchNorm2d(6, affine=False),
            nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False), nn.ReLU6(inplace=False), nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3, groups=2), nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5),
        )  # fmt: skip


def in_place() -> nn.Module:
    made = InPlace()
    randomise(made, 0)
    return made.eval()


@pytest.mark.parametrize("make", [network, residual, in_place])
def test_gradients_of_input_and_biases_add_up_to_the_logit(make: Callable[[], nn.Module]) -> None:
    """Proposition 1 of Srinivas and Fleuret 2019; ReLU6 is linear with a constant, so logits stay below it here."""
    net, x = make().double(), images().double()
    found = full_gradients(play(net, "0" if make is not residual else "stem", x, TARGETS))
    expected = net(x).gather(1, torch.tensor(TARGETS)[:, None])[:, 0].detach()
    torch.testing.assert_close(found.total, expected, rtol=0, atol=1e-9)
    assert float((found.inputs.flatten(1).sum(1) - expected).abs().min()) > 1e-3  # the biases matter


def test_each_term_is_the_slope_of_the_logit_where_the_bias_is_added_times_the_bias() -> None:
    net, x = network().double(), images().double()
    found = full_gradients(play(net, "4", x, TARGETS))
    norm = net[1]
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    outputs = [net[:k](x) for k in (1, 2, 4, 8)]
    biases = [net[0].bias, shift, net[3].bias, net[7].bias]
    assert len(found.biases) == 4
    for share, k, output, bias in zip(found.biases, (1, 2, 4, 8), outputs, biases, strict=True):
        given = output.detach().requires_grad_()
        logits = net[k:](given)
        (slope,) = torch.autograd.grad(sum(logits[j, t] for j, t in enumerate(TARGETS)), given)
        expected = torch.zeros_like(slope)
        for channel in range(slope.shape[1]):
            expected[:, channel] = slope[:, channel] * float(bias[channel].detach())
        torch.testing.assert_close(share, expected)


def test_fullgrad_gives_grad_cams_heatmaps() -> None:
    net, x = network(), images()
    with pytorch_grad_cam.FullGrad(net, []) as rival:
        expected = torch.from_numpy(rival(x, [ClassifierOutputTarget(t) for t in TARGETS]))
    found = full_grad(play(net, "4", x, TARGETS))
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(heatmap(found, (12, 16)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("utility", ["rest", "post-softmax"])
def test_fullgrad_is_a_loop_over_channels(utility: str) -> None:
    net, x = network().double(), images().double()
    ground = play(net, "4", x, TARGETS, utility)
    found, terms = full_grad(ground), full_gradients(ground)
    for j in range(3):
        total = torch.zeros(12, 16).double()
        for channel in (*terms.inputs[j], *(c for share in terms.biases if share.ndim == 4 for c in share[j])):
            size = channel.abs()
            size = (size - size.min()) / ((size - size.min()).max() + 1e-7)
            total += F.interpolate(size[None, None], (12, 16), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found[j], total)
        assert float(total.std()) > 0.1


def test_fullgrad_leaves_no_gradient_and_writes_into_no_image() -> None:
    net, x = in_place(), images().requires_grad_()
    before = x.detach().clone()
    found = full_grad(play(net, "0", x, TARGETS))
    assert x.grad is None
    assert torch.equal(x, before)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not found.requires_grad


def test_layer_and_group_norms_biases_are_found_too() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.group, self.layer = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(4)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.group(self.conv(x)).movedim(1, -1)).mean((1, 2)))

    net = Norms().double().eval()
    randomise(net, 0)
    found = full_gradients(play(net, "conv", images().double(), TARGETS))
    assert [tuple(share.shape[1:]) for share in found.biases] == [(4, 10, 14), (4, 10, 14), (4, 10, 14), (5,)]
    for j, target in enumerate(TARGETS):
        expected = net.head.weight[target].detach() * net.layer.bias.detach()
        torch.testing.assert_close(found.biases[2][j].sum((1, 2)), expected)


class Windows(nn.Module):
    """A norm over the channels of maps, channels last, and one of windows, which lie nowhere on the image by themselves."""

    def __init__(self, windows: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.inner, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.Linear(4, 5),
        )
        self.windows = windows
        randomise(self, 0)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x).movedim(1, -1))
        if self.windows:
            b, h, w, n = maps.shape
            cut = maps.unflatten(1, (2, h // 2)).unflatten(3, (2, w // 2)).movedim(3, 2).flatten(0, 2)
            maps = self.inner(cut).view(b, 2, 2, h // 2, w // 2, n).movedim(2, 3).reshape(b, h, w, n)
        return self.head(maps.mean((1, 2)))


@pytest.mark.parametrize("windows", [False, True])
def test_biases_along_the_last_axis_of_maps_lie_on_the_image(windows: bool) -> None:
    net, x = Windows(windows), images().double()[:1]
    ground = play(net, "conv", x, TARGETS[:1])
    found = full_gradients(ground)
    assert found.biases[1].shape == (1, 4, 10, 14)
    wanted = torch.zeros(1, *x.shape[2:], dtype=torch.float64)
    for share in (found.inputs, *found.biases[:2]):
        for channel in share.abs().unbind(1):
            low = channel - channel.amin()
            coarse = (low / (low.amax() + 1e-7))[None]
            wanted += F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(full_grad(ground), wanted)
    assert found.total.shape == (1,)


def test_a_batch_norm_of_the_batchs_own_mean_adds_its_beta() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.LazyLinear(5)
    )
    net(images())
    randomise(net, 0)
    found = full_gradients(play(net.eval(), "0", images(), TARGETS))
    assert [tuple(share.shape[1:]) for share in found.biases] == [(4, 10, 14), (4, 10, 14), (5,)]


class Windowed(nn.Module):
    """Adds a bias to each of four windows by itself: a fourth axis that is no position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        b, n, h, w = maps.shape
        windows = maps.view(b, n, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(b, 4, -1, n)
        return self.head(self.norm(windows).relu().mean((1, 2)))


def test_biases_of_windows_that_keep_the_batch_are_left_out() -> None:
    net, x = Windowed().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    randomise(net, 0)
    ground = play(net, "conv", x, [0, 1])
    found = full_gradients(ground)
    assert [tuple(each.shape) for each in found.biases[:2]] == [(2, 4, 16, 16), (2, 4, 4, 64)]
    wanted = torch.zeros(2, 16, 16)
    for share in (found.inputs, found.biases[0]):
        sizes = share.abs()
        lifted = sizes - sizes.amin((2, 3), keepdim=True)
        wanted += (lifted / (lifted.amax((2, 3), keepdim=True) + 1e-7)).sum(1)
    torch.testing.assert_close(full_grad(ground), wanted)
