"""Copies of photos that `knownot predict` keeps: with the answer drawn in, or of unknown ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from knownot.errors import DataError

if TYPE_CHECKING:
    from knownot.data.inbox import Inbox
    from knownot.evaluation.predict_video import Answer


class Copies:
    """What is kept of photos beside their answers.

    An answer is worth more than a copy: a full disk, or a photo that has gone, ends nothing.

    Args:
        classes: The model's class names.
        images: Folder for copies with the answer drawn in.
        inbox: Where unknown photos, or boxes, are kept.

    Attributes:
        lost: Why copies could not be written.

    Raises:
        DataError: If there can be no folder `images`.
    """

    def __init__(self, classes: list[str], images: Path | None, inbox: Inbox | None) -> None:
        self._classes = classes
        self.images = images
        self._inbox = inbox
        self.lost: list[str] = []
        if images is not None:  # what cannot be at all is told before any photo is read
            try:
                images.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"{images}: cannot be written ({error.strerror})") from None

    def keep(self, answer: Answer) -> None:
        """Write the copies of a photo that are asked for."""
        for write in (self._draw, self._keep_unknown):
            try:
                write(answer)
            except DataError as reason:
                self.lost.append(str(reason))

    def _draw(self, answer: Answer) -> None:
        from knownot.evaluation.annotate import save_annotated, save_drawn
        from knownot.models.prediction import Prediction

        if self.images is None:
            return
        if isinstance(answer, Prediction):
            save_annotated(answer, self.images)
        else:
            save_drawn(answer, self._classes, self.images)

    def _keep_unknown(self, answer: Answer) -> None:
        from knownot.data.photo import open_photo

        if self._inbox is None:
            return
        path = answer.path
        assert path is not None  # of files alone
        self._inbox.keep_unknown(answer.to_dict(), lambda: open_photo(path))
