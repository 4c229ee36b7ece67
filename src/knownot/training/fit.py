"""Lightning's trainer as every run here uses it: checkpoints, logs, Ctrl-C, no advertising."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from knownot.models.model_folder import choose_device
from knownot.training.config import CommonConfig
from knownot.training.interrupts import ctrl_c_between_steps
from knownot.training.plan import Plan
from knownot.training.run_folder import RunFolder


class Reporter(Protocol):
    """What training tells its caller as it goes; the command line draws it."""

    def plan(self, plan: Plan) -> None:
        """The plan, before anything is computed."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of `total` photos begins; the result is called with photos done."""

    def callbacks(self) -> list[Callback]:
        """Lightning callbacks, such as a progress bar."""


class Silent:
    """A reporter that says nothing."""

    def plan(self, plan: Plan) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Count nothing."""
        return lambda done: None

    def callbacks(self) -> list[Callback]:
        """No callbacks."""
        return []


def fit(
    module: L.LightningModule,
    config: CommonConfig,
    run: RunFolder,
    callbacks: Sequence[Callback],
    **options: Any,
) -> None:
    """Train a Lightning module, going on from the run's last complete epoch if there is one.

    Args:
        module: What is trained.
        config: Settings.
        run: Where checkpoints and logs are kept meanwhile.
        callbacks: More of Lightning's callbacks.
        options: More of the trainer's options.

    Raises:
        KeyboardInterrupt: After Ctrl-C, between two steps.
    """
    device = choose_device(config.device).type
    with _quiet(), ctrl_c_between_steps() as stop:
        trainer = L.Trainer(
            max_epochs=config.n_epochs,
            accelerator="gpu" if device == "cuda" else device,
            devices=1,
            precision=config.precision,  # type: ignore[arg-type]
            logger=[CSVLogger(run.logs, "", "csv"), TensorBoardLogger(run.logs, "", "tensorboard")],
            callbacks=[
                ModelCheckpoint(
                    run.checkpoints,
                    filename="last",
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
                *callbacks,
                stop,
            ],
            enable_progress_bar=False,  # the reporter draws its own
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            **options,
        )
        trainer.fit(module, ckpt_path=run.checkpoint())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advertising and hints that do not concern the user."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
