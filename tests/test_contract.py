"""Nothing is left behind by a call, also when it raises; and nothing that surrounds a call changes its numbers."""

import gc
import random
import resource
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.levit import Levit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from shapleycam.network.weights import randomise
from unchecked import library

Explanation, explain, layers = library.Explanation, library.explain, library.layers


def images(b: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(b, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def twice(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    return output * 2


def cnn() -> nn.Sequential:
    """conv, bn, act and drop three times, then pool, flatten, fc; normalisation, dropout, in-place writes, hooks, GELU."""
    network = nn.Sequential()
    for stage, act in enumerate((nn.ReLU(inplace=True), nn.GELU(), nn.GELU())):
        network.add_module(f"conv{stage}", nn.Conv2d(4 if stage else 3, 4, 3))
        network.add_module(f"bn{stage}", nn.BatchNorm2d(4))
        network.add_module(f"act{stage}", act)
        network.add_module(f"drop{stage}", nn.Dropout(0.5, inplace=stage == 0))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc", nn.Linear(4, 5))
    randomise(network, 0)
    network.act0.register_forward_hook(twice)
    network.act2.register_forward_hook(twice)
    network.conv2.register_forward_pre_hook(lambda module, given: None)
    network.fc.register_full_backward_hook(lambda module, given, output: None)
    return network.eval()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.qkv = nn.Linear(8, 24)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        self.attended = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.drop(tokens + self.attended.transpose(1, 2).flatten(2)).mean(1))


def attending() -> nn.Module:
    network = Attending()
    randomise(network, 0)
    return network.eval()


def drawn(network: nn.Module) -> nn.Module:
    """Weights so large that what is in front of a cut matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0 if parameter.ndim > 1 else 1, 0.3, generator=generator)
    return network.eval()


def vit() -> nn.Module:
    network = VisionTransformer(
        16, 4, num_classes=5, embed_dim=12, depth=2, num_heads=3, drop_rate=0.5, proj_drop_rate=0.5
    )
    return drawn(network)


def swin() -> nn.Module:
    network = SwinTransformer(
        16, 2, num_classes=5, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4, proj_drop_rate=0.5
    )
    return drawn(network)


def levit() -> nn.Module:
    """In eval mode its attention keeps the biases that it made of its parameters."""
    return drawn(Levit(64, num_classes=5, embed_dim=(16, 16), key_dim=8, depth=(1, 1), num_heads=(2, 2)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "cnn": (cnn, "conv1"),
    "attention": (attending, "conv"),
    "vit": (vit, "blocks.1.norm1"),
    "swin": (swin, "layers.1.blocks.0.norm1"),
}


# Everything that a call could leave behind


def of_tensor(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    values = tensor.detach().clone().flatten().view(torch.uint8).numpy().tobytes()
    version = None if tensor.is_inference() else tensor._version
    return id(tensor), values, tensor.requires_grad, tensor.grad_fn, tensor.stride(), version, of_tensor(tensor.grad)


def of_network(network: nn.Module) -> dict[tuple[str, ...], object]:
    state: dict[tuple[str, ...], object] = {}
    for name, module in network.named_modules():
        state[name, "is"] = (id(module), type(module), module.training)
        for key, value in vars(module).items():
            state[name, key] = [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        state[name, "tensor"] = of_tensor(tensor)
    return state


def of_process() -> dict[str, object]:
    cuda = torch.backends.cuda
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "Python's generator": random.getstate(),
        "NumPy's generator": str(np.random.get_state()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "global hooks": [len(getattr(nn.modules.module, f"_global_{kind}_hooks")) for kind in ("forward", "backward")],
        "type and threads": (torch.get_default_dtype(), torch.get_num_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


class Left:
    """Compares a network, the process and the caller's tensors with what they were when this was made."""

    def __init__(self, network: nn.Module, *tensors: Tensor) -> None:
        self.look = lambda: (of_network(network), of_process(), [of_tensor(each) for each in tensors])
        self.before = self.look()

    def check(self) -> None:
        network, process, tensors = self.look()
        assert network == self.before[0]
        assert process == self.before[1]
        assert tensors == self.before[2]


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "enable_grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def in_training_mode(network: nn.Module) -> None:
    network.train()


def in_mixed_modes(network: nn.Module) -> None:
    """The root and the dropout in training mode, all else not; and a root in eval mode above parts that train, the same."""
    network.eval()
    network.training = True
    for module in network.modules():
        module.training = module.training or isinstance(module, nn.Dropout)


def in_training_mode_but_for_the_root(network: nn.Module) -> None:
    network.train()
    network.training = False


MODES = (nn.Module.eval, in_training_mode, in_mixed_modes, in_training_mode_but_for_the_root)


def with_gradients(network: nn.Module) -> nn.Module:
    """Some parameters with gradients that the caller has not used yet, some frozen."""
    for place, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(place % 3 != 0)
        parameter.grad = torch.full_like(parameter, 0.5) if place % 2 else None
    return network


class Stop(BaseException):
    """As KeyboardInterrupt: nobody catches it."""


def stop(*args: Any) -> Tensor:
    raise Stop


# A call that succeeds


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_call_leaves_nothing_behind_and_its_surroundings_change_no_number(
    name: str, surrounding: str, mode: Callable[[nn.Module], None]
) -> None:
    make, layer = NETWORKS[name]
    expected = explain(make(), images(), layer=layer, methods="all", targets=[1, 4])
    network, x, targets, keys = with_gradients(make()), images(), torch.tensor([1, 4]), ["a", "b"]
    mode(network)
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    left = Left(network, x, targets)
    with SURROUNDINGS[surrounding]():
        inside = Left(network, x, targets)
        out = explain(network, x, layer=layer, methods="all", targets=targets)
        explain(network, x, layer=layer, methods="RandomCAM", keys=keys)
        layers(network, x)
        inside.check()
    left.check()
    assert keys == ["a", "b"]
    same(out, expected)


def same(out: Explanation, expected: Explanation) -> None:
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.targets, expected.targets)
    assert out.layer == expected.layer
    for name, explanation in expected.explanations.items():
        assert torch.equal(out.explanations[name], explanation)
        assert torch.equal(out.heatmaps[name], expected.heatmaps[name])
        assert out.heatmaps[name].dtype == out.explanations[name].dtype == torch.float32
        assert explanation.abs().max() > 1e-6


def test_network_in_training_mode_is_explained_in_eval_mode_and_handed_back_in_training_mode() -> None:
    network, x = cnn(), images()
    with torch.no_grad():
        logits = network(x)
    expected = explain(network, x, layer="conv1")
    network.train()
    with torch.random.fork_rng(), torch.no_grad():
        assert not torch.equal(network(x), logits)
    network = cnn().train()
    for _ in range(2):
        out = explain(network, x, layer="conv1")
        assert torch.equal(out.logits, logits)
        assert torch.equal(out.heatmaps["ShapleyCAM"], expected.heatmaps["ShapleyCAM"])
    assert all(module.training for module in network.modules())


def test_lists_of_the_caller_stay_as_they_are() -> None:
    targets, keys, methods = [1, 4], ["a", "b"], ["RandomCAM", "GradCAM"]
    explain(cnn(), images(), layer="conv1", targets=targets, keys=keys, methods=methods)
    assert (targets, keys, methods) == ([1, 4], ["a", "b"], ["RandomCAM", "GradCAM"])


def test_what_comes_out_has_no_graph_and_shares_no_memory_with_what_went_in() -> None:
    network, x, targets = cnn(), images().requires_grad_(), torch.tensor([1, 4])
    out = explain(network, x, layer="conv1", methods="all", targets=targets)
    tensors = [out.logits, out.targets, *out.heatmaps.values(), *out.explanations.values(), *out.signs.values()]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)
    taken = {each.untyped_storage().data_ptr() for each in (x, targets, *network.parameters(), *network.buffers())}
    assert not taken.intersection(each.untyped_storage().data_ptr() for each in tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_and_copy_are_freed_without_the_garbage_collector(name: str) -> None:
    make, layer = NETWORKS[name]
    freed: list[weakref.ref[Any]] = []

    def utility(logits: Tensor, targets: Tensor) -> Tensor:
        freed.append(weakref.ref(logits))
        return (logits**2).sum(1)

    def hook(module: nn.Module, given: Any, output: Tensor) -> None:
        freed.extend((weakref.ref(module), weakref.ref(output)))

    network = make()
    network.get_submodule(layer).register_forward_hook(hook)
    gc.collect()
    gc.disable()
    try:
        out = explain(network, images(), layer=layer, utility=utility)
        assert [ref() for ref in freed] == [None] * 3
    finally:
        gc.enable()
    assert out.heatmaps["ShapleyCAM"].max() > 0


@pytest.mark.parametrize("place", ["conv0", "bn1", "act1", "fc"])
def test_hooks_for_gradients_of_the_users_own_neither_run_nor_change_a_number(place: str) -> None:
    expected = explain(cnn(), images(), layer="conv0", methods="all")
    network = cnn()
    network.get_submodule(place).register_full_backward_hook(stop)
    network.get_submodule(place).register_full_backward_pre_hook(stop)
    for parameter in network.parameters():
        parameter.register_hook(stop)
        parameter.register_post_accumulate_grad_hook(stop)
    left = Left(network)
    same(explain(network, images(), layer="conv0", methods="all"), expected)
    left.check()


# A call that raises


def hooked(layer: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = cnn()
        network.get_submodule(layer).register_forward_hook(stop)
        return network

    return make


def reused() -> nn.Module:
    network = cnn()
    network.append(nn.Sequential(network.flatten))
    return network


RAISING: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[BaseException]]] = {
    "the network, in front of the cut": (hooked("act0"), {}, Stop),
    "the target layer": (hooked("conv1"), {}, Stop),
    "the network, behind the cut": (hooked("drop2"), {}, Stop),
    "the utility": (cnn, {"utility": stop}, Stop),
    "a utility of another shape": (cnn, {"utility": lambda logits, targets: logits}, ValueError),
    "a utility without a gradient": (cnn, {"utility": lambda logits, targets: logits.detach().sum(1)}, ValueError),
    "a target out of range": (cnn, {"targets": [1, 5]}, ValueError),
    "a layer that runs twice": (reused, {"layer": "flatten"}, ValueError),
    "a layer without maps": (cnn, {"layer": "flatten"}, ValueError),
    "a misspelt layer": (cnn, {"layer": "conv7"}, ValueError),
    "too few keys": (cnn, {"methods": "RandomCAM", "keys": ["a"]}, ValueError),
    "images that the network cannot take": (cnn, {"images": torch.zeros(2, 4, 16, 16)}, RuntimeError),
    "images too small": (cnn, {"images": torch.zeros(2, 3, 4, 4)}, RuntimeError),
}


@pytest.mark.parametrize("place", ["in front of the cut", "the target layer", "behind the cut", "the utility"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_call_that_raises_inside_a_transformer_leaves_nothing_behind(name: str, place: str) -> None:
    make, layer = NETWORKS[name]
    network = with_gradients(make())
    broken = {"in front of the cut": "patch_embed", "the target layer": layer, "behind the cut": "head"}.get(place)
    if broken:
        network.get_submodule(broken).register_forward_hook(stop)
    in_mixed_modes(network)
    x = images()
    left = Left(network, x)
    with pytest.raises(Stop):
        explain(network, x, layer=layer, utility=stop if place == "the utility" else "rest")
    left.check()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_transformers_maps_are_its_own_whatever_writes_behind_them(name: str) -> None:
    make, _ = NETWORKS[name]
    block, found = ("blocks.0" if name == "vit" else "layers.1.blocks.0"), []
    for inplace in (True, False):
        network = make()
        network.get_submodule(f"{block}.mlp").act = nn.ReLU(inplace=inplace)
        found.append(explain(network, images(), layer=f"{block}.mlp.fc1", methods="all"))
    same(*found)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_transformers_blank_map_is_named(name: str) -> None:
    make, layer = NETWORKS[name]
    out = explain(make(), images(), layer=layer, methods="GradCAM", utility=lambda logits, targets: 0 * logits.sum(1))
    assert [(each.image, each.reason) for each in out.warnings] == [(0, "blank"), (1, "blank")]


def test_what_a_network_keeps_of_its_parameters_is_not_kept_for_it() -> None:
    network, x = levit().train(), F.interpolate(images(), 64)
    left = Left(network, x)
    before = explain(network, x, methods="GradCAM")
    left.check()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention_biases" in name:
                parameter.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    after, fresh = explain(network, x, methods="GradCAM"), levit()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(after.logits, explain(fresh, x, methods="GradCAM").logits)
    assert not torch.equal(after.logits, before.logits)
    with torch.enable_grad():
        network.eval()(x)  # which keeps biases that have a graph
    found = library.randomisation(network, x, methods="GradCAM", layers=["stages"])
    assert found.correlations["GradCAM"].isfinite().all()


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("name", RAISING)
def test_call_that_raises_leaves_nothing_behind(name: str, surrounding: str) -> None:
    make, arguments, error = RAISING[name]
    network, arguments = with_gradients(make()), {"layer": "conv1", "images": images(), **arguments}
    in_mixed_modes(network)
    left = Left(network, arguments["images"])
    with SURROUNDINGS[surrounding]():
        inside = Left(network, arguments["images"])
        with pytest.raises(error):
            explain(network, **arguments)
        inside.check()
    left.check()


def test_settings_of_the_process_are_the_callers_during_the_call_too() -> None:
    """Other threads would meet them, as they meet what `torch.nn.attention.sdpa_kernel` sets."""
    network = attending()
    of_all_threads = ("attention", "global hooks", "type and threads", "deterministic", "precision")
    seen: list[list[object]] = []

    def look(*args: Any) -> None:
        seen.append([of_process()[name] for name in of_all_threads])

    def utility(logits: Tensor, targets: Tensor) -> Tensor:
        look()
        return (logits**2).sum(1)

    look()
    network.conv.register_forward_pre_hook(look)
    network.head.register_forward_hook(look)
    explain(network, images(), layer="conv", utility=utility)
    assert len(seen) == 4
    assert all(each == seen[0] for each in seen)


# Surroundings, types and wrappers


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_parameters_change_no_number(name: str) -> None:
    make, layer = NETWORKS[name]
    learning, frozen = make().requires_grad_(True), make().requires_grad_(False)
    same(*(explain(each, images(), layer=layer, methods="all") for each in (learning, frozen)))


@pytest.mark.parametrize("inside", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("made", ["model", "images", "model and images", "targets"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_made_without_autograd_change_no_number(name: str, made: str, inside: str) -> None:
    make, layer = NETWORKS[name]
    expected = explain(make(), images(), layer=layer, methods="all", targets=torch.tensor([3, 0]))
    network, x, targets = make(), images(), torch.tensor([3, 0])
    with SURROUNDINGS[inside]():
        network = make() if "model" in made else network
        x = images() if "images" in made else x
        targets = torch.tensor([3, 0]) if "targets" in made else targets
        within = explain(network, x, layer=layer, methods="all", targets=targets)
    same(within, expected)
    same(explain(network, x, layer=layer, methods="all", targets=targets), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_changes_the_network_and_not_its_explanation(name: str) -> None:
    make, layer = NETWORKS[name]
    network = make()
    expected = explain(network, images(), layer=layer, methods="all")
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images()).dtype == torch.bfloat16
        same(explain(network, images(), layer=layer, methods="all"), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_explanation_in_float64_is_that_in_float32(name: str) -> None:
    make, layer = NETWORKS[name]
    single = explain(make(), images(), layer=layer, methods="all", targets=2)
    double = explain(make().double(), images().double(), layer=layer, methods="all", targets=2)
    for method, explanation in double.explanations.items():
        assert explanation.dtype == double.heatmaps[method].dtype == torch.float64
        if method != "XGradCAM":  # it divides by sum(A), which is near zero in some of these maps
            torch.testing.assert_close(single.explanations[method].double(), explanation, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(single.heatmaps[method].double(), double.heatmaps[method], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_network_gives_float32_maps_near_those_of_the_same_weights_in_float32(name: str) -> None:
    make, layer = NETWORKS[name]
    half, x = make().bfloat16(), images().bfloat16()
    methods = ["GradCAM", "HiResCAM", "ShapleyCAM", "ShapleyCAM-H"]
    out = explain(half, x, layer=layer, methods=methods, targets=2)
    expected = explain(make().bfloat16().float(), x.float(), layer=layer, methods=methods, targets=2)
    assert out.logits.dtype == torch.bfloat16
    for method in methods:
        assert out.explanations[method].dtype == out.heatmaps[method].dtype == torch.float32
        distance = (out.explanations[method] - expected.explanations[method]).norm() / expected.explanations[
            method
        ].norm()
        assert 0 < distance < 0.05


@pytest.mark.parametrize("which", ["network", "images", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_memory_changes_the_last_bits_at_most(name: str, which: str) -> None:
    make, layer = NETWORKS[name]
    network, x = make(), images()
    expected = explain(network, x, layer=layer, methods="all")
    if which != "images":
        network = make().to(memory_format=torch.channels_last)
    if which != "network":
        x = x.to(memory_format=torch.channels_last)
    left = Left(network, x)
    out = explain(network, x, layer=layer, methods="all")
    left.check()
    assert out.layer == expected.layer
    for method, explanation in expected.explanations.items():
        torch.testing.assert_close(out.explanations[method], explanation, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(out.heatmaps[method], expected.heatmaps[method], rtol=1e-3, atol=1e-4)


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="aot_eager")
    return network


def with_compiled_parts(network: nn.Module) -> nn.Module:
    """Through AOTAutograd, whose code has no second derivative."""
    for name, module in list(network.named_children())[1:]:
        setattr(network, name, torch.compile(module, backend="aot_eager"))
    return network


def compiled_in_parallel(network: nn.Module) -> nn.Module:
    return nn.DataParallel(compiled(with_compiled_parts(network)))


@pytest.mark.parametrize(
    "wrap",
    [compiled, compiled_in_place, with_compiled_parts, nn.DataParallel, compiled_in_parallel],
    ids=lambda wrap: wrap.__name__,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_wrapped_network_gives_the_numbers_of_the_plain_one(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    make, layer = NETWORKS[name]
    expected = explain(make(), images(), layer=layer, methods="all")
    wrapped = wrap(make())
    left = Left(wrapped)
    same(explain(wrapped, images(), layer=layer, methods="all"), expected)
    left.check()


def test_compiled_network_that_has_run_gives_the_numbers_of_the_plain_one() -> None:
    expected = explain(cnn(), images(), layer="conv1", methods="all")
    network = compiled(cnn())
    with torch.no_grad():
        logits = network(images())
    same(explain(network, images(), layer="conv1", methods="all"), expected)
    with torch.no_grad():
        assert torch.equal(network(images()), logits)


# Threads


@pytest.mark.parametrize("name", NETWORKS)
def test_four_threads_on_one_network_give_the_numbers_of_one_thread(name: str) -> None:
    make, layer = NETWORKS[name]
    earlier = {"cnn": "conv0", "attention": "conv", "vit": "blocks.0.norm1", "swin": "layers.0.blocks.0.norm1"}[name]
    works = [
        {"layer": layer if turn % 2 else earlier, "methods": methods, "utility": utility}
        for turn, (methods, utility) in enumerate(
            [
                ("all", "rest"),
                ("GradCAM", "post-softmax"),
                ("ShapleyCAM-H", "rest"),
                (["RandomCAM", "ShapleyCAM"], "rest"),
            ]
        )
    ]
    expected = [[explain(make(), images(seed=seed), **work) for seed in range(4)] for work in works]
    network = with_gradients(make())
    in_mixed_modes(network)
    left = Left(network)
    start = threading.Barrier(4)
    found: list[list[Explanation]] = [[] for _ in works]
    modes: list[object] = []

    def run(thread: int) -> None:
        # Grad mode, inference mode and autocast belong to a thread: each has its own.
        with ExitStack() as stack:
            stack.enter_context(list(SURROUNDINGS.values())[thread + 1]())
            before = of_process()
            start.wait(timeout=60)
            for repeat in range(8):
                found[thread].append(explain(network, images(seed=repeat % 4), **works[thread]))
            modes.append(of_process() == before)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert modes == [True] * 4
    for outs, wanted in zip(found, expected, strict=True):
        assert len(outs) == 8
        for repeat, out in enumerate(outs):
            same(out, wanted[repeat % 4])
    left.check()


@pytest.mark.parametrize("name", ["cnn", "attention", "vit"])
def test_a_thousand_calls_leave_the_number_of_tensors_and_the_memory_flat(name: str) -> None:
    make, layer = NETWORKS[name]
    network, x = make(), images(1)
    seen = []
    for call in range(1000):
        if call % 300 == 99:
            gc.collect()
            tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
            seen.append((tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
        path = ["AumannCAM"] if call % 5 == 0 else []  # it takes several times as long
        explain(network, x, layer=layer, methods=["ShapleyCAM", *path], nodes=2).heatmaps["ShapleyCAM"]
    (first, small), *_, (last, large) = seen
    assert last == first
    assert large - small < 20  # MiB at the peak
