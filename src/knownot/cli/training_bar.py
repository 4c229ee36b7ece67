"""Progress of the epochs in the bar the command already draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L


class EpochBar(L.Callback):
    """Counts training steps; a resumed run starts where it stopped."""

    def __init__(self, begin: Callable[[str, int], Callable[[int], None]], name: str) -> None:
        self.begin, self.name = begin, name
        self.advance: Callable[[int], None] = lambda steps: None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.advance = self.begin(self.name, int(trainer.estimated_stepping_batches))
        self.advance(trainer.global_step)

    def on_train_batch_end(self, *args: Any) -> None:
        self.advance(1)
