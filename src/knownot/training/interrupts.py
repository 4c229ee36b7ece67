"""Ctrl-C in training: takes effect between two steps and reaches the caller."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback


class StopBetweenSteps(Callback):
    """Raises `KeyboardInterrupt` at the end of the step in which Ctrl-C was pressed.

    Anywhere else the exception could be lost: Python drops those raised in the hooks of a fork,
    where it leaves locks behind on which the process hangs, and in `__del__`; data loaders use both.
    """

    def __init__(self) -> None:
        self.pressed = False

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop here if asked to."""
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def ctrl_c_between_steps() -> Iterator[StopBetweenSteps]:
    """Around Lightning's `fit`, which is to be given the callback.

    A second Ctrl-C takes effect at once. In a thread, or where no Python code handles the signal
    (it is ignored in the background of a shell script), nothing is changed.

    Raises:
        KeyboardInterrupt: After Ctrl-C; Lightning by itself would exit the process.
    """
    stop = StopBetweenSteps()
    handler = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and callable(handler)

    def press(number: int, frame: Any) -> None:
        stop.pressed = True
        signal.signal(signal.SIGINT, handler)

    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield stop
    except (SystemExit, Exception) as error:
        # On Ctrl-C Lightning exits, or fails in cleaning up what had not begun.
        if not (stop.pressed or isinstance(error, SystemExit)):
            raise
        raise KeyboardInterrupt from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
    if stop.pressed:
        raise KeyboardInterrupt
