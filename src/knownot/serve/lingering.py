"""A connection that is closed while the client still sends, in a way that lets it read the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport:
    """A transport whose `close` ends what it sends, and waits for the client to close.

    Closed over bytes that nobody has read, a connection is reset, and the client may lose the answer:
    behind a proxy, which asks for an end after each request, a refused upload would be a "bad gateway".

    Args:
        transport: The connection.
        unread: Whether more of what the client sends is expected; if not, it is closed at once.
        seconds: The longest wait.
    """

    def __init__(
        self, transport: asyncio.Transport, unread: Callable[[], bool], seconds: float
    ) -> None:
        self._transport = transport
        self._unread = unread
        self._seconds = seconds
        self._patience: asyncio.TimerHandle | None = None

    @property
    def lingers(self) -> bool:
        """Whether it waits for the client to close."""
        return self._patience is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing is sent any more."""
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes; none after `close`, as of any transport."""
        if not self.lingers:
            self._transport.write(data)

    def close(self) -> None:
        """End what is sent; then, or once the client has closed, the connection."""
        if self.lingers or self._transport.is_closing() or not self._unread():
            self._transport.close()
            return
        self._patience = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def ended(self) -> None:
        """The connection is gone: let go of whoever tells what is unread."""
        self._unread = bool
        if self._patience is not None:
            self._patience.cancel()
