"""`score_photos`: one parquet row for each of many photos, by Ray Data."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knownot.data.cores import usable_cores
from knownot.errors import ConfigError, DataError, MissingExtraError, ScoringError
from knownot.interrupt import sigterm_as_ctrl_c
from knownot.runtime import OnnxClassifier
from knownot.runtime.exported_file import exported_file
from knownot.scale.sources import is_remote

if TYPE_CHECKING:
    import pyarrow as pa

    from knownot.scale.parts import Parts


@dataclass(frozen=True)
class ScoreSummary:
    """What a job did.

    Attributes:
        output: The parquet file.
        photos: Its rows.
        unknown: Rows of photos called unknown.
        errors: Rows of photos that could not be read.
        continued: Rows that were there from an earlier run.
        seconds: From the start of Ray to the last answer.
    """

    output: str
    photos: int
    unknown: int
    errors: int
    continued: int
    seconds: float


def require_ray() -> None:
    """Raise `MissingExtraError` unless Ray Data is installed."""
    for package in ("ray", "pyarrow", "fsspec"):  # what `ray[data]` brings
        if find_spec(package) is None:
            raise MissingExtraError("ray[data]", "ray", "scoring many photos")


def score_photos(
    model: str | Path,
    photos: list[str],
    output: str | Path,
    *,
    workers: int | None = None,
    part_size: int = 256,
    score: str | None = None,
    alpha: float | None = None,
    address: str | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> ScoreSummary:
    """Score photos and write one row for each to a parquet file.

    The rows hold path, label, ood_score, p_value, is_unknown and error, in the order of the photos,
    and are those of `OnnxClassifier.predict`. Until all are there, they are kept in the folder
    `<output>.parts`: the same call after an interruption, whatever it was, goes on from them.

    Args:
        model: File of `knownot export`, or the model folder of a classifier, which is exported.
        photos: Paths and URIs.
        output: File to write, ending in `.parquet`.
        workers: Processes, each with one core; as many as Ray has cores if not given.
        part_size: Photos in a part, which is scored by one worker and kept when it is whole.
        score: Name of the score that decides; the model's if not given.
        alpha: Share of known photos called unknown, in (0, 1); the model's if not given.
        address: Of a Ray cluster; `RAY_ADDRESS` if not given, else this machine alone.
        progress: Called with each further number of photos done.

    Raises:
        ConfigError: If a setting is out of range, or the model has no such score.
        DataError: If the output is there or cannot be written, or there is no photo.
        ScoringError: If the job was begun with another model, photos or settings, another process works
            on it, Ray cannot be started, or a store does not answer.
        MissingExtraError: If Ray is not installed.
    """
    require_ray()
    from knownot.scale.parts import Parts

    if workers is not None and workers < 1:
        raise ConfigError(f"workers: expected at least 1, got {workers}")
    if part_size < 1:
        raise ConfigError(f"part_size: expected at least 1, got {part_size}")
    if not photos:
        raise DataError("photos: there is none to score")
    parts = Parts(_free(Path(output)), photos, part_size)
    settings: dict[str, Any] = {"score": score, "alpha": alpha}
    names = {"model": _digest(Path(model)), "photos": _digest_of_names(photos)}
    job = {**names, "part_size": part_size, **settings}
    with parts.alone():
        if not parts.begun(job):
            with exported_file(model, "scoring with") as file:
                OnnxClassifier(file, threads=1).predict([], **settings)  # it refuses wrong ones
                parts.begin(job, file)
        missing = parts.missing()
        todo = sum(len(parts.photos(number)) for number in missing)
        progress(len(photos) - todo)
        start = time.perf_counter()
        if missing:
            with _connected(address, workers or usable_cores()) as cores:
                for number, rows in _answered(parts, missing, settings, workers or cores):
                    parts.write(number, rows)
                    progress(len(rows))
        seconds = time.perf_counter() - start
        unknown, errors = parts.join()
    return ScoreSummary(
        str(output), len(photos), unknown, errors, len(photos) - todo, round(seconds, 2)
    )


def _free(output: Path) -> Path:
    if output.suffix != ".parquet":
        raise DataError(f"{output}: expected the name of a file that ends in .parquet")
    if output.exists():
        raise DataError(f"{output}: is there already; remove it, or choose another name with -o")
    return output


def _digest(model: Path) -> str:
    """Of the file, or of the files of a model folder: two exports differ, if only in a time.

    Of a model on the hub, its name: a job goes on with the export that it began with.
    """
    if not model.exists():
        return hashlib.sha256(str(model).encode()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(model.iterdir()) if model.is_dir() else [model]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest_of_names(photos: list[str]) -> str:
    # Absolute paths: the same words in another folder are other photos.
    names = "\0".join(name if is_remote(name) else os.path.abspath(name) for name in photos)
    return hashlib.sha256(os.fsencode(names)).hexdigest()


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[int]:
    """Ray, on this machine or a cluster; yields its cores. One that runs is left running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised, too
    import ray

    started = not ray.is_initialized()
    if started:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        local: dict[str, Any] = {}
        if address == "local":
            local = {"num_cpus": workers, "include_dashboard": False}
        try:
            _try(address)
            with _standard_error_set_aside():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # of many types: connection, port, memory
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ScoringError(f"Ray at {address!r} cannot be reached: {reason}") from None
    try:
        with sigterm_as_ctrl_c():  # Ray has one of its own that ends the process
            yield max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _standard_error_set_aside() -> Iterator[None]:
    """Ray's C++ part tells there that it starts, and asks no logger; what goes wrong is raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _try(address: str) -> None:
    """Raise `OSError` if nobody listens there; Ray itself would try for more than five minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=20).close()


def _answered(
    parts: Parts, missing: list[int], settings: dict[str, Any], workers: int
) -> Iterator[tuple[int, pa.Table]]:
    """Parts and their rows, as they come."""
    import pyarrow as pa
    import ray
    import ray.data

    from knownot.scale.parts import ROWS
    from knownot.scale.worker import Attempts, PartScorer

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised
    # Ray Data starts a worker that dies anew and gives its part to one again.
    blocks = [
        pa.table({"part": [n], "photos": [list(map(os.fsencode, parts.photos(n)))]})
        for n in missing
    ]
    model = ray.put(parts.model.read_bytes())  # once for all workers of a machine
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    answered = ray.data.from_blocks(blocks).map_batches(
        PartScorer,
        fn_constructor_args=(model, attempts, os.getcwd(), settings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        num_cpus=1,
    )
    try:
        for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            for number, rows in zip(batch["part"].to_pylist(), batch["rows"], strict=True):
                yield number, pa.Table.from_struct_array(rows.values).cast(ROWS)
    except ray.exceptions.RayError as error:
        # Between tracebacks and Ray's advice and wrappers stands a line that names what was raised.
        named = re.findall(r"^(?!ray\.)[\w.]*(?:Error|Exception)\b.*", str(error), re.MULTILINE)
        reason = named[-1] if named else type(error).__name__
        raise ScoringError(
            f"the workers failed ({reason[:300]}); what is done is kept in {parts.folder}: "
            "run the same command again to continue"
        ) from None
