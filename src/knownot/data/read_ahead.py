"""Decode photos in threads, ahead of the model, and set aside those that cannot be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from knownot.data.cores import usable_cores
from knownot.errors import DataError

Photo = TypeVar("Photo")
Pixels = TypeVar("Pixels")


def read_ahead(
    photos: Sequence[Photo],
    read: Callable[[Photo], Pixels],
    batch_size: int,
    skipped: dict[Photo, str],
    workers: int | None = None,
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Yield batches of decoded photos while later ones are decoded in threads.

    Args:
        photos: Files, or whatever `read` takes, in order.
        read: Decodes one photo; raises `DataError` for a bad one.
        batch_size: Photos in a batch; fewer in the last one and where photos were bad.
        skipped: Filled with photo and reason of every one that could not be read.
        workers: Threads; by default one for each usable core, at most 8 (Pillow decodes without the
            interpreter's lock).

    Yields:
        Indices into `photos` and the decoded photos; batches without any are left out.
    """
    workers = workers or min(8, usable_cores())
    pending: deque[tuple[int, Future[Pixels]]] = deque()
    order = iter(enumerate(photos))
    with ThreadPoolExecutor(workers) as pool:

        def top_up() -> None:
            # Two batches ahead bound the memory whatever the number of photos.
            while len(pending) < 2 * batch_size + workers:
                following = next(order, None)
                if following is None:
                    return
                pending.append((following[0], pool.submit(read, following[1])))

        try:
            top_up()
            while pending:
                indices: list[int] = []
                pixels: list[Pixels] = []
                while pending and len(pixels) < batch_size:
                    index, future = pending.popleft()
                    top_up()
                    try:
                        pixels.append(future.result())
                        indices.append(index)
                    except DataError as error:
                        skipped[photos[index]] = str(error)
                if pixels:
                    yield indices, pixels
        finally:
            for _, future in pending:
                future.cancel()
