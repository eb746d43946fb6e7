"""What a run will cost: the paper's grid by hand, and a real run's rows and passes beside what was said before."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from shapleycam import cli
from shapleycam.bench import loaded
from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.estimate import METRICS, estimate
from shapleycam.bench.places import files
from tiny import Planned, finish


def test_the_papers_grid_is_25_million_passes_and_12_million_rows() -> None:
    configuration = Configuration(models=("paper",), layers=("gap,conv",))
    costs = estimate(Path("50000"), configuration, Machine(), 1000.0)
    assert len(costs) == 12
    assert sum(cost.passes for cost in costs) == 12 * 2 * 50_000 * (1 + 2 * 10) == 25_200_000
    assert sum(cost.rows for cost in costs) == 12_000_000
    assert sum(cost.hours for cost in costs) == pytest.approx(25_200_000 / 1000 / 3600)


def test_a_real_run_has_the_rows_and_no_more_than_the_passes_and_bytes_that_were_said(
    planned: Planned, pictures: Path, monkeypatch: pytest.MonkeyPatch, count_passes: Any
) -> None:
    configuration = Configuration(
        models=("tiny:network",),
        layers=("gap,conv",),
        methods=("GradCAM,ShapleyCAM,RandomCAM",),
        metrics=("insertion",),
    )
    plan = planned(metrics="insertion")
    passes = count_passes(lambda: finish(plan))
    monkeypatch.setattr(loaded, "_seconds", lambda run: run().numel() / 40)  # as if 8 pictures took a second
    (cost,) = estimate(pictures, configuration, Machine(), None)
    assert cost.rate == pytest.approx(8)
    assert cost.rows == finish(plan).num_rows
    assert cost.passes == 11 * 2 * (1 + 3 * (2 + METRICS["insertion"]))
    assert 0.5 * cost.passes < passes <= cost.passes  # at gap methods coincide
    held = sum((plan.run / name).stat().st_size for name in files(plan.run) if name.suffix == ".parquet")
    assert cost.bytes < held < 12 * cost.bytes  # parts of four pictures are mostly footers


@pytest.fixture
def count_passes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The number of images that the first layer of the tiny network sees while something is done."""
    seen: list[int] = []
    real = torch.nn.Conv2d.forward

    def counted(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if self.in_channels == 3:
            seen.append(len(images))
        return real(self, images)

    def count(run: Any) -> int:
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Conv2d, "forward", counted)
            run()
        return sum(seen)

    return count


def test_positions_count_on_disk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(tiny.__file__).parent)
    sizes = [
        estimate(pictures, Configuration(models=("tiny:network",), layers=(layer,)), Machine(), None)[0].bytes
        for layer in ("gap", "0")
    ]
    extra = (sizes[1] - sizes[0]) / 110
    assert (
        2 * (256 - 64) * 0.85 < extra < 2 * (256 - 64) * 1.15
    )  # a number of a map takes two bytes, noise is not compressed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["5", "--rate", "fast"], "rate is 'fast', expected measured or a number"),
        (["5", "--rate", "0"], "rate is 0.0, expected measured or a number"),
        (["5", "--rate", "inf"], "rate is inf, expected measured or a number"),
        (["0", "--rate", "1"], "pictures is 0"),
        (["5", "--rate", "1", "--models", "resnet18,resnet05"], "unknown model 'resnet05'"),
        (["5", "--rate", "1", "--models", "resnet18", "--layers", "nowhere"], "nowhere"),
        (["5", "--processes", "0"], "processes is 0"),
        (["5", "--rate", "1", "--methods", "GradCAM,ScoreCAM"], "ScoreCAM: passes that cannot be counted"),
        (["5", "--rate", "1", "--fidelity", "100"], "fidelity replays tails"),
        (["nowhere", "--rate", "1"], "'nowhere' is not there"),
        (["5", "--rate", "1", "--engine", "spark"], "engine"),
        (["5", "--rate", "1", "--actors", "0"], "actors is 0"),
        (["5", "--rate", "1", "--stall", "0"], "stall is 0.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["shapleycam", "plan", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code != 0
    assert words in capsys.readouterr().err


def test_the_command_prints_a_line_a_network_and_what_it_makes_in_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = "shapleycam plan 100 --models resnet18,swin_t --layers gap,conv --methods GradCAM --rate 0.5 --processes 2"
    monkeypatch.setattr("sys.argv", call.split())
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == ["resnet18", "swin_t", "in"]
    assert lines[1][1:5] == ["600", "0.5", "0.17", "200"]
    assert lines[3][2:5] == ["1,200", "0.33", "400"]
