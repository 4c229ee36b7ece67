"""Ray, once for all tests, and photos to score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """Ray on two cores, for all tests that need it."""
    pytest.importorskip("ray")
    from knownot.scale.cluster import connected

    with connected("local", 2):
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty photos in folders, known and unknown, a damaged one, and an empty one."""
    folder = tmp_path / "photos"
    for name, colour in {**COLOURS, "blue": UNKNOWN_COLOUR}.items():
        (folder / name / "deeper").mkdir(parents=True)
        for i in range(10):
            below = folder / name / ("deeper" if i % 2 else ".")
            noisy(colour, i).save(below / f"{i:02}.png")
    (folder / "red" / "05 cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "green" / "empty.png").write_bytes(b"")
    (folder / "green" / "notes.txt").write_text("no photo")
    return folder
