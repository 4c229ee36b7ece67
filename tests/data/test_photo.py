"""Every kind of photo file that a folder may hold."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from knownot.data.photo import MAX_PIXELS, SUFFIXES, open_photo, to_rgb, upright_size
from knownot.errors import DataError, PhotoSizeError
from knownot.models.preprocessing import Preprocessing
from tests.helpers import noisy

GRADIENT = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def rgb(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "LAB", "HSV"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    colour = Image.fromarray(np.stack([GRADIENT, GRADIENT, GRADIENT], axis=2))
    path = tmp_path / "photo.tif"
    if mode in ("LAB", "HSV"):
        image = Image.new(mode, (64, 48))
        assert to_rgb(image).mode == "RGB"
        return
    if mode == "YCbCr":
        path = tmp_path / "photo.jpg"
    (colour.quantize(256) if mode == "P" else colour.convert(mode)).save(path)
    pixels = rgb(open_photo(path))
    assert pixels.shape == (48, 64, 3)
    if mode != "1":
        assert np.abs(pixels[..., 0] - GRADIENT).max() < 12


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    assert np.abs(rgb(open_photo(path))[..., 1] - GRADIENT).max() <= 1


def test_a_tiff_of_32_bits_is_taken_as_grey(tmp_path: Path) -> None:
    path = tmp_path / "wide.tif"
    for scale in (1, 257):  # whole numbers of 8 bits, and of 16
        Image.fromarray(GRADIENT.astype(np.int32) * scale).save(path)
        assert np.abs(rgb(open_photo(path))[..., 2] - GRADIENT).max() <= 1
    Image.fromarray(GRADIENT.astype(np.float32)).save(path)
    assert np.abs(rgb(open_photo(path))[..., 2] - GRADIENT).max() <= 1
    Image.fromarray(GRADIENT.astype(np.float32) / 255).save(path)
    assert np.abs(rgb(open_photo(path))[..., 2] - GRADIENT).max() <= 1


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(path)
    assert (rgb(open_photo(path)) == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert rgb(open_photo(path))[0, 0].tolist() == [255, 0, 0]


def test_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert open_photo(path).size == (20, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRADIENT).save(path, exif=exif)
    found = open_photo(path)
    with Image.open(path) as image:
        assert (rgb(found) == rgb(ImageOps.exif_transpose(image).convert("RGB"))).all()
    found.save(tmp_path / "copy.png")
    assert (rgb(open_photo(tmp_path / "copy.png")) == rgb(found)).all()  # not turned again


@pytest.mark.parametrize("tag", [256, 282, 305, 531])
def test_tags_of_a_wrong_kind_lose_no_photo(tmp_path: Path, tag: int) -> None:
    path = tmp_path / "turned.jpg"
    text, short = 2, 3
    entries = [(274, short, 1, 6), (tag, text, 2, 0x31)]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    exif += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert open_photo(path).size == (20, 40)


def test_a_colour_that_stands_for_nothing_is_white(tmp_path: Path) -> None:
    for mode, colour, white in (("RGB", (9, 9, 9), (9, 9, 9)), ("L", 9, 9)):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (4, 4), colour).save(path, transparency=white)
        assert (rgb(open_photo(path)) == 255).all()


def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(GRADIENT).resize((4000, 3000)).save(path)
    assert min(open_photo(path, at_least=256).size) in range(256, 800)
    assert open_photo(path).size == (4000, 3000)


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG whose header promises far more pixels than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("size", [(40_000, 40_000), (12_000, 9_000)])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path, size) -> None:
    path = tmp_path / "bomb.png"
    bomb(path, *size)
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(DataError, match=r"bomb\.png.*100 megapixels"):
        open_photo(path)


def tiled(path: Path, side: int, tile: int) -> None:
    """A grey TIFF of one uncompressed tile."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile}
    tags |= {324: 8 + 2 + 12 * (len(tags) + 2) + 4, 325: tile * tile}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(header + bytes(min(tile * tile, 1000)))


def test_a_tile_larger_than_its_photo_is_no_way_around_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    tiled(path, 16, 30_000)
    with pytest.raises(DataError, match=r"tiles\.tif.*100 megapixels"):
        open_photo(path)
    tiled(path, 16, 16)
    assert open_photo(path).size == (16, 16)


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jpg"
    if kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "corrupt":
        Image.fromarray(GRADIENT).save(path)
        content = path.read_bytes()
        path.write_bytes(b"\x00\xff" * 20 + content[40:])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no photo")
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["truncated", "corrupt", "empty", "text", "folder"])
def test_an_unreadable_photo_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    path = write_bad(tmp_path, kind)
    with pytest.raises(DataError, match=rf"{kind}\.jpg: not a readable photo .* remove it"):
        open_photo(path)
    if kind == "empty":
        with pytest.raises(DataError, match="the file is empty"):
            open_photo(path)


def test_a_missing_photo_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file"):
        open_photo(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("read", [open_photo, upright_size])
def test_a_pipe_keeps_nobody_waiting(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"pipe\.jpg: is no regular file"):
        read(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("size", [(1, 1), (1, 8000), (300, 200), (8, 8)])
def test_preprocessing_gives_one_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "any.png"
    Image.new("RGB", size, (10, 20, 30)).save(path)
    preprocessing = Preprocessing(image_size=32)
    for pixels in (preprocessing.read(path), preprocessing.augment(path)):
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.uint8
        assert pixels[:, 16, 16].tolist() == [10, 20, 30]


def test_preprocessing_keeps_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    pixels = Preprocessing(image_size=20, crop=1.0).from_pil(image)
    # The outermost rows are mixed with what lies beyond the crop, as resampling does.
    assert (pixels[2, :, 2:-2] == 255).all()
    assert (pixels[0, :, 2:-2] == 0).all()


@pytest.mark.parametrize("read", [open_photo, upright_size])
def test_what_another_program_would_open_is_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "cat.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match=r"cat\.jpg: not a readable photo"):
        read(path)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_all_that_is_a_photo_by_its_name_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noisy((200, 40, 40), 1).save(path)
    assert open_photo(path).size == upright_size(path) == (32, 32)


def test_a_large_png_is_refused_whatever_follows_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (12_000, 9_000)).save(path)
    content = path.read_bytes()
    path.write_bytes(content + b"eXIf")
    with pytest.raises(PhotoSizeError, match="more than the limit of 100 megapixels"):
        upright_size(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_are_laid_on_white_as_the_whole_is(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    image = Image.fromarray(noise).convert("RGB" if mode == "P" else mode).convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    expected = Image.alpha_composite(white, rgba).convert("RGB")
    monkeypatch.setattr("knownot.data.photo._STRIP", 23 * 5)
    assert to_rgb(image).tobytes() == expected.tobytes()
