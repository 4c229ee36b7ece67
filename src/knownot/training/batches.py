"""What training reads: features or augmented photos, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from knownot.data.detection_set import DetectionSet
from knownot.data.image_folder import PhotoSet
from knownot.data.photo import open_photo
from knownot.errors import DataError, TrainingError
from knownot.models.preprocessing import Preprocessing
from knownot.training.config import CommonConfig

Photos = TypeVar("Photos", PhotoSet, DetectionSet)


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
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Batches in the order of `EpochShuffle`, beginning with that of `first_epoch`."""
    size = len(dataset)  # type: ignore[arg-type]
    sampler = EpochShuffle(size, config.seed)
    sampler.set_epoch(first_epoch)
    return DataLoader(
        dataset,
        batch_size=config.n_batch,
        sampler=sampler,
        generator=torch.Generator(),  # else the loader disturbs the one that draws the outliers
        num_workers=config.n_workers,
        collate_fn=collate,
        # A last batch of one photo has no variance for batch normalisation.
        drop_last=size % config.n_batch == 1 and size > 1,
    )


def readable(photos: Photos) -> tuple[Photos, dict[Path, str]]:
    """The photos that decode, and path and reason of those that do not."""

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
