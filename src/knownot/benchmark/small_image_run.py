"""One training of a Wide ResNet on small images in memory: the paper's, and shorter ones."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.benchmark.config import SmallImageTraining
from knownot.benchmark.cuda_graphs import GraphedGradients
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.data.kept_files import write_whole
from knownot.errors import MissingExtraError, TrainingError
from knownot.models.classifier import ClassifierOutput, UnknownAwareClassifier

_PADDING = 4
_FINAL_LR = 1e-6


def wide_resnet(depth: int, width: int, dropout: float) -> nn.Module:
    """A Wide ResNet that maps images (N, 3, 32, 32) to features (N, 64 * width).

    Raises:
        MissingExtraError: If pytorch-ood, whose network it is, is not installed.
    """
    try:
        from knownot.benchmark.wide_resnet import WideResNetFeatures
    except ImportError:
        raise MissingExtraError("pytorch-ood", "baselines", "its Wide ResNet") from None
    return WideResNetFeatures(depth, width, dropout)


def steps_per_epoch(images: int, settings: SmallImageTraining) -> int:
    """Steps of an epoch; a last batch of one image is left out (it has no variance)."""
    whole, rest = divmod(images, settings.batch_size)
    return whole + (rest > 1)


class SmallImageRun:
    """One training, resumable after every epoch; images and model on one device.

    Args:
        model: What is trained; its device is used.
        uncertainty: Called as `model.vos` is.
        settings: Settings.
        pixels: Training images (N, 3, S, S), uint8.
        labels: Their classes (N,), int64.
        seed: All randomness of an epoch follows from it and the epoch.
        beginning: File for the state before VOS starts: read where there is one, else written.
            Runs that differ only in what counts after the start may share it.
        cuda_graphs: Whether steps run as CUDA graphs, some three times as fast; not for a loss that
            waits for the device.
    """

    def __init__(
        self,
        model: UnknownAwareClassifier,
        uncertainty: nn.Module,
        settings: SmallImageTraining,
        pixels: Tensor,
        labels: Tensor,
        seed: int,
        beginning: Path | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.uncertainty, self.settings, self.seed = model, uncertainty, settings, seed
        self.beginning = beginning
        self.pixels, self.labels = pixels.to(model.device), labels.to(model.device)
        self.steps = steps_per_epoch(len(labels), settings)
        decayed = [
            p for part in (model.backbone, model.neck, model.head) for p in part.parameters()
        ]
        self.optimizer = torch.optim.SGD(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": list(uncertainty.parameters()), "weight_decay": 0.0},
            ],
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.graphs = GraphedGradients(self._compute, parameters) if cuda_graphs else None

    def train(self, checkpoint: Path, progress: object = None) -> None:
        """Train to the end, from `checkpoint` if there is one; it is written after every epoch.

        Raises:
            TrainingError: If the loss is not finite.
        """
        advance = progress if callable(progress) else lambda done: None
        first = self._resume(checkpoint) or self._begin()
        advance(first)
        for epoch in range(first, self.settings.epochs):
            self.train_epoch(epoch)
            self._keep(checkpoint, epoch + 1)
            if self.beginning and epoch + 1 == self.model.vos.start_step // self.steps:
                self._keep(self.beginning, epoch + 1)
            advance(1)

    def train_epoch(self, epoch: int, steps: int | None = None) -> None:
        """One epoch, or its first `steps` steps."""
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        self.model.train()
        order = torch.randperm(len(self.labels)).to(self.labels.device)
        size = self.settings.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        with self.graphs or nullcontext():
            for step, batch in enumerate(batches[: steps or self.steps]):
                self._set_lr(epoch * self.steps + step)
                loss = self._gradients(batch)
                self.optimizer.step()
        # A loss that once was not finite stays so. Asked for at every step, a GPU would wait.
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not finite in epoch {epoch + 1}; lower lr")

    def _gradients(self, batch: Tensor) -> Tensor:
        """Loss of the images of these numbers (B,), its gradient in the parameters."""
        if self.graphs is None:
            return self._compute(batch)
        ours = self.uncertainty if isinstance(self.uncertainty, VirtualOutlierLoss) else None
        loss, replayed = self.graphs(batch, kind=ours.started if ours else None)
        if ours and replayed:
            ours.count_step(len(batch))
        return loss

    def _compute(self, batch: Tensor) -> Tensor:
        """`_gradients` launch by launch."""
        labels = self.labels[batch]
        output = self._forward(crop_and_mirror(self.pixels[batch]))
        loss = F.cross_entropy(output.logits, labels)
        loss = loss + self.uncertainty(output.features, output.logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        done: Tensor = loss.detach()
        return done

    def _forward(self, images: Tensor) -> ClassifierOutput:
        # The head and the losses always in float32: covariances need it.
        half = self.settings.precision == "bf16-mixed" and _has_bfloat16(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            features = self.model.backbone_features(images)
        return self.model.classify(features.float())

    def _set_lr(self, step: int) -> None:
        done = step / (self.steps * self.settings.epochs)
        lr = _FINAL_LR + (self.settings.lr - _FINAL_LR) * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _keep(self, checkpoint: Path, epochs: int) -> None:
        state = {
            "epochs": epochs,
            "model": self.model.state_dict(),
            "uncertainty": self.uncertainty.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_whole(checkpoint, lambda file: torch.save(state, file))

    def _resume(self, checkpoint: Path) -> int:
        if not checkpoint.is_file():
            return 0
        state = torch.load(checkpoint, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.uncertainty.load_state_dict(state["uncertainty"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"])

    def _begin(self) -> int:
        """Go on from a beginning that another run left; φ, unused until then, is this run's own."""
        if self.beginning is None or not self.beginning.is_file():
            return 0
        state = torch.load(self.beginning, map_location=self.model.device, weights_only=True)
        own = {name: value for name, value in self.model.state_dict().items() if ".phi." in name}
        others = {name: value for name, value in state["model"].items() if ".phi." not in name}
        self.model.load_state_dict(others | own)
        # Momentum of the network alone: energy weights and φ have had no gradient yet.
        optimizer = {**self.optimizer.state_dict(), "state": state["optimizer"]["state"]}
        self.optimizer.load_state_dict(optimizer)
        return int(state["epochs"])


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the processor; on others a step takes some 20 times as long."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def crop_and_mirror(images: Tensor) -> Tensor:
    """Each image (N, 3, S, S) moved by up to 4 pixels, black at the edge, and mirrored or not."""
    n, _, height, width = images.shape
    padded = F.pad(images, (_PADDING,) * 4)
    device = images.device
    top, left = (torch.randint(2 * _PADDING + 1, (n, 1), device=device) for _ in range(2))
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    mirrored = torch.rand(n, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(n, device=device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)
