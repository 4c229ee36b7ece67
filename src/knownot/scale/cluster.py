"""Ray, found late, started quietly and left as it was."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from knownot.errors import MissingExtraError, ScoringError


def require_ray() -> None:
    """Raise `MissingExtraError` unless Ray Data is installed."""
    for package in ("ray", "pyarrow", "pandas", "fsspec"):  # what `ray[data]` brings
        if find_spec(package) is None:
            raise MissingExtraError("ray[data]", "ray", "scoring many photos")


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[int]:
    """Ray, on this machine or a cluster; yields the cores that workers may take.

    A Ray that this process has started before is taken, and left running.

    Args:
        address: Of a cluster's head, as Ray takes it; `RAY_ADDRESS` if not given, else this machine.
        workers: Cores that a Ray started here offers.

    Raises:
        ScoringError: If it cannot be started or reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised, too
    import ray

    if ray.is_initialized():
        yield _cores()
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _errors_set_aside() as said:
            ray.init(
                address=address,
                num_cpus=workers if address == "local" else None,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
    except Exception as error:  # of many types: connection, port, memory
        text = "\n".join([str(error).strip(), *said]).strip()
        first = text.splitlines()[0] if text else type(error).__name__
        raise ScoringError(f"Ray at {address!r} cannot be started or reached: {first}") from None
    try:
        yield _cores()
    finally:
        ray.shutdown()


def _cores() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


@contextmanager
def _errors_set_aside() -> Iterator[list[str]]:
    """Keep what Ray's C++ part writes to standard error while it starts; it asks no logger."""
    said: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                yield said
            finally:
                sys.stderr.flush()
                os.dup2(before, 2)
                aside.seek(0)
                said += aside.read().decode(errors="replace").splitlines()
    finally:
        os.close(before)
