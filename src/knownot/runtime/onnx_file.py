"""A description and a checksum in an ONNX file, written and read without the onnx package.

An ONNX file is one protobuf message, and entries of its `metadata_props` may stand anywhere in it:
two appended at its end hold the description and the SHA-256 of all bytes before the second. A bit
that flips in a weight would otherwise change answers without a word.

Reference: protobuf wire format; `ModelProto` in onnx.proto, field 14.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from knownot.errors import ModelFileError

MAX_BYTES = 2**31 - 1  # the limit of protobuf itself
_DESCRIPTION, _CHECKSUM = b"knownot", b"knownot.sha256"
_PROPS, _KEY, _VALUE = 14, 1, 2
_BYTES = 2  # wire type of strings and messages
_DIGEST = 64


def sealed(model: bytes, description: str) -> bytes:
    """The ONNX model with its description and the checksum of both appended."""
    described = model + _entry(_DESCRIPTION, description.encode())
    return described + _entry(_CHECKSUM, hashlib.sha256(described).hexdigest().encode())


def unsealed(path: Path) -> tuple[bytes, str]:
    """Read a sealed file: its bytes, which ONNX Runtime loads, and its description.

    Raises:
        ModelFileError: If it is missing, too large, not sealed, or not as it was sealed.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelFileError(f"{path}: is larger than 2 GiB; not an exported model")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    end = len(data) - len(_entry(_CHECKSUM, b"0" * _DIGEST))
    start = data.rfind(_key(_DESCRIPTION), 0, max(end, 0))
    if path.suffix == ".pt2":
        raise ModelFileError(
            f"{path}: is a torch.export program, which PyTorch alone runs; make an .onnx file with "
            "`knownot export`"
        )
    if end < 0 or not data[end:].startswith(_entry(_CHECKSUM, b"0" * _DIGEST)[:-_DIGEST]):
        raise ModelFileError(
            f"{path}: is no model that knownot exported, or is cut short or changed since; "
            "make one with `knownot export`"
        )
    if hashlib.sha256(data[:end]).hexdigest().encode() != data[-_DIGEST:]:
        raise ModelFileError(f"{path}: is damaged or was changed (checksum); export it anew")
    try:
        return data, _value(data[start + len(_key(_DESCRIPTION)) : end]).decode()
    except (ValueError, IndexError):
        raise ModelFileError(f"{path}: its description is damaged; export it anew") from None


def _entry(key: bytes, value: bytes) -> bytes:
    return _field(_PROPS, _key(key) + _field(_VALUE, value))


def _key(key: bytes) -> bytes:
    return _field(_KEY, key)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content


def _value(data: bytes) -> bytes:
    """Content of the one field that fills `data`."""
    length, shift, place = 0, 0, 1
    while True:
        length |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 0x80:
            break
    if data[0] != _VALUE << 3 | _BYTES or len(data) != place + length:
        raise ValueError("not one field")
    return data[place:]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
