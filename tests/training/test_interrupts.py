"""Ctrl-C by real signals: kept until the step ends, the second one at once, the handler put back."""

from __future__ import annotations

import signal
import threading

import pytest

from knownot.training.interrupts import ctrl_c_between_steps


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _handler_is_put_back():
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_waits_for_the_end_of_the_step() -> None:
    done = []

    def steps() -> None:
        with ctrl_c_between_steps() as stop:
            stop.on_train_batch_end()
            press()
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

    with pytest.raises(KeyboardInterrupt), ctrl_c_between_steps():
        Dropping()


def test_a_second_one_takes_effect_at_once() -> None:
    done = []

    def step() -> None:
        with ctrl_c_between_steps():
            press()
            press()
            done.append("the rest of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert not done


def test_an_exit_is_an_interrupt_and_errors_stay_errors() -> None:
    with pytest.raises(KeyboardInterrupt), ctrl_c_between_steps():
        raise SystemExit(1)
    with pytest.raises(ValueError, match="cause"), ctrl_c_between_steps():
        raise ValueError("cause")


def test_a_process_that_ignores_it_goes_on() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell script
    try:
        with ctrl_c_between_steps() as stop:
            press()
            stop.on_train_batch_end()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_a_thread_nothing_is_changed() -> None:
    seen = []

    def work() -> None:
        with ctrl_c_between_steps():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
