"""Networks of one's own, by their outputs in files (`network_outputs`): nothing is trained."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from knownot.benchmark.arrays import Arrays
from knownot.benchmark.network_outputs import (
    ALTERED,
    HEAD,
    PARTS,
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
        for run in _runs(self.place):
            for name in (HEAD, *PARTS):
                output_file(self._folder(*run), name)
            for name in self.place.config.sets:
                output_file(self._folder(*run), self._path(name))

    def model(self, training: str, seed: int) -> UnknownAwareClassifier:
        """The last layer as a model, its scores fitted and calibrated."""
        folder = self._folder(training, seed)
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
        model.take_head(head)
        model.fit_scores(train["features"], train["labels"])
        model.calibrate(val["features"], altered=self.altered(model, (training, seed)))
        return model

    def known(self, model: UnknownAwareClassifier, run: tuple[str, int], part: Part) -> Arrays:
        """Arrays of a part of the known images."""
        found = read_outputs(self._folder(*run), part, model.head)
        return Arrays(found["logits"], found["features"], found["features"], found["labels"])

    def ood(self, model: UnknownAwareClassifier, run: tuple[str, int], name: str) -> Arrays:
        """Arrays of an OOD set."""
        found = read_outputs(self._folder(*run), self._path(name), model.head)
        count = len(found["logits"])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        chosen = order[: self.place.config.max_images].sort().values
        logits, features = found["logits"][chosen], found["features"][chosen]
        return Arrays(logits, features, features, torch.full((len(chosen),), -1))

    def altered(self, model: UnknownAwareClassifier, run: tuple[str, int]) -> list[Tensor]:
        """Features of altered validation images, none where there are no files of such."""
        folder = self._folder(*run) / ALTERED
        return [read_outputs(folder, name, model.head)["features"] for name in names_in(folder)]

    def _folder(self, training: str, seed: int) -> Path:
        return self.place.data / training / str(seed)

    def _path(self, name: str) -> str:
        return f"{self.place.config.group(name)}/{name}"


def networks_config(folder: Path) -> dict[str, object]:
    """The settings of a benchmark of all networks, seeds and sets in a folder.

    Raises:
        DataError: If there are none.
    """
    seeds = {
        network.name: sorted(int(one.name) for one in network.glob("*") if one.name.isdigit())
        for network in sorted(folder.glob("*"))
    }
    seeds = {name: found for name, found in seeds.items() if found}
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
        "about": f"Networks of {folder.resolve().name}",
        "training": {"recipe": "networks"},
        "methods": dict.fromkeys(seeds, _SCORES),
        "seeds": sorted(set().union(*seeds.values())),
        **{group: sorted(names) for group, names in sets.items()},
    }


def output_digests(place: Workplace) -> dict[str, str]:
    """Of the content of every file that a benchmark reads."""
    digests = {}
    config = place.config
    for training, seed in _runs(place):
        folder = place.data / training / str(seed)
        for name in (HEAD, *PARTS, *(f"{config.group(name)}/{name}" for name in config.sets)):
            digests[f"{training}/{seed}/{name}"] = _digest(output_file(folder, name))
        altered = [output_file(folder / ALTERED, name) for name in names_in(folder / ALTERED)]
        # One for all of them: a set of them that is added later changes the default score.
        together = "".join(f"{path.name} {_digest(path)}\n" for path in altered)
        digests[f"{training}/{seed}/{ALTERED}"] = hashlib.sha256(together.encode()).hexdigest()
    return digests


def _runs(place: Workplace) -> list[tuple[str, int]]:
    return [(training, seed) for training in place.config.methods for seed in place.config.seeds]


def _digest(path: Path) -> str:
    about = path.stat()
    return _digest_of(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
