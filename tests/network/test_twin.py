"""The copy computes what the network computes in eval mode, bit for bit, whatever a network is made of; and it is all copy."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from shapleycam.network.twin import twin, unwrap
from shapleycam.network.weights import randomise

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


class Body(nn.Module):
    """What stands inside every network below; in training mode it would compute something else and write into buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.gelu(self.norm(self.conv(x)))).mean((2, 3))

    def twice(self, x: Tensor, times: float = 2.0) -> Tensor:
        return times * self(x)

    def after(self, module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        return output + self.norm(self.conv(given[0])).mean((2, 3))


# Networks that keep modules, or call them, in unusual ways


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bodies = [Body(), ("a name", Body())]

    def forward(self, x: Tensor) -> Tensor:
        return self.bodies[0](x) + self.bodies[1][1](x)


class InADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bodies = {"one": Body(), "more": OrderedDict(two=[Body()])}

    def forward(self, x: Tensor) -> Tensor:
        return self.bodies["one"](x) - self.bodies["more"]["two"][0](x)


Pair = namedtuple("Pair", "body scale")


class InANamedTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(Body(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair.scale * self.pair.body(x)


class ByABoundMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.run = self.body.twice
        self.steps = [self.step]

    def step(self, x: Tensor) -> Tensor:
        return self.body(x) + self.run(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps[0](x)


class ByAPartial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.run = partial(self.body.twice, times=5.0)
        self.through = partial(lambda body, x, other: body(x) - other(x), self.body, other=self.body)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) + self.through(x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.again = self.body
        self.squash = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.squash(self.body(x)) + self.squash(self.again(-x))


class WithAttributeTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
        self.scale = torch.tensor(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - self.mean) * self.scale


class HoldingItsHolder(nn.Module):
    """A part that knows the whole: the tree has a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.body.whole = [self]
        self.factor = 3

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.body.whole[0].factor


class OfOtherModes(nn.Module):
    """Reads the mode itself, as functional dropout and GoogLeNet's auxiliary classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = F.dropout(self.body(x), 0.5, self.training)
        return (out, out) if self.training else out


def patched_forward() -> nn.Module:
    network = Plain()
    network.forward = MethodType(lambda self, x: self.body(x) + 1, network)
    return network


def hooked_forward() -> nn.Module:
    network = Plain()
    network.body.register_forward_hook(lambda module, given, output: output + module.conv.weight.sum())
    network.body.conv.register_forward_hook(lambda module, given, output: -output)
    network.body.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    network.register_forward_hook(lambda module, given, kwargs, output: output / 3, with_kwargs=True)
    network.register_forward_hook(lambda module, given, output: output**2, prepend=True)
    return network


def hooked_with_other_modules() -> nn.Module:
    """Hooks that are methods of a module, or hold one, and run it."""
    network = Twice()
    network.register_forward_pre_hook(lambda module, given: (given[0] + module.body(given[0]).mean(),))
    network.squash.register_forward_hook(partial(lambda body, module, given, out: out + body(IMAGES), network.body))
    network.register_forward_hook(network.body.after)
    return network


def weight_norm() -> nn.Module:
    network = Plain()
    parametrizations.weight_norm(network.body.conv)
    return network


def spectral_norm() -> nn.Module:
    network = Plain()
    parametrizations.spectral_norm(network.body.conv)
    return network


class Scaled(nn.Module):
    """A parametrization that reads its mode."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (3 if self.training else 2)


def own_parametrization() -> nn.Module:
    network = Plain()
    parametrize.register_parametrization(network.body.conv, "weight", Scaled())
    return network


def data_parallel_inside() -> nn.Module:
    network = Twice()
    network.body = nn.DataParallel(network.body)
    return network


def compiled_inside() -> nn.Module:
    network = Twice()
    network.body = torch.compile(network.body, backend="eager")
    return network


def closed_over() -> nn.Module:
    """A forward replaced twice by functions that captured what they replace, as notebooks and wrappers do it."""
    network = Twice()
    before, body = network.forward, [network.body]

    def forward(x: Tensor, *, factor: float = 2.0, whole: nn.Module = network) -> Tensor:
        return factor * before(x) + whole.squash(body[0](x))

    network.forward = forward
    network.forward = lambda x, again=network.forward: again(-x, factor=3.0)
    return network


NETWORKS = (
    Plain,
    InAList,
    InADict,
    InANamedTuple,
    ByABoundMethod,
    ByAPartial,
    Twice,
    WithAttributeTensors,
    HoldingItsHolder,
    OfOtherModes,
    patched_forward,
    hooked_forward,
    hooked_with_other_modules,
    weight_norm,
    spectral_norm,
    own_parametrization,
    data_parallel_inside,
    compiled_inside,
    closed_over,
)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = make()
    for module in everything(network):
        if isinstance(module, nn.BatchNorm2d):
            randomise(module, 3)
    return network


def everything(network: nn.Module) -> Iterator[nn.Module]:
    """All modules, those in lists and dicts too, by a search through every attribute."""
    seen: set[int] = set()
    queue: list[object] = [network]
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            yield each
            queue.extend(vars(each).values())
        elif isinstance(each, dict):
            queue.extend(each.values())
        elif isinstance(each, list | tuple):
            queue.extend(each)


def in_eval_mode(network: nn.Module) -> Tensor:
    for module in everything(network):
        module.training = False
    with torch.no_grad():
        return network(IMAGES)


# The same numbers


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_copy_of_a_network_in_training_mode_gives_its_eval_logits_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    network = built(make)
    for module in everything(network):
        module.training = True
    with torch.no_grad():
        logits = twin(network, {})(IMAGES)
    expected = in_eval_mode(network)
    assert torch.equal(logits, expected)
    assert expected.std() > 0.01


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_no_module_of_the_original_runs_in_the_copy(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = built(make)
    originals = set(everything(network))
    ran: list[nn.Module] = []
    call = nn.Module._call_impl
    monkeypatch.setattr(
        nn.Module, "_call_impl", lambda self, *args, **kwargs: ran.append(self) or call(self, *args, **kwargs)
    )
    twin(network, {})(IMAGES)
    assert len(ran) >= 4
    assert not originals.intersection(ran)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_hook_runs_as_often_as_its_module(make: Callable[[], nn.Module]) -> None:
    network = built(make).eval()
    bodies = [module for module in everything(network) if isinstance(module, Body)]
    counts: list[tuple[int, int]] = []
    for body in bodies:
        expected: list[Tensor] = []
        handle = body.register_forward_hook(lambda module, given, output, into=expected: into.append(output))
        in_eval_mode(network)
        handle.remove()
        found: list[Tensor] = []
        with torch.no_grad():
            twin(network, {body: lambda module, given, output, into=found: into.append(output)})(IMAGES)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        counts.append((len(found), len(expected)))
    assert counts
    assert all(found == expected >= 1 for found, expected in counts)


def test_what_a_function_captures_beside_modules_stays_the_users() -> None:
    network, seen, count = built(Plain).eval(), [], 0
    before = network.forward

    def forward(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        seen.append(x)
        return before(x)

    network.forward = forward
    twin(network, {})(IMAGES)
    assert (count, len(seen)) == (1, 1)
    assert network.forward is forward
    assert forward.__closure__[0].cell_contents == before


def renumber(hooks: dict[int, Any]) -> None:
    """As in the first process of all, whose first hook is number 0."""
    functions = list(hooks.values())
    hooks.clear()
    hooks.update(enumerate(functions))


def test_hook_comes_after_the_users_own() -> None:
    network = nn.Sequential(nn.Identity())
    network[0].register_forward_hook(lambda module, given, output: output + 1)
    handle = network[0].register_forward_hook(lambda module, given, output: output * 0)
    network[0].register_forward_hook(lambda module, given, output: output * 2)
    handle.remove()
    renumber(network[0]._forward_hooks)
    seen: list[Tensor] = []
    twin(network, {network[0]: lambda module, given, output: seen.append(output)})(IMAGES)
    torch.testing.assert_close(seen, [(IMAGES + 1) * 2], rtol=0, atol=0)


def test_what_a_hook_returns_replaces_the_output() -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten())
    copy = twin(network, {network[0]: lambda module, given, output: output * 3})
    assert torch.equal(copy(IMAGES), (IMAGES * 3).flatten(1))


def test_mixed_modes_are_eval_in_the_copy_and_mixed_in_the_original() -> None:
    network = built(Twice).train()
    network.body.norm.eval()
    network.squash.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    copy = twin(network, {})
    assert not any(module.training for module in copy.modules())
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_module_used_twice_is_copied_once() -> None:
    copy = twin(built(Twice), {})
    assert copy.body is copy.again


# The same tensors, and nothing else of the original


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_copy_shares_parameters_and_buffers(make: Callable[[], nn.Module]) -> None:
    network = built(make)
    tensors = {id(tensor) for module in everything(network) for tensor in (*module.parameters(), *module.buffers())}
    copy = twin(network, {})
    shared = {id(tensor) for module in everything(copy) for tensor in (*module.parameters(), *module.buffers())}
    assert shared == tensors


def test_what_a_forward_pass_writes_stays_in_the_copy() -> None:
    class Remembers(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            self.extra = nn.Identity()
            self.register_buffer("seen", x)
            return x

    network = nn.Sequential(Remembers(), nn.Flatten()).eval()
    names = set(vars(network[0]))
    twin(network, {})(IMAGES)
    assert set(vars(network[0])) == names
    assert network[0].calls == 0
    assert not network[0]._modules
    assert not network[0]._buffers


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weights_that_a_hook_computes_anew_in_each_pass_stay_in_the_copy() -> None:
    network = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten()).eval()
    weight = network[0].weight
    expected = in_eval_mode(network)
    network[0].weight = weight
    with torch.no_grad():
        assert torch.equal(twin(network, {})(IMAGES), expected)
    assert network[0].weight is weight


def test_copy_of_a_copy_is_a_copy() -> None:
    network = built(ByABoundMethod)
    first = twin(network, {network.body: lambda module, given, output: output * 2})
    second = twin(first, {})
    with torch.no_grad():
        assert torch.equal(second(IMAGES), first(IMAGES))
    shared = set(everything(second)).intersection(everything(first))
    assert {type(module) for module in shared} == {nn.Conv2d, nn.BatchNorm2d, nn.Dropout}


def test_layers_of_pytorch_are_shared_in_eval_mode_only_and_only_as_they_come() -> None:
    def shared(change: Callable[[nn.Module], object]) -> bool:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
        change(network[0])
        return twin(network, {})[0] is network[0]

    assert shared(lambda layer: None)
    assert not shared(lambda layer: layer.train())
    assert not shared(lambda layer: layer.register_forward_hook(lambda *_: None))
    assert not shared(lambda layer: layer.register_forward_pre_hook(lambda *_: None))
    assert not shared(lambda layer: layer.register_full_backward_hook(lambda *_: None))
    assert not shared(lambda layer: layer.compile(backend="eager"))
    assert not shared(lambda layer: layer.add_module("child", Body().eval()))
    assert not shared(lambda layer: setattr(layer, "forward", layer.forward))


def test_layers_of_timm_are_shared_unless_a_part_of_them_is_changed() -> None:
    from timm.layers import BatchNormAct2d

    layer = BatchNormAct2d(4).eval()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer).eval()
    assert twin(network, {})[1] is layer
    assert twin(network, {network[0]: lambda *_: None})[1] is layer
    copy = twin(network, {layer.act: lambda module, given, output: output * 0})
    assert copy[1] is not layer
    assert copy[1].drop is layer.drop
    assert copy(IMAGES).abs().max() == 0 < network(IMAGES).abs().max()
    layer.act.register_full_backward_hook(lambda *_: None)
    assert twin(network, {})[1] is not layer
    assert not twin(network, {})[1].act._backward_hooks


# torch.compile, inference mode, ScriptModules


def test_modules_inside_wrappers_are_found() -> None:
    body = Body()
    assert unwrap(nn.DataParallel(torch.compile(nn.DataParallel(body), backend="eager"))) is body


@pytest.mark.parametrize("how", ["wrapped", "in place", "its forward", "a part of it"])
def test_compiled_code_does_not_run_in_the_copy(how: str) -> None:
    def refuse(graph: object, inputs: object) -> Callable[..., object]:
        raise AssertionError("the compiler was called")

    network = built(Plain).eval()
    expected = in_eval_mode(network)
    if how == "wrapped":
        network = torch.compile(network, backend=refuse)
    elif how == "in place":
        network.compile(backend=refuse)
    elif how == "its forward":
        network.forward = torch.compile(network.forward, backend=refuse)
    else:
        network.body.conv.compile(backend=refuse)
        network.body = torch.compile(network.body, backend=refuse)
    with torch.no_grad():
        assert torch.equal(twin(network, {})(IMAGES), expected)


def test_copy_of_a_network_made_in_inference_mode_can_be_differentiated() -> None:
    with torch.inference_mode():
        network = built(WithAttributeTensors).eval()
        expected = network(IMAGES)
    leaf = IMAGES.clone().requires_grad_()
    logits = twin(network, {})(leaf)
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    assert torch.equal(logits.detach(), expected)
    assert gradient.abs().sum() > 0
    assert network.body.conv.weight.is_inference()
    assert network.mean.is_inference()


def test_scriptmodule_in_eval_mode_runs_as_it_is() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))).eval()
    network = nn.Sequential(scripted, nn.Dropout(0.5), nn.Flatten()).eval()
    expected = in_eval_mode(network)
    network.train()
    scripted.eval()
    with torch.no_grad():
        copy = twin(network, {})
        assert torch.equal(copy(IMAGES), expected)
    assert copy[0] is scripted


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda module: torch.jit.trace(module, IMAGES)], ids=["script", "trace"]
)
def test_scriptmodule_in_training_mode_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    network = nn.Sequential(make(nn.Conv2d(3, 4, 3)), nn.Flatten()).train()
    with pytest.raises(
        TypeError, match="is a ScriptModule, whose layers cannot be cut, nor its mode changed on a copy"
    ):
        twin(network, {})


@pytest.mark.parametrize("name", ["", "0", "0.0"])
def test_hook_on_or_inside_a_scriptmodule_is_refused(name: str) -> None:
    network = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), nn.Flatten()).eval()
    network = network if name else torch.jit.script(network)
    with pytest.raises(TypeError, match="explain the module that it was scripted from"):
        twin(network, {dict(network.named_modules())[name]: lambda module, given, output: None})


# Real architectures


@pytest.mark.large
@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet10t",
        "timm/vgg11_bn",
        "timm/densenet121",
        "timm/mobilenetv3_small_050",
        "timm/efficientnet_lite0",
        "timm/convnext_atto",
        "timm/swin_tiny_patch4_window7_224",
        "timm/vit_tiny_patch16_224",
        "timm/deit_tiny_distilled_patch16_224",
        "timm/maxvit_rmlp_pico_rw_256",
        "timm/coatnet_pico_rw_224",
        "timm/levit_128s",
        "timm/repvgg_a0",
        "timm/nf_resnet50",
        "timm/cspresnet50",
        "timm/xcit_nano_12_p16_224",
        "timm/pvt_v2_b0",
        "timm/mixer_s32_224",
        "torchvision/googlenet",
        "torchvision/inception_v3",
        "torchvision/vit_b_32",
        "torchvision/swin_v2_t",
        "torchvision/maxvit_t",
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/regnet_y_400mf",
    ],
)
def test_copy_of_an_architecture_in_training_mode_gives_its_eval_logits_bit_for_bit(name: str) -> None:
    import timm
    from torchvision import models

    package, short = name.split("/")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(short) if package == "timm" else models.get_model(short, weights=None)
    randomise(network, 0)
    size = {"maxvit_rmlp_pico_rw_256": 256, "inception_v3": 299}.get(short, 224)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = twin(network.train(), {})(images)
        expected = network.eval()(images)
    assert torch.equal(logits, expected)
    assert expected.std() > 0
