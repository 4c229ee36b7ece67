"""The alarm keeps quiet for known photos and speaks up, once, for others."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from knownot.core.calibration import ConformalCalibration
from knownot.serve.drift import DriftAlarm, promised
from knownot.serve.service import Batching
from tests.serve.conftest import BLUE, RED, running


@pytest.mark.parametrize(
    ("n", "window", "alpha"), [(60, 50, 0.1), (500, 200, 0.05), (19, 40, 0.05)]
)
def test_the_interval_holds_what_calibration_really_flags(
    n: int, window: int, alpha: float
) -> None:
    random = np.random.default_rng(0)
    low, high = promised(window, alpha, [n], 0.9)
    counts = []
    for _ in range(2000):
        calibration = ConformalCalibration(torch.from_numpy(random.normal(size=n)))
        new = torch.from_numpy(random.normal(size=window))
        counts.append(int(calibration.is_unknown(new, alpha).sum()))
    found = np.array(counts)
    assert ((low <= found) & (found <= high)).mean() >= 0.89
    # And it is no wider than it must be.
    assert (found < low).mean() <= 0.065
    assert (found > high).mean() <= 0.065
    assert (found >= high).mean() > 0.05 - 0.015


def test_by_class_it_covers_each_and_without_sizes_it_is_binomial() -> None:
    each = [promised(100, 0.1, [n], 0.99) for n in (30, 300)]
    assert promised(100, 0.1, [30, 300], 0.99) == (
        min(low for low, _ in each),
        max(high for _, high in each),
    )
    from scipy.stats import binom

    low, high = promised(100, 0.1, [], 0.99)
    assert (low, high) == tuple(int(q) for q in binom.ppf([0.005, 0.995], 100, 0.1))


def test_it_begins_once_and_ends_once() -> None:
    alarm = DriftAlarm(100, 0.05, [500])
    random = np.random.default_rng(1)
    rates = [0.05] * 400 + [0.5] * 400 + [0.05] * 400
    changes = [i for i, rate in enumerate(rates) if alarm.observe(bool(random.random() < rate))]
    assert len(changes) == 2
    assert 400 < changes[0] < 500
    assert 800 < changes[1] < 900
    assert not alarm.active


def test_the_service_tells_when_photos_change(
    exported_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "knownot.serve")

    def events() -> list[str]:
        return [r.getMessage() for r in caplog.records if "drift" in r.getMessage()]

    with running(exported_file, batching=Batching(drift_window=20)) as server:
        for _ in range(20):
            server.predict(RED)
        assert (events(), server.metric("knownot_drift")) == ([], 0)
        for _ in range(4):  # photos judged otherwise than promised do not count
            server.predict(BLUE, BLUE, BLUE, BLUE, alpha=0.1)
        assert server.metric("knownot_unknown_rate") == 0
        for _ in range(5):
            server.predict(BLUE, BLUE, BLUE, BLUE)
        assert (events(), server.metric("knownot_drift")) == (["drift began"], 1)
        assert server.metric("knownot_unknown_rate") > server.metric("knownot_unknown_rate_high")
        for _ in range(20):
            server.predict(RED)
        assert events() == ["drift began", "drift ended"]
        assert server.metric("knownot_drift") == 0
