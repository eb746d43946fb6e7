"""What `write_explanations` writes for many pictures, with a network small enough to run in no time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import shapleycam
from shapleycam import Explanation, Model, Preprocess, explain, overlay, sheet
from shapleycam.gallery import Written, find_target, folder_names, write_explanations

NAMES = ("tench", "crane", "Egyptian cat", "coffee mug", "Crane", "tiger cat")
WNIDS = ("n01", "n02", "n03", "n04", "n05", "n06")
METHODS = ["GradCAM", "ShapleyCAM-E", "RandomCAM"]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(NAMES)),
    ).eval()  # fmt: skip
    with torch.no_grad():
        network[-1].weight *= 30
    preprocess = Preprocess((32, 32), 40, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return Model("tiny", network, preprocess, NAMES, WNIDS, {"gap": "3", "conv": "2"}, "random, seed 0")


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a picture, another one for each name."""

    def write(name: str) -> Path:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = list(name.encode())
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(path)
        return path

    return write


def write(model: Model, pictures: Sequence[Path], out: Path, **options: Any) -> list[Written]:
    return list(write_explanations(model, pictures, out, **{"methods": METHODS, **options}))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def arrays(folder: Path, method: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{method}.npz") as file:
        return dict(file)


def assert_written(folder: Path, explained: Explanation) -> None:
    for method in METHODS:
        found = arrays(folder, method)
        assert set(found) == {"heatmap", "explanation"}
        np.testing.assert_array_equal(found["heatmap"], explained.heatmaps[method][0].numpy())
        np.testing.assert_array_equal(found["explanation"], explained.explanations[method][0].numpy())


# Files


def test_a_folder_holds_what_explain_gives_of_its_picture(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = [picture(f"{letter}.png") for letter in "abc"]
    written = write(
        model, paths, tmp_path / "out", layer="conv", utility="pre-softmax", target="tench", seed=3, batch=2
    )
    assert [(one.picture, one.failed) for one in written] == [(path, False) for path in paths]
    per_picture = {"sheet.png", "explanation.json", *(f"{m}.{kind}" for m in METHODS for kind in ("png", "npz"))}
    assert files(tmp_path / "out") == {f"{letter}/{file}" for letter in "abc" for file in per_picture}
    for path in paths:
        explained = explain(
            model, model.preprocess(path), methods=METHODS, layer="conv", utility="pre-softmax", targets=0, seed=3
        )
        for method in METHODS:
            found, wanted = arrays(tmp_path / "out" / path.stem, method), explained.heatmaps[method][0]
            assert set(found) == {"heatmap", "explanation"}
            np.testing.assert_allclose(found["heatmap"], wanted.numpy(), atol=1e-5)
            np.testing.assert_allclose(
                found["explanation"], explained.explanations[method][0].numpy(), rtol=1e-3, atol=1e-5
            )
            assert wanted.max() > 0.9 or method == "RandomCAM"


def test_overlays_and_sheet_are_those_of_render(model: Model, picture: Callable[[str], Path], tmp_path: Path) -> None:
    path = picture("a.png")
    write(model, [path], tmp_path / "out")
    explained = explain(model, model.preprocess(path), methods=METHODS)
    assert_written(tmp_path / "out" / "a", explained)
    tiles = {method: views[0] for method, views in overlay(explained, [path]).items()}
    for method, tile in tiles.items():
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "out" / "a" / f"{method}.png")), np.asarray(tile)
        )
    facts = json.loads((tmp_path / "out" / "a" / "explanation.json").read_text())
    name, index, probability = (facts["target"][key] for key in ("name", "index", "probability"))
    title = f"a.png: {name} ({index}), probability {probability:.4f}\ntiny, {explained.layer}, rest"
    page = sheet([("picture", model.preprocess.crop(path)), *tiles.items()], title)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a" / "sheet.png")), np.asarray(page))


def test_the_facts_say_what_was_explained_and_how(model: Model, picture: Callable[[str], Path], tmp_path: Path) -> None:
    path = picture("a.png")
    write(model, [path], tmp_path / "out", target="2", seed=5)
    facts = json.loads((tmp_path / "out" / "a" / "explanation.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        probabilities = model.module(model.preprocess(path))[0].double().softmax(0)
    order = probabilities.argsort(descending=True).tolist()

    def one(index: int) -> dict[str, Any]:
        probability = pytest.approx(float(probabilities[index]), abs=1e-6)
        return {"index": index, "wnid": WNIDS[index], "name": NAMES[index], "probability": probability}

    assert facts.pop("target") == one(2)
    assert facts.pop("likeliest") == [one(index) for index in order[:5]]
    assert facts.pop("weights") == {"origin": "random, seed 0", "sha256": model.weights_hash}
    assert facts.pop("layer") == {
        "name": "3", "layout": "bnhw", "maps": 8, "positions": [7, 7], "prefix": 0, "reason": ""
    }  # fmt: skip
    assert facts.pop("options") == {"target": "2", "top": 1, "samples": 0, "budget": None}
    assert facts.pop("device") == "cpu"
    assert facts.pop("preprocess") == {
        "size": [32, 32], "resize": 40, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]
    }  # fmt: skip
    versions = facts.pop("versions")
    assert set(versions) == {"shapleycam", "torch", "timm", "pillow", "python"}
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert versions["shapleycam"] == shapleycam.__version__
    assert isinstance(facts.pop("warnings"), list)
    assert facts == {"picture": str(path), "model": "tiny", "utility": "rest", "methods": METHODS, "seed": 5}


def test_warnings_are_in_the_facts_and_in_the_line(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    (written,) = write(model, [picture("a.png")], tmp_path / "out", methods=["ShapleyCAM"], utility="pre-softmax")
    facts = json.loads((tmp_path / "out" / "a" / "explanation.json").read_text())
    assert any("the utility is linear in the maps" in warning for warning in facts["warnings"])
    assert written.line.count("\n  warning: ") == len(facts["warnings"]) > 0
    assert f"layer 3 -> {tmp_path / 'out' / 'a'}\n" in written.line


def test_pictures_of_one_stem_get_a_folder_each(model: Model, picture: Callable[[str], Path], tmp_path: Path) -> None:
    # The third of them already bears the name that the second would get.
    paths = [picture("one/cat.png"), picture("two/cat.png"), picture("cat-2.png"), picture("cat.bmp")]
    write(model, paths, tmp_path / "out", methods="GradCAM", batch=3)
    pictures = {
        folder.name: json.loads((folder / "explanation.json").read_text())["picture"]
        for folder in (tmp_path / "out").iterdir()
    }
    assert pictures == dict(zip(["cat", "cat-2", "cat-2-2", "cat-3"], map(str, paths), strict=True))


def test_the_likeliest_classes_get_a_folder_each_named_by_rank_and_class(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = [picture("a.png"), picture("b.png")]
    written = write(model, paths, tmp_path / "out", top=3)
    assert [one.picture for one in written] == [path for path in paths for _ in range(3)]
    for path in paths:
        image = model.preprocess(path)
        with torch.no_grad():
            order = model.module(image)[0].topk(3).indices.tolist()
        folders = sorted((tmp_path / "out" / path.stem).iterdir())
        slugs = [NAMES[index].lower().replace(" ", "-") for index in order]
        assert [folder.name for folder in folders] == [f"{rank}-{slug}" for rank, slug in enumerate(slugs, 1)]
        for folder, index in zip(folders, order, strict=True):
            assert json.loads((folder / "explanation.json").read_text())["target"]["index"] == index
            wanted = explain(model, image, methods="GradCAM", targets=index).heatmaps["GradCAM"][0]
            np.testing.assert_allclose(arrays(folder, "GradCAM")["heatmap"], wanted.numpy(), atol=1e-5)


def test_a_picture_that_cannot_be_read_is_reported_and_does_not_stop_the_others(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    bad = tmp_path / "pictures" / "bad.jpg"
    paths = [picture("a.png"), bad, tmp_path / "missing.png", picture("b.png"), picture("c.png")]
    bad.write_bytes(b"no picture at all")
    for batch in (1, 2, 8):
        written = write(model, paths, tmp_path / f"out{batch}", batch=batch, methods="GradCAM")
        assert [(one.picture, one.failed) for one in written] == [
            (path, path in (bad, tmp_path / "missing.png")) for path in paths
        ]
        assert "bad.jpg" in written[1].line
        assert "there is no such file" in written[2].line
        assert {folder.name for folder in (tmp_path / f"out{batch}").iterdir()} == {"a", "b", "c"}
        for path in (paths[0], paths[3], paths[4]):
            wanted = explain(model, model.preprocess(path), methods="GradCAM").heatmaps["GradCAM"][0]
            found = arrays(tmp_path / f"out{batch}" / path.stem, "GradCAM")["heatmap"]
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_pictures_are_handed_over_as_soon_as_their_batch_is_done(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    written = write_explanations(
        model, [picture("a.png"), picture("b.png")], tmp_path / "out", methods=["GradCAM"], batch=1
    )
    assert next(written).picture.name == "a.png"
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {"a"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target": "tench", "top": 2}, "give a target or a number of likeliest classes, not both"),
        ({"top": 0}, "top is 0, expected a number of classes from 1 to 6"),
        ({"top": 7}, "top is 7, expected a number of classes from 1 to 6"),
        ({"batch": 0}, "batch is 0, expected a number of pictures, at least 1"),
        ({"batch": -1}, "batch is -1, expected"),
        ({"target": "gibberish"}, "unknown target 'gibberish', no index, wnid or class name; known are tench"),
        ({"methods": ["GradCan"]}, "unknown method 'GradCan'; did you mean GradCAM"),
        ({"utility": "softmax"}, "unknown utility 'softmax'; did you mean"),
        ({"layer": "features"}, "the network has no layer 'features'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: Model, picture: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write(model, [picture("a.png")], tmp_path / "out", **options)
    assert not (tmp_path / "out" / "a").exists()


def test_a_folder_below_a_file_is_refused_by_its_name(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out' cannot be made: Not a directory; name another"):
        next(write_explanations(model, [picture("a.png")], tmp_path / "file" / "out", methods=["GradCAM"]))


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out' is a file; name a folder to write to"):
        write(model, [picture("a.png")], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# Targets


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (None, None),
        ("least", "least"),
        ("0", 0),
        ("5", 5),
        ("n04", 3),
        ("coffee mug", 3),
        ("EGYPTIAN CAT", 2),
    ],
)
def test_a_target_is_an_index_a_wnid_or_a_class_name(model: Model, target: str | None, found: int | str | None) -> None:
    assert find_target(model, target) == found


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("crane", r"several classes are called 'crane': give 1 \(n02\) or 4 \(n05\)"),
        ("6", "target 6 is out of range; tiny has classes 0 to 5"),
        ("-1", "target -1 is out of range; tiny has classes 0 to 5"),
        ("--5", "unknown target '--5', no index, wnid or class name"),
        ("²", "unknown target '²', no index, wnid or class name"),
        ("tiger cut", "unknown target 'tiger cut', no index, wnid or class name; did you mean tiger cat"),
        ("", "unknown target ''"),
    ],
)
def test_a_target_that_no_class_or_several_classes_have_is_refused(model: Model, target: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find_target(model, target)


def test_an_ambiguous_target_is_told_by_index_where_there_are_no_wnids(model: Model) -> None:
    nameless = Model("tiny", model.module, model.preprocess, NAMES, None, {}, "")
    with pytest.raises(ValueError, match="several classes are called 'crane': give 1 or 4"):
        find_target(nameless, "crane")
    with pytest.raises(ValueError, match="unknown target 'n02'"):
        find_target(nameless, "n02")


def test_noisy_pictures_are_said_and_their_deviation_is_written(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    write(model, [picture("a.png")], tmp_path / "out", samples=3, methods=["GradCAM"])
    out = explain(model, model.preprocess(picture("a.png")), methods="GradCAM", samples=3)
    np.testing.assert_array_equal(
        arrays(tmp_path / "out" / "a", "GradCAM")["deviation"], out.deviations["GradCAM"][0].numpy()
    )
    assert json.loads((tmp_path / "out" / "a" / "explanation.json").read_text())["options"]["samples"] == 3


def test_a_file_name_that_is_no_text_stops_nobody(model: Model, picture: Callable[[str], Path], tmp_path: Path) -> None:
    odd = picture("a.png").with_name("caf\udce9.png")
    try:
        picture("a.png").rename(odd)
    except (OSError, UnicodeError):
        pytest.skip("this disk takes no such name")
    first, second = write(model, [odd, picture("b.png")], tmp_path / "out")
    assert not first.failed
    assert not second.failed
    facts = json.loads((tmp_path / "out" / "caf\udce9" / "explanation.json").read_text(encoding="utf-8"))
    assert facts["picture"] == str(odd)


def test_folders_differ_on_disks_that_do_not_mind_case() -> None:
    assert folder_names([Path("Cat.jpg"), Path("cat.png"), Path("CAT-2.png")]) == ["Cat", "cat-2", "CAT-2-2"]


def test_a_folder_that_may_not_be_written_to_is_refused_before_anything_is_explained(
    model: Model, picture: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapleycam.gallery.os.access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setattr("shapleycam.gallery.explain", None)
    with pytest.raises(OSError, match="out' cannot be made: Permission denied; name another"):
        write(model, [picture("a.png")], tmp_path / "out")


def test_a_network_of_features_has_no_class_to_explain(model: Model) -> None:
    with pytest.raises(ValueError, match="tiny puts out features and no classes"):
        find_target(replace(model, class_names=()), None)


# What one picture must not do to the others


def counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that are cropped, as they are."""
    seen: list[Any] = []
    crop = Preprocess.crop
    monkeypatch.setattr(Preprocess, "crop", lambda self, picture: seen.append(picture) or crop(self, picture))
    return seen


def test_a_picture_is_decoded_once(
    model: Model, picture: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, seen = [picture("a.png"), picture("b.png")], counted(model, monkeypatch)
    write(model, paths, tmp_path / "out", top=2)
    assert seen == paths


def test_a_file_where_a_pictures_folder_is_to_be_stops_no_other(
    model: Model, picture: Callable[[str], Path], tmp_path: Path
) -> None:
    paths, out = [picture("a.png"), picture("b.png")], tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    first, second = write(model, paths, out)
    assert first.failed
    assert "a' is a file; move it, or name another folder" in first.line
    assert not second.failed
    assert (out / "b" / "sheet.png").is_file()
    assert (out / "a").read_text() == "mine"


def test_logits_that_are_no_numbers_are_null_and_said_on_every_tile(
    model: Model, picture: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Sequential(*model.module, nn.LogSoftmax(1), nn.Threshold(torch.inf, torch.nan))
    captions: list[str] = []
    monkeypatch.setattr(
        shapleycam.gallery,
        "sheet",
        lambda tiles, title: captions.extend(name for name, _ in tiles) or sheet(tiles, title),
    )
    (written,) = write(replace(model, module=module), [picture("a.png")], tmp_path / "out")
    assert "probability not a number" in written.line
    assert captions == ["picture", *(f"{method} (blank: see warnings)" for method in METHODS)]
    facts = json.loads((tmp_path / "out" / "a" / "explanation.json").read_text(), parse_constant=pytest.fail)
    assert facts["target"]["probability"] is None


def test_a_command_explains_one_layer_which_the_first_picture_tells(
    model: Model, picture: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        shapleycam.gallery, "explain", lambda *given, **named: asked.append(named["layer"]) or explain(*given, **named)
    )
    paths = [picture(f"{letter}.png") for letter in "abc"]
    write(replace(model, layers={}), paths, tmp_path / "out", batch=1, top=2)
    assert asked == [None, *["3"] * 5]
    facts = [json.loads((path / "explanation.json").read_text()) for path in (tmp_path / "out").glob("*/*")]
    assert len({(each["layer"]["name"], each["layer"]["reason"]) for each in facts}) == 1
    assert facts[0]["layer"]["reason"] != ""
