"""Ctrl-C and SIGTERM in training: they take effect between two steps and reach the caller."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopBetweenSteps(Callback):
    """Raises `KeyboardInterrupt` at the end of the step in which the signal came.

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
def signals_between_steps() -> Iterator[StopBetweenSteps]:
    """Around Lightning's `fit`, which is to be given the callback: Ctrl-C and SIGTERM wait for a step.

    A second one takes effect at once. In a thread, or where a signal is ignored (Ctrl-C in the
    background of a shell script), nothing is changed.

    Raises:
        KeyboardInterrupt: After either signal; Lightning by itself would exit the process.
    """
    stop = StopBetweenSteps()
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        present = {number: signal.getsignal(number) for number in _SIGNALS}
        handlers = {n: h for n, h in present.items() if h not in (signal.SIG_IGN, None)}

    def press(number: int, frame: Any) -> None:
        stop.pressed = True
        signal.signal(number, handlers[number])

    for number in handlers:
        signal.signal(number, press)
    try:
        yield stop
    except (SystemExit, Exception) as error:
        # Lightning exits, or fails in cleaning up what had not begun; a data loader fails whose
        # processes were sent the signal too.
        if not (stop.pressed or isinstance(error, SystemExit)):
            raise
        raise KeyboardInterrupt from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop.pressed:
        raise KeyboardInterrupt


def leave_to_trainer(worker: int) -> None:
    """`worker_init_fn` of a data loader: SIGTERM to a whole process group leaves its processes alone.

    The trainer ends them when it stops; one that dies under it may do so in a fork.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
