"""Real signals in training: kept until the step ends, the second one at once, the handlers put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from knownot.training.interrupts import signals_between_steps
from tests.helpers import colour_folder


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)  # the test runner's own, in its worker processes
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_waits_for_the_end_of_the_step(number: signal.Signals) -> None:
    done = []

    def steps() -> None:
        with signals_between_steps() as stop:
            stop.on_train_batch_end()
            signal.raise_signal(number)
            done.append("the rest of the step")
            stop.on_train_batch_end()
            done.append("the next step")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done == ["the rest of the step"]


def test_it_is_not_lost_where_exceptions_are_dropped() -> None:
    class Dropping:
        def __del__(self) -> None:
            press()

    with pytest.raises(KeyboardInterrupt), signals_between_steps():
        Dropping()


def test_a_second_one_takes_effect_at_once() -> None:
    done = []

    def step() -> None:
        with signals_between_steps():
            press()
            press()
            done.append("the rest of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert not done


def test_an_exit_is_an_interrupt_and_errors_stay_errors() -> None:
    with pytest.raises(KeyboardInterrupt), signals_between_steps():
        raise SystemExit(1)
    with pytest.raises(ValueError, match="cause"), signals_between_steps():
        raise ValueError("cause")


def test_a_process_that_ignores_it_goes_on() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell script
    try:
        with signals_between_steps() as stop:
            press()
            stop.on_train_batch_end()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_a_thread_nothing_is_changed() -> None:
    seen = []

    def work() -> None:
        with signals_between_steps():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_sigterm_to_the_whole_group_keeps_the_finished_epochs(tmp_path: Path) -> None:
    """As a service manager stops a training: the processes that load photos get it too."""
    colour_folder(tmp_path / "photos" / "train", 400)
    colour_folder(tmp_path / "photos" / "val", 25, start=100)
    run = (
        "-m knownot train photos -o model --finetune all --arch test_efficientnet_gn --weights none"
    )
    run += " --image-size 32 --batch-size 8 --epochs 400 --workers 2 --device cpu"
    with subprocess.Popen(
        [sys.executable, *run.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        while not (tmp_path / ".model.run" / "checkpoints" / "last.ckpt").exists():
            assert training.poll() is None, training.communicate()
            time.sleep(0.02)
        time.sleep(0.5)  # in the middle of an epoch
        os.killpg(training.pid, signal.SIGTERM)
        _, said = training.communicate(timeout=60)
    assert training.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    assert (tmp_path / ".model.run" / "checkpoints" / "last.ckpt").exists()
