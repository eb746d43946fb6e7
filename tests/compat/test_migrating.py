"""The migration page says what is so: its blocks run, in their order."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"


@pytest.mark.filterwarnings("ignore::UserWarning:quantus")
def test_every_block_runs() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)
    assert known["visualization"].shape == (224, 224, 3)
