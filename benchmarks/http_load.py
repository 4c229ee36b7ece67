"""Load for the service, cheap enough to run beside it: ready-made bytes over open connections."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_BOUNDARY = b"----knownot"


@dataclass
class Outcome:
    """What came of a load.

    Attributes:
        statuses: Requests by status; 0 where the connection ended without an answer.
        seconds: Of the answers 200, from the moment the request was due.
        wall: Duration of all of it.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0

    def quantile(self, share: float) -> float:
        """Seconds within which `share` of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """One connection; opened again when the server closes it."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.host, self.port = place.hostname, place.port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; status 0 if there was none."""
        try:
            if self.reader is None or self.writer is None or self.reader.at_eof():
                self.close()  # an idle connection ends after some seconds
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            if length:
                body = await self.reader.readexactly(int(length))
            else:
                body = await self.reader.read()
            if not length or b"connection: close" in head:
                self.close()
            return int(head[9:12]), body
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    async def send_and_leave(self, part: bytes) -> None:
        """Send part of a request over a connection of its own, and close that."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(part)
        await writer.drain()
        writer.close()

    def close(self) -> None:
        """Close the connection."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None


def post(body: bytes, content_type: str, path: str = "/predict") -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def form(photos: list[bytes]) -> bytes:
    """A request with several photos."""
    parts = [
        b"--"
        + _BOUNDARY
        + b'\r\ncontent-disposition: form-data; name="photos"; filename="'
        + str(i).encode()
        + b'.jpg"\r\ncontent-type: image/jpeg\r\n\r\n'
        + photo
        + b"\r\n"
        for i, photo in enumerate(photos)
    ]
    body = b"".join(parts) + b"--" + _BOUNDARY + b"--\r\n"
    return post(body, f"multipart/form-data; boundary={_BOUNDARY.decode()}")


async def closed_loop(url: str, requests: list[bytes], connections: int, seconds: float) -> Outcome:
    """Every connection sends its next request when it has the answer to the last."""
    outcome = Outcome()
    began = time.perf_counter()

    async def one(number: int) -> None:
        client = Client(url)
        while (sent := time.perf_counter()) < began + seconds:
            status, _ = await client.send(requests[number % len(requests)])
            outcome.statuses[status] += 1
            if status == 200:
                outcome.seconds.append(time.perf_counter() - sent)
            number += connections
        client.close()

    await asyncio.gather(*(one(i) for i in range(connections)))
    outcome.wall = time.perf_counter() - began
    return outcome


async def open_loop(
    url: str, requests: list[bytes], per_second: float, seconds: float, most: int = 300
) -> Outcome:
    """Requests come at random moments, whether or not earlier ones have been answered.

    Latency counts from the moment a request was due. At most `most` are open at the same time.
    """
    outcome, rng = Outcome(), random.Random(0)
    idle: list[Client] = []
    running: set[asyncio.Task[None]] = set()
    began = time.perf_counter()

    async def one(due: float, request: bytes) -> None:
        client = idle.pop() if idle else Client(url)
        status, _ = await client.send(request)
        outcome.statuses[status] += 1
        if status == 200:
            outcome.seconds.append(time.perf_counter() - due)
        idle.append(client)

    due, number = began, 0
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(running) < most:
            task = asyncio.create_task(one(due, requests[number % len(requests)]))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        due += rng.expovariate(per_second)
    await asyncio.gather(*running)
    outcome.wall = time.perf_counter() - began
    for client in idle:
        client.close()
    return outcome


def whole(outcome: Outcome) -> int:
    """Number of answers; every request must have got one."""
    if set(outcome.statuses) != {200}:
        raise SystemExit(f"expected answers only, got {dict(outcome.statuses)}")
    return outcome.statuses[200]
