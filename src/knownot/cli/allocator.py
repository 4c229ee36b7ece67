"""Let the C library keep freed memory: photos then go through a network up to twice as fast."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed activations instead of returning them to the kernel each time.

    By default every activation above some megabytes is a fresh mapping whose pages the kernel
    clears anew; on two cores that took half the time of a forward pass. Does nothing elsewhere, or
    where the user has set glibc's own variables. It concerns the whole process, so the commands
    call it and the library does not.
    """
    if sys.platform != "linux" or any(key.startswith("MALLOC_") for key in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
