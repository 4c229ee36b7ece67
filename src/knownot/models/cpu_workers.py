"""Threads for batches on a CPU, in each of which torch uses one core."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch

from knownot.data.spread import Workers, threads_for


@contextmanager
def cpu_workers(device: torch.device, photos: int, batch_size: int) -> Iterator[Workers]:
    """As many threads as torch may use on this CPU and batches to compute.

    On another device, for a single batch, and after `torch.set_num_threads(1)`, batches are computed
    by the thread that asks, one after another.

    Args:
        device: Where the model is.
        photos: Photos to come.
        batch_size: Of how many a batch is made.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    count = threads_for(photos, batch_size, cores)
    if count == 1:
        yield Workers()
        return
    ready = Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread, and of threads that begin later
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="batch", initializer=begin)
    try:
        for _ in range(count):
            pool.submit(int)  # makes the pool start a thread, since none is idle yet
        ready.wait()
        torch.set_num_threads(cores)  # for threads that begin later
        yield Workers(count, pool)
    finally:
        pool.shutdown(cancel_futures=True)
