"""`serve`: the page on this machine, for models of the zoo or one's own."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from re import fullmatch
from signal import SIGTERM, signal
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from threading import current_thread, main_thread
from time import sleep
from typing import Any

from torch import nn

from ..network.preprocess import Preprocess
from ..network.zoo import Model, load_model
from .blocks import build
from .page import Page

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
    if not fullmatch(r"[0-9.]+ *([kmg]?b)", max_upload.lower()):
        raise ValueError(f"max_upload is {max_upload!r}, expected a size such as 20mb")
    with socket() as tried:
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


def _launched(models: Mapping[str, Model], host: str, port: int, max_upload: str) -> "Served":
    folder = tempfile.TemporaryDirectory(prefix="shapleycam-")
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder.name).resolve())
    page = Page(models, Path(folder.name).resolve())
    served = Served(f"http://{host}:{port}", page, build(page), folder)
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
    folder: "tempfile.TemporaryDirectory[str]" = field(repr=False)
    """Uploads and downloads, deleted when the page is closed."""

    def wait(self) -> None:
        """Return when the page is closed."""
        while self.blocks.is_running:
            sleep(0.1)

    def close(self) -> None:
        """Stop serving, and delete whatever was uploaded."""
        for session in self.page.looks.sessions:
            self.page.leave(session)  # which ends what is being worked out
        self.blocks.close(verbose=False)
        self.folder.cleanup()


def _models(
    model: Model | nn.Module | str | Sequence[str],
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
    weights: Mapping[str, str],
    device: str,
) -> dict[str, Model]:
    if isinstance(model, Model):
        return {model.name: model}
    if isinstance(model, nn.Module):
        name = type(model).__name__
        classes = tuple(class_names) if class_names is not None else _numbered(model)
        return {name: Model(name, model, preprocess or IMAGENET, classes, None, {}, "the caller's")}
    names = [model] if isinstance(model, str) else list(model)
    if stray := [name for name in weights if name not in names]:
        raise ValueError(
            f"weights are given for {', '.join(stray)}, which is not served; models are {', '.join(names)}"
        )
    return {name: load_model(name, weights=weights.get(name), device=device) for name in names}


def _numbered(module: nn.Module) -> tuple[str, ...]:
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if not linear:
        raise ValueError("the network has no linear layer that tells how many classes it has; pass class_names=[...]")
    return tuple(f"class {i}" for i in range(linear[-1].out_features))
