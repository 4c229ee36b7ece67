"""What training reads: features or augmented photos, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from knownot.data.detection_set import DetectionSet
from knownot.data.image_folder import PhotoSet
from knownot.data.photo import open_photo, upright_size
from knownot.errors import DataError, TrainingError
from knownot.models.preprocessing import Preprocessing
from knownot.training.config import CommonConfig
from knownot.training.interrupts import leave_to_trainer

Photos = TypeVar("Photos", PhotoSet, DetectionSet)

_ASKED_AT_ONCE = 10_000  # photos that are looked at by threads


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


def joint_batches(size: int, config: CommonConfig) -> list[int]:
    """Sizes of an epoch's batches, each shared by all ranks, for so many examples.

    A last batch with less than two for each rank is left out, unless it is the only one: one photo
    has no variance for batch normalisation.
    """
    full, rest = divmod(size, config.n_batch)
    sizes = [config.n_batch] * full
    return [*sizes, rest] if rest >= 2 * config.ranks or (rest and not full) else sizes


class RankBatches(BatchSampler):
    """Of every joint batch the stretch of one rank.

    The stretches in the order of the ranks are the batch: rows then enter the windows in the order
    of one process.

    Args:
        shuffle: Order of an epoch.
        config: Settings.
        rank: Whose stretches.
    """

    def __init__(self, shuffle: EpochShuffle, config: CommonConfig, rank: int) -> None:
        super().__init__(shuffle, config.n_batch, drop_last=False)  # type: ignore[arg-type]
        self.sizes = joint_batches(len(shuffle), config)
        self.rank, self.ranks = rank, config.ranks

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[Any]]:
        for size, batch in zip(self.sizes, super().__iter__(), strict=False):
            yield batch[self.rank * size // self.ranks : (self.rank + 1) * size // self.ranks]


class FeatureRows(Dataset[tuple[Tensor, Tensor]]):
    """Cached backbone features for training the head: rows (N, D), labels (N,)."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, _ = drawn
        return self.rows[index], self.labels[index]

    def __getitems__(self, drawn: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """A batch in two calls; there is nothing left to collate."""
        indices = [index for index, _ in drawn]
        return self.rows[indices], self.labels[indices]


class AugmentedPhotos(Dataset[tuple[Tensor, int]]):
    """Photos for training end to end: decoded, cropped and mirrored at random."""

    def __init__(self, photos: PhotoSet, preprocessing: Preprocessing) -> None:
        self.photos, self.preprocessing = photos, preprocessing

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


def training_batches(
    dataset: Dataset[Any],
    config: CommonConfig,
    first_epoch: int,
    rank: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """A rank's share of the batches in the order of `EpochShuffle`, from `first_epoch` on."""
    shuffle = EpochShuffle(len(dataset), config.seed)  # type: ignore[arg-type]
    shuffle.set_epoch(first_epoch)
    return DataLoader(
        dataset,
        batch_sampler=RankBatches(shuffle, config, rank),
        generator=torch.Generator(),  # else the loader disturbs the one that draws the outliers
        num_workers=config.n_workers,
        worker_init_fn=leave_to_trainer,
        collate_fn=_as_they_are if isinstance(dataset, FeatureRows) else collate,
    )


def _as_they_are(batch: Any) -> Any:
    return batch


def readable(
    photos: Photos,
    known: dict[Path, str] | None = None,
    refuse_size: Callable[[tuple[int, int], str], None] | None = None,
) -> tuple[Photos, dict[Path, str]]:
    """The photos that can be trained on, and path and reason of the others.

    Args:
        photos: Photos to be decoded.
        known: Those that were found unreadable before; no photo is tried then.
        refuse_size: Raises `DataError`, with the name, for a width and height that the model refuses.
    """

    def problem(path: Path) -> str | None:
        try:
            open_photo(path, at_least=32)
            if refuse_size:
                refuse_size(upright_size(path), str(path))
        except DataError as error:
            return str(error)
        return None

    if known is None:
        with ThreadPoolExecutor() as pool:
            problems: list[str | None] = []
            for start in range(0, len(photos), _ASKED_AT_ONCE):  # each waits in memory
                problems += pool.map(problem, photos.paths[start : start + _ASKED_AT_ONCE])
    else:
        problems = [known.get(path) for path in photos.paths]
    good = [i for i, reason in enumerate(problems) if reason is None]
    bad = {p: reason for p, reason in zip(photos.paths, problems, strict=True) if reason}
    return photos.subset(good), bad
