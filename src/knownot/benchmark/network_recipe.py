"""Networks of one's own, by their outputs in files (`network_files`): nothing is trained."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from knownot.benchmark.arrays import Arrays
from knownot.benchmark.network_files import (
    ALTERED,
    names_in,
    output_file,
    read_head,
    read_outputs,
)
from knownot.benchmark.recipe import Part
from knownot.benchmark.scores import POSTHOC
from knownot.benchmark.workplace import Workplace
from knownot.errors import DataError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.unknown_aware import VosSettings

# All that outputs are enough for. The score that VOS trains is energy here.
_SCORES = ["energy", "msp", "mahalanobis", "knn", "combined"]
_SCORES += [name for name in POSTHOC if name != "ODIN"]


class NetworkRecipe:
    """Networks and sets below the data folder.

    Args:
        place: Settings and folders.
    """

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def check(self) -> None:
        """Look whether all files are there."""
        for training in self.place.config.methods:
            for seed in self.place.config.seeds:
                for name in self.place.outputs:
                    output_file(self.place.network_folder(training, seed), name)

    def model(self, training: str, seed: int) -> UnknownAwareClassifier:
        """The last layer as a model, its scores fitted and calibrated."""
        folder = self.place.network_folder(training, seed)
        head = read_head(folder)
        train, val = (read_outputs(folder, part, head) for part in ("train", "val"))
        model = UnknownAwareClassifier(
            nn.Identity(),
            head.in_features,
            [str(k) for k in range(head.out_features)],
            bottleneck=None,
            # Nothing is trained; windows of a thousand classes would take gigabytes.
            vos=VosSettings(weight=0, gaussians="streaming"),
        ).eval()
        counts = torch.bincount(train["labels"], minlength=head.out_features)
        if missing := torch.where(counts == 0)[0].tolist():
            self.place.reporter.say(
                f"{training}, seed {seed}: train lacks images of {len(missing)} of "
                f"{len(counts)} classes ({missing[0]}, ...); some scores need each, others are worse"
            )
        model.take_head(head)
        model.fit_scores(train["features"], train["labels"])
        model.calibrate(val["features"], altered=self.altered(model, (training, seed)))
        return model

    def known(self, model: UnknownAwareClassifier, run: tuple[str, int], part: Part) -> Arrays:
        """Arrays of a part of the known images."""
        found = read_outputs(self.place.network_folder(*run), part, model.head)
        return Arrays(found["logits"], found["features"], found["features"], found["labels"])

    def ood(self, model: UnknownAwareClassifier, run: tuple[str, int], name: str) -> Arrays:
        """Arrays of an OOD set."""
        found = read_outputs(self.place.network_folder(*run), self._path(name), model.head)
        count = len(found["logits"])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        chosen = order[: self.place.config.max_images].sort().values
        logits, features = found["logits"][chosen], found["features"][chosen]
        return Arrays(logits, features, features, torch.full((len(chosen),), -1))

    def altered(self, model: UnknownAwareClassifier, run: tuple[str, int]) -> list[Tensor]:
        """Features of altered validation images, none where there are no files of such."""
        folder = self.place.network_folder(*run) / ALTERED
        return [read_outputs(folder, name, model.head)["features"] for name in names_in(folder)]

    def _path(self, name: str) -> str:
        return f"{self.place.config.group(name)}/{name}"


def networks_config(folder: Path) -> dict[str, object]:
    """The settings of a benchmark of all networks, seeds and sets in a folder.

    Raises:
        DataError: If there are none.
    """
    seeds: dict[str, list[int]] = {}
    for inside in sorted(folder.glob("[!.]*/[!.]*/")):
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", inside.name):
            raise DataError(
                f"{inside}: expected folders NETWORK/SEED below {folder}, the seed a number such as 0"
            )
        seeds.setdefault(inside.parent.name, []).append(int(inside.name))
    if not seeds:
        raise DataError(
            f"{folder}: holds no NETWORK/SEED/train.safetensors (such as resnet50/0/); "
            "knownot.benchmark.network_outputs.save_outputs writes them"
        )
    sets = {
        group: {
            name
            for network, found in seeds.items()
            for seed in found
            for name in names_in(folder / network / str(seed) / group)
        }
        for group in ("near", "far")
    }
    if not any(sets.values()):
        raise DataError(f"{folder}: holds no OOD set, NETWORK/SEED/far/NAME.safetensors or near/")
    return {
        "name": re.sub(r"\W", "_", folder.resolve().name.lower(), flags=re.ASCII) or "networks",
        "about": "Networks trained elsewhere",
        "training": {"recipe": "networks"},
        "methods": dict.fromkeys(seeds, _SCORES),
        "seeds": sorted(set().union(*seeds.values())),
        **{group: sorted(names) for group, names in sets.items()},
    }
