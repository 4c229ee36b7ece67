"""Folders of photos with boxes: find the annotations and splits, and say what is wrong with them."""

from __future__ import annotations

import mmap
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knownot.data.box_checks import kind_of
from knownot.data.coco import read_coco
from knownot.data.detection_set import DetectionSet
from knownot.data.image_folder import shared_photos
from knownot.data.voc import is_voc_name, read_voc
from knownot.errors import DataError

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_EXPECTED = (
    "expected a COCO JSON file, a folder with annotations/*.json beside images/, or a Pascal VOC "
    "folder with Annotations/*.xml beside JPEGImages/"
)

# The last: how Roboflow exports COCO, one folder for each split.
_COCO_PATTERNS = ("annotations/*.json", "*.json", "*/_annotations.coco.json")


@dataclass(frozen=True)
class DetectionSplits:
    """Training and validation photos with boxes, and what a user should know about them.

    Attributes:
        set_aside: Whether `val` is a part of the photos given for training.
    """

    train: DetectionSet
    val: DetectionSet
    warnings: list[str]
    set_aside: bool = False

    @property
    def problems(self) -> list[str]:
        """What was left out of both sets, one sentence each."""
        return self.train.problems + self.val.problems


@dataclass(frozen=True)
class _Source:
    """The annotations of one split.

    Attributes:
        file: COCO JSON file, list of a VOC split, or the VOC annotations folder itself.
        split: "train", "val", "test", or None if the name does not say.
        voc: Annotations and images folders if these are VOC annotations.
    """

    file: Path
    split: str | None
    voc: tuple[Path, Path] | None = None

    def read(self, classes: Sequence[str] | None = None) -> DetectionSet:
        """Read the split; raises DataError if it holds no usable photo."""
        if self.voc is None:
            photos = read_coco(self.file, classes=classes)
        else:
            names = None
            if self.file.is_file():
                lines = self.file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                names = [line.strip() for line in lines if line.strip()]
            photos = read_voc(*self.voc, names=names, classes=classes)
        if len(photos) == 0:
            raise DataError(f"{self.file}: holds no usable photo; {summarise(photos.problems)}")
        return photos


def looks_like_detection(root: str | Path) -> bool:
    """Whether a path is a COCO file, or a folder with COCO or Pascal VOC annotations."""
    root = Path(root)
    return _is_coco(root) if root.is_file() else bool(_sources(root))


def read_detection(
    path: str | Path, classes: Sequence[str] | None = None, split: str | None = None
) -> DetectionSet:
    """Read one set of photos with boxes.

    Args:
        path: COCO file, COCO folder or Pascal VOC folder.
        classes: Class names expected, in order; by default those of the annotations.
        split: Which split of a folder: "train", "val" or "test", or another word for it. By default
            the only one; of several the test split, failing that the validation split.

    Returns:
        The photos with boxes; `problems` says what was left out and why.

    Raises:
        DataError: If there are no annotations, none or several fit `split`, or they are not usable.
    """
    path = Path(path)
    if path.is_file():
        return _Source(path, None).read(classes)
    sources = _sources_or_error(path)
    if split is not None:
        wanted = _SPLIT_WORDS.get(split.lower())
        if wanted is None:
            raise DataError(f"split: expected 'train', 'val' or 'test', got {split!r}")
        source = _pick(sources, wanted, path)
    elif len(sources) == 1:
        source = sources[0]
    else:
        source = _pick(sources, "test", path) or _pick(sources, "val", path)
    if source is None:
        asked = f"no {split} split" if split is not None else "no test or val split"
        raise DataError(f"{path}: has {asked} among {_listed(sources)}; {_remedy(sources)}")
    return source.read(classes)


def only_training_split(path: str | Path) -> Path | None:
    """The annotations that `read_detection` takes, if they are called those of training; else None."""
    sources = _sources(Path(path)) if Path(path).is_dir() else []
    return sources[0].file if [source.split for source in sources] == ["train"] else None


def read_detection_splits(
    root: str | Path, val_fraction: float = 0.2, seed: int = 0
) -> DetectionSplits:
    """Training and validation photos with boxes.

    Without validation annotations a random share of the training photos is set aside.

    Args:
        root: COCO folder or Pascal VOC folder; or a COCO file, which is split.
        val_fraction: Share of the photos to set aside, a fraction in (0, 1).
        seed: Decides which photos are set aside.

    Raises:
        DataError: If there are no training annotations or no boxes in them, they are not usable, or
            a class is called "unknown".
    """
    root = Path(root)
    notes: list[str] = []
    sources = [_Source(root, None)] if root.is_file() else _sources_or_error(root)
    train_source = _pick(sources, "train", root)
    if train_source is None and len(sources) == 1 and sources[0].split is None:
        train_source = sources[0]
    if train_source is None:
        raise DataError(f"{root}: has no train split among {_listed(sources)}; {_remedy(sources)}")
    train = train_source.read()
    _check_classes(train, train_source.file)
    val_source = _pick(sources, "val", root)
    if val_source:
        val = val_source.read(train.classes)
    else:
        train, val = _hold_out(train, train_source.file, val_fraction, seed)
        notes.append(
            f"no val annotations: {len(val)} of {len(train) + len(val)} training photos are set "
            "aside for calibration"
        )
    if sum(train.counts().values()) == 0:
        raise DataError(
            f"{train_source.file}: holds no usable box to train on; {summarise(train.problems)}"
        )
    return DetectionSplits(train, val, notes + _notes(train, val), set_aside=val_source is None)


def summarise(problems: Sequence[str], shown: int = 5) -> str:
    """One text about many problems: how many of each kind, and the first few in full.

    Args:
        problems: The `problems` of a DetectionSet.
        shown: How many to give in full.
    """
    if not problems:
        return "no problems in the annotations"
    counts = Counter(kind_of(sentence) for sentence in problems).most_common()
    kinds = ", ".join(f"{count} x {kind}" for kind, count in counts)
    lines = [f"{len(problems)} problem(s) in the annotations ({kinds})", *problems[:shown]]
    if len(problems) > shown:
        lines.append(f"and {len(problems) - shown} more")
    return "\n  ".join(lines)


def require_clean(photos: DetectionSet | DetectionSplits) -> None:
    """Refuse annotations that have any problem.

    Raises:
        DataError: With the summary of the problems, if there are any.
    """
    if photos.problems:
        raise DataError(summarise(photos.problems))


def _sources(root: Path) -> list[_Source]:
    """The annotations in a folder, sorted; empty if there are none or there is no folder."""
    for pattern in _COCO_PATTERNS:
        files = sorted(p for p in root.glob(pattern) if not p.name.startswith(".") and _is_coco(p))
        # COCO's own folder holds the same photos again with captions and with key points.
        instances = [p for p in files if p.name.startswith("instances")]
        if files:
            by_folder = pattern.startswith("*/")
            return [
                _Source(p, _split_of(p.parent.name if by_folder else p.stem))
                for p in instances or files
            ]
    return _voc_sources(root)


def _voc_sources(root: Path) -> list[_Source]:
    annotations = _first_folder(root, "Annotations", "annotations")
    images = _first_folder(root, "JPEGImages", "images")
    if not annotations.is_dir() or not any(map(is_voc_name, annotations.iterdir())):
        return []
    # Only lists called exactly by a split: cat_train.txt repeats the photos for one class, and
    # trainval.txt those of both.
    lists = [
        _Source(path, _SPLIT_WORDS[path.stem], (annotations, images))
        for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))
        if path.stem in _SPLIT_WORDS
    ]
    return lists or [_Source(annotations, None, (annotations, images))]


def _first_folder(root: Path, usual: str, other: str) -> Path:
    return root / (other if (root / other).is_dir() and not (root / usual).is_dir() else usual)


def _sources_or_error(root: Path) -> list[_Source]:
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; {_EXPECTED}")
    sources = _sources(root)
    if not sources:
        raise DataError(f"{root}: holds no annotations of boxes; {_EXPECTED}")
    return sources


def _is_coco(path: Path) -> bool:
    """Whether a file is an object with lists of images and annotations; it is searched, not parsed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return bool(
                re.match(rb"(\xef\xbb\xbf)?\s*\{", text)
                and re.search(rb'"images"\s*:\s*\[', text)
                and re.search(rb'"annotations"\s*:\s*\[', text)
            )
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return False


def _split_of(name: str) -> str | None:
    """The split that a name speaks of; None if none or several."""
    words = {_SPLIT_WORDS[w] for w in re.findall("[a-z]+", name.lower()) if w in _SPLIT_WORDS}
    if not words:
        # "fodTrainset", "trainval"; but "latest" is no test set.
        parts = [part.lower() for part in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
        parts = [part for part in parts if part.startswith(tuple(_SPLIT_WORDS))]
        words = {s for w, s in _SPLIT_WORDS.items() if any(w in part for part in parts)}
    return words.pop() if len(words) == 1 else None


def _pick(sources: list[_Source], split: str, root: Path) -> _Source | None:
    fitting = [source for source in sources if source.split == split]
    if len(fitting) > 1:
        raise DataError(
            f"{root}: {_listed(fitting)} all seem to be the {split} split; keep one of them there, "
            "or name the JSON file"
        )
    return fitting[0] if fitting else None


def _listed(sources: list[_Source]) -> str:
    return ", ".join(str(source.file) for source in sources)


def _remedy(sources: list[_Source]) -> str:
    if sources[0].voc:
        return "expected lists ImageSets/Main/train.txt, val.txt or test.txt"
    return "name the JSON file itself, or rename it to train.json, val.json or test.json"


def _check_classes(photos: DetectionSet, source: Path) -> None:
    if not photos.classes:
        raise DataError(f"{source}: names no category; a detector needs at least one")
    if "unknown" in photos.classes:
        raise DataError(
            f"{source}: a category cannot be called 'unknown', which is the answer for what was "
            "never shown; rename it (unknown objects are not needed for training)"
        )


def _hold_out(
    photos: DetectionSet, source: Path, fraction: float, seed: int
) -> tuple[DetectionSet, DetectionSet]:
    """Random shares for training, which keeps the problems of both, and for validation."""
    if len(photos) < 2:
        raise DataError(
            f"{source}: holds a single photo: nothing can be set aside for calibration; add photos"
        )
    size = min(max(round(fraction * len(photos)), 1), len(photos) - 1)
    held = set(random.Random(seed).sample(range(len(photos)), size))
    kept = photos.subset(i for i in range(len(photos)) if i not in held)
    return replace(kept, problems=photos.problems), photos.subset(sorted(held))


def _notes(train: DetectionSet, val: DetectionSet) -> list[str]:
    notes = [
        f"class {name!r} has only {count} training box(es); expect little of it"
        for name, count in train.counts().items()
        if count < 10
    ]
    notes += [
        f"class {name!r} has no validation box; it is not calibrated"
        for name, count in val.counts().items()
        if count == 0
    ]
    twins = shared_photos({"train": train.paths, "val": val.paths})
    if twins:
        shown = "; ".join(" = ".join(str(p) for p in same) for same in twins[:3])
        notes.append(f"{len(twins)} photo(s) stand in both train and val, for example {shown}")
    if problems := train.problems + val.problems:
        notes.append(summarise(problems))
    return notes
