"""`score_photos`: one parquet row for each of many photos, by Ray Data."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knownot.data.cores import usable_cores
from knownot.errors import ConfigError, DataError, ScoringError
from knownot.runtime import OnnxClassifier
from knownot.runtime.exported_file import exported_file
from knownot.scale.cluster import connected, require_ray

PART_SIZE = 512
Begin = Callable[[str, int | None], Callable[[int], None]]


@dataclass(frozen=True)
class ScoreSummary:
    """What a job did.

    Attributes:
        output: The parquet file.
        photos: Its rows.
        unknown: Rows of photos called unknown.
        errors: Rows of photos that could not be read.
        continued: Rows that were there from an earlier run.
        workers: Processes that scored; 0 if nothing was left to do.
        seconds: Time from the first worker's start to the last answer.
        photos_per_second: Photos of this run over these seconds.
    """

    output: str
    photos: int
    unknown: int
    errors: int
    continued: int
    workers: int
    seconds: float
    photos_per_second: float


def score_photos(
    model: str | Path,
    photos: Iterable[str],
    output: str | Path,
    *,
    workers: int | None = None,
    batch_size: int = 8,
    part_size: int = PART_SIZE,
    score: str | None = None,
    alpha: float | None = None,
    address: str | None = None,
    begin: Begin = lambda name, total: lambda done: None,
) -> ScoreSummary:
    """Score photos and write one row for each to a parquet file.

    The rows hold path, label, ood_score, p_value, is_unknown and error, in the order of the photos,
    and are those of `OnnxClassifier.predict`. Until all are there, they are kept in the folder
    `<output>.parts`: the same call after an interruption, whatever it was, goes on from them.

    Args:
        model: File of `knownot export`, or the model folder of a classifier, which is exported.
        photos: Paths and URIs, as `list_photos` gives them, in an order that does not change.
        output: File to write, ending in `.parquet`.
        workers: Processes, each with one core; as many as there are cores if not given.
        batch_size: Photos that go through the model together.
        part_size: Photos in a part, which is scored by one worker and kept when it is whole.
        score: Name of the score that decides; the model's if not given.
        alpha: Share of known photos called unknown, in (0, 1); the model's if not given.
        address: Of a Ray cluster; `RAY_ADDRESS` if not given, else this machine.
        begin: Called with the name of a stage and its number of photos (None if not known yet);
            gives what is called with each further number done.

    Raises:
        ConfigError: If a setting is out of range, or the model has no such score.
        DataError: If there is no photo, or the output cannot be written.
        ScoringError: If the job was begun with another model, list or settings, another process is
            at it, Ray cannot be started, or workers die again and again.
        MissingExtraError: If Ray is not installed.
    """
    require_ray()
    from knownot.scale.job import Job, JobDescription, opened

    output = _checked(output, workers, batch_size, part_size)

    def exporting() -> None:
        begin("exporting", None)

    with exported_file(model, "scoring with", exporting) as file:
        loaded = OnnxClassifier(file, threads=1)
        content = file.read_bytes()
    score, alpha = _decision(loaded, score, alpha)
    del loaded

    def describe(checksum: str, number: int) -> JobDescription:
        digest = hashlib.sha256(content).hexdigest()
        return JobDescription(digest, checksum, number, score, alpha, part_size)

    from knownot.scale.worker import Settings

    settings = Settings(score, alpha, batch_size, os.getcwd())
    listed = _told(photos, begin("listing", None))
    with opened(output, listed, describe, part_size) as job:
        if not isinstance(job, Job):
            return _summary(output, job, job.photos, 0, 0.0)
        missing = job.missing()
        todo = sum(map(job.size, missing))
        began, used = time.perf_counter(), 0
        if missing:
            advance = begin("scoring", job.description.number)
            advance(job.description.number - todo)
            with connected(address, workers or usable_cores()) as cores:
                used = min(workers or cores, len(missing))
                for number, rows in _scored(job, missing, content, settings, used):
                    job.write(number, rows)
                    advance(len(rows))
        seconds = time.perf_counter() - began
        if job.missing():
            raise ScoringError(f"{job.folder}: parts are missing; run the same command again")
        counts = job.join(begin("joining", job.description.number))
        return _summary(output, counts, counts.photos - todo, used, seconds)


def _scored(
    job: Any, missing: list[int], model: bytes, settings: Any, workers: int
) -> Iterator[tuple[int, Any]]:
    """Parts and their rows as they come, each part once."""
    import pyarrow as pa
    import ray
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    from knownot.scale.job import ROWS
    from knownot.scale.worker import PartScorer

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left = set(missing)
    kept = ray.put(model)  # once for all workers of a machine
    # A worker that dies is started anew by Ray Data, and its part given to one again.
    answered = ray.data.from_blocks([job.part(number) for number in missing]).map_batches(
        PartScorer,
        fn_constructor_args=(kept, settings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    try:
        for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            for number, rows in zip(batch["part"].to_pylist(), batch["rows"], strict=True):
                if number in left:
                    left.discard(number)
                    yield number, pa.Table.from_struct_array(rows.values).cast(ROWS)
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ScoringError(
            f"the workers failed ({reason[:300]}); what is done is kept in {job.folder}: "
            "run the same command again to continue"
        ) from None


def _checked(output: str | Path, workers: int | None, batch_size: int, part_size: int) -> Path:
    numbers = {"workers": 1 if workers is None else workers}
    numbers |= {"batch_size": batch_size, "part_size": part_size}
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    output = Path(output)
    if output.suffix != ".parquet" or output.is_dir():
        raise DataError(f"{output}: expected the name of a file that ends in .parquet")
    return output


def _decision(model: OnnxClassifier, score: str | None, alpha: float | None) -> tuple[str, float]:
    """Score and alpha of the job; the model refuses what it does not have."""
    model.predict([], score=score, alpha=alpha)
    return score or model.default_score, model.alpha if alpha is None else alpha


def _told(photos: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    for photo in photos:
        advance(1)
        yield photo


def _summary(output: Path, counts: Any, before: int, workers: int, seconds: float) -> ScoreSummary:
    rate = (counts.photos - before) / seconds if workers else 0.0
    numbers = (counts.photos, counts.unknown, counts.errors, before, workers)
    return ScoreSummary(str(output), *numbers, seconds, rate)
