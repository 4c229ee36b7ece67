"""How many cores this process may use: of a container, what it was given."""

from __future__ import annotations

import os
from pathlib import Path

# Linux, control groups version 2: "max 100000", "150000 100000".
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """At least 1; a share of a core counts as one."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return max(1, cores)
