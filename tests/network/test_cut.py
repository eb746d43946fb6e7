"""Where a network is cut: no graph in front, gradients of the maps alone behind, and a clear word where it cannot be cut."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from shapleycam.explanation import explain
from shapleycam.measurement import measure
from shapleycam.network.cut import CutNetwork, Pass
from shapleycam.network.ends import layers
from shapleycam.network.expand import expand
from shapleycam.network.layout import Facts, TargetLayer, find_layout
from shapleycam.network.preprocess import Preprocess
from shapleycam.network.weights import randomise
from shapleycam.network.zoo import Model
from shapleycam.theory.crg import Expansion
from shapleycam.theory.utility import UTILITIES

# Without the type checks of the suite: users pass anything.
cut_anything = inspect.unwrap(CutNetwork.__init__)


def images(b: int = 2, h: int = 16, w: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


def living(network: nn.Module, seed: int = 0) -> nn.Module:
    randomise(network, seed)
    return network.eval()


def cnn() -> nn.Sequential:
    """conv 0, bn 1, relu 2, conv 3, bn 4, gelu 5, pool 6, flatten 7, linear 8; its tail is not linear, and writes in place."""
    return living(
        nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 6, 3),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
    )


class Attending(nn.Module):
    """A convolution, fused attention between its positions, a head; `before` has fused attention in front of the cut."""

    def __init__(self, before: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)
        self.before = before

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attend(x.flatten(2)[..., :8].mean(1, keepdim=True)).mean()
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attend(tokens)).mean(1))


class MultiHead(nn.Module):
    """torch's own attention layer, which calls the fused kernel itself."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        out, weights = self.attention(tokens, tokens, tokens, need_weights=self.need_weights)
        assert (weights is None) != self.need_weights
        return self.head((tokens + out).mean(1))


def vit() -> nn.Module:
    return living(VisionTransformer(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=5))


def swin() -> nn.Module:
    return living(
        SwinTransformer(
            img_size=32, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=5
        )
    )


class Forward(nn.Module):
    """A network whose forward pass is the given function of it and the images."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def second_order(cut: CutNetwork, x: Tensor, utility: str = "rest") -> tuple[Pass, Expansion]:
    forward = cut(x, second_order=True)
    targets = forward.logits.argmax(1)
    return forward, expand(forward, targets, UTILITIES[utility], frozenset({"gradient", "hvp"}), lambda: forward.leaf)


def derivatives(tail: Callable[[Tensor], Tensor], maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, U' and HX of ReST from the definition: double backward over the tail, written out as a function of the maps."""
    leaf = maps.detach().clone().requires_grad_()
    logits = tail(leaf)
    utility = UTILITIES["rest"](logits, logits.argmax(1)).sum()
    (slope,) = torch.autograd.grad(utility, leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, leaf, leaf.detach())
    return logits.detach(), slope.detach(), curvature


# In front of the cut and behind it


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_no_graph_is_built_in_front_of_the_cut_whatever_requires_grad_says(layer: int, requires_grad: bool) -> None:
    network = cnn().requires_grad_(requires_grad)
    graphs: list[bool] = []
    for module in network:
        module.register_forward_hook(
            lambda module, given, output: graphs.append(output.requires_grad or torch.is_grad_enabled())
        )
    CutNetwork(network, str(layer))(images().requires_grad_(requires_grad))
    assert graphs == [False] * (layer + 1) + [True] * (8 - layer)


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_behind_the_cut_are_those_of_the_maps_alone(grad_mode: Callable[[], Any]) -> None:
    network = cnn().requires_grad_()
    x = images().requires_grad_()
    with grad_mode():
        forward = CutNetwork(network, "3")(x)
    targets = forward.logits.argmax(1)
    with grad_mode():
        expansion = expand(forward, targets, UTILITIES["rest"], frozenset({"gradient", "hvp"}), lambda: forward.leaf)
    _, slope, curvature = derivatives(network[4:], network[:4](x))
    torch.testing.assert_close(expansion.gradient, slope)
    torch.testing.assert_close(expansion.hvp, curvature)
    assert curvature.abs().max() > 1e-4
    assert [parameter.grad for parameter in (x, *network.parameters())] == [None] * (
        1 + len(list(network.parameters()))
    )
    assert not expansion.gradient.requires_grad
    assert not expansion.hvp.requires_grad
    assert not expansion.maps.requires_grad


def test_derivatives_in_float64_are_central_differences() -> None:
    network, x = cnn().double(), images().double()
    forward, expansion = second_order(CutNetwork(network, "3"), x)
    maps, targets, step = forward.leaf.detach(), forward.logits.argmax(1), 1e-5

    def utility(a: Tensor) -> float:
        with torch.no_grad():
            return float(UTILITIES["rest"](network[4:](a), targets).sum())

    def gradient(a: Tensor) -> Tensor:
        return derivatives(network[4:], a)[1]

    for place in [(0, 0, 0, 0), (1, 3, 5, 7), (0, 5, 11, 2)]:
        one = torch.zeros_like(maps)
        one[place] = step
        slope = (utility(maps + one) - utility(maps - one)) / (2 * step)
        assert float(expansion.gradient[place]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    along = (gradient(maps * (1 + step)) - gradient(maps * (1 - step))) / (2 * step)
    torch.testing.assert_close(expansion.hvp, along, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", [str(place) for place in range(6)])
def test_logits_are_the_networks_bit_for_bit(layer: str) -> None:
    network, x = cnn(), images()
    with torch.no_grad():
        assert torch.equal(CutNetwork(network, layer)(x).logits, network(x))


def test_a_utility_without_a_path_to_the_maps_is_refused() -> None:
    network = Forward(
        lambda self, x: self.head(self.conv(x).detach().mean((2, 3))), conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2)
    )
    with pytest.raises(
        ValueError, match="the utility does not depend on layer 'conv': no gradient path leads from the logits"
    ):
        explain(network, images(), layer="conv")


def plain_and_checkpointed(*block: nn.Module) -> tuple[nn.Module, nn.Module]:
    parts = {"stem": nn.Conv2d(3, 5, 3), "block": nn.Sequential(*block), "head": nn.Linear(6, 4)}
    plain = living(Forward(lambda self, x: self.head(self.block(self.stem(x)).mean((2, 3))), **parts))
    checkpointed = Forward(
        lambda self, x: self.head(checkpoint(lambda y: self.block(y), self.stem(x), use_reentrant=False).mean((2, 3))),
        **parts,
    )
    return plain, checkpointed.eval()


@pytest.mark.parametrize("layer", ["stem", "block.0", "block"])
def test_checkpointed_network_gives_the_maps_of_a_plain_one(layer: str) -> None:
    plain, checkpointed = plain_and_checkpointed(nn.Conv2d(5, 6, 3), nn.GELU())
    for utility in ("rest", "post-softmax"):
        out, expected = (explain(each, images(), layer=layer, utility=utility) for each in (checkpointed, plain))
        assert torch.equal(out.explanations["ShapleyCAM"], expected.explanations["ShapleyCAM"])


@pytest.mark.parametrize("method", ["GradCAM", "ShapleyCAM"])
@pytest.mark.parametrize("layer", ["stem", "block.0", "block.1"])
def test_normalisation_in_a_checkpointed_block_is_derived_as_it_is_run_again(layer: str, method: str) -> None:
    plain, checkpointed = plain_and_checkpointed(nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6), nn.GELU())
    out, expected = (explain(each, images(), layer=layer, methods=method) for each in (checkpointed, plain))
    torch.testing.assert_close(out.explanations, expected.explanations)


def test_checkpointed_attention_gives_the_hx_of_a_plain_one() -> None:
    network, x = vit(), images()
    expected = explain(network, x, layer="patch_embed.proj")
    network.set_grad_checkpointing(True)
    out = explain(network, x, layer="patch_embed.proj")
    assert torch.equal(out.explanations["ShapleyCAM"], expected.explanations["ShapleyCAM"])


# The layer's own output


def hooked_output(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer puts out before anything behind it can write into it."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, given, output: kept.append(output.clone())
    )
    with torch.no_grad():
        network(x)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        pytest.param("resnet18", "layer4.1.bn2", id="resnet18"),
        pytest.param("vgg16", "features.28", id="vgg16", marks=pytest.mark.large),
    ],
)
def test_maps_are_the_layers_own_though_its_successor_writes_in_place(name: str, layer: str) -> None:
    from torchvision import models

    network = living(models.get_model(name, weights=None, num_classes=7))
    x = images(1, 64, 64)
    own = hooked_output(network, layer, x)
    forward = CutNetwork(network, layer)(x)
    assert own.min() < 0
    assert torch.equal(forward.leaf, own)
    explain(network, x, layer=layer)
    with torch.no_grad():
        assert torch.equal(forward.logits, network(x))
    forward.logits.sum().backward()
    assert torch.equal(forward.leaf, own)
    assert forward.leaf.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "write", ["output.relu_()", "output += 1", "output[:, :, 0] = 0", "output.mul_(output.sigmoid())"]
)
def test_maps_and_gradients_do_not_see_what_is_written_into_them(write: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scope = {"output": self.conv(x)}
        exec(write, scope)
        return self.head(scope["output"].mean((2, 3)))

    def tail(maps: Tensor) -> Tensor:
        scope = {"output": maps.clone()}
        exec(write, scope)
        return network.head(scope["output"].mean((2, 3)))

    network = living(Forward(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 3)))
    x = images()
    done, expansion = second_order(CutNetwork(network, "conv"), x)
    logits, slope, curvature = derivatives(tail, network.conv(x))
    assert torch.equal(done.leaf, network.conv(x))
    assert torch.equal(done.logits, logits)
    torch.testing.assert_close(expansion.gradient, slope)
    torch.testing.assert_close(expansion.hvp, curvature)


def test_maps_do_not_see_what_is_written_into_the_tensor_that_the_layer_handed_through() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        given = self.conv(x)
        logits = self.head(self.same(given).mean((2, 3)))
        given.zero_()
        return logits

    network = living(Forward(forward, conv=nn.Conv2d(3, 4, 3), same=nn.Dropout(), head=nn.Linear(4, 3)))
    x = images()
    done, expansion = second_order(CutNetwork(network, "same"), x)
    assert torch.equal(done.leaf, network.conv(x))
    assert torch.equal(expansion.maps, network.conv(x))


def test_images_that_the_network_writes_into_stay_as_they_are() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), *cnn()).eval()
    x = images()
    kept = x.clone()
    explain(network, x, layer="4", methods=["RandomCAM", "ShapleyCAM"])
    layers(network, x)
    assert torch.equal(x, kept)


# Attention


class Kernels(TorchDispatchMode):
    """The attention kernels that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in func.__name__ and "backward" not in func.__name__:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


ATTENTION = {
    "small": (lambda: living(Attending()), "conv"),
    "small, attention in front too": (lambda: living(Attending(before=True)), "conv"),
    "timm's ViT": (vit, "patch_embed.proj"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_hx_through_fused_attention_is_that_of_the_composite_form_bit_for_bit(name: str) -> None:
    make, layer = ATTENTION[name]
    network, x = make(), images()
    _, expansion = second_order(CutNetwork(network, layer), x)
    with sdpa_kernel(SDPBackend.MATH):
        leaf = hooked_output(network, layer, x).requires_grad_()
        handle = network.get_submodule(layer).register_forward_hook(lambda module, given, output: leaf.clone())
        logits = network(x)
        handle.remove()
        utility = UTILITIES["rest"](logits, logits.argmax(1)).sum()
        (slope,) = torch.autograd.grad(utility, leaf, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, leaf, leaf.detach())
    assert curvature.abs().max() > 1e-4
    if "in front" not in name:  # there, the fused kernel gives other maps in the last bit
        assert torch.equal(expansion.gradient, slope.detach())
        assert torch.equal(expansion.hvp, curvature)
    torch.testing.assert_close(expansion.hvp, curvature, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
def test_hx_through_torchs_attention_layer_is_that_of_the_composite_form(need_weights: bool) -> None:
    network, x = living(MultiHead(need_weights)), images()
    _, expansion = second_order(CutNetwork(network, "conv"), x)

    def tail(maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        return network.head((tokens + network.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))

    with sdpa_kernel(SDPBackend.MATH):
        _, slope, curvature = derivatives(tail, network.conv(x))
    assert curvature.abs().max() > 1e-4
    torch.testing.assert_close(expansion.gradient, slope)
    torch.testing.assert_close(expansion.hvp, curvature, rtol=1e-4, atol=1e-6)


def test_composite_attention_is_fused_attention_for_masks_and_scales() -> None:
    """A boolean mask, too, which the composite operator by itself would add as 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 6, 4, generator=generator)
    mask = torch.rand(6, 6, generator=generator) < 0.7
    mask.fill_diagonal_(True)

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scaled = q * x.mean()
            found = [
                F.scaled_dot_product_attention(scaled, k, v),
                F.scaled_dot_product_attention(scaled, k, v, mask),
                F.scaled_dot_product_attention(scaled, k, v, attn_mask=mask.float(), scale=0.3),
                F.scaled_dot_product_attention(scaled, k, v, None, 0.0, True),
                F.scaled_dot_product_attention(scaled, k[:, :1], v[:, :1], enable_gqa=True),
            ]
            return torch.stack(found).flatten(1)

    network = nn.Sequential(nn.Identity(), Calls())
    first = CutNetwork(network, "0", "bnhw")(images(5, 8, 8))
    second = CutNetwork(network, "0", "bnhw")(images(5, 8, 8), second_order=True)
    torch.testing.assert_close(first.logits, second.logits)
    assert not torch.equal(first.logits, second.logits)


def test_only_the_tail_of_a_second_order_method_leaves_the_fused_kernel() -> None:
    network, x = living(Attending(before=True)), images()
    found = {}
    for method in ("GradCAM", "ShapleyCAM"):
        with Kernels() as kernels:
            explain(network, x, layer="conv", methods=method)
        found[method] = [name.split(".")[0] for name in kernels.names]
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    assert found == {"GradCAM": [fused, fused], "ShapleyCAM": [fused]}


def test_a_function_mode_of_the_callers_sees_the_same_calls() -> None:
    class Log(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Log() as log:
        out = explain(living(Attending()), images(), layer="conv")
    assert "conv2d" in log.names
    assert torch.equal(
        out.heatmaps["ShapleyCAM"], explain(living(Attending()), images(), layer="conv").heatmaps["ShapleyCAM"]
    )


def test_hx_of_a_utility_that_is_linear_in_the_maps_is_zero_with_a_warning() -> None:
    network, x = cnn(), images()
    out = explain(network, x, layer="5", utility="pre-softmax", methods=["GradCAM", "ShapleyCAM"])
    assert torch.equal(out.explanations["ShapleyCAM"], out.explanations["GradCAM"])
    assert [(each.image, each.method, each.reason) for each in out.warnings] == [
        (0, None, "linear"),
        (1, None, "linear"),
    ]
    assert "HX is zero: the utility is linear in the maps" in str(out.warnings[0])
    curved = explain(network, x, layer="4", utility="pre-softmax", methods=["GradCAM", "ShapleyCAM"])
    assert not torch.equal(curved.explanations["ShapleyCAM"], curved.explanations["GradCAM"])
    assert curved.warnings == ()
    nn.init.zeros_(network[4].weight)
    nn.init.zeros_(network[4].bias)
    blank = explain(network, x, layer="5", methods=["GradCAM", "ShapleyCAM"])  # maps of zeros, which says nothing of U
    assert str(blank.warnings[0]) == "image 0: HX is zero, so second order equals first order"


# Layers that cannot be a target


def mean_head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3)


REFUSED = {
    "never": (
        Forward(lambda self, x: self.head(self.used(x)), used=conv(), spare=conv(), head=mean_head(4)),
        "spare",
        r"layer 'spare' did not run in a forward pass of the network; suitable layers nearby: used$",
    ),
    "twice": (
        Forward(
            lambda self, x: self.head(self.act(self.conv(self.act(x)))), act=nn.ReLU(), conv=conv(), head=mean_head(4)
        ),
        "act",
        r"layer 'act' ran 2 times in one forward pass, so its activation maps are ambiguous; name a layer that runs once, "
        r"such as the block that holds it; suitable layers nearby: conv$",
    ),
    "two axes": (
        Forward(
            lambda self, x: self.head(self.flat(self.conv(x))), conv=conv(), flat=nn.Flatten(), head=nn.Linear(784, 3)
        ),
        "flat",
        r"layer 'flat' puts out a tensor of shape \(2, 784\), expected activation maps \(b, n, h, w\) or \(b, h, w, n\), or "
        r"tokens \(b, t, n\) on a grid of the image's proportions; suitable layers nearby: conv$",
    ),
    "another batch": (
        Forward(
            lambda self, x: self.head(self.many(x.repeat(3, 1, 1, 1))).view(3, len(x), 3).mean(0),
            many=conv(),
            head=mean_head(4),
        ),
        "many",
        r"layer 'many' puts out a tensor of shape \(6, 4, 14, 14\) for 2 images, .*; the network has no layer that puts out "
        r"maps$",
    ),
    "a tuple": (
        Forward(lambda self, x: self.head(self.pair(self.conv(x))[0]), conv=conv(), pair=Pair(), head=mean_head(4)),
        "pair",
        r"layer 'pair' puts out a tuple, expected one tensor of activation maps; name a layer inside it, or behind it",
    ),
    "a single position": (
        cnn(),
        "6",
        r"layer '6' puts out maps of a single position, shape \(2, 6, 1, 1\), so there is nothing to compare; suitable layers "
        r"nearby: 5, 4, 3, 2$",
    ),
}


class Calling:
    """A function that nobody can look into."""

    def __init__(self, network: nn.Module) -> None:
        self.before = network.forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.before(x)


@pytest.mark.parametrize("layer", ["0", None])
def test_a_forward_that_runs_the_network_itself_is_named(layer: str | None) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *mean_head(4))
    network.forward = Calling(network)
    words = (
        r"the forward of Sequential was replaced on the instance by something that runs the network itself, .*del model"
    )
    with pytest.raises(ValueError, match=words):
        explain(network, images(), layer=layer)


@pytest.mark.parametrize("name", REFUSED)
def test_layer_without_unambiguous_maps_is_refused_by_name(name: str) -> None:
    network, layer, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        explain(network, images(), layer=layer)


def test_relu_that_a_resnet_block_runs_twice_is_refused_with_layers_of_its_block() -> None:
    from torchvision.models import resnet18

    network, x = living(resnet18(num_classes=7)), images(1, 64, 64)
    near = r"suitable layers nearby: layer4\.1, layer4\.1\.bn2, layer4\.1\.conv2, layer4\.1\.bn1$"
    with pytest.raises(ValueError, match=rf"layer 'layer4\.1\.relu' ran 2 times in one forward pass.*{near}"):
        explain(network, x, layer="layer4.1.relu")


def test_suitable_layers_are_those_that_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CutNetwork, "_suitable", lambda self, images: "")
    parts = {
        "act": nn.ReLU(),
        "conv": nn.Conv2d(3, 4, 3),
        "pair": Pair(),
        "tokens": nn.Flatten(2),
        "pool": nn.AdaptiveAvgPool2d(1),
    }
    network = living(
        Forward(
            lambda self, x: self.head(self.tokens(self.pool(self.pair(self.act(self.conv(self.act(x))))[0]))[..., 0]),
            **parts,
            spare=nn.Conv2d(3, 4, 3),
            inner=nn.Sequential(nn.Conv2d(3, 3, 1)),
            head=nn.Linear(4, 3),
        )
    )  # fmt: skip
    for each, x in ((network, images()), (cnn(), images()), (swin(), images(1, 32, 32))):
        cuttable = {}
        for name, _ in each.named_modules():
            try:
                cuttable[name] = CutNetwork(each, name)(x).layer
            except ValueError:
                continue
        assert {layer.name: layer for layer in layers(each, x)} == cuttable
        assert cuttable


def test_layers_come_in_the_order_in_which_they_end() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3), *mean_head(4))
    assert [layer.name for layer in layers(network, images())] == ["0.0", "0.1", "0", "1"]
    assert str(layers(network, images())[0]) == "0.0 (4 maps of 14 x 14, bnhw)"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            "layer4.1.conv9",
            r"the network has no layer 'layer4.1.conv9'; did you mean layer4.1.conv2 or layer4.1.conv1 or",
        ),
        ("Layer4", r"did you mean layer4 or"),
        ("nothing of the kind", r"known are conv1, bn1, relu, maxpool, layer1,"),
        ("", r"the network has no layer ''"),
    ],
)
def test_misspelt_layer_is_refused_with_the_nearest_names(layer: str, words: str) -> None:
    from torchvision.models import resnet18

    with pytest.raises(ValueError, match=words):
        CutNetwork(resnet18(num_classes=2), layer)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3), cnn()[0]])
def test_module_that_is_not_part_of_the_network_is_refused(layer: nn.Module) -> None:
    with pytest.raises(
        ValueError, match="layer is a Conv2d that is not part of the network; pass one of its submodules"
    ):
        CutNetwork(cnn(), layer)


def test_the_network_itself_is_no_layer_of_it() -> None:
    network = cnn()
    with pytest.raises(ValueError, match="layer is a Sequential that is not part of the network"):
        CutNetwork(network, network)


def test_passes_on_one_kept_copy_are_those_on_copies_of_their_own() -> None:
    network, x = cnn(), images()
    cut = CutNetwork(network, "3")
    kept = cut.kept()
    for some in (x, x + 1, x[:1]):
        wanted, found = cut(some), kept(some)
        assert torch.equal(found.leaf, wanted.leaf)
        assert torch.equal(found.logits, wanted.logits)
    network[3] = nn.Identity()  # a copy that is kept does not see it
    assert torch.equal(kept(x[:1]).logits, wanted.logits)


def test_layer_by_name_and_as_a_module_are_the_same() -> None:
    network, x = cnn(), images()
    by_name, by_module = (explain(network, x, layer=layer) for layer in ("3", network[3]))
    assert by_name.layer == by_module.layer == TargetLayer("3", "bnhw", 6, (12, 12))
    assert torch.equal(by_name.heatmaps["ShapleyCAM"], by_module.heatmaps["ShapleyCAM"])


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (
            lambda logits: {"classes": logits},
            TypeError,
            r"the network puts out a dict, expected a tensor of logits \(b, c\); pass output=function",
        ),
        (lambda logits: ("no", "logits"), TypeError, r"the network puts out a tuple"),
        (lambda logits: logits[0], ValueError, r"the network puts out \(3,\) for 2 images, expected logits \(b, c\)"),
        (lambda logits: logits[:1], ValueError, r"the network puts out \(1, 3\) for 2 images"),
        (lambda logits: logits[:, :, None], ValueError, r"the network puts out \(2, 3, 1\) for 2 images"),
    ],
)
def test_network_without_logits_is_refused(output: Callable[[Tensor], Any], error: type[Exception], words: str) -> None:
    network = Forward(lambda self, x: output(self.head(self.conv(x))), conv=nn.Conv2d(3, 4, 3), head=mean_head(4))
    with pytest.raises(error, match=words):
        explain(network, images(), layer="conv")


# Layouts


@pytest.mark.parametrize(
    ("shape", "size", "output_fmt", "layout"),
    [
        ((2, 512, 7, 7), (224, 224), None, "bnhw"),
        ((2, 7, 7, 768), (224, 224), None, "bhwn"),
        ((2, 7, 7, 768), (224, 224), "NCHW", "bhwn"),
        ((2, 96, 56, 56), (224, 224), "NHWC", "bnhw"),
        ((2, 7, 7, 8), (224, 224), None, "bhwn"),
        ((2, 8, 7, 7), (224, 224), "NHWC", "bnhw"),
        ((2, 64, 4, 8), (32, 64), None, "bnhw"),
        ((2, 4, 8, 64), (32, 64), None, "bhwn"),
        ((2, 8, 4, 8), (32, 64), None, "bnhw"),
        ((2, 4, 8, 4), (32, 64), None, "bhwn"),
        ((2, 16, 5, 7), (37, 50), None, "bnhw"),  # strides round up
        ((2, 16, 4, 6), (37, 50), None, "bnhw"),  # or down
        ((2, 5, 7, 16), (37, 50), None, "bhwn"),
        ((2, 7, 7, 7), (224, 224), "NHWC", "bhwn"),
        ((2, 7, 7, 7), (224, 224), "NCHW", "bnhw"),
        ((2, 3, 9, 768), (224, 224), "NHWC", "bhwn"),  # neither has the image's proportions
        ((2, 3, 9, 768), (224, 224), "NCHW", "bnhw"),
        ((2, 64, 3, 9), (224, 224), None, "bnhw"),
    ],
)
def test_layout_is_found_by_the_images_proportions(
    shape: tuple[int, ...], size: tuple[int, int], output_fmt: str | None, layout: str
) -> None:
    assert find_layout(shape, size, Facts(output_fmt), "layer") == layout


@given(
    h=st.integers(20, 300),
    w=st.integers(20, 300),
    n=st.integers(1, 2000),
    stride=st.integers(2, 9),
    up=st.booleans(),
    output_fmt=st.sampled_from([None, "NCHW", "NHWC"]),
)
def test_both_layouts_of_a_layer_are_told_apart_or_refused(
    h: int, w: int, n: int, stride: int, up: bool, output_fmt: str | None
) -> None:
    positions = (-(-h // stride), -(-w // stride)) if up else (h // stride, w // stride)
    for shape, layout in (((2, n, *positions), "bnhw"), ((2, *positions, n), "bhwn")):
        try:
            found = find_layout(shape, (h, w), Facts(output_fmt), "layer")
        except ValueError:
            found = layout
        ambiguous = abs(n * w - positions[0] * h) < max(h, w) or abs(positions[1] * w - n * h) < max(h, w)
        assert found == layout or ambiguous


@pytest.mark.parametrize("shape", [(2, 7, 7, 7), (1, 16, 16, 16), (2, 3, 9, 768)])
def test_ambiguous_layout_is_refused_and_layout_named(shape: tuple[int, ...]) -> None:
    words = r"layer 'here' puts out .*, which for an image of 224 x 224 may be \(b, n, h, w\) or \(b, h, w, n\); say which with"
    with pytest.raises(ValueError, match=words + ' layout="bnhw" or layout="bhwn"'):
        find_layout(shape, (224, 224), Facts(), "here")


class Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def both_layouts(n: int) -> nn.Sequential:
    """Maps first at "0", channels last at "1"."""
    conv = nn.Conv2d(3, n, 3, stride=2, padding=1)
    return living(nn.Sequential(conv, Permute(0, 2, 3, 1), Permute(0, 3, 1, 2), nn.GELU(), *mean_head(n)))


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (13, 32)])
def test_explanation_does_not_depend_on_the_layout(size: tuple[int, int]) -> None:
    network, x = both_layouts(11), images(2, *size)
    first, last = (explain(network, x, layer=layer, methods="all") for layer in ("0", "1"))
    assert (first.layer.layout, last.layer.layout) == ("bnhw", "bhwn")
    assert first.layer.positions == last.layer.positions == (-(-size[0] // 2), -(-size[1] // 2))
    assert first.layer.maps == last.layer.maps == 11
    for method, explanation in first.explanations.items():
        torch.testing.assert_close(last.explanations[method], explanation, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(last.heatmaps[method], first.heatmaps[method], rtol=1e-4, atol=1e-5)


class MovedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)


def test_a_convolution_whose_maps_are_moved_behind_its_positions_is_read_so() -> None:
    network, x = both_layouts(11), images(2, 16, 24)
    moved = MovedConv(3, 11, 3, stride=2, padding=1)
    moved.load_state_dict(network[0].state_dict())
    hooked = both_layouts(11)
    hooked[0].register_forward_hook(lambda module, given, output: output.permute(0, 2, 3, 1))
    hooked[1] = nn.Identity()
    wanted = explain(network, x, layer="0")
    for other in (nn.Sequential(moved, *network[2:]).eval(), hooked):
        found = explain(other, x, layer="0")
        assert found.layer == TargetLayer("0", "bhwn", 11, (8, 12))
        torch.testing.assert_close(found.heatmaps, wanted.heatmaps, rtol=1e-4, atol=1e-5)


def test_maps_as_many_as_rows_and_columns_need_layout() -> None:
    network, x = both_layouts(8), images(2, 16, 16)
    with pytest.raises(ValueError, match='say which with layout="bnhw" or layout="bhwn"'):
        explain(network, x, layer="1")
    first = explain(network, x, layer="0")  # a convolution says it itself
    assert first.layer.layout == "bnhw"
    last = explain(network, x, layer="1", layout="bhwn")
    torch.testing.assert_close(first.heatmaps["ShapleyCAM"], last.heatmaps["ShapleyCAM"], rtol=1e-4, atol=1e-5)
    wrong = explain(network, x, layer="1", layout="bnhw")
    assert not torch.allclose(wrong.heatmaps["ShapleyCAM"], last.heatmaps["ShapleyCAM"], atol=0.1)


def test_maps_as_many_as_rows_and_columns_are_read_as_timms_output_fmt_says() -> None:
    network, x = both_layouts(8), images(2, 16, 16)
    network.output_fmt = "NHWC"
    last = explain(network, x, layer="1")
    network.output_fmt = "NCHW"
    first = explain(network, x, layer="2")
    assert (first.layer.layout, last.layer.layout) == ("bnhw", "bhwn")
    torch.testing.assert_close(first.heatmaps["ShapleyCAM"], last.heatmaps["ShapleyCAM"], rtol=1e-4, atol=1e-5)


def test_swin_is_channels_last_but_for_its_patch_embedding() -> None:
    network, x = swin(), images(1, 32, 32)
    assert network.output_fmt == "NHWC"
    assert CutNetwork(network, "patch_embed.proj")(x).layer == TargetLayer("patch_embed.proj", "bnhw", 8, (16, 16))
    assert CutNetwork(network, "norm")(x).layer == TargetLayer("norm", "bhwn", 16, (8, 8))


def formats(network: nn.Module) -> list[bool]:
    """Whether channels were last in what the first layer of a network was given, a time each."""
    seen: list[bool] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    return seen


def depthwise() -> nn.Sequential:
    return living(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )
    )


def modelled(network: nn.Module, channels_last: bool | None) -> Model:
    preprocess = Preprocess((16, 16), 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
    return Model("tiny", network, preprocess, tuple("abcd"), None, {"gap": "1"}, "random", channels_last)


@pytest.mark.parametrize("last", [False, True])
def test_images_are_given_to_the_network_as_they_come_or_with_channels_last(last: bool) -> None:
    network, x = cnn(), images()
    plain, logits = CutNetwork(network, "1")(x), network(x)
    seen, cut = formats(network), CutNetwork(network, "1", channels_last=last)
    found = cut(x)
    torch.testing.assert_close(found.leaf, plain.leaf)
    torch.testing.assert_close(cut.inference()(x), logits)
    assert seen == [last, last]
    assert x.is_contiguous()
    assert found.leaf.is_contiguous(memory_format=torch.channels_last) is last


@pytest.mark.parametrize(
    ("make", "dtype", "methods", "asked", "last"),
    [
        (depthwise, torch.float32, "GradCAM", None, True),
        (depthwise, torch.bfloat16, ["ShapleyCAM", "FakeCAM"], None, True),
        (depthwise, torch.float64, "GradCAM", None, False),
        (depthwise, torch.float32, ["AumannCAM", "FullGrad", "AblationCAM"], None, True),
        (depthwise, torch.float32, ["GradCAM", "XGradCAM"], None, False),
        (depthwise, torch.float32, "GradCAM", False, False),
        (cnn, torch.float32, "GradCAM", None, False),
        (cnn, torch.float32, "XGradCAM", True, True),
    ],
)
def test_channels_are_last_where_depthwise_convolutions_are_faster_so_or_where_asked_for(
    make: Callable[[], nn.Module], dtype: torch.dtype, methods: str | list[str], asked: bool | None, last: bool
) -> None:
    network = make().to(dtype)
    model = modelled(network, asked)
    x, seen = images().to(dtype), formats(network)
    names = [each for each in ([methods] if isinstance(methods, str) else methods) if each != "FakeCAM"]
    explain(model, x, methods=names)
    assert {*seen} == {last}
    seen.clear()
    measure(model, x, methods=methods)
    # Where XGradCAM keeps the maps as they come, logits of anti-explanation maps are nothing that it shows.
    assert {*seen} == {last, last or (asked is None and "XGradCAM" in methods)}
    assert len(seen) >= 3
    assert x.is_contiguous()


@pytest.mark.parametrize("asked", [None, True, "a module of one's own"])
def test_others_are_given_their_images_as_they_come(asked: Any) -> None:
    network = depthwise()
    seen, own = formats(network), isinstance(asked, str)
    model = network if own else modelled(network, asked)
    explain(model, images() if own else {"input": images()}, layer="1", methods="GradCAM")
    assert seen == [False]


def test_what_a_caller_infers_with_is_given_images_as_they_come() -> None:
    network, seen = depthwise(), []

    def infer(some: Tensor) -> Tensor:
        seen.append(some.is_contiguous())
        return network(some)

    measure(modelled(network, None), images(), methods="GradCAM", infer=infer)
    assert {*seen} == {True}


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"layout is 'NCHW', expected \"bnhw\" \(maps first\), \"bhwn\" \(channels last\), \"btn\""
    ):
        cut_anything(object.__new__(CutNetwork), cnn(), "0", "NCHW")


# Wrappers


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")], ids=["parallel", "compiled"]
)
def test_layer_of_a_wrapped_network_has_its_old_and_its_new_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network, x = cnn(), images()
    wrapped = wrap(network)
    expected = CutNetwork(network, "3")(x).layer
    for layer in ("3", next(name for name, module in wrapped.named_modules() if module is network[3]), network[3]):
        assert CutNetwork(wrapped, layer)(x).layer == expected
    assert layers(wrapped, x) == layers(network, x)


def test_layers_of_a_compiled_block_keep_their_names() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(cnn()[:6], *cnn()[6:])

    plain, compiled, x = network(), network(), images()
    plain_block = compiled[0]
    block = compiled[0] = torch.compile(plain_block, backend="eager")
    for layer in ("0", "0.3"):
        expected = explain(plain, x, layer=layer)
        for given_layer in (layer, layer.replace("0", "0._orig_mod", 1), block if layer == "0" else plain_block[3]):
            out = explain(compiled, x, layer=given_layer)
            assert out.layer == expected.layer
            assert torch.equal(out.explanations["ShapleyCAM"], expected.explanations["ShapleyCAM"])
    assert layers(compiled, x) == layers(plain, x)


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda module: torch.jit.trace(module, images())], ids=["script", "trace"]
)
def test_layer_of_a_scripted_network_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(
        TypeError, match=r"is a ScriptModule, whose layers cannot be cut.*explain the module that it was scripted from"
    ):
        explain(make(cnn()), images(), layer="3")


def test_scripted_parts_that_need_no_cut_run_as_they_are() -> None:
    network, x = cnn(), images()
    expected = explain(network, x, layer="3")
    scripted = nn.Sequential(torch.jit.script(network[:3]), network[3], torch.jit.script(network[4:])).eval()
    out = explain(scripted, x, layer="1")
    torch.testing.assert_close(out.explanations["ShapleyCAM"], expected.explanations["ShapleyCAM"])
    assert [layer.name for layer in layers(scripted, x)] == ["1"]
    with pytest.raises(ValueError, match="no layer 'nowhere'"):
        explain(scripted, x, layer="nowhere")


def test_attention_that_is_given_by_keyword_is_twice_differentiable() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.maps(x).flatten(2).mT[:, None]
            attended = nn.functional.scaled_dot_product_attention(query=y, key=y, value=y, is_causal=False)
            return self.head(attended[:, 0].mean(1))

    out = explain(Attends().eval(), torch.randn(1, 3, 8, 8), methods=["GradCAM", "ShapleyCAM"])
    assert out.heatmaps["ShapleyCAM"].amax() > 0.9
