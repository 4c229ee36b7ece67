"""The service in a process: its socket, its key, its signals."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from PIL import Image

from knownot.data.inbox import Inbox
from knownot.errors import ConfigError, ModelFileError
from knownot.serve.app import create_app
from knownot.serve.limits import Limits
from knownot.serve.logs import log, set_up
from knownot.serve.model_file import load_model, open_thumbnails
from knownot.serve.protocol import ImpatientProtocol
from knownot.serve.samples import load_samples
from knownot.serve.served_model import ServedClassifier, ServedDetector, served
from knownot.serve.service import Batching

KEY_VARIABLE = "KNOWNOT_API_KEY"
_BACKLOG = 128


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    batching: Batching | None = None,
    root_path: str = "",
    host_names: Collection[str] = (),
    samples: Path | None = None,
    thumbnails: Path | None = None,
    inbox: Inbox | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; what was accepted by then is still answered.

    SIGTERM then raises `SystemExit(0)`, so that supervisors see a clean end.

    Args:
        model: File of `knownot export`, or a model folder.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one, told in the log.
        limits: What is taken on.
        batching: How photos are put together.
        root_path: Path under which a proxy shows the service.
        host_names: What a proxy or the page's address may call this host. None else is taken, but
            localhost and addresses, where there are some, and on loopback without a key.
        samples: Folder of photos that the page offers to try.
        thumbnails: Folder of training thumbnails to show, if not that of the model folder.
        inbox: Where unknown photos are kept.

    Raises:
        KnownotError: If the model cannot be served, or the address cannot be had.
    """
    limits = limits or Limits()
    key = api_key()
    set_up()
    offered = [] if samples is None else load_samples(samples)
    # uvicorn ends with the signal that ended it; an export that it comes upon is cleaned up as well.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with listen(host, port) as listener:
        exported = load_model(model)
        kept = open_thumbnails(model, exported, thumbnails)
        loaded = served(exported, kept)
        _try_out(loaded, model)
        address = "http://{}:{}".format(
            f"[{host}]" if ":" in host else host, listener.getsockname()[1]
        )
        if key is None and not is_loopback(host):
            log(
                "anyone who reaches this address may use the service: set "
                f"{KEY_VARIABLE}, or listen on 127.0.0.1",
                level=logging.WARNING,
                address=address,
            )
        app = create_app(
            loaded,
            limits,
            batching,
            api_key=key,
            host_names=host_names or ([] if key is None and is_loopback(host) else None),
            samples=offered,
            inbox=inbox,
        )
        log(
            "serving", address=address, model=str(model), thumbnails=len(kept.labels) if kept else 0
        )
        # From here on it finishes what it accepted: the end that was asked for is no failure.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        make_server(app, limits, root_path).run(sockets=[listener])


def _try_out(loaded: ServedClassifier | ServedDetector, model: str | Path) -> None:
    """Raise `ModelFileError` if it cannot answer: a graph that does not fit its description."""
    grey = Image.new("RGB", (64, 64), "grey")
    try:
        loaded.answer([loaded.prepare(grey)], loaded.defaults)
    except Exception as error:  # ONNX Runtime's share no base
        reason = str(error).strip().partition("\n")[0]
        raise ModelFileError(
            f"{model}: cannot answer for a photo ({reason}); export it anew"
        ) from None


def make_server(app: FastAPI, limits: Limits, root_path: str = "") -> uvicorn.Server:
    """uvicorn around the application, with the limits that are its own."""
    patience = {"header_seconds": limits.header_seconds, "reading_seconds": limits.seconds}
    config = uvicorn.Config(
        app,
        http=type("Protocol", (ImpatientProtocol,), patience),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        root_path=root_path,
        backlog=_BACKLOG,
        limit_concurrency=limits.connections,
        # A request in progress ends by itself before that.
        timeout_graceful_shutdown=int(limits.seconds) + 5,
    )
    return uvicorn.Server(config)


def api_key() -> str | None:
    """The key of the environment, or None.

    Raises:
        ConfigError: If it is set and empty, which would lock out everyone or nobody, or is not what all
            clients send alike.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise ConfigError(f"{KEY_VARIABLE}: is set but empty; give it a value or unset it")
    if key is not None and key != key.strip():  # HTTP takes it off what clients send
        raise ConfigError(f"{KEY_VARIABLE}: has white space around it, perhaps a line's end")
    if key is not None and not (
        key.isascii() and key.isprintable()
    ):  # clients send others differently
        raise ConfigError(f"{KEY_VARIABLE}: expected letters, digits and signs of ASCII")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound.

    Raises:
        ConfigError: If the address is not to be had.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol, unlike `socket.create_server`: asyncio sets TCP_NODELAY only where it is
        # told that this is TCP, and without it every answer waits 40 ms for the client's kernel.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, UnicodeError) as error:  # of a name that can be none
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port}: cannot listen there ({reason}); choose another --port or --host"
        ) from None
