"""Real servers around a small real model."""

from __future__ import annotations

import io
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from knownot.data.inbox import Inbox
from knownot.data.thumbnails import write_thumbnails
from knownot.runtime import open_onnx
from knownot.serve.app import create_app
from knownot.serve.limits import Limits
from knownot.serve.model_file import open_thumbnails
from knownot.serve.served_model import served
from knownot.serve.server import listen, make_server
from knownot.serve.service import Batching, Service
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy

LIMITS = Limits(
    upload_bytes=300_000,
    uploads_bytes=300_000,
    photo_pixels=1_000_000,
    photos=4,
    queue=8,
    header_seconds=0.5,
)


class Running:
    """A server that runs in a thread, and a client for it."""

    def __init__(self, port: int, service: Service) -> None:
        self.port = port
        self.service = service
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def predict(self, *photos: bytes, **query: Any) -> httpx.Response:
        """One photo as the body, several as a form."""
        if len(photos) == 1:
            headers = {"content-type": "image/png"}
            return self.http.post("/predict", content=photos[0], headers=headers, params=query)
        files = [("photos", (f"{i}.png", photo)) for i, photo in enumerate(photos)]
        return self.http.post("/predict", files=files, params=query)

    def metric(self, name: str) -> float:
        """The value of one sample, labels included in the name."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise KeyError(name)


@contextmanager
def running(
    model: Path,
    limits: Limits = LIMITS,
    batching: Batching | None = None,
    api_key: str | None = None,
    samples: Sequence[bytes] = (),
    thumbnails: Path | None = None,
    inbox: Inbox | None = None,
    host_names: Sequence[str] | None = None,
) -> Iterator[Running]:
    """uvicorn in a thread, on a free port, until the block ends."""
    exported = open_onnx(model, threads=1)
    kept = None if thumbnails is None else open_thumbnails(model, exported, thumbnails)
    loaded = served(exported, kept)
    app = create_app(
        loaded,
        limits,
        batching,
        api_key=api_key,
        host_names=host_names,
        samples=samples,
        inbox=inbox,
    )
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        handle = Running(port, app.state.service)
        try:
            yield handle
        finally:
            handle.http.close()
            server.should_exit = True
            thread.join()
            if kept is not None:
                kept.close()


@pytest.fixture(autouse=True)
def _no_traces_of_the_command() -> Iterator[None]:
    """The command takes over logging and SIGTERM, as it may in a process of its own."""
    loggers = [logging.getLogger(name) for name in ("knownot.serve", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers, level, logger.propagate = state
        logger.setLevel(level)


@pytest.fixture(scope="module")
def server(exported: dict[bool, tuple[Any, Path]]) -> Iterator[Running]:
    """A server with small limits, for tests that leave it as it was."""
    with running(exported[False][1]) as handle:
        yield handle


@pytest.fixture(scope="session")
def thumbnails(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the photos that the small model was trained on, in the order of `tiny_model`."""
    folder = tmp_path_factory.mktemp("trained_on")
    paths = []
    for k, colour in enumerate(COLOURS.values()):
        for i in range(60):
            paths.append(folder / f"{1000 * k + i}.png")
            noisy(colour, 1000 * k + i).save(paths[-1])
    write_thumbnails(folder / "thumbnails", paths, [i // 60 for i in range(120)])
    return folder / "thumbnails"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a photo file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


RED, GREEN = (encoded(noisy(colour, 77)) for colour in COLOURS.values())
BLUE = encoded(noisy(UNKNOWN_COLOUR, 77))
BIG = encoded(Image.new("L", (7000, 7000)))  # 49 megapixels in 50 kB
