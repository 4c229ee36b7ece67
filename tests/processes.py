"""How a process that a test spawned ends."""

from __future__ import annotations

import os
from typing import NoReturn


def end_process() -> NoReturn:
    """End a process of `torch.multiprocessing.spawn` that did all it had to, at once.

    Sharded modules and failed trainings keep their process group, whose threads may let go of the
    last tensors while the interpreter ends: "terminate called without an active exception", now
    and then (pytorch/pytorch#179291).
    """
    os._exit(0)
