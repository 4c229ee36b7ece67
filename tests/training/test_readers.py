"""Processes that read photos and fail: the training ends and says why in a sentence."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

import psutil
import pytest

from knownot.errors import TrainingError
from knownot.training.fit import _readers_ended
from tests.helpers import colour_folder


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, after its first epoch."""
    data = colour_folder(tmp_path / "data" / "train", 40).parent
    colour_folder(data / "val", 25, start=100)
    flags = "--arch test_resnet --weights none --image-size 32 --finetune all --epochs 400"
    command = ["-m", "knownot", "train", data, "-o", tmp_path / "m", *flags.split()]
    command += ["--batch-size", 8, "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True
    ) as training:
        while not (tmp_path / ".m.run" / "checkpoints" / "last.ckpt").exists():
            assert training.poll() is None, training.communicate()
            time.sleep(0.02)
        yield training
        training.kill()


def test_a_photo_that_vanishes_is_named(training: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "data" / "train" / "red" / "0003.png").unlink()
    _, said = training.communicate(timeout=60)
    assert training.returncode == 1
    assert "0003.png" in said
    assert "Traceback" not in said


def test_readers_that_the_system_kills_have_a_remedy(training: subprocess.Popen[str]) -> None:
    """As it does when memory runs out."""
    deadline = time.monotonic() + 60
    while training.poll() is None and time.monotonic() < deadline:
        kill_readers(training)
    _, said = training.communicate(timeout=60)
    assert training.returncode == 1
    assert "try --workers 0" in said  # beside what torch says if it learns of it between two epochs


def test_a_batch_whose_reader_is_gone_has_the_remedy_too() -> None:
    """Torch may fetch it before it learns that the process has ended, and raises what the pipe says."""
    for take, left in ((Connection.recv, False), (recv_handle, False), (recv_handle, True)):
        ours, theirs = multiprocessing.Pipe()
        if left:  # and unread, so that the pipe breaks instead of ending
            ours.send(1)
        theirs.close()
        with pytest.raises(TrainingError, match=r"ended \(\S.*try --workers 0"), _readers_ended():
            take(ours)


def test_a_connection_of_somebody_else_is_not_blamed_on_readers() -> None:
    with pytest.raises(ConnectionError, match="the tracker is down"), _readers_ended():
        raise ConnectionError("the tracker is down")


def kill_readers(training: subprocess.Popen[str]) -> None:
    """Those of an epoch that has ended do not count."""
    with suppress(psutil.NoSuchProcess):
        readers = psutil.Process(training.pid).children(recursive=True)
        time.sleep(0.1)  # they are at work then, not about to begin
        for reader in readers:
            reader.kill()
