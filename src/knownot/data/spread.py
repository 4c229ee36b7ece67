"""Compute batches side by side, each on one core, and give the results in order.

On a CPU this answers more photos a second than all cores on one batch: small layers leave most of a
second core idle, and the threads of one batch wait for each other, spinning, whenever one of them is
held up, if only by a thread that decodes a photo. Side by side, nothing waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from knownot.errors import ConfigError

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class Workers:
    """Threads that compute one batch each.

    Args:
        count: Threads; with 1, batches are computed by the thread that asks.
        pool: Runs them; needed for more than 1.
    """

    def __init__(self, count: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self.count = 1 if pool is None else count
        self._pool = pool

    def spread(
        self,
        batches: Iterable[tuple[list[int], Batch]],
        compute: Callable[[Batch], Result],
    ) -> Iterator[tuple[list[int], Result]]:
        """Results of batches, in their order, whichever is done first.

        Args:
            batches: Indices and what they stand for, such as `read_ahead` yields. It is read by the
                calling thread, one batch further than there are threads.
            compute: Called in a thread, with several batches at once.

        Yields:
            The indices and the result of each batch.
        """
        if self._pool is None:
            for indices, batch in batches:
                yield indices, compute(batch)
            return
        pending: deque[tuple[list[int], Future[Result]]] = deque()
        try:
            for indices, batch in batches:
                pending.append((indices, self._pool.submit(compute, batch)))
                if len(pending) > self.count:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def threads_for(photos: int, batch_size: int, cores: int) -> int:
    """Threads that so many photos keep busy: 1 for a single batch, which may use all cores.

    Raises:
        ConfigError: If a batch would hold no photo.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    return max(1, min(cores, -(-photos // batch_size)))
