"""Ctrl-C and SIGTERM in `knownot train`: real processes, real signals; nothing finished is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from knownot import load


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_ctrl_c_and_resume_end_in_the_same_model(photos: Path, tmp_path: Path) -> None:
    """A real process, a real signal: interrupted after its first epochs, resumed, compared."""
    run = [sys.executable, "-m", "knownot", "train", str(photos), "--image-size", "32"]
    run += ["--finetune", "all", "--epochs", "8", "--batch-size", "12"]
    run += ["--device", "cpu"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    once = subprocess.run([*run, "-o", str(whole)], capture_output=True, text=True)
    assert once.returncode == 0, once.stderr

    process = subprocess.Popen(
        [*run, "-o", str(broken)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.ckpt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    assert not broken.exists()

    resumed = subprocess.run([*run, "-o", str(broken), "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    first, second = load(whole), load(broken)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4), name
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "broken"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="about processes that fork")
def test_ctrl_c_while_workers_start_is_not_lost(photos: Path, tmp_path: Path) -> None:
    """The signal comes within the hooks of a fork, where Python drops exceptions."""
    program = (
        "import os, signal\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from knownot.cli.main import main\n"
        "main()\n"
    )
    run = [sys.executable, "-c", program, "train", str(photos), "-o", str(tmp_path / "m")]
    run += ["--image-size", "32", "--finetune", "all", "--epochs", "1", "--device", "cpu"]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM to a process")
def test_sigterm_before_the_first_step_ends_as_ctrl_c_does(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWNOT_CACHE", str(tmp_path / "cache"))  # every photo is to be opened
    program = (
        "import os, signal\n"
        "from PIL import Image\n"
        "opened = Image.open\n"
        "def terminated(*args, **settings):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return opened(*args, **settings)\n"
        "Image.open = terminated\n"
        "from knownot.cli.main import main\n"
        "main()\n"
    )
    run = [sys.executable, "-c", program, "train", str(photos), "-o", str(tmp_path / "m")]
    run += ["--image-size", "32", "--workers", "0"]
    ended = subprocess.run(run, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stderr
    assert "--resume" not in ended.stderr  # there is nothing to go on with
    assert not (tmp_path / "m").exists()
