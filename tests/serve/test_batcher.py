"""How photos are shared out among the threads that run the model."""

from __future__ import annotations

import asyncio
import threading

import pytest

from knownot.serve.batcher import Batcher


def test_photos_are_shared_among_idle_threads_and_each_gets_its_own_answer_or_error() -> None:
    both = threading.Barrier(2, timeout=30)
    sizes = []

    def run(photos: list[int], settings: int) -> list[int | Exception]:
        both.wait()  # breaks if one thread takes all and the other idles
        sizes.append(len(photos))
        return [ValueError(str(n)) if n == 3 else settings * n for n in photos]

    async def ask() -> list[int | BaseException]:
        batcher: Batcher[int, int, int] = Batcher(run, threads=2, size=4)
        asked = asyncio.gather(*(batcher.answer(n, 10) for n in range(8)), return_exceptions=True)
        work = asyncio.create_task(batcher.work())
        answers = await asked
        work.cancel()
        return answers

    *answers, strange = sorted(asyncio.run(ask()), key=lambda one: isinstance(one, Exception))
    assert answers == [0, 10, 20, 40, 50, 60, 70]
    with pytest.raises(ValueError, match="3"):
        raise strange
    assert sum(sizes) == 8
    assert max(sizes) == 4
