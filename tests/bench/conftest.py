"""Made-up pictures, and runs of a tiny network over them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.planned import Plan, plan
from tiny import Planned, finish


@pytest.fixture(autouse=True)
def nobody_left_at_work() -> Iterator[None]:
    """A process that is not closed says for ever that it lives; checked by beartype, that draws from Python's generator."""
    before = set(threading.enumerate())
    yield
    assert "heartbeat" not in [thread.name for thread in set(threading.enumerate()) - before]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven pictures of noise in three classes; p05 is rather red."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        if number == 5:
            pixels[..., 0] = 255
        path = folder / ("axolotl", "crane", "dipper")[number % 3] / f"p{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def planned(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Plans a run of the tiny network, four pictures a part, two a batch; arguments replace those of the plan."""
    monkeypatch.chdir(Path(__file__).parents[1])

    def make(run: str = "run", source: Path = pictures, **changes: Any) -> Plan:
        machine = {name: changes.pop(name) for name in Machine.__annotations__ if name in changes}
        given = {"models": "tiny:network", "layers": "gap,conv", "methods": "GradCAM,ShapleyCAM,RandomCAM", "part": 4}
        given |= changes
        lists = {
            name: (given[name],) for name in ("models", "layers", "methods", "utilities", "metrics") if name in given
        }
        return plan(
            source,
            tmp_path / run,
            Configuration(**{**given, **lists}),
            Machine(**{"batch": "2", "channels_last": False} | machine),
        )

    return make


@pytest.fixture
def undisturbed(planned: Planned) -> pa.Table:
    """The rows that every run with the fixture's configuration must end with."""
    return finish(planned("undisturbed"))
