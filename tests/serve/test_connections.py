"""Connections: what is slow, torn, endless, or no HTTP, and how they end."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serve.conftest import BIG, LIMITS, RED, Running, encoded, running


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(10_000):
        parts.append(part)
    return b"".join(parts)


def send_for_half_a_minute(connection: socket.socket) -> None:
    for _ in range(600):
        connection.sendall(b"more")
        time.sleep(0.05)


def start_upload(server: Running, sent: int, length: int) -> socket.socket:
    connection = connect(server)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nConnection: close\r\n"
    head += f"Content-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + RED + b"\0" * (sent - len(RED)))
    return connection


def wait_until(server: Running, metric: str, least: float) -> None:
    deadline = time.monotonic() + 30
    while server.metric(metric) < least:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_uploads_in_memory_are_bounded_and_a_torn_one_is_forgotten(server: Running) -> None:
    with start_upload(server, 200_000, 250_000):
        wait_until(server, "knownot_upload_bytes", 200_000)
        answer = server.predict(b"x" * 200_000)
        assert (answer.status_code, answer.json()["error"]) == (503, "busy")
    gone = 'knownot_requests_total{route="/predict",status="499"}'
    deadline = time.monotonic() + 30
    while gone not in server.http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.metric("knownot_upload_bytes") == 0
    assert server.predict(RED).status_code == 200


def test_slow_uploads_and_slow_answers_end(exported_file: Path) -> None:
    with running(exported_file, replace(LIMITS, seconds=0.1, photo_pixels=10**8)) as server:
        with start_upload(server, 10_000, 20_000) as connection:
            answer = rest_of(connection)
            assert b" 408 " in answer
            assert b"upload_too_slow" in answer
        for _ in range(50):
            answer = server.predict(BIG)
            if answer.status_code == 503:
                break
            assert answer.status_code == 408  # on a busy machine even this upload may take long
        assert answer.json()["error"] == "too_slow"
        assert server.metric("knownot_queue_photos") == 0


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_headers_that_do_not_come_end_the_connection(server: Running, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        with suppress(ConnectionResetError):  # either way of ending
            assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
    ],
)
def test_headers_and_trailers_without_end_end_the_connection(server: Running, begun: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(begun)
        with pytest.raises(ConnectionError):
            connection.sendall((b"X-Long: " + b"a" * 1000 + b"\r\n") * 2**14)
    assert server.http.get("/healthz").status_code == 200


def test_a_body_in_small_chunks_is_taken(server: Running) -> None:
    photo = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8))
    )
    chunks = (photo[at : at + 100] for at in range(0, len(photo), 100))
    answer = server.http.post("/predict", content=chunks, headers={"content-type": "image/png"})
    assert len(photo) > 80_000
    assert answer.status_code == 200


def test_a_client_that_does_not_read_loses_its_connection(exported_file: Path) -> None:
    with running(exported_file, replace(LIMITS, seconds=0.5)) as server, connect(server) as lazy:
        lazy.setblocking(False)
        asked, ended = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50, False
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            try:
                lazy.send(asked)
            except BlockingIOError:
                time.sleep(0.05)
            except ConnectionError:
                ended = True
        assert ended


def test_what_is_not_http_ends_the_connection(server: Running) -> None:
    for sent in (b"\x16\x03\x01\x02\0\x01\0", b"GET /\0 HTTP/1.1\r\n\r\n", b"A" * 70_000):
        with connect(server) as connection:
            connection.sendall(sent)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert server.http.get("/healthz").status_code == 200


def test_a_body_behind_an_offer_of_another_protocol_is_no_request(server: Running) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    offer = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    for framing in (b"Content-Length: %d" % len(hidden), b"Transfer-Encoding: chunked"):
        with connect(server) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\n" + offer + framing + b"\r\n\r\n")
            connection.sendall(hidden * 100_000)  # the answer arrives though much is left unread
            answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"without" in answer
    with connect(server) as connection:  # without a body it is HTTP/1.1 as ever
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + offer + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [b"1.1\r\nConnection: close", b"1.0"])
def test_a_refused_upload_hears_why_though_its_connection_ends(
    server: Running, version: bytes
) -> None:
    """As of a proxy, which asks for an end after each request."""
    with connect(server) as connection:
        length = 20_000_000
        head = b"POST /predict HTTP/%b\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d"
        connection.sendall(head % (version, length) + b"\r\n\r\n" + b"\0" * length)
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b"}")


def test_who_sends_on_what_was_refused_is_cut_off_in_the_end(exported_file: Path) -> None:
    with running(exported_file, replace(LIMITS, seconds=0.5)) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/9.9\r\n\r\n")
        assert rest_of(client).startswith(b"HTTP/1.1 400")
        with pytest.raises(ConnectionError):
            send_for_half_a_minute(client)
        assert server.predict(RED).status_code == 200
