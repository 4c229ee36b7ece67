"""Folders of labelled photos: find classes and splits, and say what is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from knownot.data.hold_out import hold_out
from knownot.data.photo import is_photo_name
from knownot.errors import DataError

_OF_THE_DISK = "lost+found"  # at the top of one, for its owner alone
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_MODEL_FILES = ("config.json", "model.safetensors")  # of a model folder, which is no class


@dataclass(frozen=True)
class PhotoSet:
    """Photos with labels.

    Attributes:
        paths: Files.
        labels: Index into `classes` of each file; empty for photos without labels.
        classes: Class names in order.
    """

    paths: list[Path]
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Number of photos of each class."""
        counts = Counter(self.labels)
        return {name: counts[index] for index, name in enumerate(self.classes)}

    def by_class(self) -> dict[str, list[Path]]:
        """The photos of each class."""
        paths: dict[str, list[Path]] = {name: [] for name in self.classes}
        for path, label in zip(self.paths, self.labels, strict=True):
            paths[self.classes[label]].append(path)
        return paths

    def subset(self, indices: Iterable[int]) -> PhotoSet:
        """The photos at `indices`."""
        chosen = list(indices)
        labels = [self.labels[i] for i in chosen] if self.labels else []
        return PhotoSet([self.paths[i] for i in chosen], labels, self.classes)


@dataclass(frozen=True)
class Splits:
    """Training and validation photos, with what a user should know about them.

    Attributes:
        train: Photos to learn from.
        val: Photos to calibrate on.
        warnings: What the user should know.
        set_aside: Whether `val` is a part of the photos given for training.
    """

    train: PhotoSet
    val: PhotoSet
    warnings: list[str]
    set_aside: bool = False


def list_photos(root: str | Path) -> list[Path]:
    """All photos below a folder, sorted; hidden files and folders are left out.

    Raises:
        DataError: If the folder is missing or holds no photo, or one inside may not be read.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; expected a folder of photos")
    found = sorted(map(Path, walk_photos(root)))
    if not found:
        raise DataError(f"{root}: holds no photo (looked for .jpg, .png, .webp and the like)")
    return found


def walk_photos(root: Path) -> Iterator[str]:
    """Names of all photos below a folder, as `list_photos` finds them, in no order."""
    return (name for name in walk_files(root) if is_photo_name(Path(name)))


def walk_files(root: Path) -> Iterator[str]:
    """Names of all files below a folder, in no order; hidden folders are left out.

    Raises:
        DataError: If a folder may not be read.
    """
    # Links are followed once all else is walked through; not to that again, nor to what `root` lies in.
    walked = {str(place) for place in root.resolve().parents}
    starts = [str(root)]
    for start in starts:
        for folder, subfolders, names in os.walk(start, onerror=_unreadable):
            place = os.path.realpath(folder)
            shown = [n for n in sorted(subfolders) if not n.startswith(".") and n != _OF_THE_DISK]
            subfolders.clear()
            if place in walked:
                continue
            walked.add(place)
            for name in shown:
                below = os.path.join(folder, name)
                if os.path.islink(below):
                    starts.append(below)
                else:
                    subfolders.append(name)
            yield from (os.path.join(folder, name) for name in names)


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be read ({error.strerror}); its photos would be missing"
    )


def names_digest(paths: Iterable[Path], root: Path) -> str:
    """Sixteen digits that other photos, but not the same ones under another folder, make differ."""
    names = sorted(os.path.relpath(path, root) for path in paths)
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_labelled(root: str | Path, classes: Sequence[str] | None = None) -> PhotoSet:
    """Read `root/<class>/**/*.jpg`.

    Args:
        root: Folder with one sub-folder for each class.
        classes: Class names expected; by default the sub-folders, sorted.

    Raises:
        DataError: If there is no class folder or no photo, or a class folder is not in `classes`.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; expected a folder with one sub-folder for each class")
    folders = [p for p in _subfolders(root) if not _is_model(p)]
    if not folders:
        raise DataError(
            f"{root}: has no sub-folders; expected {root}/<class name>/<photos> for each class, or for a "
            "detector COCO or VOC annotations"
        )
    names = list(classes) if classes is not None else [p.name for p in folders]
    strange = [p.name for p in folders if p.name not in names]
    if strange:
        raise DataError(
            f"{root}: class folder(s) {', '.join(strange)} are not among the classes "
            f"{', '.join(names)}; rename or remove them"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        try:
            photos = list_photos(folder)
        except DataError:
            if classes is None:
                raise DataError(
                    f"{folder}: class folder without a photo; add photos or remove the folder"
                ) from None
            continue
        paths += photos
        labels += [names.index(folder.name)] * len(photos)
    if not paths:
        raise DataError(f"{root}: holds no photo")
    return PhotoSet(paths, labels, names)


def find_split(root: Path, split: str) -> Path | None:
    """The sub-folder of `root` that holds a split ("train", "val" or "test"), or None."""
    folders = [p for p in _subfolders(root) if _subfolders(p)]
    for name in _SPLIT_NAMES[split]:
        # As it is written here, or else in capitals.
        for folder in sorted(folders, key=lambda p: p.name != name):
            if folder.name.lower() == name:
                return folder
    return None


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MODEL_FILES)


def read_splits(root: str | Path, val_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Training and validation photos of `root`.

    `root` holds `train/<class>/` and, if there is one, `val/<class>/`; or `<class>/` itself. Without
    a validation folder a stratified share of the training photos is set aside.

    Raises:
        DataError: If fewer than two classes are found, a class is called "unknown", or a folder of
            validation or test photos stands among the classes.
    """
    root = Path(root)
    notes: list[str] = []
    train_folder = find_split(root, "train") if root.is_dir() else None
    train = read_labelled(train_folder or root)
    _check_classes(train, train_folder or root)
    for split in ("val", "test"):
        if not train_folder and (folder := find_split(root, split)):
            raise DataError(
                f"{folder}: stands among the classes of {root}; move these into {root / 'train'}, or give "
                "it another name if it is one of them"
            )
    notes += _left_out(root, train_folder)
    val_folder = find_split(root, "val") if train_folder else None
    if val_folder:
        val = read_labelled(val_folder, train.classes)
    else:
        train, val = _hold_out(train, root, val_fraction, seed)
        notes.append(
            f"no val/ folder: {len(val)} of {len(train) + len(val)} training photos are set aside "
            "for calibration"
        )
    for name, count in train.counts().items():
        if count < 10:
            notes.append(f"class {name!r} has only {count} training photo(s); expect little of it")
    for name, count in val.counts().items():
        if count == 0:
            notes.append(f"class {name!r} has no validation photo; it is not calibrated")
    if len(val) < 100:
        notes.append(
            f"only {len(val)} validation photos: p-values cannot go below {1 / (len(val) + 1):.3f} "
            "and the threshold is uncertain"
        )
    twins = shared_photos({"train": train.paths, "val": val.paths})
    if twins:
        shown = "; ".join(" = ".join(str(p) for p in same) for same in twins[:3])
        notes.append(f"{len(twins)} photo(s) stand in both train and val, for example {shown}")
    for folder in (train_folder or root, val_folder):
        beside = [p for p in folder.iterdir() if p.is_file() and is_photo_name(p)] if folder else []
        if beside:
            notes.append(
                f"{len(beside)} photo(s) beside the class folders of {folder} are left out, for "
                f"example {min(beside)}"
            )
    for split, photos in (("train", train), ("val", val)):
        twice = shared_photos(photos.by_class())
        if twice:
            shown = "; ".join(" = ".join(str(p) for p in same) for same in twice[:3])
            notes.append(
                f"{len(twice)} photo(s) of {split} have several classes, for example {shown}"
            )
    return Splits(train, val, notes, set_aside=val_folder is None)


def _left_out(root: Path, train_folder: Path | None) -> list[str]:
    """What is said of sub-folders that are neither class nor split."""
    if train_folder is None:
        models = [p.name for p in _subfolders(root) if _is_model(p)]
        return [f"{', '.join(models)}: a model folder, no class; left out"] if models else []
    used = {find_split(root, split) for split in _SPLIT_NAMES}
    beside = [
        p.name
        for p in _subfolders(root)
        if p not in used and not _is_model(p) and any(True for _ in walk_photos(p))
    ]
    if not beside:
        return []
    return [
        f"{', '.join(beside[:10])}: left out, as the classes are those of {train_folder}; if it holds a "
        "class, move it there"
    ]


def shared_photos(splits: dict[str, list[Path]]) -> list[tuple[Path, ...]]:
    """Photos whose bytes stand in more than one split, or class, as tuples of their paths."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, paths in splits.items():
        for path in paths:
            with suppress(OSError):  # a link to nothing is listed where photos are read
                by_size[path.stat().st_size].append((split, path))
    twins = []
    for same_size in by_size.values():
        if len({split for split, _ in same_size}) < 2:
            continue
        by_content: dict[bytes, list[tuple[str, Path]]] = defaultdict(list)
        for split, path in same_size:
            with suppress(OSError):
                by_content[hashlib.sha256(path.read_bytes()).digest()].append((split, path))
        twins += [
            tuple(path for _, path in same)
            for same in by_content.values()
            if len({split for split, _ in same}) > 1
        ]
    return twins


def _check_classes(photos: PhotoSet, root: Path) -> None:
    if len(photos.classes) < 2:
        raise DataError(
            f"{root}: found one class only ({photos.classes[0]}); a classifier needs at least two "
            "sub-folders with photos"
        )
    if "unknown" in photos.classes:
        raise DataError(
            f"{root / 'unknown'}: a class cannot be called 'unknown', which is the answer for what "
            "was never shown; rename the folder (unknown photos are not needed for training)"
        )


def _hold_out(
    photos: PhotoSet, root: Path, fraction: float, seed: int
) -> tuple[PhotoSet, PhotoSet]:
    kept, held = hold_out(photos.labels, fraction, seed)
    if not held:
        raise DataError(
            f"{root}: every class has a single photo: nothing can be set aside for calibration; add "
            "photos"
        )
    return photos.subset(kept), photos.subset(held)
