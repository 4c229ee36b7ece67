"""The commands in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from knownot.cli.main import main


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
