"""Keeps the memory that arrays free inside the process."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MIB = 2**20


def keep_freed_memory() -> None:
    """Let this process keep what its arrays free, up to 512 MiB, where the C library is glibc; elsewhere nothing happens.

    An array of some MiB is otherwise mapped anew at each call and cleared by the system, which takes a network up to a quarter of
    its time.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, size in ((M_MMAP_THRESHOLD, 256 * MIB), (M_TRIM_THRESHOLD, 512 * MIB)):
        mallopt(parameter, size)
