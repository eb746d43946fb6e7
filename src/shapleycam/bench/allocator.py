"""How memory is asked of the system, where a command has the process to itself."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _MOST = 2**31 - 1, 2**25
"""No limit, and the largest that older versions take."""

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""The environment of a process in which threads beside the first keep what is freed, too: their own arenas hand it back."""


def keep_freed() -> None:
    """Let glibc keep what tensors free, for the next ones; by default it hands large pieces back, to be asked for page by page.

    Numbers stay, and memory stays at its peak. Does nothing where there is no glibc. See mallopt(3).
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _MOST):
                mallopt(_TRIM_THRESHOLD, _NEVER)
