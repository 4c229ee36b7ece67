"""Joins model and loss for Lightning; holds no formula of its own."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from knownot.errors import TrainingError
from knownot.models.backbones import batch_norms
from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.batches import (
    AugmentedPhotos,
    FeatureRows,
    joint_batches,
    training_batches,
)
from knownot.training.config import TrainConfig
from knownot.training.ranks import check_same_steps, seed_epoch
from knownot.training.schedule import one_cycle

_LOGGED = ("loss", "task_loss", "vos_loss", "accuracy")


class VosTraining(L.LightningModule):
    """Cross-entropy plus virtual outlier loss, on backbone features (head) or photos (all).

    Args:
        model: The classifier to train.
        dataset: What it learns from.
        config: Settings.
        steps: Optimiser steps of the whole training, for the schedule.
        peer: Another uncertainty loss, called as `model.vos` is, to train with in its place.
    """

    def __init__(
        self,
        model: UnknownAwareClassifier,
        dataset: FeatureRows | AugmentedPhotos,
        config: TrainConfig,
        steps: int,
        peer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.peer = peer
        self.dataset = dataset
        self.config = config
        self.total_steps = steps
        self.batch_sizes = joint_batches(len(dataset), config)
        self.epoch_sums = torch.zeros(len(_LOGGED))
        model.backbone.requires_grad_(config.finetune == "all")

    @property
    def uncertainty(self) -> nn.Module:
        """The uncertainty loss that is trained with."""
        return self.model.vos if self.peer is None else self.peer

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches, beginning with the epoch to train next."""
        # Asked for after a checkpoint is restored, and the workers read ahead at once: told of the
        # epoch later, as Lightning does, a resumed run would begin with the order of the first.
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return training_batches(self.dataset, self.config, progress.processed, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss (scalar) of one batch: features (N, D) or photos (N, 3, S, S), and labels (N,).

        Raises:
            TrainingError: If the loss is not finite; the message names the likely cause.
        """
        inputs, labels = batch
        output = self.model.classify(inputs) if inputs.ndim == 2 else self.model(inputs)
        task_loss = F.cross_entropy(output.logits, labels)
        uncertainty = self.uncertainty(output.features, output.logits, labels)
        # Means over the ranks are to be those over the joint batch; VOS sees to that itself.
        joint = self.batch_sizes[batch_idx]
        share = len(labels) * self.config.ranks / joint
        loss = share * task_loss + uncertainty
        if not torch.isfinite(loss):
            raise TrainingError(self._why_not_finite(inputs, output.features, task_loss))
        accuracy = (output.logits.argmax(1) == labels).float().mean()
        # Logged once an epoch: Lightning's own running means take a good part of a step on features.
        measured = torch.stack([loss, share * task_loss, uncertainty, share * accuracy])
        self.epoch_sums += joint * measured.detach()
        total: Tensor = loss
        return total

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the interrupted run had as many steps to go."""
        check_same_steps(checkpoint, self.total_steps)

    def on_train_epoch_start(self) -> None:
        """Make all randomness of an epoch follow from seed, epoch and rank."""
        self.model.vos.generator = seed_epoch(self, self.config.seed)
        self.epoch_sums = torch.zeros(len(_LOGGED), device=self.device)
        self.model.backbone.train(self.config.finetune == "all")
        if self.config.fix_norms:
            for norm in batch_norms(self.model.backbone):
                norm.eval()

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch's rows."""
        means = self.epoch_sums / sum(self.batch_sizes)
        named = dict(zip(_LOGGED, means, strict=True))
        self.log_dict(named, sync_dist=self.config.ranks > 1)

    def on_fit_end(self) -> None:
        """What comes later draws as ever."""
        self.model.vos.generator = None

    def configure_optimizers(self) -> Any:
        """AdamW and one cosine cycle over all steps; VOS without decay, the backbone its own rate."""
        config, model = self.config, self.model
        groups: list[dict[str, Any]] = [
            {
                "params": [*model.neck.parameters(), *model.head.parameters()],
                "lr": config.lr,
                "weight_decay": config.weight_decay,
            },
            # Decay would pull energy weights and phi's slope towards a loss without effect.
            {"params": list(self.uncertainty.parameters()), "lr": config.lr, "weight_decay": 0.0},
        ]
        if config.finetune == "all":
            backbone = {"params": list(model.backbone.parameters()), "lr": config.n_backbone_lr}
            groups.append({**backbone, "weight_decay": config.weight_decay})
        optimizer = torch.optim.AdamW(groups)
        # Cosine, after a tenth of the steps of warm-up where a pretrained backbone is at stake.
        warmup = 0.1 if config.finetune == "all" else 0.0
        schedule = one_cycle(optimizer, self.total_steps, warmup)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _why_not_finite(self, inputs: Tensor, features: Tensor, task_loss: Tensor) -> str:
        if not torch.isfinite(inputs).all():
            cause = "the inputs hold numbers that are not finite"
        elif not torch.isfinite(features).all():
            cause = (
                "the features overflowed; lower --lr or --backbone-lr, or use --precision 32-true"
            )
        elif not torch.isfinite(task_loss):
            cause = "the logits overflowed; lower --lr"
        else:
            cause = "the virtual outlier loss overflowed; lower --vos-weight or --lr"
        return (
            f"the loss is not finite in epoch {self.current_epoch + 1}, step {self.global_step + 1}: "
            f"{cause}. Then start anew with --overwrite; features that were computed are kept"
        )
