"""What the trainings of both tasks share for Lightning: order, randomness, optimiser and schedule."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from knownot.models.unknown_aware import UnknownAwareModel
from knownot.training.batches import joint_batches, training_batches
from knownot.training.config import CommonConfig
from knownot.training.ranks import check_same_steps, seed_epoch
from knownot.training.schedule import one_cycle

Parameters = list[nn.Parameter]


class VosTraining(L.LightningModule):
    """A training with the virtual outlier loss; the tasks add how a batch's loss comes about.

    Args:
        model: The model to train.
        config: Settings.
        examples: Number of training examples.
    """

    def __init__(self, model: UnknownAwareModel, config: CommonConfig, examples: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.batch_sizes = joint_batches(examples, config)
        self.total_steps = len(self.batch_sizes) * config.n_epochs

    @property
    def uncertainty(self) -> nn.Module:
        """The uncertainty loss that is trained with."""
        return self.model.vos

    def parameter_parts(self) -> tuple[Parameters, Parameters]:
        """Parameters to be trained: of the backbone, and of the rest but the uncertainty loss."""
        raise NotImplementedError  # abstract

    @property
    def warmup(self) -> float:
        """Share of the steps in which the learning rates rise."""
        return 0.1

    def batches(self, dataset: Dataset[Any], collate: Any = None) -> DataLoader[Any]:
        """This rank's batches, beginning with the epoch to train next."""
        # Asked for after a checkpoint is restored, and the workers read ahead at once: told of the
        # epoch later, as Lightning does, a resumed run would begin with the order of the first.
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return training_batches(dataset, self.config, progress.processed, self.global_rank, collate)

    def share(self, examples: int, batch_idx: int) -> float:
        """Factor that makes the mean over the ranks' task losses that over the joint batch.

        The virtual outlier loss sees to that itself.
        """
        return examples * self.config.ranks / self.batch_sizes[batch_idx]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the interrupted run had as many steps to go."""
        check_same_steps(checkpoint, self.total_steps)

    def on_train_epoch_start(self) -> None:
        """Make all randomness of an epoch follow from seed, epoch and rank."""
        self.model.vos.generator = seed_epoch(self, self.config.seed)

    def on_fit_end(self) -> None:
        """What comes later draws as ever."""
        self.model.vos.generator = None

    def configure_optimizers(self) -> Any:
        """AdamW and one cosine cycle over all steps; VOS without decay, the backbone its own rate."""
        config = self.config
        backbone, rest = self.parameter_parts()
        decay = {"weight_decay": config.weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": rest, "lr": config.lr, **decay},
            # Decay would pull energy weights and phi's slope towards a loss without effect.
            {"params": [*self.uncertainty.parameters()], "lr": config.lr, "weight_decay": 0.0},
        ]
        if backbone:
            groups.append({"params": backbone, "lr": config.n_backbone_lr, **decay})
        optimizer = torch.optim.AdamW(groups)
        schedule = one_cycle(optimizer, self.total_steps, self.warmup)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
