"""`serve`: the page on this machine, for models of the zoo or one's own."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from re import fullmatch
from signal import SIGTERM, signal
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket
from threading import Event, Lock, current_thread, main_thread
from time import sleep
from typing import Any

import torch
from torch import nn

from ..network.cut import inference
from ..network.preprocess import Preprocess
from ..network.zoo import Model, load_model
from .blocks import build
from .page import Page

_VARIABLE = "GRADIO_TEMP_DIR"
IMAGENET = Preprocess((224, 224), 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def serve(
    model: Model | nn.Module | str | Sequence[str] = "efficientnet_lite0",
    *,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: str = "20mb",
    wait: bool = True,
) -> "Served":
    """Open the page: explain, compare and play in a browser, for a first look, a lecture, or a demo of one's own model.

    Parameters
    ----------
    model
        Names as in `load_model`, what `load_model` gives, or a module that makes logits of images.
    preprocess, class_names
        Of a module of one's own: ImageNet's preprocessing and "class 0", "class 1", ... if not given.
    weights
        For each name a file, or "random".
    host, port
        Where to listen: this machine alone unless told otherwise.
    max_upload
        The largest file that the page takes.
    wait
        Whether to return only when the server is stopped; otherwise `Served`, which is closed when it is no longer needed.

    Raises
    ------
    ValueError
        As `load_model`, and for weights of a model that is not served.
    OSError
        When the port is taken.
    """
    if not fullmatch(r"[0-9]+ *([kmg]?b)", max_upload.lower()):
        raise ValueError(f"max_upload is {max_upload!r}, expected a size such as 20mb")
    with socket(AF_INET6 if ":" in host else AF_INET) as tried:
        tried.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be used: {error.strerror}; name another (--port)") from None
    models = _models(model, preprocess, class_names, weights or {}, device)
    if host not in ("127.0.0.1", "localhost", "::1"):
        sys.stderr.write(
            f"shapleycam: {host} can be reached from other machines: whoever reaches port {port} can use this page; it has no "
            "password and no encryption\n"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if not wait:
        return _launched(models, host, port, max_upload)
    with _terminated_in_order():
        served = _launched(models, host, port, max_upload)
        try:
            sys.stderr.write(f"shapleycam: {served.url} (Ctrl-C ends it)\n")
            served.wait()
        except KeyboardInterrupt:
            sys.stderr.write("shapleycam: closed\n")
        finally:
            served.close()
    return served


class _Shared:
    """The folder of uploads and downloads of all pages of this process: gradio finds it in a variable of the environment."""

    def __init__(self) -> None:
        self._pages, self._lock = 0, Lock()
        self._before: str | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def opened(self) -> Path:
        """The folder, for one page more."""
        with self._lock:
            self._pages += 1
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="shapleycam-")
                self._before = os.environ.get(_VARIABLE)
                os.environ[_VARIABLE] = str(Path(self._folder.name).resolve())
            return Path(self._folder.name).resolve()

    def closed(self) -> None:
        """One page less; without any, the folder is deleted, and the variable is what it was."""
        with self._lock:
            self._pages -= 1
            if self._pages or self._folder is None:
                return
            self._folder.cleanup()
            self._folder = None
            os.environ.pop(_VARIABLE, None)
            if self._before is not None:
                os.environ[_VARIABLE] = self._before


_SHARED = _Shared()


def _launched(models: Mapping[str, Model], host: str, port: int, max_upload: str) -> "Served":
    page = Page(models, _SHARED.opened())
    served = Served(f"http://{host}:{port}", page, build(page))
    try:
        served.blocks.launch(
            server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, show_error=True,
            allowed_paths=[], max_file_size=max_upload, footer_links=[], ssr_mode=False, pwa=False, enable_monitoring=False,
            inbrowser=False, run_history=False, state_session_capacity=64, css_paths=[Path(__file__).with_name("page.css")],
        )  # fmt: skip
    except BaseException:
        served.close()
        raise
    return served


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM ends the process as ever, but by an exception, so that what is open is closed before."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal(SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal(SIGTERM, before)


@dataclass(frozen=True)
class Served:
    """A page that is open."""

    url: str
    page: Page = field(repr=False)
    """Whose pictures are open."""
    blocks: Any = field(repr=False)
    _closed: Event = field(default_factory=Event, repr=False)

    def wait(self) -> None:
        """Return when the page is closed."""
        while self.blocks.is_running:
            sleep(0.1)

    def close(self) -> None:
        """Stop serving, and delete whatever was uploaded once no other page of this process is open."""
        if self._closed.is_set():
            return
        self._closed.set()
        for session in self.page.looks.sessions:
            self.page.leave(session)  # which ends what is being worked out
        self.blocks.close(verbose=False)
        _SHARED.closed()


def _models(
    model: Model | nn.Module | str | Sequence[str],
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
    weights: Mapping[str, str],
    device: str,
) -> dict[str, Model]:
    own = {"preprocess": preprocess is not None, "class_names": class_names is not None}
    if unused := [name for name, given in own.items() if given and not isinstance(model, nn.Module)]:
        raise ValueError(f"{unused[0]} belongs to a module of one's own, and {model!r} has its own; leave it out")
    if not isinstance(model, str | Sequence) and (weights or device != "cpu"):
        raise ValueError(
            "weights and device are of models by name; load weights, and move the model to a device, before"
        )
    if isinstance(model, Model):
        return {model.name: model}
    if isinstance(model, nn.Module):
        name = type(model).__name__
        made = Model(name, model, preprocess or IMAGENET, (), None, {}, "the caller's")
        logits = inference(model)(made.formed(torch.zeros(1, 3, *made.input_size)))
        classes = [f"class {i}" for i in range(logits.shape[1])] if class_names is None else list(class_names)
        if len(classes) != logits.shape[1]:
            raise ValueError(f"class_names has {len(classes)} names, and the network {logits.shape[1]} logits")
        return {name: replace(made, class_names=tuple(classes))}
    names = [model] if isinstance(model, str) else list(model)
    if stray := [name for name in weights if name not in names]:
        raise ValueError(
            f"weights are given for {', '.join(stray)}, which is not served; models are {', '.join(names)}"
        )
    return {name: load_model(name, weights=weights.get(name), device=device) for name in names}
