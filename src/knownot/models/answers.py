"""Answers for photos one after another, in bounded memory, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from knownot.data.read_ahead import read_ahead
from knownot.data.spread import Workers
from knownot.models.prediction import Prediction

Pixels = TypeVar("Pixels")


def answers_in_order(
    photos: Sequence[Any],
    read: Callable[[Any], Pixels],
    answer: Callable[[list[Pixels]], list[Prediction]],
    batch_size: int,
    workers: Workers,
) -> Iterator[Prediction]:
    """One `Prediction` for each photo, in order; one that cannot be read has `error` set.

    Args:
        photos: Whatever `read` takes; paths are repeated in the answers.
        read: Decodes one photo, in a thread; raises `DataError` for a bad one.
        answer: Answers for decoded photos, in a thread of `workers`.
        batch_size: Photos given to `answer` together.
        workers: Compute the batches.
    """
    done = 0
    skipped: dict[Any, str] = {}
    items = [_Item(i, photo) for i, photo in enumerate(photos)]
    batches = read_ahead(items, lambda item: read(item.photo), batch_size, skipped)
    for indices, predictions in workers.spread(batches, answer):
        for index, prediction in zip(indices, predictions, strict=True):
            yield from _failures(skipped, photos, done, index)
            yield _with_path(prediction, photos[index])
            done = index + 1
    yield from _failures(skipped, photos, done, len(photos))


@dataclass(frozen=True, eq=False)
class _Item:
    """A photo to predict; told apart by identity, since arrays do not hash."""

    index: int
    photo: Any


def _failures(
    skipped: dict[Any, str], photos: Sequence[Any], start: int, stop: int
) -> Iterator[Prediction]:
    errors = {item.index: reason for item, reason in skipped.items()}
    nan = float("nan")
    for index in range(start, stop):
        if index in errors:
            failed = Prediction("", False, nan, nan, error=errors[index])
            yield _with_path(failed, photos[index])


def _with_path(prediction: Prediction, photo: Any) -> Prediction:
    return replace(prediction, path=str(photo)) if isinstance(photo, (str, Path)) else prediction
