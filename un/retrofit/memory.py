"""Memory that the C library keeps of freed tensors."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache


@cache
def _find_trim() -> Callable[[int], int] | None:
    """Returns glibc's malloc_trim; None with another C library."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    return trim


def return_freed_memory() -> None:
    """Gives the pages of freed tensors back to the system.

    Where tensors that stay lie between others that are freed, glibc keeps the gaps, which the next tensors do not fit:
    with forwards that stand at a norm, as much again as these hold.
    """
    if trim := _find_trim():
        trim(0)
