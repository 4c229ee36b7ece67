"""Lightning's trainer as every run here uses it: checkpoints, logs, Ctrl-C, no advertising."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from knownot.errors import DataError, KnownotError, TrainingError
from knownot.models.model_folder import choose_device
from knownot.training.checkpoints import WholeCheckpoints
from knownot.training.config import CommonConfig
from knownot.training.interrupts import signals_between_steps
from knownot.training.plan import Plan
from knownot.training.ranks import Ranks, process_state_kept
from knownot.training.run_folder import RunFolder

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Reporter(Protocol):
    """What training tells its caller as it goes; the command line draws it."""

    def plan(self, plan: Plan) -> None:
        """The plan, before anything is computed."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of `total` photos begins; the result is called with photos done."""

    def callbacks(self, steps: str = "training steps") -> list[Callback]:
        """Lightning callbacks, such as a progress bar of the steps under that name."""


class Silent:
    """A reporter that says nothing."""

    def plan(self, plan: Plan) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Count nothing."""
        return lambda done: None

    def callbacks(self, steps: str = "training steps") -> list[Callback]:
        """No callbacks."""
        return []


def fit(
    module: L.LightningModule,
    config: CommonConfig,
    run: RunFolder,
    callbacks: Sequence[Callback],
    ranks: Ranks,
    **options: Any,
) -> None:
    """Train a Lightning module, going on from the run's last complete epoch if there is one.

    Of several processes the first alone returns; the others end here.

    Args:
        module: What is trained.
        config: Settings.
        run: Where checkpoints and logs are kept meanwhile.
        callbacks: More of Lightning's callbacks.
        ranks: The processes that share every step.
        options: More of the trainer's options.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, between two steps.
        SystemExit: When this is not the first of several processes.
        DataError: If checkpoints or logs cannot be written.
    """
    chosen = choose_device(config.device)
    device = chosen.type
    if ranks.several:
        # Energy weights and phi take no part before VOS starts. Buffers need no exchange: windows
        # are the same on all ranks, and of batch normalisation the first rank's statistics count.
        options["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    ranks.let_begin()
    try:
        with process_state_kept(), _quiet(), signals_between_steps() as stop:
            trainer = L.Trainer(
                max_epochs=config.n_epochs,
                accelerator="gpu" if device == "cuda" else device,
                devices=ranks.devices if chosen.index is None else [chosen.index],
                num_nodes=ranks.num_nodes,
                use_distributed_sampler=False,  # `RankBatches` knows the ranks
                precision=config.precision,
                logger=[
                    CSVLogger(run.logs, "", "csv"),
                    TensorBoardLogger(run.logs, "", "tensorboard"),
                ],
                callbacks=[
                    ModelCheckpoint(
                        run.checkpoints,
                        filename="last",
                        save_on_train_epoch_end=True,
                        enable_version_counter=False,
                    ),
                    *callbacks,
                    *([stop] if ranks.first else []),  # the others end with it
                ],
                plugins=[WholeCheckpoints()],
                enable_progress_bar=False,  # the reporter draws its own
                enable_model_summary=False,
                log_every_n_steps=1,
                num_sanity_val_steps=0,
                **options,
            )
            with _full_disk_told(run), _failing_together(trainer), _readers_ended():
                trainer.fit(module, ckpt_path=run.checkpoint())
    except KeyboardInterrupt:
        if ranks.first:
            raise
    if ranks.several and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not ranks.first:
        raise SystemExit(0)
    if not all(weights.isfinite().all() for weights in module.parameters()):
        raise TrainingError("the last step left weights that are not finite; try a lower --lr")


@contextmanager
def _full_disk_told(run: RunFolder) -> Iterator[None]:
    """Logs that cannot be written end in a word, as checkpoints do by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DataError(
            f"{error.filename or run.root}: cannot be written ({error.strerror}); make room, then go on "
            "with --resume"
        ) from None


@contextmanager
def _readers_ended() -> Iterator[None]:
    """After an error no process of a data loader is left, and what one of them said is said plainly.

    They leave SIGTERM to the trainer, and so to the end of this process, which would wait for them
    while the error keeps them.
    """
    before = {process.pid for process in multiprocessing.active_children()}
    try:
        yield
    except Exception as error:
        for process in multiprocessing.active_children():
            if process.pid not in before:
                process.kill()
        said = str(error)
        if isinstance(error, KnownotError) and " in DataLoader worker process " in said:
            name = type(error).__name__
            raise type(error)(said.rpartition(f"{name}: ")[2].strip()) from None
        if (isinstance(error, RuntimeError) and said.startswith("DataLoader worker")) or (
            isinstance(error, ConnectionError | EOFError) and _from_another_process(error)
        ):
            what = said.partition("\n")[0] or type(error).__name__
            raise TrainingError(
                f"a process that reads photos ended ({what}); where memory ran out, "
                "try --workers 0 or a smaller --batch-size"
            ) from error
        raise


def _from_another_process(error: Exception) -> bool:
    """Raised while something was taken from another process: a batch whose reader is gone by then."""
    modules = {
        frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    return bool(modules & {"multiprocessing.connection", "multiprocessing.reduction"})


@contextmanager
def _failing_together(trainer: L.Trainer) -> Iterator[None]:
    """No process waits for another that failed, and the one that failed tells why."""
    try:
        yield
    except BaseException as error:
        # What Lightning does on Ctrl-C alone.
        if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        if isinstance(error, RuntimeError) and "by peer" in str(error):
            raise TrainingError("another process of this training failed or was stopped") from None
        raise


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
