"""Photos of different requests go through the model together."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Photo = TypeVar("Photo")
Settings = TypeVar("Settings", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Item(Generic[Photo, Settings, Answer]):
    photo: Photo
    settings: Settings
    answer: asyncio.Future[Answer]


class Batcher(Generic[Photo, Settings, Answer]):
    """Collects photos into batches for threads that run the model.

    An idle thread takes at once what there is, and of many photos its share: none waits for others
    to come, and none behind another while a thread has nothing to do.

    Args:
        run: Answers for photos that were asked for with the same settings; for one that has none,
            the exception to raise.
        threads: Batches that run at the same time.
        size: Largest number of photos in a batch.
        observe: Called with the number of photos of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[Photo], Settings], list[Answer | Exception]],
        *,
        threads: int,
        size: int,
        observe: Callable[[int], None] = lambda photos: None,
    ) -> None:
        self._run = run
        self._size = size
        self._observe = observe
        self._queue: asyncio.Queue[_Item[Photo, Settings, Answer]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._parallel = threads

    async def answer(self, photo: Photo, settings: Settings) -> Answer:
        """The model's answer for a photo; raises what `run` raises, or returns for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Item(photo, settings, future))
        return await future

    async def work(self) -> None:
        """Run batches until cancelled."""
        try:
            # Twice as many as there are threads: each finds its next batch ready, where it would
            # have waited for the event loop to wake up.
            await asyncio.gather(*(self._take_turns() for _ in range(2 * self._parallel)))
        finally:
            self._threads.shutdown(wait=False)

    async def _take_turns(self) -> None:
        while True:
            await self._answer_batch(await self._collect())

    async def _collect(self) -> list[_Item[Photo, Settings, Answer]]:
        batch = [await self._queue.get()]
        share = -(-(1 + self._queue.qsize()) // self._parallel)
        while len(batch) < min(share, self._size):
            batch.append(self._queue.get_nowait())
        return batch

    async def _answer_batch(self, batch: list[_Item[Photo, Settings, Answer]]) -> None:
        by_settings = defaultdict(list)
        for item in batch:
            if not item.answer.done():  # nobody waits for a request that ran out of time
                by_settings[item.settings].append(item)
        for settings, items in by_settings.items():
            photos = [item.photo for item in items]
            self._observe(len(photos))
            answers: list[Answer | Exception]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._run, photos, settings
                )
            except Exception as error:
                answers = [error] * len(items)
            for item, answer in zip(items, answers, strict=True):
                if item.answer.done():
                    continue
                if isinstance(answer, Exception):
                    item.answer.set_exception(answer)
                else:
                    item.answer.set_result(answer)
