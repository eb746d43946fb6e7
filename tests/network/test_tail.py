"""The replayed tail: logits of other activation maps are those of the whole network whose target layer puts them out."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import shapleycam as sc
from network.replayed import NETWORKS, network, patched
from shapleycam.network.cut import CutNetwork
from shapleycam.network.weights import randomise


def images(b: int, size: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_like(net: nn.Module, x: Tensor, k: int, layer: str = "body", seed: int = 2) -> Tensor:
    """k random rows for each image, in the order in which a tail takes them."""
    own = CutNetwork(net, layer)(x)
    shape = own.leaf.shape
    return torch.randn(k * len(x), *shape[1:], generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def recorded(net: nn.Module, x: Tensor, layer: str = "body") -> Callable[[Tensor], Tensor]:
    tail = CutNetwork(net, layer)(x, replay=True).tail
    assert tail is not None
    return tail


@pytest.mark.parametrize("name", NETWORKS)
def test_replay_is_the_whole_network_with_a_patched_output(name: str) -> None:
    net = network(name)
    for k, b in product((1, 2, 3), repeat=2):
        x = images(b)
        maps, tail = maps_like(net, x, k), recorded(net, x.clone())
        kept = maps.clone()
        with torch.no_grad():
            wanted = patched(net, x, maps)
            torch.testing.assert_close(tail(maps), wanted, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(tail(maps), wanted, rtol=1e-10, atol=1e-12)  # nothing recorded was spoilt
        assert torch.equal(maps, kept)
        assert len(maps) == 1 or (wanted[0] - wanted[1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_replay_of_the_layers_own_output_is_the_network_bit_for_bit(name: str) -> None:
    net, x = network(name).float(), images(2).float()
    forward = CutNetwork(net, "body")(x, replay=True)
    assert forward.tail is not None
    with torch.no_grad():
        wanted = net(x.clone())
        assert torch.equal(forward.logits, wanted)
        assert torch.equal(forward.tail(forward.leaf), wanted)
        assert torch.equal(CutNetwork(net, "body").tail(x)(forward.leaf), wanted)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_through_a_replay_are_those_of_the_whole_network(name: str, k: int) -> None:
    """And second derivatives, twice; all but the maps' own stay None."""
    net, x = network(name), images(2)
    maps = maps_like(net, x, k)
    tail, found = CutNetwork(net, "body")(x, second_order=True, replay=True).tail, []
    assert tail is not None
    for logits in (tail, tail, lambda maps: patched(net, x, maps)):
        leaf = maps.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            (slope,) = torch.autograd.grad(logits(leaf).softmax(1)[:, 0].sum(), leaf, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, leaf, maps)
        found.append((slope.detach(), curvature))
    for first, second, wanted in zip(*found, strict=True):
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(first, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(second, wanted, rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_callers_grad_mode_changes_no_number(mode: Callable[[], Any]) -> None:
    net, x = network("added in place"), images(2)
    with mode():
        given = images(2)
        tail = recorded(net, given)
        maps = maps_like(net, given, 3)
        got = tail(maps)
    torch.testing.assert_close(got.detach(), patched(net, x, maps.clone()).detach(), rtol=1e-10, atol=1e-12)
    assert not tail(maps_like(net, x, 1)).is_inference()  # and the tail is as good outside of the mode


class Counted(nn.Conv2d):
    """A convolution that counts its runs, in whichever copy."""

    def __init__(self, inputs: int, outputs: int, runs: list[int]) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.count = runs.append

    def forward(self, x: Tensor) -> Tensor:
        self.count(1)
        return super().forward(x)


def test_head_does_not_run_again_wherever_the_target_is_nested() -> None:
    head: list[int] = []
    tail: list[int] = []

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body, self.last = Counted(4, 4, head), nn.Conv2d(4, 4, 1), Counted(4, 4, tail)
            self.skip = nn.Sequential(Counted(4, 4, head), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            skip = self.skip(x)
            return self.last(self.body(self.first(x).relu_())) + skip

    stem = nn.Sequential(nn.Sequential(Counted(3, 4, head), nn.ReLU()), nn.ModuleDict({"unused": nn.ReLU()})["unused"])
    net = nn.Sequential(stem, nn.Sequential(nn.Identity(), Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    randomise(net, 0)
    net.double().eval()
    x = images(2)
    replay = recorded(net, x, "1.1.body")
    assert (len(head), len(tail)) == (3, 1)
    maps = maps_like(net, x, 3, "1.1.body")
    head.clear()
    tail.clear()
    got = [replay(maps) for _ in range(4)]
    assert (len(head), len(tail)) == (0, 4)
    torch.testing.assert_close(got[-1], patched(net, x, maps, "1.1.body"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hooked", ["stem", "body", "after", "list.0", ""])
def test_hooks_of_the_users_count_once(hooked: str) -> None:
    net, x = network("inception"), images(2)
    net.get_submodule(hooked).register_forward_hook(lambda module, given, output: 3 * output)
    net.get_submodule(hooked).register_forward_pre_hook(lambda module, given: (2 * given[0],))
    maps = maps_like(net, x, 2)
    torch.testing.assert_close(recorded(net, x)(maps), patched(net, x, maps), rtol=1e-10, atol=1e-12)


def test_channels_last_maps_go_back_to_the_layout_of_their_layer() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    net = nn.Sequential(nn.Conv2d(3, 5, 1), Last(), nn.Linear(5, 4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    randomise(net, 0)
    net.double().eval()
    x = images(2)
    assert CutNetwork(net, "1")(x).layer.layout == "bhwn"
    maps = maps_like(net, x, 2, "1")
    assert maps.shape == (4, 5, 6, 6)
    wanted = patched(net, x, maps.permute(0, 2, 3, 1), "1")
    torch.testing.assert_close(recorded(net, x, "1")(maps), wanted, rtol=1e-10, atol=1e-12)


def test_threads_share_a_tail() -> None:
    net, x = network("added to the skip"), images(2)
    tail = recorded(net, x)
    rows = [maps_like(net, x, k, seed=seed) for seed in range(8) for k in (1, 2, 3)]
    with torch.no_grad():
        wanted = [patched(net, x, maps) for maps in rows]
    with ThreadPoolExecutor(4) as pool:
        for got, each in zip(pool.map(tail, rows * 4), wanted * 4, strict=True):
            torch.testing.assert_close(got.detach(), each, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_another_number_of_rows_than_a_multiple_of_the_images_is_refused(rows: int) -> None:
    words = rf"got maps of shape \({rows}, 4, 6, 6\), expected rows of 4x6x6, as many for each of 2 images"
    with pytest.raises(ValueError, match=words):
        recorded(network("added"), images(2))(torch.zeros(rows, 4, 6, 6, dtype=torch.float64))


def test_maps_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got maps of shape \(2, 9, 6, 6\), expected rows of 4x6x6"):
        recorded(network("inception"), images(2))(torch.zeros(2, 9, 6, 6, dtype=torch.float64))


def test_replays_leave_the_model_and_the_images_as_they_were() -> None:
    net, x = network("images_again"), images(2)
    net.train()
    state, kept = copy.deepcopy(net.state_dict()), x.clone()
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    tail = recorded(net, x)
    tail(maps_like(net, x, 2).requires_grad_()).sum().backward()
    assert torch.equal(x, kept)
    for name, module in net.named_modules():
        assert {key: value for key, value in vars(module).items() if key != "_parameters"} == {
            key: value for key, value in before[name].items() if key != "_parameters"
        }
        assert module.training
        assert not module._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.is_grad_enabled()


class Encoded(nn.Module):
    """A class token and PyTorch's own encoder layer, which without a graph runs past its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.zeros(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        return self.head(self.layer(tokens)[:, 0])


@pytest.mark.parametrize("grad", [True, False])
def test_an_encoder_layer_that_runs_past_its_parts_takes_the_maps_of_a_replay(grad: bool) -> None:
    net, x = Encoded(), images(1, 8).float()
    randomise(net, 0)
    net.eval().requires_grad_(grad)
    game = sc.game(net, x, layer="layer.norm1", players=2)
    with torch.no_grad():
        forward = CutNetwork(net, "layer.norm1", sc.Layout("btn", (4, 4), 1))(x, replay=True)
        assert forward.tail is not None
        maps = torch.cat([forward.leaf, torch.zeros_like(forward.leaf)])
        whole = copy.deepcopy(net)
        kept: list[Tensor] = []
        whole.layer.norm1.register_forward_hook(lambda module, given, output: kept.append(output) or output)
        whole(x)
        given = forward.layer.put_back(maps, kept[0])
        handle = whole.layer.norm1.register_forward_hook(lambda module, args, output: given)
        wanted = whole(x.repeat(2, 1, 1, 1))
        handle.remove()
        torch.testing.assert_close(forward.tail(maps), wanted)
    assert abs(float(game.full - game.empty)) > 1e-3
    assert len(set(sc.exact(game).values.tolist())) == 4


def test_a_part_that_runs_data_parallel_is_cut_by_the_name_that_is_found() -> None:
    net, x = network("added"), images(2)
    inner = nn.Sequential(net.body)
    expected = recorded(net, x)(maps_like(net, x, 2))
    net.body = nn.DataParallel(inner)
    maps = torch.randn(4, *CutNetwork(net, "body.module.0")(x).leaf.shape[1:], generator=torch.Generator().manual_seed(2),
                       dtype=x.dtype)  # fmt: skip
    torch.testing.assert_close(recorded(net, x, "body.module.0")(maps), expected)
