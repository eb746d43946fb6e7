"""Memory that is freed stays with the process, and is not asked for again page by page."""

import subprocess
import sys

import pytest

from shapleycam.bench import allocator

ASKED = """
import resource, sys
import torch
from shapleycam.bench.allocator import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
for turn in range(6):
    if turn == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (2**24, 3 * 2**23):  # numbers: above what glibc keeps by itself
        torch.ones(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_what_is_freed_is_not_asked_for_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", ASKED, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "handed back")
    }
    assert faults["kept"] < 100
    assert faults["handed back"] > 50_000


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: 1 / 0)
    allocator.keep_freed()
