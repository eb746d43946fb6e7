"""Memory that is freed stays with the process, and is not asked for again page by page."""

import os
import subprocess
import sys

import pytest

from shapleycam.bench import allocator

ASKED = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from shapleycam.bench.allocator import keep_freed

def ask():
    for turn in range(43):  # at first pieces of it are cut off for other things
        if turn == 40:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # more than glibc keeps by itself
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if "kept" in sys.argv:
    keep_freed()
if "thread" in sys.argv:
    ThreadPoolExecutor(1).submit(ask).result()
else:
    ask()
"""


def faults(*how: str, **environment: str) -> int:
    """Page faults of three pieces of 64 MiB."""
    call, surroundings = [sys.executable, "-c", ASKED, *how], {**os.environ, **environment}
    return int(subprocess.run(call, capture_output=True, text=True, check=True, env=surroundings).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_what_is_freed_is_not_asked_for_again() -> None:
    kept, handed_back = faults("kept"), faults()
    assert kept < 0.1 * handed_back
    assert handed_back > 3 * 2**26 / 4096 * 0.9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_nor_in_a_thread_where_there_is_one_arena() -> None:
    assert faults("kept", "thread", **allocator.ONE_ARENA) < 0.1 * faults("kept", "thread")


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed()
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: 1 / 0)
    allocator.keep_freed()
