"""A model made ready for a run: labels as classes, the batch, precision, and what runs the anti-explanation maps."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from shapleycam import measure
from shapleycam.bench import loaded as loading
from shapleycam.bench.configuration import Configuration, Machine
from shapleycam.bench.loaded import class_index, fastest_batch, load
from shapleycam.network.zoo import load_model
from tiny import Planned, finish


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (3, 3),
        (5, None),
        (-1, None),
        ("boxer", 1),
        ("Dipper", 4),
        ("crane", None),
        ("wren", None),
        (None, None),
        ("", None),
    ],
)
def test_a_label_means_a_class_if_one_alone_has_that_name(label: Any, index: int | None) -> None:
    assert class_index(tiny.network(), label) == index


def test_an_identifier_means_its_place_among_the_logits() -> None:
    model = load_model("resnet18", weights="random")
    assert class_index(model, "n01440764") == 0
    assert class_index(model, "n02124075") == 285  # Egyptian cat; sorted folders of a subset would say another number


@pytest.mark.parametrize(
    ("seconds", "batch"),
    [
        ({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1, 16: 0.1, 32: 0.1, 64: 0.1}, 64),
        ({1: 0.1, 2: 0.15, 4: 0.3, 8: 0.6, 16: 1.2, 32: 2.4}, 2),
        ({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8, 16: 1.6, 32: 3.2}, 1),
        ({1: 0.1, 2: 0.19, 4: 0.3, 8: 0.6, 16: 1.2, 32: 2.4}, 4),
        ({1: 3.0}, 1),
        ({1: 1.9, 2: 2.1}, 2),
    ],
)
def test_the_batch_doubles_while_that_pays(seconds: dict[int, float], batch: int) -> None:
    assert fastest_batch(seconds.__getitem__, 64) == batch


def test_a_trial_that_was_slow_once_does_not_settle_the_batch() -> None:
    tried = Counter[int]()

    def trial(pictures: int) -> float:
        tried[pictures] += 1
        return 3.0 if pictures in (1, 8) and tried[pictures] == 1 else 0.1

    assert fastest_batch(trial, 8) == 8


def test_the_batch_is_the_last_that_fits_into_memory_and_no_larger_than_a_part() -> None:
    def trial(pictures: int) -> float:
        if pictures > 8:
            raise torch.cuda.OutOfMemoryError
        return 0.1

    assert fastest_batch(trial, 64) == 8
    assert fastest_batch(trial, 5) == 4


def test_a_batch_is_found_for_a_network_without_second_derivatives_where_none_are_asked_for(planned: Planned) -> None:
    rows = finish(planned(models="tiny:once", methods="GradCAM,LayerCAM", batch="auto"))
    assert set(rows["status"].to_pylist()) == {"ok"}
    finish(planned("others", models="tiny:once", methods="Gaussian", batch="auto"))
    with pytest.raises(ValueError, match="second order needs a second derivative"):
        planned("second", models="tiny:once", methods="GradCAM,ShapleyCAM", batch="auto")


def test_what_is_compiled_runs_the_anti_explanation_maps_and_nothing_else(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def compiled(module: torch.nn.Module) -> Any:
        def infer(images: torch.Tensor) -> torch.Tensor:
            given.append(len(images))
            return torch.zeros(len(images), 5)

        return infer

    quiet = finish(planned()).to_pylist()
    monkeypatch.setattr(loading, "_compiled", compiled)
    rows = finish(planned("compiled", compile=True)).to_pylist()
    assert sum(given) <= len(rows)
    assert all(row["deleted"] == pytest.approx(0.2) for row in rows)
    assert [row["kept"] for row in rows] == [row["kept"] for row in quiet]


def test_half_precision_changes_numbers_a_little(planned: Planned) -> None:
    exact, half = (finish(planned(each, precision=each, methods="HiResCAM")).to_pylist() for each in ("fp32", "bf16"))
    differences = [abs(one["full"] - other["full"]) for one, other in zip(exact, half, strict=True)]
    assert 0 < max(differences) < 0.02


def test_channels_last_is_a_format_of_images_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    ready = load("tiny:network", Configuration(), Machine(channels_last=True))
    images = ready.images([torch.zeros(3, 16, 16, dtype=torch.uint8)] * 2)
    assert images.is_contiguous(memory_format=torch.channels_last)
    plain = load("tiny:network", Configuration(), Machine(channels_last=False))
    assert ready.sha256 == plain.sha256
    torch.testing.assert_close(
        measure(ready.model, images, methods="GradCAM").kept,
        measure(plain.model, images.contiguous(), methods="GradCAM").kept,
    )


def test_images_are_bit_for_bit_those_of_the_preprocessing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shapleycam.network.pictures import pixels

    monkeypatch.chdir(Path(__file__).parents[1])
    ready = load("tiny:network", Configuration(), Machine(channels_last=False))
    files = sorted(pictures.rglob("*.png"))
    preprocess = ready.model.preprocess
    assert torch.equal(ready.images([pixels(preprocess.crop(file)) for file in files]), preprocess(files))
