"""What is served, to whom, and what is refused before a port is opened."""

import sys
from os import environ
from pathlib import Path
from signal import SIG_DFL, SIGINT, SIGTERM, Signals, signal
from socket import socket
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import shapleycam as sc
from shapleycam.cli import main
from shapleycam.web import serving
from shapleycam.web.page import Page
from tiny import network


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a page would have been launched with; nothing is opened."""
    seen: list[dict[str, Any]] = []

    def build(page: Page) -> Any:
        seen.append({"models": page.models, "folder": page.folder})
        return SimpleNamespace(
            launch=lambda **options: seen[-1].update(options), is_running=False, close=lambda verbose: None
        )

    monkeypatch.setattr(serving, "build", build)
    return seen


def test_the_page_is_for_this_machine_alone_unless_told_otherwise(
    launched: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    sc.serve(network())
    (found,) = launched
    assert (found["server_name"], found["share"], found["allowed_paths"]) == ("127.0.0.1", False, [])
    assert (found["max_file_size"], found["server_port"]) == ("20mb", 7860)
    assert not found["folder"].exists()  # deleted on the way out
    assert "other machines" not in capsys.readouterr().err
    sc.serve(network(), host="0.0.0.0")
    assert "0.0.0.0 can be reached from other machines" in capsys.readouterr().err


@pytest.mark.large
@pytest.mark.parametrize(("number", "code"), [(SIGTERM, 128 + SIGTERM), (SIGINT, 0)])
def test_a_signal_ends_the_page_without_a_traceback_and_leaves_nothing_behind(
    number: Signals, code: int, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="the page is in the extra web")
    with socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "shapleycam",
        "serve",
        "--models",
        "resnet18",
        "--weights",
        "resnet18=random",
        "--port",
        port,
    ]
    served = Popen(
        command, stderr=PIPE, stdout=PIPE, text=True, env=environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal(SIGINT, SIG_DFL),  # a shell ignores it for what it starts in the background
    )  # fmt: skip
    assert served.stderr is not None
    try:
        assert "Ctrl-C ends it" in served.stderr.readline()
        (folder,) = tmp_path.glob("shapleycam-*")
        (folder / "upload.png").write_bytes(b"x")
        served.send_signal(number)
        printed, said = served.communicate(timeout=300)
    finally:
        served.kill()
    assert (served.returncode, [*tmp_path.glob("shapleycam-*")]) == (code, [])
    assert "Traceback" not in said + printed


def test_a_module_of_ones_own_is_served(launched: list[dict[str, Any]]) -> None:
    module = network().module
    sc.serve(module, class_names=list("abcde"), preprocess=network().preprocess)
    sc.serve(module)
    first, second = (next(iter(each["models"].values())) for each in launched)
    assert (first.module, first.class_names, first.preprocess) == (module, tuple("abcde"), network().preprocess)
    assert second.class_names == tuple(f"class {i}" for i in range(5))
    sc.serve(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double())
    (third,) = launched[-1]["models"].values()
    assert len(third.class_names) == 4
    with pytest.raises(ValueError, match="class_names belongs to a module of one's own"):
        sc.serve("resnet18", class_names=["a"])
    with pytest.raises(ValueError, match="weights and device are of models by name"):
        sc.serve(module, device="cuda")
    with pytest.raises(ValueError, match="class_names has 3 names, and the network 5 logits"):
        sc.serve(module, class_names=list("abc"), preprocess=network().preprocess)


def test_weights_of_a_model_that_is_not_served_are_refused() -> None:
    with pytest.raises(ValueError, match="weights are given for resnet50, which is not served; models are resnet18"):
        sc.serve("resnet18", weights={"resnet50": "random"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "resnet18"], "weights are given as 'resnet18', expected NAME=FILE, or NAME=random"),
        (["--max-upload", "lots"], "max_upload is 'lots', expected a size such as 20mb"),
        (["--port", "1", "--host", "203.0.113.1"], "port 1 of 203.0.113.1 cannot be used"),
        (["--models", "resnet81"], "unknown model 'resnet81'"),
        (["--models", "resnet18", "--weights", "resnet18=none.pth"], "none.pth"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["shapleycam", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert words in said


def test_the_command_serves_several_models(launched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv",
        ["shapleycam", "serve", "--models", "resnet18,resnet50", "--weights", "resnet18=random", "--weights", "resnet50=random",
         "--port", "8000"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert [*launched[0]["models"]] == ["resnet18", "resnet50"]
    assert launched[0]["server_port"] == 8000
    assert isinstance(next(iter(launched[0]["models"].values())).module(torch.zeros(1, 3, 64, 64)), torch.Tensor)


def test_pages_share_a_folder_until_the_last_is_closed(
    launched: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    one, other = (sc.serve(network(), wait=False) for _ in range(2))
    folder = one.page.folder
    assert other.page.folder == folder
    one.close()
    one.close()
    assert folder.exists()
    assert environ["GRADIO_TEMP_DIR"] == str(folder)
    other.close()
    assert not folder.exists()
    assert environ["GRADIO_TEMP_DIR"] == "before"
