"""`knownot serve --keep-unknown`: the inbox of a running service."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from knownot.data.inbox import Inbox, kept_facts
from tests.helpers import UNKNOWN_COLOUR, noisy
from tests.serve.conftest import BLUE, GREEN, RED, encoded, running


def test_unknown_photos_are_kept_and_no_client_decides_that(
    exported_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unknown"
    large = noisy(UNKNOWN_COLOUR, 3).resize((900, 600))
    large_photo = encoded(large, "JPEG", comment="who took it")
    with running(exported_file, inbox=Inbox(folder)) as server:
        answer = server.predict(RED, BLUE, b"no photo", GREEN).json()["photos"][1]
        server.predict(BLUE)  # again
        server.predict(RED, alpha=0.999)  # unknown by the client's alpha alone
        server.predict(large_photo)
        kept = sorted(folder.glob("*.jpg"))
        assert len(kept) == 2
        facts = kept_facts(kept[0])
        assert facts["scores"] == pytest.approx(answer["scores"])
        assert facts["nearest_class"] == answer["nearest"][0]["label"]
        with Image.open(kept[1]) as photo:
            assert photo.size == (900, 600)  # as it came, not as the model saw it
        assert b"who took it" not in kept[1].read_bytes()
        shutil.rmtree(folder)
        folder.write_text("in the way")  # what cannot be kept is answered all the same
        assert server.predict(BLUE).json()["photos"][0]["label"] == "unknown"
