"""Answers for photos one after another, in bounded memory, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from knownot.data.read_ahead import read_ahead
from knownot.data.spread import Workers
from knownot.models.prediction import DetectionPrediction, Prediction

Pixels = TypeVar("Pixels")
Answer = TypeVar("Answer", Prediction, DetectionPrediction)


def answers_in_order(
    photos: Sequence[Any],
    read: Callable[[Any], Pixels],
    answer: Callable[[list[Pixels]], list[Answer]],
    failed: Callable[[str], Answer],
    batch_size: int,
    workers: Workers,
) -> Iterator[Answer]:
    """One answer for each photo, in order; one that cannot be read has `error` set.

    Args:
        photos: Whatever `read` takes; paths are repeated in the answers.
        read: Decodes one photo, in a thread; raises `DataError` for a bad one.
        answer: Answers for decoded photos, in a thread of `workers`.
        failed: The answer with such an `error`.
        batch_size: Photos given to `answer` together.
        workers: Compute the batches.
    """
    done = 0
    skipped: dict[int, str] = {}
    # Photos by their number: arrays do not hash.
    numbers = range(len(photos))
    batches = read_ahead(numbers, lambda number: read(photos[number]), batch_size, skipped)
    for indices, predictions in workers.spread(batches, answer):
        for index, prediction in zip(indices, predictions, strict=True):
            for bad in range(done, index):
                yield _with_path(failed(skipped.pop(bad)), photos[bad])
            yield _with_path(prediction, photos[index])
            done = index + 1
    for bad in range(done, len(photos)):
        yield _with_path(failed(skipped.pop(bad)), photos[bad])


def _with_path(answer: Answer, photo: Any) -> Answer:
    return replace(answer, path=str(photo)) if isinstance(photo, (str, Path)) else answer
