"""What a person sees of a run: lines in a log, exit codes, and how to go on."""

import errno
import io
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shapleycam import cli, progress
from shapleycam.bench import places, ranks
from shapleycam.bench.claims import Claims
from shapleycam.bench.ranks import Rank
from shapleycam.bench.run import Step
from shapleycam.bench.store import Unit, read_configuration, read_rows


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_pictures: Path) -> Any:
    """`shapleycam bench` with the arguments given, in this process: the exit code."""
    monkeypatch.chdir(Path(__file__).parent)

    def run(*arguments: str) -> int:
        common = [
            "bench",
            str(shared_pictures),
            "--out",
            str(tmp_path / "run"),
            "--models",
            "tiny:network",
            "--no-channels-last",
        ]
        monkeypatch.setattr("sys.argv", ["shapleycam", *common, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    return run


@pytest.fixture
def shared_pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((20, 20), 90).save(folder / f"{number}.png")
    return folder


def test_a_log_gets_a_line_every_half_minute_with_speed_and_time_left() -> None:
    file, now = io.StringIO(), [0.0]
    log = progress.Log(Console(file=file), progress.Standing(1000, 100, "me", clock=lambda: now[0]))
    for second in range(1, 71):
        now[0] = float(second)
        log(Step(Unit("resnet50", "conv", "rest", 0), 2))
    assert file.getvalue().splitlines() == [
        "160 of 1000 pictures, 2.0 pictures/s, 0:07:00 left, resnet50 conv rest",
        "220 of 1000 pictures, 2.0 pictures/s, 0:06:30 left, resnet50 conv rest",
    ]


def test_several_processes_have_one_line_with_the_speed_of_each_and_their_failures() -> None:
    file, now = io.StringIO(), [0.0]
    standing = progress.Standing(1000, 0, "rank 0", clock=lambda: now[0])
    log, unit = progress.Log(Console(file=file), standing), Unit("swin_t", "gap", "rest", 0)
    now[0] = 29.0
    log(Step(unit, 30, ("a.png: no picture",)))
    log(Step(unit, 60, (), "rank 1", 2))
    now[0] = 30.0
    log(Step(unit, 0))
    assert file.getvalue() == (
        "90 of 1000 pictures, 3.0 pictures/s (rank 0 1.0, rank 1 2.0), 0:05:03 left, 3 failures, swin_t gap rest\n"
    )
    for rank in range(2, 8):
        standing(Step(unit, 15 * rank, (), f"rank {rank}"))
    assert standing.speed().startswith("16.5 pictures/s (rank 0 1.0, rank 1 2.0, rank 2 1.0, rank 3 1.5, ")
    assert standing.speed(named=False) == "16.5 pictures/s (8 x 1.0 to 3.5)"
    for rank in range(8, 17):
        standing(Step(unit, 60, (), f"rank {rank}"))
    assert standing.speed() == "34.5 pictures/s (17 processes, 1.0 to 3.5 each)"
    standing(Step(unit, 10_000, (), "rank 1"))  # what a killed process had done is done again
    assert standing.done == 1000


def test_a_log_speaks_while_a_batch_takes_longer_than_half_a_minute() -> None:
    file, now = io.StringIO(), [0.0]
    standing = progress.Standing(10, 0, "me", clock=lambda: now[0])
    with progress.Log(Console(file=file), standing) as log:
        log(Step(Unit("swin_t", "gap", "rest", 0), 1))
        now[0] = 40.0
        deadline = time.monotonic() + 30
        while not file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert file.getvalue() == "1 of 10 pictures, 0.0 pictures/s, 0:06:00 left, swin_t gap rest\n"


def test_pictures_that_were_on_disk_are_done_but_make_nothing_faster() -> None:
    now = [0.0]
    standing, unit = progress.Standing(1000, 0, "me", clock=lambda: now[0]), Unit("swin_t", "gap", "rest", 0)
    now[0] = 10.0
    standing(Step(unit, 0, found=60))
    standing(Step(unit, 40))
    assert (standing.done, standing.speed(), standing.left()) == (100, "4.0 pictures/s", "0:03:45")


@pytest.mark.parametrize("processes", [1, 2, 9])
def test_a_bar_fits_a_narrow_terminal_with_all_its_numbers(processes: int) -> None:
    file, now = io.StringIO(), [0.0]
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    standing = progress.Standing(1_200_000, 0, "rank 0", clock=lambda: now[0])
    with progress._bar(console, standing) as watch:
        for number in range(processes):
            now[0] += 30.0
            watch(Step(Unit("efficientnet_lite0", "conv", "log-softmax", 0), 5000, ("x",), f"rank {number}"))
    assert file.getvalue().count("efficientnet_lite0 conv log-softmax") == 1
    for words in (f"{5000 * processes}/1200000", standing.speed(named=False), f"{standing.left()} left", "failure"):
        assert words in file.getvalue()


def test_a_driver_that_only_waits_does_not_say_where_it_is_each_time() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    with progress._bar(console, progress.Standing(10, 0, "here")) as watch:
        for _ in range(5):
            watch(Step(Unit("swin_t", "gap", "rest", 0), 0))
            watch(Step(Unit("vgg16", "conv", "rest", 0), 1))
    assert file.getvalue().count("vgg16 conv rest") == 1


def test_a_narrow_terminal_has_a_bar_too() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    with progress._bar(console, progress.Standing(10, 0, "here")) as watch:
        watch(Step(Unit("swin_t", "gap", "rest", 0), 5))
    assert "━━" in file.getvalue()


def test_a_second_signal_ends_it_at_once_with_its_own_code() -> None:
    with progress._stoppable("finishing this batch") as stopped:
        signal.raise_signal(signal.SIGTERM)
        assert stopped() == signal.SIGTERM
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM


def test_a_rank_waits_for_the_first_one_to_begin_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "POLL", 0.01)
    Rank(0, 0).wait(tmp_path, 0.0)
    with pytest.raises(TimeoutError, match="rank 0 has not begun the run"):
        Rank(1, 1).wait(tmp_path, 0.03)
    (tmp_path / "run.json").touch()
    Rank(1, 1).wait(tmp_path, 0.0)


def test_a_finished_run_ends_with_0_and_the_same_command_again_too(
    call: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert call("--methods", "GradCAM", "--part", "2", "--batch", "2") == 0
        assert "5 pictures, all 3 parts complete" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_ends_in_1_and_is_named_also_when_the_run_is_called_again(
    call: Any, shared_pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shared_pictures / "3.png").write_bytes(b"")
    assert call("--methods", "GradCAM", "--batch", "2") == 1
    assert "problem: 3.png: expected a picture in" in (said := capsys.readouterr()).err
    assert "rows without numbers: 1;" in said.err
    assert "5 pictures, its one part complete" in said.out
    assert call("--methods", "GradCAM", "--batch", "2") == 1


def test_another_process_on_the_same_run_is_named(
    call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Claims(tmp_path / "run", "node7-42")
    assert call("--methods", "GradCAM", "--part", "2", "--batch", "2") == 0
    said = capsys.readouterr()
    assert said.err.count("node7-42 works on this run too; the two share its parts") == 1
    assert "5 pictures, all 3 parts complete" in said.out
    other.close()


def test_a_full_disk_ends_in_1_and_says_how_to_go_on(
    call: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = places._write

    def full(path: Path, data: bytes) -> None:
        if ".parquet" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(places, "_write", full)
        assert call("--methods", "GradCAM", "--part", "2", "--batch", "2") == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "0 of 3 parts are complete, the same command again goes on from there: shapleycam bench" in said
    assert call("--methods", "GradCAM", "--part", "2", "--batch", "2") == 0


def test_a_file_of_settings_is_as_good_as_flags_and_flags_go_before_it(call: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'methods = ["GradCAM", "ShapleyCAM"]\nlayers = "gap,conv"\nbaselines = true\nbatch = 2\npart = 3\nseed = 5\n'
    )
    assert call("--config", str(file), "--seed", "7", "--layers", "conv") == 0
    configuration = read_configuration(tmp_path / "run")["configuration"]
    assert configuration["methods"] == ["GradCAM", "ShapleyCAM", "FakeCAM", "Gaussian"]
    assert (configuration["layers"], configuration["part"], configuration["seed"]) == (["conv"], 3, 7)
    assert read_rows(tmp_path / "run").num_rows == 5 * 4


@pytest.mark.parametrize(
    ("text", "words"), [("methds = 'GradCAM'", "methds"), ("methods = ", "is no TOML"), ("part = 'x'", "part")]
)
def test_a_file_of_settings_that_does_not_fit_is_refused(
    call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert call("--config", str(tmp_path / "run.toml")) != 0
    assert words in capsys.readouterr().err
