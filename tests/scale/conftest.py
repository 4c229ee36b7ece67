"""Ray, once for all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """Ray with two cores, whatever the machine has."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'knownot[ray]'")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=2, **quiet)
    yield
    ray.shutdown()
