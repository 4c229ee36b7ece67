"""A classifier's answers for the frames of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knownot.data.video import VideoReader
from knownot.evaluation.predict_video import predict_video
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, tiny_model, write_video


def test_a_classifier_labels_every_frame(tmp_path: Path) -> None:
    colours = [*COLOURS.values(), UNKNOWN_COLOUR]
    pictures = [noisy(colours[i // 10], i).resize((320, 240)) for i in range(30)]
    path = write_video(tmp_path / "clip.mp4", pictures)
    model = tiny_model()
    told: list[tuple[str, int | None]] = []
    done: list[int] = []

    def progress(name, total):
        told.append((name, total))
        return done.append

    answers = list(predict_video(model, path, save_to=tmp_path / "seen", progress=progress))
    assert told == [("clip.mp4", 30)]
    assert sum(done) == 30
    assert [answer.frame for answer in answers] == list(range(30))
    assert {answer.nearest_class for answer in answers[:10]} == {"red"}
    assert {answer.nearest_class for answer in answers[10:20]} == {"green"}
    assert all(answer.is_unknown for answer in answers[20:])
    with VideoReader(path) as reader:
        expected = model.predict([frame.image for frame in reader.frames()])
    assert [a.label for a in answers] == [a.label for a in expected]
    with VideoReader(tmp_path / "seen" / "clip.mp4") as copy:
        frames = [np.asarray(frame.image).astype(int) for frame in copy.frames()]
    assert {pixels.shape for pixels in frames} == {(240, 320, 3)}
    for answer, pixels in zip(answers, frames, strict=True):
        red, _, blue = pixels[-2, 2]  # vermilion for unknown frames, blue for the others
        assert (red > blue) == answer.is_unknown
