"""The commands in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from knownot.cli.main import main
from tests.helpers import UNKNOWN_COLOUR, colour_folder, noisy

# Real ImageNet weights from the package index at a size that takes a second.
SMALL = ("--image-size", "32", "--epochs", "40", "--batch-size", "16", "--device", "cpu")


class Result(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def knownot_command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the entry point in this process: the same code as the script, without its start."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["knownot", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    colour_folder(root / "train", 30)
    colour_folder(root / "val", 40, start=100)
    colour_folder(root / "test", 20, start=200)
    for i in range(12):
        (root / "ood" / "blue").mkdir(parents=True, exist_ok=True)
        noisy(UNKNOWN_COLOUR, i).save(root / "ood" / "blue" / f"blue-{i:02}.png")
    return root


@pytest.fixture(scope="session")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder written by the command itself, in a process of its own."""
    folder = tmp_path_factory.mktemp("models") / "model"
    command = [sys.executable, "-m", "knownot", "train", str(photos), "-o", str(folder), *SMALL]
    command += ["--keep-thumbnails"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "Plan" in done.stderr
    assert "radius ratio" in done.stderr
    assert "accuracy on validation photos" in done.stdout
    return folder
