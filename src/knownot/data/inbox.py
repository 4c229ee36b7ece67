"""Photos that were called unknown, kept in a folder for people to look at and to train on next."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from knownot.data.kept_files import remove_torn, write_text, write_whole
from knownot.data.photo import small_jpeg
from knownot.errors import ConfigError, DataError

_SIDE, _QUALITY = 1600, 92
_MARGIN = 0.1  # of a box's side: what is around an object helps to tell what it is
_TOLD = ("nearest_class", "ood_score", "p_value", "scores", "box")
# Time and content: nothing that a client sent. Other files in the folder are never touched.
_NAME = re.compile(r"\d{8}T\d{12}Z-([0-9a-f]{16})\.(?:jpg|json)")


class Inbox:
    """A folder of unknown photos, and of unknown boxes cut out of theirs; the oldest go first.

    Beside each `<name>.jpg` there is a `<name>.json`, one line with its scores. Photos are encoded
    anew, at most 1600 pixels wide and high, so that neither places nor anything else that a file may
    carry is kept. A photo that is there already is not kept again. Several processes may share it.

    Args:
        folder: Where; made if it is missing.
        most: Photos kept.
        most_bytes: Bytes of their files together.

    Raises:
        ConfigError: If the folder cannot be written to, or nothing may be kept.
    """

    def __init__(self, folder: Path, most: int = 1000, most_bytes: int = 2**30) -> None:
        if most < 1 or most_bytes < 1:
            raise ConfigError("--keep-unknown: expected room for at least one photo")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot keep photos there ({error.strerror})") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder}: cannot keep photos there; it may not be written to")
        remove_torn(folder)
        self.folder = folder
        self._most = most
        self._most_bytes = most_bytes
        self._alone = Lock()

    def keep_unknown(self, answer: Mapping[str, Any], image: Callable[[], Image.Image]) -> int:
        """Keep what an answer calls unknown: the photo, or each such box of a detector.

        Args:
            answer: A photo's answer as plain data: `is_unknown`, `ood_score`, `p_value`, `scores`,
                `nearest_class`, or `boxes` with the same and `box` (x1, y1, x2, y2) in pixels.
            image: Called for the whole photo, RGB and upright, if something is unknown.

        Returns:
            How many were kept.

        Raises:
            DataError: If the photo cannot be read, or a file cannot be written.
        """
        parts = answer.get("boxes")
        unknown = [part for part in ([answer] if parts is None else parts) if part["is_unknown"]]
        if not unknown:
            return 0
        photo = image()
        with self._alone:  # of equal photos at the same time one is kept
            kept = sum(self._keep(_cut(photo, part.get("box")), part) for part in unknown)
            if kept:
                self._make_room()
        return kept

    def _keep(self, image: Image.Image, facts: Mapping[str, Any]) -> bool:
        data = small_jpeg(image, _SIDE, _QUALITY)
        content = hashlib.sha256(data).hexdigest()[:16]
        if any(self.folder.glob(f"*-{content}.jpg")):
            return False
        path = self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{content}.jpg"
        line = json.dumps({name: facts[name] for name in _TOLD if name in facts})
        # The photo comes last: whoever sees it finds its scores.
        write_text(path.with_suffix(".json"), line + "\n")
        write_whole(path, lambda file: file.write_bytes(data))
        return True

    def _make_room(self) -> None:
        sizes: dict[str, int] = defaultdict(int)
        for entry in os.scandir(self.folder):
            if _NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another process made room
                    sizes[entry.name.partition(".")[0]] += entry.stat().st_size
        count, total = len(sizes), sum(sizes.values())
        for stem in sorted(sizes):
            if count <= self._most and total <= self._most_bytes:
                return
            for suffix in (".jpg", ".json"):
                path = self.folder / f"{stem}{suffix}"
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise DataError(f"{path}: cannot be removed ({error.strerror})") from None
            count, total = count - 1, total - sizes[stem]


def kept_facts(photo: Path) -> dict[str, Any]:
    """What is known of a photo of an inbox; empty if there is nothing beside it."""
    try:
        facts = json.loads(photo.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _cut(image: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    if box is None:
        return image.copy()
    x1, y1, x2, y2 = box
    right, down = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    left, top = int(max(x1 - right, 0)), int(max(y1 - down, 0))
    return image.crop(
        (
            min(left, image.width - 1),
            min(top, image.height - 1),
            max(int(min(x2 + right, image.width)), left + 1),
            max(int(min(y2 + down, image.height)), top + 1),
        )
    )
