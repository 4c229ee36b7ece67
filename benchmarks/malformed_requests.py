"""Requests to `/predict` that are wrong in many ways: torn, mutated, lying headers, bombs."""

from __future__ import annotations

import io
import random
import struct
import zlib

from PIL import Image

from http_load import form, post


def wrong_request(rng: random.Random) -> tuple[bytes, bool]:
    """A request that is wrong in some way, and whether it ends before it is whole."""
    photo = _photo(rng)
    torn = rng.random() < 0.05
    kind = rng.randrange(6)
    if kind == 0:
        request = post(photo, rng.choice(["image/png", "image/jpeg", "application/octet-stream"]))
    elif kind == 1:
        request = post(photo, rng.choice(["text/plain", "application/json", "", "multipart/mixed"]))
    elif kind == 2:
        request = post(
            photo, "image/png", "/predict?" + rng.choice(["alpha=7", "score=x", "alpha="])
        )
    elif kind == 3:
        request = form([photo] * rng.choice([1, 2, 40]))
    else:
        request = _mutated(form([photo, photo]), rng)
    return (request[: len(request) * 2 // 3] if torn else request), torn


def _photo(rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(3000))
    if kind == 1:  # a header that lies
        sides = struct.pack(">II", rng.randrange(1, 2**31), rng.randrange(1, 2**31))
        return _png(sides, zlib.compress(b"\0" * 10_000))
    if kind == 2:  # many pixels in few bytes
        return _png(struct.pack(">II", 20_000, 20_000), zlib.compress(b"\0" * 1_000_000))
    file = io.BytesIO()
    Image.effect_noise((rng.randrange(1, 200), 80), 50).save(
        file, rng.choice(["JPEG", "PNG", "GIF"])
    )
    data = file.getvalue()
    if kind == 3:
        return data[: rng.randrange(len(data))]
    return _mutated(data, rng)


def _png(sides: bytes, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", sides + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, none added: a request keeps the length that its header says."""
    changed = bytearray(data)
    start = data.find(b"\r\n\r\n") + 4 if data.startswith(b"POST") else 0
    for _ in range(rng.randrange(1, 12)):
        changed[rng.randrange(start, len(changed))] = rng.randrange(256)
    return bytes(changed)
