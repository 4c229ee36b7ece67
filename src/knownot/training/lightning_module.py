"""Joins model and loss for Lightning; holds no formula of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from knownot.data.image_folder import PhotoSet
from knownot.data.photo import open_photo
from knownot.errors import DataError, TrainingError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.config import TrainConfig


class VosTraining(L.LightningModule):
    """Cross-entropy plus virtual outlier loss, on backbone features (head) or photos (all)."""

    def __init__(
        self,
        model: UnknownAwareClassifier,
        dataset: FeatureRows | AugmentedPhotos,
        config: TrainConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.dataset = dataset
        self.config = config
        self.total_steps = steps
        model.backbone.requires_grad_(config.finetune == "all")

    def train_dataloader(self) -> DataLoader[Any]:
        # Asked for after a checkpoint is restored, and the workers read ahead at once: told of the
        # epoch later, as Lightning does, a resumed run would begin with the order of the first.
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return training_batches(self.dataset, self.config, progress.processed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        output = self.model.classify(inputs) if inputs.ndim == 2 else self.model(inputs)
        task_loss = F.cross_entropy(output.logits, labels)
        uncertainty = self.model.vos(output.features, output.logits, labels)
        loss = task_loss + uncertainty
        if not torch.isfinite(loss):
            raise TrainingError(self._why_not_finite(inputs, output.features, task_loss))
        accuracy = (output.logits.argmax(1) == labels).float().mean()
        self.log_dict(
            {"loss": loss, "task_loss": task_loss, "vos_loss": uncertainty, "accuracy": accuracy},
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
        )
        total: Tensor = loss
        return total

    def on_train_epoch_start(self) -> None:
        # All randomness of an epoch follows from (seed, epoch): a resumed run repeats it exactly.
        torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch)
        if self.config.finetune == "head":
            self.model.backbone.eval()

    def configure_optimizers(self) -> Any:
        config, model = self.config, self.model
        groups: list[dict[str, Any]] = [
            {
                "params": [*model.neck.parameters(), *model.head.parameters()],
                "lr": config.lr,
                "weight_decay": config.weight_decay,
            },
            # Decay would pull energy weights and phi's slope towards a loss without effect.
            {"params": list(model.vos.parameters()), "lr": config.lr, "weight_decay": 0.0},
        ]
        if config.finetune == "all":
            backbone = {"params": list(model.backbone.parameters()), "lr": config.backbone_lr}
            groups.append({**backbone, "weight_decay": config.weight_decay})
        optimizer = torch.optim.AdamW(groups)
        # Cosine, after a tenth of the steps of warm-up where a pretrained backbone is at stake.
        warmup = 0.1 if config.finetune == "all" else 0.0
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=max(2, self.total_steps),
            pct_start=warmup,
        )
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


class EpochShuffle(Sampler[tuple[int, int]]):
    """Random order and, with each index, the seed of its augmentation.

    Both depend on seed and epoch alone: a resumed run repeats them, with any number of workers.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        own = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=own)
        seeds = torch.randint(2**62, (self.size,), generator=own)
        yield from zip(order.tolist(), seeds.tolist(), strict=True)


class FeatureRows(Dataset[tuple[Tensor, Tensor]]):
    """Cached backbone features for training the head: rows (N, D), labels (N,)."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, _ = drawn
        return self.rows[index], self.labels[index]


class AugmentedPhotos(Dataset[tuple[Tensor, int]]):
    """Photos for training end to end: decoded, cropped and mirrored at random."""

    def __init__(self, photos: PhotoSet, model: UnknownAwareClassifier) -> None:
        self.photos = photos
        self.preprocessing = model.preprocessing

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = drawn
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                pixels = self.preprocessing.augment(self.photos.paths[index])
        except DataError as error:
            # Photos are checked before training: this one changed since.
            raise TrainingError(f"{error} (it was readable when training started)") from None
        return pixels, self.photos.labels[index]


class _Batches(DataLoader[Any]):
    """A loader that starts its workers undisturbed by Ctrl-C, which takes effect right after.

    Python runs the hooks of a fork with exceptions ignored: a `KeyboardInterrupt` there is lost, and
    so is the lock of `logging`, on which the process then hangs.
    """

    def __iter__(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        pressed: list[int] = []
        handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGINT, handler)
            if pressed:
                signal.raise_signal(signal.SIGINT)


def training_batches(
    dataset: FeatureRows | AugmentedPhotos, config: TrainConfig, first_epoch: int
) -> DataLoader[Any]:
    """Batches in the order of `EpochShuffle`, beginning with that of `first_epoch`."""
    size = len(dataset)
    sampler = EpochShuffle(size, config.seed)
    sampler.set_epoch(first_epoch)
    return _Batches(
        dataset,
        batch_size=config.n_batch,
        sampler=sampler,
        generator=torch.Generator(),  # else the loader disturbs the one that draws the outliers
        num_workers=config.workers if config.finetune == "all" else 0,
        # A last batch of one photo has no variance for batch normalisation.
        drop_last=size % config.n_batch == 1 and size > 1,
    )


def readable(photos: PhotoSet) -> tuple[PhotoSet, dict[Path, str]]:
    """The photos that decode, and path and reason of those that do not."""
    from concurrent.futures import ThreadPoolExecutor

    def problem(path: Path) -> str | None:
        try:
            open_photo(path, at_least=32)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, photos.paths))
    good = [i for i, reason in enumerate(problems) if reason is None]
    bad = {p: reason for p, reason in zip(photos.paths, problems, strict=True) if reason}
    return photos.subset(good), bad
