"""Models and arrays of small images in memory: the paper's CIFAR-10, and smaller trainings."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from knownot.benchmark.arrays import Arrays, from_scored_features
from knownot.benchmark.config import SmallImageTraining
from knownot.benchmark.image_sets import Images, known_images, ood_images
from knownot.benchmark.recipe import Part
from knownot.benchmark.small_image_run import SmallImageRun, steps_per_epoch, wide_resnet
from knownot.benchmark.workplace import Workplace
from knownot.data.altered import ALTERATIONS, alter
from knownot.data.kept_files import read_tensors, write_tensors
from knownot.data.photo import open_photo
from knownot.data.reading import read_batches
from knownot.errors import ConfigError, DataError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.earlier_map import find_earlier_map
from knownot.models.model_folder import choose_device, load, save
from knownot.models.preprocessing import Preprocessing
from knownot.training.config import TrainConfig, make_config

# Channel statistics of CIFAR-10's training images, as the paper's code has them.
_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
_ALTERED = 1000  # of the validation images
_BATCH = 250  # images sent through a network together where nothing is learnt

# Settings of `knownot train` that a training may change here: those of the network's end, which
# count from the first step on, and those that count once VOS has started.
_FROM_THE_FIRST_STEP = {"bottleneck", "bottleneck_relu", "standardise", "queue_size", "gaussians"}
_FROM_THE_START = {"vos_weight", "draws_per_class", "outliers_per_class", "tail_probability"}
_FROM_THE_START |= {"radius_ratio", "phi", "shrinkage", "outliers"}


class SmallImageRecipe:
    """Trains on images in memory, with random crops and mirrors, by SGD on a cosine.

    Args:
        place: Settings and folders.
    """

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self.settings = cast(SmallImageTraining, place.config.training)
        self._pixels: dict[str, Tensor] = {}

    def check(self) -> None:
        """Look at all settings and image sets before anything is trained."""
        for training in self.place.config.methods:
            self._settings(training)
        for name in self.place.config.sets:
            ood_images(name, self.place.data, self.place.config.max_images)
        self._classes  # noqa: B018

    def model(self, training: str, seed: int) -> UnknownAwareClassifier:
        """The model, trained or, where it was before, loaded."""
        folder = self.place.model_folder(training, seed)
        if (folder / "config.json").is_file():
            return cast(UnknownAwareClassifier, load(folder, backbone=self._backbone())).eval()
        checkpoint = folder.with_name(f".{folder.name}.ckpt")
        model = self._trained(training, seed, checkpoint).cpu().eval()
        train, val = (self.known(model, (training, seed), part) for part in ("train", "val"))
        model.fit_scores(train.scored_features, train.labels)
        model.calibrate(val.scored_features, altered=self.altered(model, (training, seed)))
        save(model, folder)
        checkpoint.unlink(missing_ok=True)
        return model

    def _trained(self, training: str, seed: int, checkpoint: Path) -> UnknownAwareClassifier:
        """The model at the end of its training, which goes on from `checkpoint` if there is one."""
        torch.manual_seed(seed)
        device = choose_device(self.settings.device)
        model = self._build(training).to(device)
        peer = self.place.config.training_of(training).peer
        model.vos.start_step = self._settings(training).start_step(self._steps)
        run = SmallImageRun(
            model,
            model.vos if peer is None else peer(model).to(device),
            self.settings,
            self._known_pixels("train"),
            self._known_labels("train"),
            seed,
            None if peer else self._shared_beginning(training, seed),
            cuda_graphs=device.type == "cuda" and not peer,
        )
        stage = f"{training}, seed {seed}: epochs"
        run.train(checkpoint, self.place.reporter.stage(stage, self.settings.epochs))
        return model

    def known(self, model: UnknownAwareClassifier, run: tuple[str, int], part: Part) -> Arrays:
        """Arrays of a part of the known images."""
        return self._arrays(model, run, part, self._known_labels(part))

    def ood(self, model: UnknownAwareClassifier, run: tuple[str, int], name: str) -> Arrays:
        """Arrays of an OOD set."""
        return self._arrays(model, run, f"ood-{name}", None)

    @torch.no_grad()
    def altered(self, model: UnknownAwareClassifier, run: tuple[str, int]) -> list[Tensor]:
        """Features of altered validation images."""
        images = self._known_pixels("val")[:_ALTERED]
        batches = (torch.split(alter(name, images, seed=0), _BATCH) for name in ALTERATIONS)
        return [torch.cat([model.scored_features(b) for b in kind]) for kind in batches]

    def _arrays(
        self, model: UnknownAwareClassifier, run: tuple[str, int], part: str, labels: Tensor | None
    ) -> Arrays:
        file = self.place.arrays_file(*run, part)
        kept = read_tensors(file)
        if kept is None or kept["rows"].shape[1] != model.scored_dim:
            pixels = self._part_pixels(part)
            device = choose_device(self.settings.device)
            model.to(device)
            progress = self.place.reporter.stage(f"features of {part}", len(pixels))
            rows = []
            with torch.no_grad():
                for chunk in (pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH)):
                    rows.append(model.scored_features(chunk.to(device)).float().cpu())
                    progress(len(chunk))
            model.cpu()
            kept = {"rows": torch.cat(rows)}
            write_tensors(file, kept)
        pixels_again = None if part == "train" else lambda: self._part_pixels(part)
        return from_scored_features(model, kept["rows"], labels, pixels_again)

    def _part_pixels(self, part: str) -> Tensor:
        if part in ("train", "val", "test"):
            return self._known_pixels(cast(Part, part))
        if part not in self._pixels:
            name = part.removeprefix("ood-")
            images = ood_images(name, self.place.data, self.place.config.max_images)
            self._pixels[part] = self._read(images, name)
        return self._pixels[part]

    def _read(self, images: Images, what: str) -> Tensor:
        """Images as uint8 (N, 3, S, S): the centre square, resized as every set is."""
        preprocessing = self._preprocessing
        skipped: dict[int, str] = {}

        def read(index: int) -> Tensor:
            image = images[index]
            return preprocessing.from_pil(open_photo(image) if isinstance(image, Path) else image)

        progress = self.place.reporter.stage(f"reading {what}", len(images))
        batches = []
        for _, pixels in read_batches(range(len(images)), read, _BATCH, skipped):
            batches.append(pixels)
            progress(len(pixels))
        if not batches:
            first = next(iter(skipped.values()), "it is empty")
            raise DataError(f"set {what!r}: none of its images can be read; first: {first}")
        for reason in list(skipped.values())[:3]:
            self.place.reporter.say(f"left out of {what}: {reason}")
        return torch.cat(batches)

    @cached_property
    def _loaded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Pixels and labels of "train", "val" and "test"; the same validation images always."""
        config, settings = self.place.config, self.settings
        parts = {}
        for split in ("train", "test"):
            known = known_images(config.known, self.place.data, split)
            pixels = self._read(known.images, f"{config.known} {split}")
            if len(pixels) < len(known.labels):
                raise DataError(f"{config.known} {split}: some pictures are damaged; get it anew")
            parts[split] = pixels, known.labels
        pixels, labels = parts["train"]
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        most = len(order) if settings.train_images is None else settings.train_images
        val = order[: settings.val_images].sort().values
        train = order[settings.val_images :][:most].sort().values
        if not len(train):
            raise DataError(
                f"val_images: {settings.val_images} of {len(order)} images leave none to train on"
            )
        parts["train"], parts["val"] = (pixels[train], labels[train]), (pixels[val], labels[val])
        return parts

    def _known_pixels(self, part: Part) -> Tensor:
        return self._loaded[part][0]

    def _known_labels(self, part: Part) -> Tensor:
        return self._loaded[part][1]

    @cached_property
    def _classes(self) -> list[str]:
        return known_images(self.place.config.known, self.place.data, "test").classes

    @property
    def _steps(self) -> int:
        return (
            steps_per_epoch(len(self._known_labels("train")), self.settings) * self.settings.epochs
        )

    @property
    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(image_size=self.settings.image_size, crop=1.0, mean=_MEAN, std=_STD)

    def _backbone(self) -> nn.Module:
        return wide_resnet(self.settings.depth, self.settings.width, self.settings.dropout)

    def _settings(self, training: str) -> TrainConfig:
        """What `knownot train` would be told.

        Raises:
            ConfigError: If the training changes what this recipe has settings of its own for.
        """
        changes = dict(self.place.config.training_of(training).settings)
        allowed = _FROM_THE_FIRST_STEP | _FROM_THE_START | {"vos_start"}
        if wrong := set(changes) - allowed:
            raise ConfigError(
                f"methods.{training}: {', '.join(sorted(wrong))} cannot differ between trainings "
                f"on small images; expected some of {', '.join(sorted(allowed))}"
            )
        config = make_config(
            {"vos_start": self.settings.vos_start, **changes}
            | {"task": "classify", "data": self.place.data, "finetune": "all"}
        )
        assert isinstance(config, TrainConfig)
        return config

    def _shared_beginning(self, training: str, seed: int) -> Path:
        """File for the model before VOS starts, which trainings that differ later have in common."""
        settings = self._settings(training).model_dump(include={"vos_start", *_FROM_THE_FIRST_STEP})
        settings |= self.settings.model_dump(exclude={"device", "vos_start"})
        settings |= {"seed": seed, "known": self.place.config.known}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return self.place.output / "models" / f".beginning-seed{seed}-{digest}.ckpt"

    def _build(self, training: str) -> UnknownAwareClassifier:
        config = self._settings(training)
        width = 64 * self.settings.width
        bottleneck = config.bottleneck_for(width)
        backbone = self._backbone()
        return UnknownAwareClassifier(
            backbone,
            width,
            self._classes,
            self._preprocessing,
            bottleneck=bottleneck,
            bottleneck_relu=config.bottleneck_relu,
            standardise=config.standardised,
            earlier_map=find_earlier_map(backbone, self.settings.image_size),
            vos=config.vos_settings(len(self._classes), bottleneck or width),
        ).to(memory_format=torch.channels_last)
