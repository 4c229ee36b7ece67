"""Frames of a video, read and written one by one with PyAV (an extra), whatever its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from knownot.data.photo import MAX_PIXELS
from knownot.errors import DataError, MissingExtraError

SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm"})

# The containers of `SUFFIXES` only: FFmpeg would also follow a playlist that is called a video, to
# other files and to the network.
_SAFE = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}
_ENCODERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": "20"}),
    ("libopenh264", {}),
    ("mpeg4", {}),
)
# Fine enough for any frame rate, and within the 16 bits that MPEG-4 has for it.
_TICK = Fraction(1, 60_000)
# What a header may promise too much, in seconds, before the file counts as cut off.
_TOLERATED_SECONDS = 1.0


def is_video_name(path: Path) -> bool:
    """Whether the file name ends like a video."""
    return path.suffix.lower() in SUFFIXES


def require_av() -> Any:
    """The module `av`.

    Raises:
        MissingExtraError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("PyAV", "video", "a video file") from error
    return av


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: Position among all frames, from 0.
        time: Seconds since the first frame.
        image: The picture, RGB and upright.
    """

    number: int
    time: float
    image: Image.Image


class VideoReader:
    """The frames of a video file; close it, or use it in a `with` statement.

    Args:
        path: File (.mp4, .mov, .avi, .mkv, .webm).

    Attributes:
        rate: Mean number of frames a second.
        aspect: Width of a pixel divided by its height.

    Raises:
        DataError: If the file is missing, no video, or of frames above 100 megapixels.
        MissingExtraError: If PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._av = require_av()
        self.path = Path(path)
        try:
            # "file:", or a name with a colon would be taken for an address.
            self._container = self._av.open(f"file:{self.path}", options=_SAFE)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (self._av.FFmpegError, OSError) as error:
            raise DataError(
                f"{path}: not a readable video ({error.strerror}); repair or remove it"
            ) from None
        try:
            self._stream = self._container.streams.best("video")
            if self._stream is None:
                raise DataError(f"{path}: holds no pictures, only sound or text; remove it")
            self._check_size(self._stream.codec_context)
        except BaseException:
            self.close()
            raise
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.aspect = Fraction(self._stream.sample_aspect_ratio or 1)

    def count(self, every: int = 1) -> int | None:
        """About how many frames `frames` will yield, as the header tells; None if it does not."""
        length = self._length()
        frames = self._stream.frames or (length and round(length * self.rate))
        return ceil(frames / every) if frames else None

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Every `every`-th frame, in order; only once.

        Raises:
            DataError: After the frames before a damage, or if there is none.
        """
        first: Fraction | None = None
        number = 0
        try:
            for picture in self._pictures():
                time = number / self.rate
                if picture.pts is not None:
                    time = Fraction(picture.pts * self._stream.time_base)
                if first is None:
                    first = time
                if number % every == 0:
                    yield Frame(number, round(float(time - first), 6), self._upright(picture))
                number += 1
        except _DamageError as damage:
            raise DataError(
                f"{self.path}: damaged or cut off after {number} frames ({damage}); the frames "
                "before it were read"
            ) from None
        if number == 0:
            raise DataError(f"{self.path}: holds no frame; remove it")

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pictures(self) -> Iterator[Any]:
        """Decoded frames up to a damage, which is raised after them."""
        start, end, damage = None, Fraction(0), None
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    damage = "the file ends within a frame"
                    break
                if packet.pts is not None:
                    start = packet.pts if start is None else min(start, packet.pts)
                    after = packet.pts + (packet.duration or 0) - start
                    end = max(end, after * self._stream.time_base)
                yield from _intact(packet.decode())
        except self._av.FFmpegError as error:
            damage = str(error.strerror)
        if damage is not None:
            # Frames are stored in another order than shown: the decoder holds some good ones back.
            with suppress(self._av.FFmpegError):
                yield from _intact(self._stream.decode(None))
            raise _DamageError(damage)
        length = self._length()
        if length is not None and end < length - _TOLERATED_SECONDS:
            raise _DamageError(f"{float(end):.1f} of {length:.1f} seconds are there")

    def _length(self) -> float | None:
        """Seconds that the header promises for the pictures."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        # Matroska knows the length of everything; sound may be longer than the pictures.
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / self._av.time_base)
        return None

    def _upright(self, picture: Any) -> Image.Image:
        self._check_size(picture)
        image = Image.fromarray(picture.to_ndarray(format="rgb24"))
        # Telephones store the picture as the sensor lies, and the turn beside it.
        turn = _TURNS.get(picture.rotation % 360)
        return image if turn is None else image.transpose(turn)

    def _check_size(self, of: Any) -> None:
        if of.width * of.height > MAX_PIXELS:
            raise DataError(
                f"{self.path}: {of.width} x {of.height} pixels is more than the limit of "
                f"{MAX_PIXELS / 1e6:.0f} megapixels; scale the video down"
            )


class VideoWriter:
    """An mp4 file (H.264, failing that MPEG-4), without sound; it appears under its name when done.

    Use it in a `with` statement: leaving it by an exception removes what was written. Without a
    frame there is no file.

    Args:
        path: File to write.
        rate: Frames a second.
        aspect: Width of a pixel divided by its height.

    Raises:
        DataError: If the file cannot be written, also from `add` and at the end.
        MissingExtraError: If PyAV is not installed.
    """

    def __init__(self, path: Path, rate: Fraction, aspect: Fraction = Fraction(1)) -> None:
        self._av = require_av()
        self.path = path
        self.rate = rate
        self.aspect = aspect
        self._temporary = path.with_name(f".{path.name}.part")
        self._container: Any = None
        self._stream: Any = None
        self._ticks = -1

    def add(self, image: Image.Image, time: float) -> None:
        """Append a frame.

        Args:
            image: RGB picture; the first one's size is that of the video, one column or row more
                where it is odd, which the encoders do not take.
            time: Seconds since the first frame, growing.
        """
        try:
            if self._container is None:
                self._open(image)
            frame = self._av.VideoFrame.from_ndarray(self._fitting(image), format="rgb24")
            # The times are kept, so that frames that were recorded unevenly stay in step.
            self._ticks = max(self._ticks + 1, round(time / _TICK))
            frame.pts, frame.time_base = self._ticks, _TICK
            frame.duration = round(1 / self.rate / _TICK)
            self._container.mux(self._stream.encode(frame))
        except (self._av.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                self._temporary.replace(self.path)
        except (self._av.FFmpegError, OSError) as error:
            if kind is None:
                raise self._failed(error) from None
        finally:
            with suppress(OSError):
                self._temporary.unlink()

    def _open(self, image: Image.Image) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name, options = next(e for e in _ENCODERS if e[0] in self._av.codecs_available)
        self._container = self._av.open(f"file:{self._temporary}", "w", format="mp4")
        stream = self._container.add_stream(name, rate=self.rate, options=options)
        stream.width, stream.height = (side + side % 2 for side in image.size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        stream.codec_context.sample_aspect_ratio = self.aspect
        if name != "libx264":  # by default 1 Mbit/s, whatever the size
            stream.bit_rate = round(0.2 * stream.width * stream.height * min(self.rate, 60))
        self._stream = stream

    def _fitting(self, image: Image.Image) -> np.ndarray:
        """Pixels (H, W, 3) of the video's size; an odd picture's last column or row is doubled."""
        width, height = self._stream.width, self._stream.height
        if (image.width + image.width % 2, image.height + image.height % 2) != (width, height):
            image = image.resize((width, height))
        missing = ((0, height - image.height), (0, width - image.width), (0, 0))
        return np.pad(np.asarray(image), missing, mode="edge")

    def _failed(self, error: Any) -> DataError:
        return DataError(f"{self.path}: cannot be written ({error.strerror or error})")


class _DamageError(Exception):
    """Where a video cannot be read on."""


_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def _intact(pictures: Iterable[Any]) -> Iterator[Any]:
    for picture in pictures:
        if picture.is_corrupt:
            raise _DamageError("the next frame is incomplete")
        yield picture
