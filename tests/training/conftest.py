"""Photos of two colours that tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import colour_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    colour_folder(root / "train", 40)
    colour_folder(root / "val", 60, start=100)
    return root
