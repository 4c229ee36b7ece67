"""Joins detector and loss for Lightning; holds no formula of its own."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from knownot.data.detection_folder import DetectionSplits
from knownot.errors import TrainingError
from knownot.evaluation.box_matching import Boxes
from knownot.evaluation.box_metrics import mean_average_precision
from knownot.evaluation.detect_set import as_boxes
from knownot.models.detector import UnknownAwareDetector
from knownot.training.batches import joint_batches, training_batches
from knownot.training.config import DetectionConfig
from knownot.training.detection_batches import AugmentedScenes, PlainScenes, as_lists
from knownot.training.interrupts import leave_to_trainer
from knownot.training.ranks import check_same_steps, seed_epoch
from knownot.training.schedule import one_cycle


class DetectionTraining(L.LightningModule):
    """The detector's losses plus the virtual outlier loss; mAP on validation photos each epoch.

    Args:
        model: The detector to train.
        splits: Photos to learn from and to validate on.
        config: Settings.
        steps: Optimiser steps of the whole training, for the schedule.
    """

    def __init__(
        self,
        model: UnknownAwareDetector,
        splits: DetectionSplits,
        config: DetectionConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.splits = splits
        self.config = config
        self.total_steps = steps
        self.batch_sizes = joint_batches(len(splits.train), config)
        self._found: dict[int, Boxes] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches, beginning with the epoch to train next."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        dataset = AugmentedScenes(self.splits.train)
        return training_batches(
            dataset, self.config, progress.processed, self.global_rank, as_lists
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation photos in order; each rank takes its share, and one at least."""
        mine = range(self.global_rank, len(self.splits.val), self.config.ranks) or range(1)
        return DataLoader(
            Subset(PlainScenes(self.splits.val), mine),
            batch_size=self.config.n_batch // self.config.ranks,
            collate_fn=as_lists,
            num_workers=self.config.n_workers,
            worker_init_fn=leave_to_trainer,
            generator=torch.Generator(),
        )

    def training_step(self, batch: tuple[list[Tensor], Any], batch_idx: int) -> Tensor:
        """Loss (scalar) of one batch: photos of any sizes and their boxes.

        Raises:
            TrainingError: If the loss is not finite; the message names the part.
        """
        images, targets = batch
        losses = self.model.losses(images, targets)
        # Means over the ranks are to be those over the joint batch; VOS sees to that itself.
        joint = self.batch_sizes[batch_idx]
        share = len(images) * self.config.ranks / joint
        losses = {k: v.float() * (1 if k == "loss_vos" else share) for k, v in losses.items()}
        loss = torch.stack([*losses.values()]).sum()
        if not torch.isfinite(loss):
            wrong = [name for name, value in losses.items() if not torch.isfinite(value)]
            raise TrainingError(
                f"the loss is not finite in epoch {self.current_epoch + 1}, step "
                f"{self.global_step + 1} ({', '.join(wrong)}); lower --lr or --backbone-lr, or use "
                "--precision 32-true, and start anew with --overwrite"
            )
        self.log_dict(
            {"loss": loss, **losses},
            on_step=False,
            on_epoch=True,
            batch_size=joint,
            sync_dist=self.config.ranks > 1,
        )
        total: Tensor = loss
        return total

    def validation_step(self, batch: tuple[list[Tensor], list[int]], batch_idx: int) -> None:
        """Collect the boxes of some validation photos."""
        images, indices = batch
        for index, found in zip(indices, self.model(images), strict=True):
            self._found[index] = as_boxes({name: v.cpu() for name, v in found.items()})

    def on_validation_epoch_end(self) -> None:
        """Log mAP over the photos of all ranks."""
        if self.config.ranks > 1:
            shares: list[Any] = [None] * self.config.ranks
            torch.distributed.all_gather_object(shares, self._found)
            self._found = {index: boxes for share in shares for index, boxes in share.items()}
        truth = [self.splits.val.objects[i] for i in self._found]
        measured = mean_average_precision(
            list(self._found.values()), truth, self.splits.val.classes
        )
        self._found = {}
        values = {f"val_{name}": measured[name] for name in ("map", "map_50")}
        self.log_dict({name: float(v) for name, v in values.items() if v is not None})

    def on_train_epoch_start(self) -> None:
        """Make all randomness of an epoch follow from seed, epoch and rank."""
        self.model.vos.generator = seed_epoch(self, self.config.seed)

    def on_fit_end(self) -> None:
        """What comes later draws as ever."""
        self.model.vos.generator = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the interrupted run had as many steps to go."""
        check_same_steps(checkpoint, self.total_steps)

    def configure_optimizers(self) -> Any:
        """AdamW and one cosine cycle with warm-up; VOS without decay, the backbone its own rate."""
        config = self.config
        backbone, rest = self.model.regions.parameter_groups()
        groups: list[dict[str, Any]] = [
            {"params": rest, "lr": config.lr, "weight_decay": config.weight_decay},
            # Decay would pull energy weights and phi's slope towards a loss without effect.
            {"params": list(self.model.vos.parameters()), "lr": config.lr, "weight_decay": 0.0},
        ]
        if backbone:
            decay = {"lr": config.n_backbone_lr, "weight_decay": config.weight_decay}
            groups.append({"params": backbone, **decay})
        optimizer = torch.optim.AdamW(groups)
        schedule = one_cycle(optimizer, self.total_steps, warmup=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
