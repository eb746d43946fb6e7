"""Every family of timm's and torchvision's classifiers, explained with no argument but the model, as the documentation says."""

from pathlib import Path

import pytest
from benchmarks.architectures import NAMES, NO_CLASSIFIER, SLOW, TIMM, TORCHVISION, row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"


def rows() -> dict[str, str]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}


def test_every_family_has_its_row() -> None:
    from timm.models._registry import _model_to_module, _module_to_models
    from torchvision import models

    covered = {_model_to_module[name] for name in TIMM}
    assert set(_module_to_models) == covered | set(NO_CLASSIFIER)
    kinds = {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    assert {models.get_model_builder(name).__module__ for name in TORCHVISION} == kinds
    assert len(rows()) == len(NAMES)


def test_at_least_95_percent_work() -> None:
    works = [" | works | " in line for line in rows().values()]
    assert sum(works) >= 0.95 * len(works)
    assert f"{sum(works)} of {len(works)}: " in PAGE.read_text()


@pytest.mark.large
@pytest.mark.filterwarnings("ignore")  # what networks say while they are built
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_a_network_is_explained_as_the_page_says(name: str) -> None:
    found = row(name)
    assert str(found) == rows()[found.network]
