"""What Prometheus reads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from knownot.serve.drift import DriftAlarm
from knownot.serve.load import Load
from knownot.serve.schemas import PhotoAnswer
from knownot.serve.served_model import ServedModel

_LATENCY = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32)
_SCORE_BINS = 20


class Metrics:
    """Counters, gauges and histograms of one service.

    Args:
        model: The model that answers.
        load: What is in progress.
        drift: The alarm.
    """

    def __init__(self, model: ServedModel[Any], load: Load, drift: DriftAlarm) -> None:
        self._default_score = model.defaults.score
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "knownot_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "knownot_request_seconds",
            "Time from a request's headers to its answer, the upload included.",
            ["route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self._photos = Counter(
            "knownot_photos",
            "Photos by answer: known, unknown (a detector: any of its boxes), error.",
            ["answer"],
            registry=registry,
        )
        for answer in ("known", "unknown", "error"):
            self._photos.labels(answer)
        self._scores = Histogram(
            "knownot_ood_score",
            f"Score {self._default_score!r} of the {model.judged}; larger is more out-of-distribution.",
            buckets=score_buckets(model),
            registry=registry,
        )
        self.batches = Histogram(
            "knownot_batch_photos",
            "Photos that went through the model together.",
            buckets=_BATCHES,
            registry=registry,
        )
        for name, text, read in (
            ("queue_photos", "Photos accepted and not answered yet.", lambda: load.photos),
            ("upload_bytes", "Bytes of uploads in memory.", lambda: load.upload_bytes),
            (
                "unknown_rate",
                f"Share of unknown ones among the last {model.judged}.",
                lambda: drift.rate,
            ),
            (
                "drift",
                "1 while the unknown rate is not what calibration promises.",
                lambda: float(drift.active),
            ),
        ):
            Gauge(f"knownot_{name}", text, registry=registry).set_function(read)
        for end, count in zip(("low", "high"), drift.interval, strict=True):
            gauge = Gauge(
                f"knownot_unknown_rate_{end}",
                f"The {end} end of the promised interval of the unknown rate.",
                registry=registry,
            )
            gauge.set(count / drift.window)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def answers(self, answers: Iterable[PhotoAnswer]) -> None:
        """Count photos."""
        for answer in answers:
            if answer.error is not None:
                self._photos.labels("error").inc()
                continue
            judged = answer.judged()
            unknown = any(one.is_unknown for one in judged)
            self._photos.labels("unknown" if unknown else "known").inc()
            for one in judged:
                score = one.scores[self._default_score]
                if score is not None and math.isfinite(score):
                    self._scores.observe(score)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


def score_buckets(model: ServedModel[Any]) -> list[float]:
    """Edges from the calibration scores, twice as far, and the threshold."""
    metadata = model.metadata
    edges: set[float] = set()
    summary = metadata.calibration
    if summary is not None and metadata.default_score in summary.histograms:
        known = summary.histograms[metadata.default_score].edges
        low, high = known[0], known[-1]
        step = (high - low) / (_SCORE_BINS - 1)
        edges = {low + step * i for i in range(2 * _SCORE_BINS - 1)}
    if metadata.threshold is not None:
        edges.add(metadata.threshold)
    return sorted(edges) or [0.0]
