"""A model's answers for the frames of a video, and a copy of the video with them drawn in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knownot.data.video import Frame, VideoReader, VideoWriter
from knownot.errors import DataError
from knownot.evaluation.annotate import annotated_frame, free_name
from knownot.models.prediction import DetectionPrediction, Prediction

if TYPE_CHECKING:
    from knownot.models.classifier import UnknownAwareClassifier
    from knownot.models.detector import UnknownAwareDetector
    from knownot.runtime.classifier import ExportedClassifier
    from knownot.runtime.detector import ExportedDetector

    Model = UnknownAwareClassifier | UnknownAwareDetector | ExportedClassifier | ExportedDetector
Answer = Prediction | DetectionPrediction
Progress = Callable[[str, int | None], Callable[[int], None]]

# Decoded frames that are held at once; one of 4K takes 25 MB.
_MAX_BATCH = 8


def predict_video(
    model: Model,
    path: str | Path,
    *,
    every: int = 1,
    save_to: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[Answer]:
    """Answers for the frames of a video, one after another, in memory that its length does not change.

    Args:
        model: A calibrated model.
        path: The video.
        every: Answer for every `every`-th frame.
        save_to: Folder for an annotated copy, an mp4 without sound, of `rate / every` frames a
            second, under the video's name; a number is added where this is taken.
        progress: Called with name and number of frames (None if the file does not tell), returns a
            callback for frames done.
        settings: As for the model's `predict_iter`.

    Yields:
        One answer for each frame. A damaged video has the frames before the damage, then one answer
        with `error` set.

    Raises:
        DataError: If the copy cannot be written.
        MissingExtraError: If PyAV is not installed.
    """
    path = Path(path)
    try:
        video = VideoReader(path)
    except DataError as error:
        yield _failed(model, path, str(error))
        return
    advance = progress(path.name, video.count(every)) if progress else None
    copy = nullcontext() if save_to is None else _copy(video, every, save_to)
    with video, copy as writer:
        size = min(_MAX_BATCH, model.batch_size)
        for frames, damage in _batches(video, every, size):
            answers: Iterator[Answer] = model.predict_iter(
                [frame.image for frame in frames], **settings
            )
            for frame, answer in zip(frames, answers, strict=True):
                if writer is not None:
                    writer.add(annotated_frame(frame.image, answer, model.classes), frame.time)
                yield replace(answer, path=str(path), frame=frame.number, time=frame.time)
                if advance:
                    advance(1)
            if damage is not None:
                yield _failed(model, path, damage)


def _copy(video: VideoReader, every: int, folder: Path) -> VideoWriter:
    target = free_name(folder, str(video.path), ".mp4")
    return VideoWriter(target, video.rate / every, video.aspect)


def _batches(video: VideoReader, every: int, size: int) -> Iterator[tuple[list[Frame], str | None]]:
    """Frames, `size` at a time; with the last ones why the video cannot be read on, if so."""
    batch: list[Frame] = []
    try:
        for frame in video.frames(every):
            batch.append(frame)
            if len(batch) == size:
                yield batch, None
                batch = []
    except DataError as error:
        yield batch, str(error)
        return
    if batch:
        yield batch, None


def _failed(model: Model, path: Path, error: str) -> Answer:
    kind = DetectionPrediction if model.task == "detect" else Prediction
    return replace(kind.failed(error), path=str(path))
