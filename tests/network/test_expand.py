"""U' and HX against central differences, whole Hessians and closed forms, in float64, through all that tails are made of."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import relu, scaled_dot_product_attention

from shapleycam import UTILITIES
from shapleycam.network.cut import CutNetwork
from shapleycam.network.expand import expand, worth
from shapleycam.theory.crg import Expansion
from theory.games import Curved, Head, images, network

BOTH = frozenset({"gradient", "hvp"})
TARGETS = torch.tensor([2, 0])


class Normed(nn.Sequential):
    """Convolution, batch norm, GELU."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), Head(6))


class Pooled(nn.Sequential):
    """Linear in pieces: a ReLU in place right behind the maps, max pooling, and no global pooling, as in VGG."""

    def __init__(self) -> None:
        super().__init__(
            nn.ReLU(inplace=True), nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4)
        )


class Residual(nn.Module):
    """A block that adds its input in place, as timm's and torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.head = Head()

    def forward(self, maps: Tensor) -> Tensor:
        out = self.conv(maps)
        out += maps
        return self.head(out.tanh_())


class Attention(nn.Module):
    """Self-attention by PyTorch's fused function, layer norm, mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(5, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).mT
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(attended).mean(1))


class Encoder(nn.Module):
    """A transformer layer of PyTorch's own, with GELU and two layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(maps.flatten(2).mT)).mean(1))


class Flat(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(45, 4))


TAILS = [Head, Flat, Curved, Normed, Pooled, Residual, Attention, Encoder]


def expanded(
    net: nn.Module,
    x: Tensor,
    utility: Callable[[Tensor, Tensor], Tensor] = UTILITIES["rest"],
    targets: Tensor = TARGETS,
    ingredients: frozenset[str] = BOTH,
) -> Expansion:
    forward = CutNetwork(net, "maps")(x, second_order="hvp" in ingredients)
    return expand(forward, targets, utility, ingredients, lambda: torch.zeros(len(x), 5, 1, 1))


def utility_of(tail: nn.Module, utility: str, target: int, maps: Tensor) -> Tensor:
    """U of one image's maps (n, h, w), a number, by the tail alone."""
    return UTILITIES[utility](tail(maps[None].clone()), torch.tensor([target]))[0]


def gradient_of(tail: nn.Module, utility: str, target: int, maps: Tensor) -> Tensor:
    maps = maps.detach().requires_grad_()
    return torch.autograd.grad(utility_of(tail, utility, target, maps), maps)[0]


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("tail", TAILS)
def test_gradient_is_the_central_difference_of_the_utility(tail, utility):
    net = network(tail(), seed=0)
    e = expanded(net, images(seed=1), UTILITIES[utility])
    with torch.no_grad():
        for image, target in enumerate(TARGETS.tolist()):
            u = partial(utility_of, net.tail, utility, target)
            for place in range(e.maps[image].numel()):
                step = torch.zeros_like(e.maps[image])
                step.view(-1)[place] = 1e-5
                slope = (u(e.maps[image] + step) - u(e.maps[image] - step)) / 2e-5
                torch.testing.assert_close(e.gradient[image].flatten()[place], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("tail", TAILS)
def test_hvp_is_the_central_difference_of_the_gradient(tail, utility):
    """HX = d/dt U'((1 + t) A) at t = 0."""
    net = network(tail(), seed=0)
    e = expanded(net, images(seed=1), UTILITIES[utility])
    for image, target in enumerate(TARGETS.tolist()):
        slope = partial(gradient_of, net.tail, utility, target)
        wanted = (slope(e.maps[image] * (1 + 1e-5)) - slope(e.maps[image] * (1 - 1e-5))) / 2e-5
        torch.testing.assert_close(e.hvp[image], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tail", TAILS)
def test_hvp_is_the_whole_hessian_times_the_maps(tail):
    """The Hessian of 45 x 45 numbers by a double backward pass for each, with attention that has a second derivative."""
    net = network(tail(), seed=0)
    e = expanded(net, images(seed=1))
    for image, target in enumerate(TARGETS.tolist()):
        with sdpa_kernel(SDPBackend.MATH):
            hessian = torch.autograd.functional.hessian(partial(utility_of, net.tail, "rest", target), e.maps[image])
        wanted = hessian.view(45, 45) @ e.maps[image].flatten()
        torch.testing.assert_close(e.hvp[image].flatten(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("tail", [Head, Flat])
def test_hvp_behind_a_linear_tail_is_its_closed_form(tail, utility):
    """With J the derivative of the logits and p the softmax, the Hessian of ReST and ln p_c is -J^T (diag p - p p^T) J.

    That of p_c is p_c (v v^T - J^T (diag p - p p^T) J) with v = J_c - p J, that of a logit is zero, and that of ln sigmoid(+-y_c)
    is -q (1 - q) J_c J_c^T with q = sigmoid(y_c).
    """
    net = network(tail(), seed=0)
    e = expanded(net, images(seed=1), UTILITIES[utility])
    for image, target in enumerate(TARGETS.tolist()):
        p = net.tail(e.maps[image : image + 1])[0].softmax(0).detach()
        j = torch.stack([gradient_of(net.tail, "pre-softmax", k, e.maps[image]).flatten() for k in range(4)])
        v = j[target] - p @ j
        q = net.tail(e.maps[image : image + 1])[0, target].sigmoid().detach()
        curved = j.T @ (p.diag() - p.outer(p)) @ j
        hessian = {
            "pre-softmax": torch.zeros(45, 45).double(),
            "log-softmax": -curved,
            "rest": -curved,
            "post-softmax": p[target] * (v.outer(v) - curved),
        }.get(utility, -q * (1 - q) * j[target].outer(j[target]))
        wanted = hessian @ e.maps[image].flatten()
        torch.testing.assert_close(e.hvp[image].flatten(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("tail", [Head, Flat, Pooled])
def test_hvp_of_a_logit_is_zero_and_no_error_where_the_tail_is_linear_in_pieces(tail, trainable):
    """Autograd hands back None instead of zeros, and no graph at all where the parameters are frozen."""
    net = network(tail(), seed=0).requires_grad_(trainable)
    e = expanded(net, images(seed=1), UTILITIES["pre-softmax"])
    assert e.hvp.shape == e.maps.shape
    assert e.hvp.count_nonzero() == 0
    assert e.gradient.count_nonzero() > 0


@pytest.mark.parametrize("tail", TAILS)
def test_expansion_of_an_image_does_not_depend_on_the_rest_of_its_batch(tail):
    net = network(tail(), seed=0)
    x = images(seed=1, b=4)
    x[3] *= 100
    targets = torch.tensor([2, 0, 3, 1])
    together = expanded(net, x, targets=targets)
    for image in range(4):
        alone = expanded(net, x[image : image + 1], targets=targets[image : image + 1])
        for name in ("maps", "gradient", "hvp"):
            one, many = getattr(alone, name)[0], getattr(together, name)[image]
            torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-12)


class Last(nn.Module):
    """A layer that puts out channels last, as Swin's do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).permute(0, 2, 3, 1)


class First(Last):
    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(maps.permute(0, 3, 1, 2).contiguous())


@pytest.mark.parametrize(("tail", "size"), [(Curved, (4, 8)), (Pooled, (6, 6)), (Attention, (4, 8))])
def test_expansion_of_channels_last_maps_is_that_of_maps_first(tail, size):
    net = network(tail(), seed=0)
    turned = nn.Sequential()
    turned.add_module("maps", Last(net.maps))
    turned.add_module("tail", First(net.tail))
    one, other = (expanded(each, images(seed=1, size=size)) for each in (net, turned))
    for name in ("maps", "gradient", "hvp"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-12)


class Once(torch.autograd.Function):
    """The square of its input, which says that its derivative cannot be derived."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


class Squared(Head):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(Once.apply(maps))


def test_a_function_that_can_be_derived_once_is_refused_and_not_left_out_of_hx():
    net = network(Squared(), seed=0)
    assert expanded(net, images(seed=1), ingredients=frozenset({"gradient"})).gradient.count_nonzero() > 0
    with pytest.raises(
        ValueError, match="has an operation without one \\(a function marked with @once_differentiable\\)"
    ):
        expanded(net, images(seed=1))


def test_maps_are_the_layers_own_output_though_the_next_layer_writes_in_place():
    net = network(Pooled(), seed=0)
    x = images(seed=1)
    e = expanded(net, x)
    assert torch.equal(e.maps, net.maps(x).detach())
    assert (e.maps < 0).any()
    assert e.gradient[e.maps < 0].count_nonzero() == 0


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16), torch.enable_grad],
    ids=["no_grad", "inference_mode", "autocast", "enable_grad"],
)
def test_expansion_does_not_depend_on_the_modes_around_it(around):
    net = network(Attention(), seed=0).float()
    x = images(seed=1).float()
    wanted = expanded(net, x)
    with around():
        e = expanded(net, x)
    for name in ("maps", "gradient", "hvp"):
        assert torch.equal(getattr(e, name), getattr(wanted, name))
        assert getattr(e, name).dtype == torch.float32
        assert not getattr(e, name).requires_grad


@pytest.mark.parametrize("tail", TAILS)
def test_expansion_leaves_the_network_the_images_and_the_generator_as_they_were(tail):
    net = network(tail(), seed=0).train()
    marks = [torch.ones_like(parameter) for parameter in net.parameters()]
    for parameter, mark in zip(net.parameters(), marks, strict=True):
        parameter.grad = mark
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = images(seed=1)
    before, generator = x.clone(), torch.get_rng_state()
    expanded(net, x)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(not module._forward_hooks for module in net.modules())
    for parameter, mark in zip(net.parameters(), marks, strict=True):
        assert parameter.grad is mark
        assert parameter.requires_grad
        assert mark.eq(1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_expanded_and_handed_out_as_float32(dtype):
    """The utility is computed in float32 too; what the tail makes of its slope is half precise."""
    net, x = network(Normed(), seed=0), images(seed=1)
    wanted = expanded(net, x)
    seen = []

    def rest(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return UTILITIES["rest"](logits, targets)

    e = expanded(net.to(dtype), x.to(dtype), rest)
    assert seen == [torch.float32]
    for name in ("maps", "gradient", "hvp"):
        assert getattr(e, name).dtype == torch.float32
        distance = (getattr(e, name) - getattr(wanted, name)).norm() / getattr(wanted, name).norm()
        assert distance < 0.1


def test_what_no_method_asked_for_is_not_computed():
    net = network(Curved(), seed=0)
    backward_passes = []

    def count(module, given, output):
        output.register_hook(lambda _: backward_passes.append(1))

    net.tail[1].register_forward_hook(count)
    for asked, passes in ((frozenset(), 0), (frozenset({"noise"}), 0), (frozenset({"gradient"}), 1)):
        backward_passes.clear()
        e = expanded(net, images(seed=1), ingredients=asked)
        assert len(backward_passes) == passes
        for name in ("gradient", "hvp", "noise"):
            assert (getattr(e, name) is not None) == (name in asked)


def test_gradient_alone_is_the_gradient_that_comes_with_hx():
    net = network(Curved(), seed=0)
    alone = expanded(net, images(seed=1), ingredients=frozenset({"gradient"}))
    assert torch.equal(alone.gradient, expanded(net, images(seed=1)).gradient)


@pytest.mark.parametrize("utility", UTILITIES)
def test_worth_of_the_whole_coalition_is_the_utility_of_the_network(utility):
    net, x = network(Curved(), seed=0), images(seed=1)
    forward = CutNetwork(net, "maps")(x)
    wanted = UTILITIES[utility](net(x), TARGETS)
    torch.testing.assert_close(worth(forward.logits, TARGETS, UTILITIES[utility]), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("utility", "words"),
    [
        (lambda logits, targets: logits, r"shape \(2, 4\) for logits \(2, 4\), expected one number an image, \(2,\)"),
        (lambda logits, targets: logits.sum(), r"the utility gave shape \(\) for logits \(2, 4\)"),
        (lambda logits, targets: 1.0, r"the utility gave a float for logits \(2, 4\)"),
        (lambda logits, targets: torch.ones(2), "the utility does not depend on layer 'maps': no gradient path"),
        (lambda logits, targets: logits.detach()[:, 0], "the utility does not depend on layer 'maps'"),
    ],
    ids=["a matrix", "one number for all", "no tensor", "constant", "detached"],
)
def test_utility_that_is_no_utility_is_refused(utility, words):
    with pytest.raises(ValueError, match=words):
        expanded(network(Head(), seed=0), images(seed=1), utility)


class Bypassed(nn.Module):
    """Puts out logits that its input plays no part in, though they have a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.ones(1, 4))

    def forward(self, maps: Tensor) -> Tensor:
        return relu(self.logits).expand(len(maps), 4)


class Ungraded(Head):
    def forward(self, maps: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(maps)


@pytest.mark.parametrize("tail", [Bypassed, Ungraded])
def test_layer_that_the_logits_do_not_hang_on_is_refused(tail):
    with pytest.raises(ValueError, match=r"no gradient path leads from the logits.*no torch.no_grad\(\) or detach\(\)"):
        expanded(network(tail(), seed=0), images(seed=1))


def test_fused_attention_behind_the_cut_would_have_no_second_derivative():
    """Why the cut replaces it, and that it does so only when asked: otherwise the fast kernel runs."""
    net, x = network(Attention(), seed=0), images(seed=1)
    forward = CutNetwork(net, "maps")(x, second_order=False)
    with pytest.raises(
        ValueError, match=r"second order needs .* \(derivative for .* is not implemented\); take a method of first"
    ):
        expand(forward, TARGETS, UTILITIES["rest"], BOTH, lambda: x)
