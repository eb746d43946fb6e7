"""What every test relies on: no network connection, no window, one thread, and shapes checked by beartype."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import suppress

os.environ["HF_HUB_OFFLINE"] = "1"  # else a missing weight file costs 47 s of retries
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

install_import_hook("shapleycam", "beartype.beartype")  # sees only what is imported after it

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from shapleycam.bench.allocator import keep_freed

keep_freed()  # half of a pass is page faults otherwise
torch.set_num_threads(1)  # one thread a worker: `pytest -n 2` on two cores

settings.register_profile("shapleycam", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("shapleycam")


@pytest.fixture(autouse=True, scope="module")
def hand_back() -> Iterator[None]:
    """What a file's networks have freed is kept for its own tests: two workers, a browser and Ray share the machine."""
    yield
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data beside the checkout: pictures and tables that do not ship with the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the pictures and tables in ../shared/data, which do not ship with the project")
    return folder
