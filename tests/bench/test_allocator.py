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
for turn in range(43):  # at first pieces of it are cut off for other things
    if turn == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # more than glibc keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_what_is_freed_is_not_asked_for_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", ASKED, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "handed back")
    }
    assert faults["kept"] < 0.1 * faults["handed back"]
    assert faults["handed back"] > 3 * 2**26 / 4096 * 0.9


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: 1 / 0)
    allocator.keep_freed()
