"""Joins classifier and loss for Lightning; holds no formula of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from knownot.errors import TrainingError
from knownot.models.backbones import batch_norms
from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.batches import AugmentedPhotos, FeatureRows
from knownot.training.config import TrainConfig
from knownot.training.lightning_module import Parameters, VosTraining

_LOGGED = ("loss", "task_loss", "vos_loss", "accuracy")


class ClassificationTraining(VosTraining):
    """Cross-entropy plus virtual outlier loss, on backbone features (head) or photos (all).

    Args:
        model: The classifier to train.
        dataset: What it learns from.
        config: Settings.
        peer: Another uncertainty loss, called as `model.vos` is, to train with in its place.
    """

    model: UnknownAwareClassifier
    config: TrainConfig

    def __init__(
        self,
        model: UnknownAwareClassifier,
        dataset: FeatureRows | AugmentedPhotos,
        config: TrainConfig,
        peer: nn.Module | None = None,
    ) -> None:
        super().__init__(model, config, len(dataset))
        self.peer = peer
        self.dataset = dataset
        self.epoch_sums = torch.zeros(len(_LOGGED))
        model.backbone.requires_grad_(config.finetune == "all")

    @property
    def uncertainty(self) -> nn.Module:
        """The uncertainty loss that is trained with."""
        return self.model.vos if self.peer is None else self.peer

    @property
    def warmup(self) -> float:
        """A tenth of the steps where a pretrained backbone is at stake."""
        return 0.1 if self.config.finetune == "all" else 0.0

    def parameter_parts(self) -> tuple[Parameters, Parameters]:
        """The backbone's, if it is trained; the bottleneck's and the head's."""
        model = self.model
        backbone = [*model.backbone.parameters()] if self.config.finetune == "all" else []
        return backbone, [*model.neck.parameters(), *model.head.parameters()]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches, beginning with the epoch to train next."""
        return self.batches(self.dataset)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss (scalar) of one batch: features (N, D) or photos (N, 3, S, S), and labels (N,).

        Raises:
            TrainingError: If the loss is not finite; the message names the likely cause.
        """
        inputs, labels = batch
        output = self.model.classify(inputs) if inputs.ndim == 2 else self.model(inputs)
        task_loss = F.cross_entropy(output.logits, labels)
        uncertainty = self.uncertainty(output.features, output.logits, labels)
        share = self.share(len(labels), batch_idx)
        loss = share * task_loss + uncertainty
        if not torch.isfinite(loss):
            raise TrainingError(self._why_not_finite(inputs, output.features, task_loss))
        accuracy = (output.logits.argmax(1) == labels).float().mean()
        # Logged once an epoch: Lightning's own running means take a good part of a step on features.
        measured = torch.stack([loss, share * task_loss, uncertainty, share * accuracy])
        self.epoch_sums += self.batch_sizes[batch_idx] * measured.detach()
        total: Tensor = loss
        return total

    def on_train_epoch_start(self) -> None:
        """Also put the backbone into its mode, and begin new means."""
        super().on_train_epoch_start()
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
