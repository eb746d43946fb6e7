"""The report: one file, nothing from outside, words escaped, and pictures that show what the network saw."""

import re
import subprocess
import sys
import tarfile
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from bench.made import WHERE, drawn, write_run
from shapleycam.bench.datasets import Item
from shapleycam.bench.report import _overlay, _view, write_report
from shapleycam.network.preprocess import Preprocess
from shapleycam.render import blend
from shapleycam.theory.heatmap import heatmap

ABOUT = {"resnet18": {"classes": ["tench", "<i>goldfish"], "preprocess": {"size": [32, 32], "resize": 40}}}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures, the names of which `drawn` gives too; each has a colour of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (60, 50), (20 * i, 255 - 20 * i, 7 * i)).save(folder / f"{i:03d}.jpg")
    return folder


class Page(HTMLParser):
    """The elements of a page in order: tag and attributes; and the words between them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def images(self) -> dict[str, Image.Image]:
        """By their captions."""
        found = {}
        for tag, attributes in self.elements:
            if tag == "img":
                data = str(attributes["src"]).removeprefix("data:image/jpeg;base64,")
                found[str(attributes["alt"])] = Image.open(BytesIO(b64decode(data, validate=True)))
        return found


def report(tmp_path: Path, entries: list[dict[str, Any]], pictures: Path | None = None, **facts: Any) -> Page:
    write_run(tmp_path / "run", entries, models=ABOUT, **facts)
    write_report(tmp_path / "run", tmp_path / "out" / "report.html", pictures)
    return Page(tmp_path / "out" / "report.html")


def test_a_report_is_one_file_that_asks_for_nothing(tmp_path: Path, pictures: Path) -> None:
    page = report(tmp_path, drawn(["GradCAM", "Gaussian"], 10), source=str(pictures))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert all(
            str(attributes[each]).startswith("data:") for each in ("src", "href", "xlink:href") if each in attributes
        )
    source = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


def test_words_from_outside_are_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('1')</script>"
    entries = [{**e, "picture": f'"><img src=x>{bad}{e["picture"]}'} for e in drawn(["GradCAM"], 3)]
    entries.append({**WHERE, "method": "", "picture": "torn.jpg", "status": f"torn {bad}"})
    page = report(tmp_path, entries, versions={bad: bad})
    assert not [tag for tag, _ in page.elements if tag in ("script", "i")]
    assert all(str(attributes["src"]).startswith("data:") for tag, attributes in page.elements if tag == "img")
    said = "".join(page.words)
    assert f"1 x torn {bad}" in said
    assert f'"><img src=x>{bad}001.jpg' in said


def test_the_best_and_the_worst_pictures_of_the_best_method_are_shown_with_their_overlays(
    tmp_path: Path, pictures: Path
) -> None:
    entries = drawn(["RandomCAM", "GradCAM", "ShapleyCAM", "Gaussian"], 10)
    for e in entries:
        i = int(e["picture"][:3])
        best = e["method"] == "ShapleyCAM"
        e |= {"kept": e["full"], "complexity": 0.2, "coherency": 0.9 - 0.05 * ((i * 3) % 10) if best else 0.3}
        e |= {"coherency": 0.99} if e["method"] == "RandomCAM" else {}
    images = report(tmp_path, entries, source=str(pictures)).images()
    # Coherency falls with 3 i mod 10, so the order is 0, 7, 4, ... 6, 3.
    originals = [caption for caption in images if caption[:3].isdecimal()]
    assert [caption[:7] for caption in originals] == [f"{i:03d}.jpg" for i in (0, 7, 4, 3, 6, 9)]
    for i, caption in zip((0, 7, 4, 3, 6, 9), originals, strict=True):
        name = "tench" if i % 2 == 0 else "<i>goldfish"
        full = next(e["full"] for e in entries if e["picture"] == f"{i:03d}.jpg")
        assert caption.endswith(f": {name}, probability {full:.3f}")
        assert np.abs(np.asarray(images[caption])[16, 16].astype(int) - (20 * i, 255 - 20 * i, 7 * i)).max() <= 6
    # 3 / (1 / 0.9 + 1 / 0.8 + 1) = 89.26 and 3 / (1 / 0.45 + 1 / 0.8 + 1) = 67.08
    assert {"ShapleyCAM, ADCC 89.3", "ShapleyCAM, ADCC 67.1"} <= set(images)
    assert not any(caption.startswith("Gaussian") for caption in images)


def test_without_the_pictures_overlays_lie_on_grey(tmp_path: Path) -> None:
    page = report(tmp_path, drawn(["GradCAM"], 6), source=str(tmp_path / "gone"))
    assert set(page.images())
    assert all(caption.startswith("GradCAM") for caption in page.images())
    assert any(word.startswith("003.jpg") for word in page.words)
    with pytest.raises(FileNotFoundError, match="gone2"):
        write_report(tmp_path / "run", tmp_path / "r.html", tmp_path / "gone2")


def test_pictures_are_found_in_a_tar_and_where_they_have_moved_to(tmp_path: Path, pictures: Path) -> None:
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for file in pictures.iterdir():
            tar.add(file, file.name)
    page = report(tmp_path, drawn(["GradCAM"], 6), tmp_path / "pictures.tar", source="/nowhere")
    assert sum(caption[:3].isdecimal() for caption in page.images()) == 6


def test_a_run_of_one_picture_or_of_baselines_or_errors_alone_is_reported(tmp_path: Path) -> None:
    error = {**WHERE, "layer": "conv", "method": "", "picture": "torn.jpg", "status": "torn"}
    entries = [*drawn(["GradCAM"], 1), *drawn(["Gaussian"], 2, model="mine"), error]
    words = "".join(report(tmp_path, entries).words)
    assert "Best pictures of GradCAM" in words
    assert "Worst pictures" not in words
    assert "1 x torn" in words


def test_a_plot_has_the_interval_and_the_quantiles_of_each_method(tmp_path: Path) -> None:
    page = report(tmp_path, drawn(["GradCAM", "ShapleyCAM"], 30))
    circles = [attributes for tag, attributes in page.elements if tag == "circle"]
    shown = re.findall(r"ADCC ↑.*?<td>(.*)", (tmp_path / "out" / "report.html").read_text(), re.DOTALL)
    numbers = re.findall(r'class="(?:best|second|)">([\d.]+)<', shown[0])
    assert [round((float(c["cx"] or 0) - 140) / 6, 2) for c in circles] == [float(numbers[3]), float(numbers[9])]


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_an_overlay_is_what_render_makes_of_the_heatmap(size: tuple[int, int]) -> None:
    explanation = torch.randn(1, 7, 7, generator=torch.Generator().manual_seed(0))
    view = Image.effect_noise((size[1], size[0]), 60).convert("RGB")
    expected = blend(view, heatmap(explanation, size)[0])
    gap = np.abs(np.asarray(_overlay(view, explanation[0].numpy()), int) - np.asarray(expected, int))
    assert gap.max() <= 2


def test_a_blank_or_broken_map_still_makes_an_overlay() -> None:
    view = Image.new("RGB", (8, 8), "white")
    for value in (0.0, -1.0, float("nan")):
        assert _overlay(view, np.full((2, 2), value, np.float32)).size == (8, 8)


@pytest.mark.parametrize("resize", [40, (36, 44), None])
def test_a_picture_is_shown_as_the_network_saw_it(tmp_path: Path, resize: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((61, 50), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    preprocess = Preprocess((30, 32), resize, "bicubic", (0.5,) * 3, (0.2,) * 3)
    about = {"size": [30, 32], "resize": list(resize) if isinstance(resize, tuple) else resize}
    seen = _view(Item("a.png", None, lambda: tmp_path / "a.png"), about)
    assert seen is not None
    assert np.abs(np.asarray(seen, int) - np.asarray(preprocess.crop(tmp_path / "a.png"), int)).max() <= 2


def test_a_picture_that_is_torn_since_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    assert _view(Item("a.jpg", None, lambda: tmp_path / "a.jpg"), None) is None
    assert _view(Item("b.jpg", None, lambda: tmp_path / "b.jpg"), None) is None


def test_a_picture_with_damaged_metadata_is_shown_as_the_network_read_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste((0, 0, 255), (0, 0, 30, 40))
    block = Image.Exif()
    block[ExifTags.Base.Orientation], block[ExifTags.Base.XResolution], block[ExifTags.Base.Artist] = 6, 72.5, "someone"
    file = tmp_path / "a.png"
    for place in range(14, len(block.tobytes())):
        for value in (0, 255):
            damaged = bytearray(block.tobytes())
            damaged[place] = value
            picture.save(file, exif=bytes(damaged))
            seen = _view(Item("a.png", None, lambda: file), {"size": [40, 40], "resize": None})
            assert seen is not None
            expected = Preprocess((40, 40), None, "bicubic", (0.5,) * 3, (0.2,) * 3).crop(file)
            assert np.array_equal(np.asarray(seen), np.asarray(expected))


def test_report_needs_no_torch_and_no_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", drawn(["GradCAM", "Gaussian"], 5), models=ABOUT)
    code = (
        "import sys\nfor name in ('torch', 'torchvision', 'timm'):\n    sys.modules[name] = None\n"
        f"sys.argv[1:] = ['report', {str(run)!r}, '--out', {str(tmp_path / 'r.html')!r}]\n"
        "from shapleycam.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path / 'r.html'}\n")
    assert (tmp_path / "r.html").is_file()


def test_a_picture_that_its_store_does_not_give_is_left_out() -> None:
    def gone() -> bytes:
        raise FileNotFoundError("a.png")

    assert _view(Item("a.png", None, gone), None) is None
