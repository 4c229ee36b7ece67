"""Many unknown photos as few groups of similar ones, which people can name."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knownot.data.image_folder import list_photos
from knownot.data.inbox import kept_facts
from knownot.data.kept_files import write_text, write_whole
from knownot.errors import ConfigError, DataError

if TYPE_CHECKING:
    from knownot.models.classifier import UnknownAwareClassifier

_RECORD, _GALLERY = "triage.json", "triage.html"
# Average cosine distance, around the mean of all, up to which groups are joined. Chosen by looking at
# the OOD photos of the benchmarks (0.6 left more photos alone, 0.8 mixed more kinds); it decides what a
# gallery shows together, and touches no score or threshold of a model.
_DISTANCE = 0.7
_SHOWN, _BATCH = 16, 32
_MOST_PAIRED = 10_000  # photos, each with each: 2 GB


@dataclass(frozen=True)
class Cluster:
    """Photos that look alike.

    Attributes:
        number: From 1, the largest first.
        photos: Paths, the most typical first.
        nearest: The class that most of them are nearest to, or None where that is not known.
        nearest_share: Of how many, in (0, 1]; 0 where it is not known.
    """

    number: int
    photos: list[Path]
    nearest: str | None
    nearest_share: float


@dataclass(frozen=True)
class Triage:
    """All photos of a folder.

    Attributes:
        clusters: Groups, the largest first.
        alone: Photos in no group.
        skipped: Path and reason of every photo that could not be read.
        gallery: Page that shows them.
    """

    clusters: list[Cluster]
    alone: list[Path]
    skipped: dict[Path, str]
    gallery: Path


def triage(
    folder: Path,
    model: UnknownAwareClassifier | None = None,
    *,
    min_size: int = 3,
    progress: Callable[[int], None] = lambda done: None,
) -> Triage:
    """Group the photos of a folder by their features; write `triage.html` and `triage.json` into it.

    Args:
        folder: An inbox of `--keep-unknown`, or any folder of photos.
        model: Classifier whose backbone makes the features; an ImageNet backbone if not given.
        min_size: Smaller groups are no groups.
        progress: Called with the number of photos done since the last call.

    Raises:
        DataError: If the folder is missing or holds no photo that can be read.
    """

    paths = list_photos(folder)
    features, read, skipped = _features(paths, model, progress)
    if not read:
        raise DataError(f"{folder}: none of its {len(paths)} photos can be read")
    clusters, alone = _clusters([paths[i] for i in read], features, min_size)
    found = Triage(clusters, alone, skipped, folder / _GALLERY)
    record = {c.number: [str(p.relative_to(folder)) for p in c.photos] for c in clusters}
    write_text(folder / _RECORD, json.dumps(record, indent=1))
    write_text(found.gallery, _page(found))
    return found


def copy_named(folder: Path, names: Mapping[int, str], output: Path) -> dict[str, int]:
    """Copy named clusters of the last `triage` of a folder to `output/<name>/`.

    Args:
        folder: The folder.
        names: Class name by number of the cluster; several clusters may have the same.
        output: An ImageFolder set, a new one or one that has other classes already.

    Returns:
        Number of photos by class name; those removed from the folder since do not count. A photo whose
        name another one there has gets a number behind it.

    Raises:
        ConfigError: If a number or a name is none.
        DataError: If there was no triage, or a photo cannot be copied.
    """
    record = _record(folder)
    copied: dict[str, set[Path]] = {}
    for number, name in names.items():
        if str(number) not in record:
            raise ConfigError(f"--name: there is no group {number}, see {folder / _GALLERY}")
        if not name or name != Path(name).name or name.startswith(".") or name == "unknown":
            raise ConfigError(f"--name: {name!r} cannot be the name of a class")
    for number, name in names.items():
        for photo in record[str(number)]:
            source = folder / photo
            if not source.is_file():
                continue
            target = _place(source, output / name)
            write_whole(target, lambda file, s=source: shutil.copy2(s, file))  # type: ignore[misc]
            copied.setdefault(name, set()).add(target)
    if not copied:
        raise DataError(f"{folder}: holds none of these photos any more; run knownot triage again")
    return {name: len(targets) for name, targets in copied.items()}


def gone(folder: Path, numbers: Iterable[int]) -> int:
    """How many photos of these clusters of the last `triage` are in the folder no more."""
    record = _record(folder)
    return sum(not (folder / photo).is_file() for n in numbers for photo in record[str(n)])


def _place(photo: Path, folder: Path) -> Path:
    """Its place in a folder: of its name, with a number where another photo has that."""
    target, number = folder / photo.name, 1
    while target.exists() and not filecmp.cmp(photo, target, shallow=False):
        target, number = folder / f"{photo.stem}-{number}{photo.suffix}", number + 1
    return target


def _record(folder: Path) -> dict[str, list[str]]:
    path = folder / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = [photo for photos in record.values() for photo in photos]
        # Paths of a file that anyone may have written: they stay in the folder.
        inside = all(not Path(n).is_absolute() and ".." not in Path(n).parts for n in names)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run knownot triage {folder} first") from None
    except (OSError, ValueError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise DataError(f"{path}: damaged; run knownot triage {folder} again")
    return {str(number): photos for number, photos in record.items()}


def _features(
    paths: list[Path], model: UnknownAwareClassifier | None, progress: Callable[[int], None]
) -> tuple[np.ndarray, list[int], dict[Path, str]]:
    """Features (N, B) float32, the index of each row's photo, and what could not be read."""
    import torch

    from knownot.data.reading import read_batches
    from knownot.models.backbones import create_backbone
    from knownot.models.cpu_workers import cpu_workers

    if model is None:
        backbone, preprocessing = create_backbone()
        device = torch.device("cpu")
    else:
        backbone, preprocessing, device = model.backbone, model.preprocessing, model.device
    backbone.eval()
    mean, std = (
        255 * torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    skipped: dict[Path, str] = {}
    rows: list[np.ndarray] = []
    read: list[int] = []

    @torch.no_grad()
    def of_batch(photos: torch.Tensor) -> np.ndarray:
        features = backbone((photos.to(device).float() - mean) / std)
        array: np.ndarray = features.float().cpu().numpy()
        return array

    batches = read_batches(paths, preprocessing.read, _BATCH, skipped)
    with cpu_workers(device, len(paths), _BATCH) as workers:
        for batch, found in workers.spread(batches, of_batch):
            rows.append(found)
            read += batch
            progress(len(batch))
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float32), read, skipped


def _clusters(
    paths: list[Path], features: np.ndarray, min_size: int
) -> tuple[list[Cluster], list[Path]]:
    from sklearn.cluster import AgglomerativeClustering

    if len(paths) < 2:
        return [], paths
    # What all of them share says nothing about which are alike.
    directions = features - features.mean(0)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    # Each pair takes memory: of very many, a sample makes the groups.
    rng = np.random.default_rng(0)
    few = len(paths) <= _MOST_PAIRED
    sample = np.arange(len(paths)) if few else rng.permutation(len(paths))[:_MOST_PAIRED]
    of_sample = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=_DISTANCE
    ).fit_predict(np.maximum(1 - directions[sample] @ directions[sample].T, 0))
    labels = of_sample if few else _joined(directions, sample, of_sample)
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")
    clusters: list[Cluster] = []
    for label in (label for label in order if counts[label] >= min_size):
        rows = np.flatnonzero(labels == label)
        typical = rows[np.argsort(-directions[rows] @ directions[rows].mean(0), kind="stable")]
        photos = [paths[i] for i in typical]
        clusters.append(Cluster(len(clusters) + 1, photos, *_nearest(photos)))
    return clusters, [p for p, label in zip(paths, labels, strict=True) if counts[label] < min_size]


def _joined(directions: np.ndarray, sample: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
    """Labels of all photos (N,): those out of the sample go to the nearest group, or stay alone."""
    groups = of_sample.max() + 1
    means = np.zeros((groups, directions.shape[1]), directions.dtype)
    np.add.at(means, of_sample, directions[sample])
    means /= np.bincount(of_sample)[:, None]
    labels: np.ndarray = groups + np.arange(len(directions))
    for start in range(0, len(directions), _MOST_PAIRED):
        part = slice(start, start + _MOST_PAIRED)
        # To the mean of a group is, of cosines, the mean over the group.
        distance = 1 - directions[part] @ means.T
        near = distance.min(1) < _DISTANCE
        labels[part][near] = distance.argmin(1)[near]
    labels[sample] = of_sample
    return labels


def _nearest(photos: Iterable[Path]) -> tuple[str | None, float]:
    classes = [name for p in photos if (name := kept_facts(p).get("nearest_class"))]
    if not classes:
        return None, 0.0
    name, count = Counter(map(str, classes)).most_common(1)[0]
    return name, count / len(classes)


def _page(found: Triage) -> str:
    from knownot.evaluation.html import render, thumbnail

    def pictures(photos: Iterable[Path]) -> list[str]:
        shown = []
        for photo in photos:
            with suppress(DataError):  # removed since it was read
                shown.append(thumbnail(photo))
        return shown

    groups = [
        {
            "number": cluster.number,
            "total": len(cluster.photos),
            "nearest": cluster.nearest,
            "share": cluster.nearest_share,
            "pictures": pictures(cluster.photos[:_SHOWN]),
        }
        for cluster in found.clusters
    ]
    alone = pictures(found.alone[:_SHOWN])
    return render("triage", groups=groups, alone=alone, total_alone=len(found.alone))


def parsed_names(given: Iterable[str]) -> dict[int, str]:
    """`3=bear` and the like by number.

    Raises:
        ConfigError: If one is not of that form.
    """
    names: dict[int, str] = {}
    for item in given:
        number, equals, name = item.partition("=")
        if not equals or not number.strip().isdecimal():
            raise ConfigError(f"--name: expected NUMBER=CLASS such as 3=bear, got {item!r}")
        if int(number) in names:
            raise ConfigError(f"--name: group {int(number)} is named twice")
        names[int(number)] = name.strip()
    return names
