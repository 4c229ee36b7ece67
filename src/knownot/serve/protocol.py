"""HTTP as uvicorn speaks it, with limits for a request's headers and for clients that do not read.

uvicorn limits the pauses between requests. A client that sends a header byte by byte, nothing at all
after connecting, or reads none of its answers would keep its connection for ever; one that sends
headers without end would fill the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from knownot.serve.lingering import LingeringTransport

# Of a request without its body: its line, headers and trailers, and what frames the chunks of a body
# (an eighth of it, which is chunks of fifty bytes).
_HEAD, _FRAMES = 64 * 1024, 8


def _has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    found = {name.lower(): value.strip() for name, value in headers}
    return b"transfer-encoding" in found or found.get(b"content-length", b"0") != b"0"


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection whose next request has not come whole by `header_seconds`.

    Or has more than 64 KiB of headers, or a body and the header `Upgrade`, or does not take in an answer for
    `reading_seconds`; as long it may go on sending what was refused.
    """

    header_seconds: ClassVar[float] = 10.0
    reading_seconds: ClassVar[float] = 30.0
    _patience: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head = _body = 0
    _refused = _in_body = False

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        self._lingering = LingeringTransport(
            transport, lambda: self._refused or self._in_body, self.reading_seconds
        )
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take in bytes; those after a request begin the next, or are a body that nobody reads."""
        self._head += len(data)
        if not self._lingering.lingers:
            super().data_received(data)
        if self._lingering.lingers:  # what comes now is not read
            return
        if self._head > _HEAD + self._body // _FRAMES and not self.transport.is_closing():
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._patience is None:
            self._wait()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head = self._body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Refuse a body behind an offer of another protocol: the parser takes it for the next request."""
        self._in_body = True
        if self.parser.should_upgrade() and _has_body(self.headers):
            self.send_400_response(
                "A body behind the header Upgrade is not read: send it without, as HTTP/1.1."
            )
            return
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        self._refused = True
        self._stop()
        super().send_400_response(msg)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._in_body = False
        if not self._refused:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: HTTP/1.1 goes on where an offer is not taken, and the log is not the client's."""

    def on_body(self, body: bytes) -> None:
        """Part of a request's body, which the service limits itself."""
        self._head -= len(body)
        self._body += len(body)
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        self._read_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop()
        self._read_on()
        self._lingering.ended()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.header_seconds, self._close)

    def _read_on(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _close(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
