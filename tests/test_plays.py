"""What `shapleycam shapley` writes and prints, with a network small enough to be played exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import shapleycam as sc
from shapleycam import Model, Preprocess
from shapleycam.cli import main
from shapleycam.network.weights import randomise
from shapleycam.plays import HEAD, NEED, REDUNDANT, draw_interactions, play_pictures

NAMES = ("axolotl", "boxer", "crane", "dipper", "egret")


def tiny() -> Model:
    """Maps of 4 x 4 positions and five classes, for images of 32 x 32."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.GELU(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    randomise(network, 0)
    return Model("tiny", network.eval(), Preprocess((32, 32), 32, "bilinear", (0.5,) * 3, (0.5,) * 3), NAMES, None,
                 {"gap": "3", "conv": "2"}, "drawn")  # fmt: skip


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_values_on_disk_are_those_of_the_game_and_the_most_faithful_method_comes_first(
    picture: Path, tmp_path: Path
) -> None:
    model = tiny()
    (played,) = play_pictures(model, [picture], tmp_path / "out", methods=["all"], layer="conv", pairs=True)
    game = sc.game(model, model.preprocess(picture), layer="conv")
    values = sc.exact(game).values
    with np.load(tmp_path / "out/one/shapley.npz") as file:
        assert file["values"] == pytest.approx(values.numpy(), rel=1e-5)
        assert file["map"] == pytest.approx(values.view(4, 4).numpy(), rel=1e-5)
        assert not file["errors"].any()
    with np.load(tmp_path / "out/one/interactions.npz") as file:
        assert file["interactions"] == pytest.approx(sc.interactions(game).numpy(), abs=1e-6)
    assert "exact" in played.line
    assert all(len(row) == len(HEAD) for row in played.rows)
    errors = {row[0]: float(row[1]) for row in played.rows}
    assert list(errors.values()) == sorted(errors.values())
    found = sc.fidelity(model, model.preprocess(picture), layer="conv")
    assert errors == pytest.approx(dict(zip(found.methods, found.error[0].tolist(), strict=True)), abs=1e-3)
    assert {path.name for path in (tmp_path / "out/one").iterdir()} == {
        "shapley.png", "shapley.npz", "interactions.png", "interactions.npz",
    }  # fmt: skip


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    played = list(play_pictures(tiny(), [tmp_path / "empty.png", picture], tmp_path / "out", methods=["path"]))
    assert [each.failed for each in played] == [True, False]
    assert "empty.png" in played[0].line
    assert (tmp_path / "out/one/shapley.png").exists()


def test_lines_join_the_strongest_pairs_in_the_colour_of_their_sign() -> None:
    game = sc.game(tiny(), torch.rand(3, 32, 32))
    table = torch.zeros(16, 16)
    table[0, 3] = table[3, 0] = 2  # along the upper edge
    table[12, 15] = table[15, 12] = -2  # along the lower edge
    drawn = draw_interactions(game, table, Image.new("RGB", (64, 64)))
    assert drawn.getpixel((32, 8)) == NEED
    assert drawn.getpixel((32, 56)) == REDUNDANT
    assert drawn.getpixel((32, 32)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no picture was given"),
        (("{picture}", "--players", "9"), "expected 1 to 7 for 7 x 7 positions"),
        (("{picture}", "--budget", "-1"), "expected neither to be negative"),
        (("{picture}", "--target", "no such class"), "unknown target 'no such class'"),
        (("{picture}", "--methods", "GradCam"), "did you mean GradCAM"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(
    arguments: tuple[str, ...], words: str, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [each.format(picture=picture) for each in arguments]
    monkeypatch.setattr("sys.argv", ["shapleycam", "shapley", *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_command_prints_a_row_a_method(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--methods", "GradCAM,path", "--layer", "gap", "--players", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["shapleycam", "shapley", str(picture), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "with all 9 players" in said
    assert "exact" in said
    assert [line.split()[0] for line in said.splitlines()[-4:]].count("GradCAM") == 1


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_played(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr("shapleycam.plays.fidelity", None)
    with pytest.raises(FileExistsError, match="out' is a file; name a folder"):
        next(play_pictures(tiny(), [picture], tmp_path / "out", methods=["GradCAM"]))
