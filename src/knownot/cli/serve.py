"""`knownot serve`: parse, call the library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from knownot.cli.options import KeepMib, KeepMost, NoSeed


def serve(
    model: Annotated[str, typer.Argument(help="File of `knownot export`, or a model folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 for a free one, told in the log.")
    ] = 8000,
    max_upload: Annotated[int, typer.Option(min=1, help="MiB in one request.")] = 32,
    max_pixels: Annotated[float, typer.Option(min=0.01, help="Megapixels of a photo.")] = 50,
    max_photos: Annotated[int, typer.Option(min=1, help="Photos in one request.")] = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Photos accepted and not answered yet; more get a 429.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for one request, its upload included.")
    ] = 30,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most photos that go through a classifier together.")
    ] = 2,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Batches that run at the same time. (default: usable cores)"),
    ] = None,
    drift_window: Annotated[
        int,
        typer.Option(
            min=20, help="Last photos, or a detector's boxes, that the drift alarm watches."
        ),
    ] = 500,
    samples: Annotated[
        Path | None,
        typer.Option(help="Folder of photos that the page offers to try; the first 12 by name."),
    ] = None,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            help="Folder `thumbnails` that `knownot train --keep-thumbnails` wrote; who uses the "
            "service sees its photos. (default: that of the model folder, if it has one)"
        ),
    ] = None,
    keep_unknown: Annotated[
        Path | None,
        typer.Option(help="Folder that unknown photos, or boxes of them, are kept in."),
    ] = None,
    keep_most: KeepMost = 1000,
    keep_mib: KeepMib = 1024,
    root_path: Annotated[
        str, typer.Option(help="Path under which a proxy shows the service, such as /photos.")
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that the service may be reached under, such as photos.example.org behind a "
            "proxy; may be given several times. (default: without a key, on an address of this "
            "machine alone: localhost and addresses; else any)"
        ),
    ] = None,
    seed: NoSeed = 0,
    json_output: Annotated[
        bool, typer.Option("--json", help="Accepted for symmetry; the log is JSON always.")
    ] = False,
) -> None:
    """Answer photos over [bold]HTTP[/], with a page to try it, metrics and a drift alarm.

    [bold]knownot serve model.onnx --samples photos/[/]

    [bold]curl -F photos=@a.jpg -F photos=@b.jpg http://127.0.0.1:8000/predict[/]

    Only this machine reaches it unless --host says otherwise. With KNOWNOT_API_KEY set, clients must
    send it as Authorization: Bearer. Ctrl-C or SIGTERM ends it after the requests in progress.
    """
    from importlib.util import find_spec

    from knownot.errors import ConfigError, MissingExtraError

    for module, package in _NEEDS.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve", "the service")
    from knownot.data.inbox import Inbox
    from knownot.serve.limits import Limits
    from knownot.serve.server import serve as run
    from knownot.serve.service import Batching

    if not math.isfinite(max_pixels * timeout):
        raise ConfigError("--max-pixels, --timeout: expected finite numbers")
    if not root_path.isascii():
        raise ConfigError(
            f"--root-path: expected ASCII, got {root_path!r}; write it percent-encoded"
        )
    inbox = None if keep_unknown is None else Inbox(keep_unknown, keep_most, keep_mib * 2**20)
    run(
        model,
        host=host,
        port=port,
        limits=Limits(
            upload_bytes=max_upload * 2**20,
            uploads_bytes=max(Limits.uploads_bytes, max_upload * 2**20),
            photo_pixels=round(max_pixels * 1e6),
            photos=max_photos,
            queue=max_queue,
            seconds=timeout,
        ),
        batching=Batching(threads=threads, size=batch_size, drift_window=drift_window),
        root_path=root_path,
        host_names=allow_host or (),
        samples=samples,
        thumbnails=thumbnails,
        inbox=inbox,
    )


_NEEDS = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "onnxruntime": "onnxruntime",
}
