"""Networks of every kind, explained with no argument but the model: tokens, signals, volumes, many inputs, other outputs."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from small import living, noise
from unchecked import library

Inputs, Layout, explain, game, suggest_layers = (
    library.Inputs, library.Layout, library.explain, library.game, library.suggest_layers,
)  # fmt: skip


def vit(**options: Any) -> nn.Module:
    return living(VisionTransformer(32, 8, num_classes=5, embed_dim=12, depth=3, num_heads=3, **options))


def by_hand(network: nn.Module, layer: str, x: Tensor, target: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """GradCAM and HiResCAM of one image from hooks of our own: (2, *positions); `read` gives (n, *positions)."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, given, output: kept.append(output.detach().requires_grad_()) or kept[-1]
    )
    y = network(x)[0]
    handle.remove()
    (slope,) = torch.autograd.grad(y[target] + y.log_softmax(0)[target], kept[0])
    maps, slopes = read(kept[0].detach()), read(slope)
    means = slopes.flatten(1).mean(1).view(-1, *[1] * (maps.ndim - 1))
    return torch.stack([(means * maps).sum(0), (slopes * maps).sum(0)])


@pytest.mark.parametrize(("registers", "distilled"), [(0, False), (3, False), (4, False)])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_a_vits_patches_are_explained_and_its_prefix_is_left_alone(
    registers: int, distilled: bool, size: tuple[int, int]
) -> None:
    network = vit(reg_tokens=registers, dynamic_img_size=True)
    x = noise(2, 3, *size)
    grid, prefix = (size[0] // 8, size[1] // 8), 1 + registers
    out = explain(network, x, methods=["GradCAM", "HiResCAM"])
    assert (out.layer.name, out.layer.positions, out.layer.prefix) == ("blocks.2.norm1", grid, prefix)
    for image, target in enumerate(out.targets.tolist()):
        wanted = by_hand(
            network, "blocks.2.norm1", x[image : image + 1], target, lambda t: t[0, prefix:].T.unflatten(1, grid)
        )
        for name, each in zip(("GradCAM", "HiResCAM"), wanted, strict=True):
            torch.testing.assert_close(out.explanations[name][image], each, rtol=1e-9, atol=1e-12)
    assert out.heatmaps["GradCAM"].shape == (2, *size)


def test_hx_of_tokens_is_that_of_the_patches_alone() -> None:
    network, x = vit(), noise(1, 3, 32, 32)
    out = explain(network, x, layer="blocks.1", methods="ShapleyCAM-H", targets=2)

    def utility(patches: Tensor) -> Tensor:
        tokens = torch.cat([prefix, patches], 1)
        y = network.forward_head(network.norm(network.blocks[2](tokens)))[0]
        return y[2] + y.log_softmax(0)[2]

    kept: list[Tensor] = []
    handle = network.blocks[1].register_forward_hook(lambda module, given, output: kept.append(output.detach()))
    network(x)
    handle.remove()
    prefix, patches = kept[0][:, :1], kept[0][:, 1:]
    step = 1e-4
    slopes = []
    for share in (1 + step, 1, 1 - step):
        at = (share * patches).requires_grad_()
        slopes.append(torch.autograd.grad(utility(at), at)[0])
    hx = (slopes[0] - slopes[2]) / (2 * step)
    wanted = ((slopes[1] - hx / 2) * patches).sum(2).view(1, 4, 4)
    torch.testing.assert_close(out.explanations["ShapleyCAM-H"], wanted, rtol=1e-5, atol=1e-8)


def test_a_game_between_patches_keeps_the_class_token() -> None:
    network, x = vit(), noise(1, 3, 32, 32)
    played = game(network, x, layer="blocks.1", target=2, players=2)
    coalitions = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    kept = coalitions[:, torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).flatten()]
    for row, wanted in zip(kept, played.worth(coalitions), strict=True):
        handle = network.blocks[1].register_forward_hook(
            lambda module, given, output, row=row: torch.cat([output[:, :1], output[:, 1:] * row[:, None]], 1)
        )
        y = network(x)[0]
        handle.remove()
        torch.testing.assert_close(y[2] + y.log_softmax(0)[2], wanted, rtol=1e-9, atol=1e-12)


def test_tokens_without_a_prefix_are_replayed() -> None:
    network, x = vit(class_token=False, global_pool="avg"), noise(2, 3, 32, 32)
    out = explain(network, x, layer="blocks.2.norm1", methods="AumannCAM-H", nodes=32)
    assert (out.layer.prefix, out.layer.positions) == (0, (4, 4))
    assert (out.efficiency_gap["AumannCAM-H"] < 1e-4).all()
    played = game(network, x[:1], layer="blocks.2.norm1", players=2, target=int(out.targets[0]))
    total = library.exact(played).values.sum()
    torch.testing.assert_close(total, (out.full - out.empty)[0], rtol=1e-9, atol=1e-9)


def test_path_values_of_tokens_add_up() -> None:
    out = explain(vit(), noise(2, 3, 32, 32), methods="AumannCAM-H", nodes=32)
    assert (out.efficiency_gap["AumannCAM-H"] < 1e-4).all()


def test_the_last_block_of_a_vit_has_no_gradient_at_its_patches_and_says_so() -> None:
    network, x = vit(), noise(1, 3, 32, 32)
    best, *others = suggest_layers(network, x)
    assert (best.layer.name, best.why) == (
        "blocks.2.norm1",
        "the last layer whose positions the prediction depends on; at norm, which ends later, U' is zero",
    )
    blind = {each.layer.name: each for each in others}["blocks.2"]
    assert blind.gradient == 0
    assert "a class token alone is read behind it" in blind.why
    assert explain(network, x, layer="blocks.2", methods="GradCAM").explanations["GradCAM"].abs().max() == 0


def test_a_swin_is_explained_at_its_last_norm() -> None:
    network = living(SwinTransformer(32, 2, num_classes=5, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4))
    out = explain(network, noise(1, 3, 32, 32), methods=["GradCAM", "HiResCAM"])
    assert (out.layer.name, out.layer.layout) == ("norm", "bhwn")
    wanted = by_hand(network, "norm", noise(1, 3, 32, 32), int(out.targets), lambda t: t[0].movedim(-1, 0))
    torch.testing.assert_close(torch.cat([*out.explanations.values()]), wanted, rtol=1e-9, atol=1e-12)


def signals() -> nn.Module:
    return living(
        nn.Sequential(
            nn.Conv1d(2, 8, 5), nn.ReLU(), nn.Conv1d(8, 6, 5, stride=2), nn.GELU(), nn.AdaptiveAvgPool1d(1),
            nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip


def volumes() -> nn.Module:
    return living(
        nn.Sequential(
            nn.Conv3d(1, 4, 3, stride=2), nn.GELU(), nn.Conv3d(4, 6, 3), nn.GELU(), nn.AdaptiveAvgPool3d(1),
            nn.Flatten(), nn.Linear(6, 4),
        )
    )  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), [(signals, (2, 2, 40)), (volumes, (2, 1, 12, 16, 14))])
def test_signals_and_volumes_are_explained_in_their_own_axes(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network, x = make(), noise(*shape)
    out = explain(network, x, methods=["GradCAM", "HiResCAM"])
    assert out.layer.name == "3"
    for image, target in enumerate(out.targets.tolist()):
        wanted = by_hand(network, "3", x[image : image + 1], target, lambda t: t[0])
        torch.testing.assert_close(
            torch.stack([each[image] for each in out.explanations.values()]), wanted, rtol=1e-9, atol=1e-12
        )
    h = out.heatmaps["HiResCAM"]
    coarse = out.explanations["HiResCAM"].relu()
    mode = "linear" if len(shape) == 3 else "trilinear"
    smooth = F.interpolate(coarse[:, None], shape[2:], mode=mode)[:, 0]
    low, high = (reduce(smooth.flatten(1), 1).view(-1, *[1] * (len(shape) - 2)) for reduce in (torch.amin, torch.amax))
    torch.testing.assert_close(h, (smooth - low) / (high - low), rtol=0, atol=1e-5)
    played = game(network, x[:1], players=2)
    assert played.players == 2 ** (len(shape) - 2)
    found = library.exact(played).values
    torch.testing.assert_close(found.sum(), played.full - played.empty, rtol=1e-9, atol=1e-9)


class Unordered(nn.Module):
    """Its layers are registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 5), nn.Conv1d(8, 6, 5, stride=2)
        self.classes = nn.Linear(6, 4)
        self.act, self.last = nn.ReLU(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.last(self.second(self.act(self.first(x))))
        classes: Tensor = self.classes(maps.mean(2))
        return classes


def test_maps_of_a_signal_are_read_by_what_ran_before_not_by_what_was_registered_before() -> None:
    network, x = living(Unordered()), noise(1, 2, 40)
    given = {"methods": ["GradCAM", "HiResCAM"], "targets": 2}
    out, named = explain(network, x, **given), explain(network, x, layer="last", **given)
    assert (out.layer.name, out.layer.layout, named.layer.layout) == ("last", "bnt", "bnt")
    wanted = by_hand(network, "last", x, 2, lambda t: t[0])
    for each in (out, named):
        torch.testing.assert_close(torch.cat([*each.explanations.values()]), wanted, rtol=1e-9, atol=1e-12)
    assert {layer.name: layer.layout for layer in library.layers(network, x)} == dict.fromkeys(
        ("first", "act", "second", "last"), "bnt"
    )


def test_a_signals_class_token_is_no_player() -> None:
    class Ecg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.cls_token = nn.Conv1d(2, 8, 20, 20), nn.Parameter(noise(1, 1, 8))
            self.norm, self.mix, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patches(x).mT], 1)
            tokens = self.norm(tokens)
            return self.head((tokens + self.mix(tokens.mean(1, keepdim=True)).tanh())[:, 0])

    layer = explain(living(Ecg()), noise(1, 2, 1000), methods="GradCAM").layer
    assert (layer.name, layer.positions, layer.prefix) == ("norm", (50,), 1)


def test_a_layer_that_may_lie_on_several_grids_is_not_passed_over_for_an_earlier_one() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.extra, self.norm = nn.Conv2d(3, 8, 16, 16), nn.Parameter(noise(1, 1, 8)), nn.LayerNorm(8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.extra, self.patches(x).flatten(2).mT], 1)
            return self.head(self.norm(tokens).mean(1))

    with pytest.raises(
        ValueError, match=r"layer 'norm' puts out \(1, 10, 8\), .* or Layout\(\"btn\", positions=\(2, 2\), prefix=6\)"
    ):
        explain(living(Tokens()), noise(1, 3, 48, 48))


def test_patches_with_a_square_number_of_maps_lie_where_the_tokens_do() -> None:
    network, x = (
        living(VisionTransformer(32, 4, num_classes=5, embed_dim=16, depth=2, num_heads=2)),
        noise(1, 3, 32, 32),
    )
    layer = explain(network, x, layer="patch_embed", methods="GradCAM").layer
    assert (layer.layout, layer.maps, layer.positions) == ("btn", 16, (8, 8))


class Masked(nn.Module):
    """Two inputs, one of them by keyword, and several outputs."""

    def __init__(self, put_out: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Linear(6, 4)
        self.put_out = put_out

    def forward(self, image: Tensor, *, scale: Tensor) -> Any:
        maps = self.act(self.conv(image))
        return self.put_out(self.head((maps * scale[:, :, None, None]).mean((2, 3))))


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda y: y,
    "a tuple": lambda y: (y, y.sum()),
    "a tuple with another tensor first": lambda y: (y.sum(), y),
    "a dict": lambda y: {"features": y[:, :2], "logits": y},
    "an object": lambda y: SimpleNamespace(loss=None, logits=y),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_inputs_by_keyword_and_outputs_of_every_kind(name: str) -> None:
    network, x, scale = living(Masked(OUTPUTS[name])), noise(2, 3, 12, 12), noise(2, 6, seed=2)
    plain = living(Masked(OUTPUTS["a tensor"]))
    wanted = torch.stack(
        [by_hand(_Given(plain, scale[i : i + 1]), "network.act", x[i : i + 1], 1, lambda t: t[0]) for i in range(2)], 1
    )
    for given in (Inputs(x, scale=scale), {"image": x, "scale": scale}):
        out = explain(network, given, methods=["GradCAM", "HiResCAM", "AumannCAM-H"], targets=1)
        assert out.layer.name == "act"
        torch.testing.assert_close(out.explanations["GradCAM"], wanted[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out.explanations["HiResCAM"], wanted[1], rtol=1e-9, atol=1e-12)
        assert (out.efficiency_gap["AumannCAM-H"] < 1e-6).all()
        played = game(network, given.__class__(image=x[:1], scale=scale[:1]), players=2, target=1)
        total = library.exact(played).values.sum()
        torch.testing.assert_close(total, (out.full - out.empty)[0], rtol=1e-9, atol=1e-9)


class _Given(nn.Module):
    def __init__(self, network: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Any:
        return self.network(x, scale=self.scale)


def test_output_is_taken_by_a_function_of_the_callers() -> None:
    network, x = living(Masked(lambda y: {"deep": [y, -y]})), noise(2, 3, 12, 12)
    given = Inputs(x, scale=torch.ones(2, 6).double())
    with pytest.raises(
        TypeError, match=r"the network puts out a dict, expected a tensor of logits .* pass output=function"
    ):
        explain(network, given, layer="act")
    found = explain(
        network, given, output=lambda out: out["deep"][1], targets=0, utility="pre-softmax", methods="GradCAM"
    )
    other = explain(
        network, given, output=lambda out: out["deep"][0], targets=0, utility="pre-softmax", methods="GradCAM"
    )
    torch.testing.assert_close(found.explanations["GradCAM"], -other.explanations["GradCAM"], rtol=1e-9, atol=1e-12)


def test_several_layers_give_an_explanation_each_and_their_mean() -> None:
    network, x = vit(), noise(2, 3, 32, 32)
    out = explain(network, x, layer=["blocks.0", network.blocks[1]], methods=["GradCAM", "LayerCAM"])
    assert list(out.layers) == ["blocks.0", "blocks.1"]
    for name in ("GradCAM", "LayerCAM"):
        alone = [explain(network, x, layer=layer, methods=name).heatmaps[name] for layer in ("blocks.0", "blocks.1")]
        assert torch.equal(out.heatmaps[name], torch.stack(alone).mean(0))
        product = alone[0] * alone[1]
        low, high = (reduce(product.flatten(1), 1)[:, None, None] for reduce in (torch.amin, torch.amax))
        torch.testing.assert_close(out.refined[name], (product - low) / (high - low), rtol=0, atol=1e-5)
    assert torch.equal(out.targets, out.layers["blocks.0"].targets)
    with pytest.raises(ValueError, match="layer is an empty list; expected one or more layers"):
        explain(network, x, layer=[])


def test_a_network_without_maps_says_so() -> None:
    network = living(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 7), nn.GELU(), nn.Linear(7, 3)))
    with pytest.raises(ValueError, match=r"no layer of Sequential puts out maps of more than one position .* layer="):
        explain(network, noise(1, 3, 8, 8))


def test_a_network_whose_layers_run_for_two_images_says_why_none_of_them_is_taken() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            one, other = (self.backbone(each).mean((2, 3)) for each in (images, images.flip(3)))
            return self.head((one - other).abs())

    with pytest.raises(ValueError, match="'backbone' runs several times in a forward pass; explain a module that"):
        library.explain(Siamese().eval(), torch.randn(1, 3, 9, 9))


@pytest.mark.parametrize("given", ["cat.jpg", None, [1, 2]])
def test_inputs_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"images is a {type(given).__name__}, expected a tensor \(b, channels, H, W\)"
    ):
        explain(signals(), given)


def test_inputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match="the inputs hold no tensor"):
        Inputs(1, mask=None)


def test_a_signal_for_an_image_network_is_refused() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    with pytest.raises(
        ValueError, match=r"shape \(3, 8, 8\), expected a batch \(b, channels, H, W\); use images\[None\]"
    ):
        explain(network, noise(3, 8, 8))


# What strangers met


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [vit, lambda: signals()])
def test_the_layer_is_found_without_autograd_around(
    make: Callable[[], nn.Module], surrounding: Callable[[], Any]
) -> None:
    network = make()
    x = noise(1, 2, 40) if isinstance(network, nn.Sequential) else noise(1, 3, 32, 32)
    wanted = explain(network, x)
    with surrounding():
        found = explain(network, x)
        assert suggest_layers(network, x)[0].layer == replace(wanted.layer, reason="")
    assert torch.equal(found.heatmaps["ShapleyCAM"], wanted.heatmaps["ShapleyCAM"])


def test_methods_of_the_maps_and_of_the_image_are_measured_together() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    x, names = noise(2, 3, 12, 12), ["GradCAM", "FullGrad", "EigenCAM"]
    found = library.measure(network, x, methods=names)
    for place, name in enumerate(names):
        alone = library.measure(network, x, methods=name)
        torch.testing.assert_close(found.kept[:, place], alone.kept[:, 0], rtol=0, atol=1e-9)
        torch.testing.assert_close(found.coherency[:, place], alone.coherency[:, 0], rtol=0, atol=1e-9)


class TwoTowers(nn.Module):
    """Pictures and texts: as many texts as pictures, whose tokens would fit on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 3), nn.GELU()
        self.words, self.place, self.norm = nn.Embedding(9, 6), nn.Embedding(5, 6), nn.LayerNorm(6)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        seen = self.act(self.conv(pixels)).mean((2, 3))
        read = self.norm(self.words(tokens) + self.place(torch.arange(5)[None].expand(len(tokens), -1))).mean(1)
        return seen @ read.T


def test_layers_that_know_nothing_of_the_image_are_not_suggested() -> None:
    network = living(TwoTowers())
    given = {"pixels": noise(2, 3, 12, 12), "tokens": torch.tensor([[1, 2, 3, 4, 5], [2, 4, 6, 8, 0]])}
    names = [each.layer.name for each in suggest_layers(network, given)]
    assert names == ["act", "conv"]
    assert explain(network, given).layer.name == "act"


class Boxes(nn.Module):
    """A detector's head: (b, boxes, classes) beside the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.act, self.head, self.flat = nn.Conv2d(3, 5, 3), nn.GELU(), nn.Conv2d(5, 4, 1), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        boxes = self.flat(self.head(self.act(self.maps(x))).flatten(2).mT)  # (b, boxes, 4)
        return boxes.amax(1)


def test_a_detectors_classes_are_no_grid() -> None:
    names = [each.layer.name for each in suggest_layers(living(Boxes()), noise(1, 3, 11, 15))]
    assert names[0] == "head"
    assert "flat" not in names or names.index("flat") > 0


def test_a_layout_that_does_not_fit_is_named() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    with pytest.raises(ValueError, match=r'which layout=Layout\("btn"\) does not fit; leave layout out'):
        explain(network, noise(1, 3, 12, 12), layer="1", layout="btn")


def test_a_blind_layer_of_a_vit_says_why() -> None:
    out = explain(vit(), noise(1, 3, 32, 32), layer="blocks.2", methods="GradCAM")
    assert "a class token alone is read behind it; take a layer before" in str(out.warnings[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": None}, r"methods is None, expected names; None is a NoneType"),
        ({"methods": ["GradCAM", 3]}, r"expected names; 3 is a int"),
        ({"layer": 3}, r"layer is a int, expected a dotted name, a submodule, or a list of them"),
        ({"layer": [3]}, r"layer is a int, expected a dotted name"),
        ({"output": "logits"}, r"output is a str, expected a function of what the network puts out"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        explain(signals(), noise(1, 2, 40), **options)


@pytest.mark.parametrize("samples", [-1, 2.5, "a"])
def test_samples_that_are_no_number_are_refused(samples: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of noisy images, 0 for none"):
        explain(signals(), noise(1, 2, 40), samples=samples)


def test_samples_average_over_noise_and_say_how_much_it_matters() -> None:
    network, x = signals(), noise(2, 2, 40)
    out = explain(network, x, methods=["GradCAM", "RandomCAM"], samples=4, level=0.1, layer="3")
    again = explain(network, x[1:], methods=["GradCAM", "RandomCAM"], samples=4, level=0.1, layer="3")
    for name in ("GradCAM", "RandomCAM"):
        torch.testing.assert_close(out.explanations[name][1:], again.explanations[name], rtol=1e-9, atol=1e-12)
        assert (out.deviations[name] > 0).all()
    plain = explain(network, x, methods="GradCAM", layer="3").explanations["GradCAM"]
    gap = (out.explanations["GradCAM"] - plain).abs()
    assert 0 < gap.max() < 3 * out.deviations["GradCAM"].max()


def lenet() -> nn.Module:
    """Convolutions that do not pad: on oblong images its maps have other proportions."""
    return living(
        nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(16 * 5 * 29, 5),
        )
    )  # fmt: skip


def test_maps_of_an_oblong_image_may_have_other_proportions() -> None:
    out = library.explain(lenet(), noise(1, 1, 32, 128))
    assert (out.layer.name, out.layer.layout, out.layer.positions) == ("5", "bnhw", (5, 29))


class Standardised(nn.Conv2d):
    """A convolution of another class, as timm has several."""


def test_one_image_is_known_by_convolutions_of_any_class() -> None:
    network = living(
        nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Unflatten(1, (1, 4)),
                      nn.Conv1d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(4, 5))
    )  # fmt: skip
    assert library.game(network, noise(3, 8, 8), layer="1").players > 0
    with pytest.raises(ValueError, match=r"images has shape \(3, 8, 8\), expected a batch .*; use images\[None\]"):
        library.explain(network, noise(3, 8, 8), layer="1")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_methods_that_search_give_numbers_in_float32(dtype: torch.dtype) -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    )
    with torch.no_grad():
        network[0].bias[1] = -100  # a dead map
    methods = ["ScoreCAM", "AblationCAM", "IntegratedGradients", "FullGrad"]
    out = library.explain(network.to(dtype), noise(2, 3, 8, 8).to(dtype), layer="1", methods=methods)
    for each in (*out.explanations.values(), *out.heatmaps.values()):
        assert each.dtype == torch.float32
        assert each.isfinite().all()
        assert each.abs().max() > 0


def test_the_mean_over_noisy_images_is_no_share_of_one() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    )
    options: dict[str, Any] = {"layer": "1", "methods": "AumannCAM"}
    assert library.explain(network, noise(1, 3, 8, 8), **options).efficiency_gap["AumannCAM"].item() < 1e-3
    assert library.explain(network, noise(1, 3, 8, 8), samples=2, **options).efficiency_gap["AumannCAM"].isnan().all()


class Norm(nn.Module):
    """The size of each map: without a slope where nothing is active."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.pow(2).mean((2, 3)).sqrt()


def test_the_path_needs_no_slope_where_nobody_plays() -> None:
    network = living(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), Norm(), nn.Linear(4, 5)))
    out = library.explain(network, noise(2, 3, 8, 8), layer="1", methods="AumannCAM-H", utility="pre-softmax")
    assert out.explanations["AumannCAM-H"].isfinite().all()
    assert out.efficiency_gap["AumannCAM-H"].max() < 1e-6


def test_more_nodes_lose_nothing_in_half_precision() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    )
    x = noise(1, 3, 34, 34)
    with torch.no_grad():
        network[4].weight *= 1e-3
    options: dict[str, Any] = {"layer": "1", "methods": "AumannCAM", "utility": "pre-softmax", "targets": 0}
    wanted = library.explain(network, x, **options).explanations["AumannCAM"]
    for nodes in (8, 256):
        half = library.explain(network.half(), x.half(), nodes=nodes, **options).explanations["AumannCAM"]
        assert (half.double() - wanted).norm() < 0.05 * wanted.norm()


def test_one_picture_is_an_image_for_a_network_without_convolutions() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(48, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            cut = x.unflatten(2, (4, 4)).unflatten(4, (4, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
            return self.head(self.embed(cut).mean(1))

    network = living(Patches())
    assert library.game(network, noise(3, 16, 16), layer="embed").players == 16
    assert library.game(network, noise(1, 3, 16, 16), layer="embed").players == 16


def test_a_contrast_of_a_class_that_is_not_there_is_refused() -> None:
    network = living(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    )
    with pytest.raises(ValueError, match="targets 7 are out of range; the network has classes 0 to 4"):
        library.explain(network, noise(1, 3, 8, 8), layer="1", utility=library.contrast(a=7))


def test_the_attention_of_a_vision_transformer_is_no_map() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.attend = nn.LayerNorm(8), nn.Linear(8, 24), nn.Softmax(dim=-1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return x + (self.attend(q @ k.mT) @ v).transpose(1, 2).flatten(2)

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.zeros(1, 1, 8))
            self.blocks, self.head = nn.Sequential(Attention(), Attention()), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
            return self.head(self.blocks(tokens)[:, 0])

    best = suggest_layers(living(Vit()), noise(1, 3, 32, 32))[0].layer
    assert (best.name, best.positions, best.prefix) == ("blocks.1.norm", (4, 4), 1)


def test_a_network_of_several_outputs_that_may_be_logits_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.maps(x).relu().mean((2, 3))
            return features, self.head(features)

    network, x = living(Both()), noise(2, 3, 12, 12)
    with pytest.raises(ValueError, match=r"several tensors that may be the logits, \(2, 6\), \(2, 4\); pass output="):
        explain(network, x, layer="maps")
    out = explain(network, x, layer="maps", output=lambda both: both[1], methods="GradCAM")
    assert out.logits.shape == (2, 4)
    for metric in (library.insertion, library.deletion):
        assert metric(network, x, out.heatmaps["GradCAM"], out.targets, steps=2, output=lambda both: both[1]).shape == (
            2,
        )


def test_an_embedding_as_wide_as_the_last_maps_is_explained_at_these() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"embedding": self.last(self.first(x).relu()).mean((2, 3))}

    out = explain(living(Embedding()), noise(1, 3, 12, 12), output=lambda y: y["embedding"], methods="GradCAM")
    assert out.layer.name == "last"


def test_tokens_that_lie_window_by_window_are_refused() -> None:
    network = living(
        Hiera((64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), mask_unit_size=(4, 4), num_classes=5)
    )
    x = noise(1, 3, 64, 64)
    order = network.unroll(torch.arange(256).view(1, 256, 1))  # type: ignore[operator]
    assert order[0, :4, 0].tolist() == [0, 8, 128, 136]
    for layer in ("blocks.0", "blocks.1", "blocks.2", "blocks.3.norm1"):
        with pytest.raises(ValueError, match=r"window by window, not row by row.*its last stage.*blocks.3"):
            explain(network, x, layer=layer)
    found = [each.layer for each in suggest_layers(network, x)]
    assert (found[0].name, found[0].positions) == ("blocks.3", (2, 2))
    assert {each.positions for each in found if each.layout == "btn"} == {(2, 2)}
    named = explain(network, x, layer="patch_embed", layout=Layout("btn", positions=(16, 16))).layer
    assert named.positions == (16, 16)  # these lie row by row, and the caller says so


def test_a_few_queries_that_lie_on_no_grid_do_not_hide_the_maps_they_look_at() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.queries = nn.Conv2d(3, 8, 4, 4), nn.Parameter(noise(1, 10, 8))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.maps(x).relu().flatten(2)
            seen = (self.queries @ maps).softmax(-1) @ maps.mT
            return self.head(self.norm(self.queries + seen))[..., 0]

    assert explain(living(Queries()), noise(1, 3, 96, 96), methods="GradCAM").layer.name == "maps"


def test_frames_in_front_of_channels_and_lists_of_several_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images has shape \(1, 8, 3, 12, 16\), frames before channels; wrap"):
        explain(volumes(), noise(1, 8, 3, 12, 16))
    bands = living(nn.Sequential(nn.Conv3d(6, 4, (1, 3, 3)), nn.GELU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()))
    assert explain(bands, noise(1, 6, 3, 12, 16), methods="GradCAM").layer.positions == (3, 10, 14)
    with pytest.raises(ValueError, match=r"images have the shapes \(3, 8, 9\), \(3, 9, 8\), expected one for all"):
        explain(vit(), Inputs([noise(3, 8, 9), noise(3, 9, 8)]))


def test_signals_that_a_network_makes_pictures_of_are_explained_as_inputs() -> None:
    class Eeg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.head = nn.Conv2d(1, 6, (1, 5), padding=(0, 2)), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.time(x[:, None]).relu().mean((2, 3)))

    network, x = living(Eeg()), noise(5, 8, 40)
    with pytest.raises(ValueError, match=r"use images\[None\] for one image, or sc.Inputs\(images\) and layout= where"):
        explain(network, x, layer="time")
    assert explain(network, Inputs(x), layer="time", layout="bnhw", methods="GradCAM").layer.positions == (8, 40)
