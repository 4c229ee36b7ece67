"""Models of `knownot train` on a folder of photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from knownot.benchmark.arrays import Arrays, from_scored_features
from knownot.benchmark.config import PhotoTraining
from knownot.benchmark.image_sets import Images, ood_images
from knownot.benchmark.recipe import Part
from knownot.benchmark.scaled_photos import ScaledPhotos
from knownot.benchmark.workplace import Workplace
from knownot.data.image_folder import PhotoSet, find_split, read_labelled, read_splits
from knownot.data.reading import read_batches
from knownot.errors import ConfigError, DataError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import load
from knownot.training.altered import altered_features
from knownot.training.config import TrainConfig, make_config
from knownot.training.feature_cache import default_cache, extract_features
from knownot.training.fit import Silent
from knownot.training.run_folder import RunFolder
from knownot.training.train import train

_WORDS = {"train": "training", "val": "validation", "test": "test"}


class PhotoRecipe:
    """Trains by `knownot train`; features of photos come from its cache.

    Args:
        place: Settings and folders.
    """

    def __init__(self, place: Workplace) -> None:
        self.place = place
        training = cast(PhotoTraining, place.config.training)
        self.settings = training.settings
        self.scaled = None if training.pixels is None else ScaledPhotos(place, training.pixels)
        self.root = place.data / place.config.known
        self.cache = place.cache or default_cache()
        self._seen: set[str] = set()

    def check(self) -> None:
        """Look at all image sets before anything is trained."""
        if self.scaled:
            self.root = self.scaled.known()
        seed = self.place.config.seeds[0]
        configs = [self._config(training, seed) for training in self.place.config.methods]
        self._photos(configs[0], "test")
        for name in self.place.config.sets:
            self._ood_images(name)

    def model(self, training: str, seed: int) -> UnknownAwareClassifier:
        """The model, trained or, where it was before, loaded."""
        config = self._config(training, seed)
        if not (config.output / "config.json").is_file():
            # An interrupted run goes on from its last complete epoch.
            if RunFolder(config.model_copy(update={"overwrite": True})).begun:
                config = config.model_copy(update={"resume": True})
            reporter = _Stages(self._stage)
            train(
                config,
                reporter,
                cache=self.cache,
                peer=self.place.config.training_of(training).peer,
            )
        return cast(UnknownAwareClassifier, load(config.output)).eval()

    def known(self, model: UnknownAwareClassifier, run: tuple[str, int], part: Part) -> Arrays:
        """Arrays of a part of the known photos."""
        photos = self._photos(self._config(*run), part)
        rows, kept = self._features(model, photos.paths, f"{_WORDS[part]} photos")
        return from_scored_features(model, rows, torch.tensor(photos.labels)[kept])

    def ood(self, model: UnknownAwareClassifier, run: tuple[str, int], name: str) -> Arrays:
        """Arrays of an OOD set."""
        images = self._ood_images(name)
        rows, _ = self._features(model, images, name)
        if not len(rows):
            raise DataError(f"set {name!r}: none of its {len(images)} images can be read")
        return from_scored_features(model, rows, None)

    def altered(self, model: UnknownAwareClassifier, run: tuple[str, int]) -> list[Tensor]:
        """Features of altered validation photos."""
        paths = self._photos(self._config(*run), "val").paths
        return altered_features(model, paths, self.cache, self._stage)

    def _stage(self, name: str, total: int) -> Callable[[int], None]:
        """Features of a frozen backbone are computed once: later stages of the name take no time."""
        frozen = self.settings.get("finetune", "head") != "all"
        if frozen and name in self._seen:
            return lambda done: None
        self._seen.add(name)
        return self.place.reporter.stage(name, total)

    def _config(self, training: str, seed: int) -> TrainConfig:
        settings = self.place.config.training_of(training).settings
        if given := {"data", "output", "seed"} & {*settings, *self.settings}:
            raise ConfigError(
                f"{training}: {min(given)} is the benchmark's own to set; leave it out of the settings"
            )
        config = make_config(
            {
                **self.settings,
                **settings,
                "data": self.root,
                "output": self.place.model_folder(training, seed),
                "seed": seed,
            }
        )
        if not isinstance(config, TrainConfig):
            raise ConfigError(f"known: {self.root} holds photos with boxes; expected class folders")
        return config

    def _photos(self, config: TrainConfig, part: Part) -> PhotoSet:
        splits = read_splits(self.root, config.val_fraction, config.seed)
        if part != "test":
            return splits.train if part == "train" else splits.val
        folder = find_split(self.root, "test")
        if folder is None:
            raise DataError(f"{self.root}: has no folder test/<class>/, which a benchmark needs")
        return read_labelled(folder, splits.train.classes)

    def _ood_images(self, name: str) -> Images:
        if self.scaled:
            return self.scaled.ood(name)
        return ood_images(name, self.place.data, self.place.config.max_images)

    def _features(
        self, model: UnknownAwareClassifier, images: Images, what: str
    ) -> tuple[Tensor, Tensor]:
        """Features (M, S), and which images they belong to (M,)."""
        progress = self._stage(f"features of {what}", len(images))
        if all(isinstance(image, Path) for image in images):
            found = extract_features(model, cast(list[Path], images), self.cache, progress)
            return found.rows, found.indices
        rows, indices = [], []
        skipped: dict[int, str] = {}
        for batch, pixels in read_batches(
            range(len(images)),
            lambda i: model.preprocessing.from_pil(cast(Image.Image, images[i])),
            model.batch_size,
            skipped,
        ):
            with torch.no_grad():
                rows.append(model.scored_features(pixels.to(model.device)).float().cpu())
            indices += batch
            progress(len(batch))
        if not rows:
            first = next(iter(skipped.values()), "it is empty")
            raise DataError(f"set {what!r}: none of its images can be read; first: {first}")
        for reason in list(skipped.values())[:3]:
            self.place.reporter.say(f"left out of {what}: {reason}")
        return torch.cat(rows), torch.tensor(indices)


class _Stages(Silent):
    """Passes the stages of a training on."""

    def __init__(self, stage: Callable[[str, int], Callable[[int], None]]) -> None:
        self._stage = stage

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage begins."""
        return self._stage(name, total)
