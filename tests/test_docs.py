"""What the documentation shows runs: the Python blocks of each page, one after the other, as a reader would type them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if "```python\n" in page.read_text())


@pytest.mark.large
def test_the_readmes_first_lines_run(tmp_path: Path) -> None:
    first, _, _ = (ROOT / "README.md").read_text().partition("## In a browser")
    own = "import torchvision\n\nmy_module = torchvision.models.resnet18()\n"
    run(own + code_of(first), tmp_path)


@pytest.mark.large
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(code_of(page.read_text()), tmp_path)


def code_of(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))


def run(code: str, folder: Path) -> None:
    """Code, beside two pictures."""
    for name in ("cat.jpg", "coffee.jpg"):
        (folder / name).write_bytes((ROOT / "src" / "shapleycam" / "data" / name).read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_equations_is_what_the_docstrings_say() -> None:
    from benchmarks.equations import PAGE, marks, page

    assert PAGE.read_text(encoding="utf-8") == page(), "make it anew: python -m benchmarks.equations"
    assert {2, 3, 4, 5, 6, 7, 8, 10, 14, 16, 18, 19, 20, 21, 22, 23} == {number for number, *_ in marks()}
