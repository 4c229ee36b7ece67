"""Joins detector and loss for Lightning; holds no formula of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from knownot.data.detection_folder import DetectionSplits
from knownot.errors import TrainingError
from knownot.evaluation.box_matching import Boxes
from knownot.evaluation.box_metrics import mean_average_precision
from knownot.evaluation.detect_set import as_boxes
from knownot.models.detector import UnknownAwareDetector
from knownot.training.config import DetectionConfig
from knownot.training.detection_batches import AugmentedScenes, PlainScenes, as_lists
from knownot.training.interrupts import leave_to_trainer
from knownot.training.lightning_module import Parameters, VosTraining


class DetectionTraining(VosTraining):
    """The detector's losses plus the virtual outlier loss; mAP on validation photos each epoch.

    Args:
        model: The detector to train.
        splits: Photos to learn from and to validate on.
        config: Settings.
    """

    model: UnknownAwareDetector
    config: DetectionConfig

    def __init__(
        self,
        model: UnknownAwareDetector,
        splits: DetectionSplits,
        config: DetectionConfig,
    ) -> None:
        super().__init__(model, config, len(splits.train))
        self.splits = splits
        self._found: dict[int, Boxes] = {}

    def parameter_parts(self) -> tuple[Parameters, Parameters]:
        """The adapted detector's own parts."""
        return self.model.regions.parameter_groups()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches, beginning with the epoch to train next."""
        return self.batches(AugmentedScenes(self.splits.train), as_lists)

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
        share = self.share(len(images), batch_idx)
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
            batch_size=self.batch_sizes[batch_idx],
            sync_dist=self.config.ranks > 1,
        )
        total: Tensor = loss
        return total

    def validation_step(self, batch: tuple[list[Tensor], list[int]], batch_idx: int) -> None:
        """Collect the boxes of some validation photos."""
        for image, index in zip(*batch, strict=True):
            # One by one, as `predict` and the final evaluation do: together they would be padded.
            (found,) = self.model([image])
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
