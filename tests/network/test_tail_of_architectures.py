"""The replayed tail of the zoo's networks and of timm's odder families, against the whole network with a patched output."""

import pytest
import timm
import torch
from torch import Tensor, nn

import shapleycam as sc
from network.replayed import patched
from shapleycam.network.cut import CutNetwork
from shapleycam.network.weights import randomise

pytestmark = pytest.mark.large


def images(b: int, size: int) -> Tensor:
    return torch.randn(b, 3, size, size, generator=torch.Generator().manual_seed(1))


def check(net: nn.Module, x: Tensor, layer: str) -> None:
    own = CutNetwork(net, layer)(x, replay=True)
    assert own.tail is not None
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2 * len(x), 1, *own.layer.positions, generator=generator) < 0.5
    maps = own.leaf.detach().repeat(2, *[1] * (own.leaf.ndim - 1)) * keep
    outputs: list[Tensor] = []
    with torch.no_grad():
        handle = net.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output))
        net(x)
        handle.remove()
        given = own.layer.put_back(maps, outputs[0])
        wanted = patched(net, x, given, layer)
        assert (wanted[: len(x)] - wanted[len(x) :]).abs().max() > 1e-4 * wanted.abs().max()
        for _ in range(2):
            torch.testing.assert_close(own.tail(maps), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
        torch.testing.assert_close(own.tail(maps[:2]), wanted[:2], rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


LARGER = {"resnet101", "resnet152", "swin_s", "swin_b", "swin_l", "efficientnet_lite1", "efficientnet_lite2"}
"""More of the same blocks as others of the zoo."""


@pytest.mark.parametrize("name", sorted(sc.ZOO.keys() - LARGER))
def test_replay_of_the_zoos_networks_is_the_whole_network(name: str) -> None:
    model = sc.load_model(name, weights="random")
    for layer in model.layers.values():
        check(model.module, images(2, model.preprocess.size[0]), layer)


SMALLER = {"nasnetalarge": {"stem_size": 32, "num_features": 960}}
FAMILIES = ["densenet121", "inception_v3", "ghostnet_100", "coat_tiny", "res2net50_26w_4s", "hrnet_w18_small", "dla34"]
FAMILIES += ["xcit_nano_12_p16_224", "mobilevit_xxs", "nasnetalarge"]


@pytest.mark.parametrize("name", FAMILIES)
def test_replay_of_timms_odder_families_is_the_whole_network(name: str) -> None:
    net = timm.create_model(name, num_classes=7, **SMALLER.get(name, {}))
    randomise(net, 0)
    x = images(2, net.default_cfg["input_size"][1] if "fixed_input_size" in net.default_cfg else 128)
    found = sc.layers(net.eval(), x[:1])
    for place in (len(found) // 3, len(found) // 2, 4 * len(found) // 5):
        check(net, x, found[place].name)
