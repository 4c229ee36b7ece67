"""The photos of a request, read in bounded memory."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from knownot.serve.limits import Limits
from knownot.serve.refused import RefusedError

FIELD = "photos"
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{1,70}")  # RFC 2046
_LONGEST_NAME = 200
_TEXT_BYTES = 1024
_TYPES = "multipart/form-data, image/... or application/octet-stream"


@dataclass
class Upload:
    """One photo as it came.

    Attributes:
        name: What the client calls it; only ever told back.
        data: The file.
    """

    name: str
    data: bytes


async def read_uploads(
    request: Request, limits: Limits, take: Callable[[int], None]
) -> list[Upload]:
    """The photos in the body of a request, at least one.

    Args:
        request: Either multipart with fields `photos`, or a photo as the body.
        limits: How many photos, and how large.
        take: Called with the number of bytes before they are kept; raises if they are too many.

    Raises:
        RefusedError: If the body is too large, malformed, or of another type.
    """
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    stream = _counted(request, take)
    if kind == b"multipart/form-data":
        return await _form(stream, options.get(b"boundary", b""), limits)
    if kind.startswith(b"image/") or kind == b"application/octet-stream":
        data = bytearray()
        async for chunk in stream:
            data += chunk
        if not data:
            raise RefusedError(422, "no_photo", "the body is empty; send a photo")
        return [Upload("photo", bytes(data))]
    raise RefusedError(415, "unsupported_type", f"content-type: expected {_TYPES}")


async def _counted(request: Request, take: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    length = request.headers.get("content-length", "")
    if length.isdecimal():  # an early answer; what counts is what comes
        take(int(length))
        take(-int(length))
    async for chunk in request.stream():
        take(len(chunk))
        yield chunk


class _Parser(MultiPartParser):
    """Notes whether the end came: a body that is cut short would lose its last photo silently."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _form(
    stream: AsyncGenerator[bytes, None], boundary: bytes, limits: Limits
) -> list[Upload]:
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("its boundary is missing or not one")
    # Without the charset parameter: a client does not choose a codec here.
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="' + boundary + b'"')])
    parser = _Parser(
        headers, stream, max_files=limits.photos, max_fields=0, max_part_size=_TEXT_BYTES
    )
    parser.spool_max_size = limits.upload_bytes + 1  # never to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise RefusedError(
                413, "too_many_photos", f"send at most {limits.photos} photos in a request"
            ) from None
        if error.message.startswith("Too many fields"):
            raise _malformed(f"every field must be a file named {FIELD!r}") from None
        raise _malformed(error.message) from None
    try:
        if not parser.ended:
            raise _malformed("it ends too early")
        uploads = []
        for field, value in form.multi_items():
            if field != FIELD or not isinstance(value, UploadFile):
                raise _malformed(f"every field must be a file named {FIELD!r}")
            uploads.append(Upload(printable(value.filename or "") or "photo", await value.read()))
    finally:
        await form.close()
    if not uploads:
        raise RefusedError(422, "no_photo", f"the form holds no photo; send files as {FIELD!r}")
    return uploads


def printable(name: str) -> str:
    """The name without control characters and lone surrogates, not too long."""
    return "".join(character for character in name[:_LONGEST_NAME] if character.isprintable())


def _malformed(reason: str) -> RefusedError:
    return RefusedError(422, "malformed_form", f"the multipart body cannot be read: {reason}")
