"""Videos made here, read and written frame by frame."""

from __future__ import annotations

import struct
import wave
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from knownot.data import video
from knownot.data.video import Frame, VideoReader, VideoWriter
from knownot.errors import DataError
from tests.helpers import noisy, write_video

SIZE = (96, 64)


def shades(count: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Pictures that grow brighter; noise makes a video of them hard to guess."""
    pictures = []
    for i in range(count):
        random = np.random.default_rng(i)
        pixels = random.integers(0, 20, (size[1], size[0], 3)) + 5 * i
        pictures.append(Image.fromarray(pixels.astype(np.uint8)))
    return pictures


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("mkv", "libx264")],
)
def test_every_nth_frame_comes_with_its_number_and_time(
    tmp_path: Path, ending: str, codec: str
) -> None:
    pictures = shades(30)
    path = write_video(tmp_path / f"clip.{ending}", pictures, codec=codec)
    with VideoReader(path) as reader:
        assert reader.rate == 10
        assert reader.count(4) == 8
        frames = list(reader.frames(every=4))
    assert [frame.number for frame in frames] == list(range(0, 30, 4))
    assert [frame.time for frame in frames] == pytest.approx([n / 10 for n in range(0, 30, 4)])
    for frame in frames:
        assert frame.image.size == SIZE
        assert brightness(frame.image) == pytest.approx(brightness(pictures[frame.number]), abs=4)


def test_webm_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", shades(5), codec="libvpx-vp9")
    with VideoReader(path) as reader:
        assert [frame.number for frame in reader.frames()] == list(range(5))


def test_frames_stand_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", SIZE, "black")
    picture.paste("red", (0, 0, 32, 32))  # left and above
    path = write_video(tmp_path / "phone.mp4", [picture] * 3)
    # The header of the track, after that of the film: from no turn to one clockwise by a quarter.
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    film, track, rest = path.read_bytes().split(straight)
    path.write_bytes(film + straight + track + turned + rest)
    with VideoReader(path) as reader:
        image = next(reader.frames()).image
    assert image.size == (64, 96)
    assert image.getpixel((56, 8))[0] > 200
    assert image.getpixel((8, 8))[0] < 50


def read_to_damage(path: Path) -> tuple[list[Frame], str]:
    frames = []
    with VideoReader(path) as reader:
        try:
            for frame in reader.frames():
                frames.append(frame)
        except DataError as error:
            return frames, str(error)
    return frames, ""


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_file_that_is_cut_off_gives_the_frames_before(
    tmp_path: Path, ending: str, codec: str
) -> None:
    pictures = shades(40)
    path = write_video(tmp_path / f"clip.{ending}", pictures, codec=codec)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames, message = read_to_damage(path)
    assert message.startswith(f"{path}: damaged or cut off after {len(frames)} frames")
    assert 5 <= len(frames) < 30
    for number, frame in enumerate(frames):
        assert frame.number == number
        assert brightness(frame.image) == pytest.approx(brightness(pictures[number]), abs=4)


def test_a_file_with_overwritten_bytes_gives_the_frames_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", shades(40))
    content = bytearray(path.read_bytes())
    half, fifth = len(content) // 2, len(content) // 5
    content[half : half + fifth] = bytes(fifth)
    path.write_bytes(content)
    frames, message = read_to_damage(path)
    assert "damaged" in message
    assert 5 <= len(frames) < 30


def test_what_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 100)
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    with (
        av.open(str(tmp_path / "sound.wav")) as source,
        av.open(str(tmp_path / "sound.mkv"), "w") as target,
    ):
        track = target.add_stream("pcm_s16le", rate=8000)
        for frame in source.decode(audio=0):
            target.mux(track.encode(frame))
        target.mux(track.encode(None))
    for name, message in [
        ("text.mp4", "not a readable video"),
        ("empty.mp4", "not a readable video"),
        ("missing.mp4", "no such file"),
        ("sound.mkv", "no pictures"),
    ]:
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            VideoReader(tmp_path / name)


def test_a_playlist_under_a_videos_name_is_not_followed(tmp_path: Path) -> None:
    write_video(tmp_path / "other.mp4", shades(3))
    playlist = "ffconcat version 1.0\nfile other.mp4\n"
    (tmp_path / "list.mp4").write_text(playlist)
    with av.open(str(tmp_path / "list.mp4"), format="concat") as followed:
        assert sum(1 for _ in followed.decode(video=0)) == 3  # FFmpeg itself would
    with pytest.raises(DataError, match="not a readable video"):
        VideoReader(tmp_path / "list.mp4")


def test_large_frames_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", shades(3))
    monkeypatch.setattr(video, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(DataError, match="96 x 64 pixels is more than the limit"):
        VideoReader(path)


def test_a_written_video_keeps_times_and_size(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.52, 2.0]
    pictures = shades(5, (95, 63))
    with VideoWriter(tmp_path / "new" / "out.mp4", Fraction(10, 3), Fraction(4, 3)) as writer:
        for picture, time in zip(pictures, times, strict=True):
            writer.add(picture, time)
        assert not (tmp_path / "new" / "out.mp4").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.mp4"]
    with VideoReader(tmp_path / "new" / "out.mp4") as reader:
        assert reader.aspect == Fraction(4, 3)
        frames = list(reader.frames())
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.image.size == (96, 64)
        assert brightness(frame.image) == pytest.approx(brightness(picture), abs=4)


def test_a_video_without_h264_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with VideoWriter(tmp_path / "out.mp4", Fraction(30000, 1001)) as writer:
        for number, picture in enumerate(shades(5)):
            writer.add(picture, number * 1001 / 30000)
    with av.open(str(tmp_path / "out.mp4")) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "mpeg4"
        assert stream.average_rate == Fraction(30000, 1001)


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), VideoWriter(tmp_path / "out.mp4", Fraction(10)) as writer:
        for number, picture in enumerate(shades(60)):
            writer.add(picture, number / 10)
        assert [path.name for path in tmp_path.iterdir()] == [".out.mp4.part"]
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"out\.mp4: cannot be written"),
        VideoWriter(tmp_path / "file" / "out.mp4", Fraction(10)) as writer,
    ):
        writer.add(noisy((200, 40, 40), 1), 0)
