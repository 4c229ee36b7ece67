"""Checks that all readers of boxes share: is the photo there, as large as stated, the box inside it?

What fails is left out and described by one sentence, "<kind of problem>: <where>: <what was found>".
The kind comes first and holds no colon, so that sentences can be counted by kind.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np
import torch

from knownot.data.detection_set import DetectionSet, Objects
from knownot.data.photo import upright_size
from knownot.errors import DataError

Corners = tuple[float, float, float, float]

# Annotation tools count pixels from 0 or from 1 and round either way: one pixel is no mistake.
_TOLERATED_PIXELS = 1.0


@dataclass
class AnnotatedPhoto:
    """One photo and its boxes while an annotation file is read; the class names are not yet indices.

    Attributes:
        path: File.
        size: Width and height in pixels, upright.
        boxes: Corners (x1, y1, x2, y2) of each object.
        names: Class name of each object.
        ignore: Whether an object is a crowd or difficult.
    """

    path: Path
    size: tuple[int, int]
    boxes: list[Corners] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)

    def add(self, box: Corners, name: str, ignore: bool) -> None:
        """Append one object."""
        self.boxes.append(box)
        self.names.append(name)
        self.ignore.append(ignore)

    def take_in(self, other: AnnotatedPhoto) -> None:
        """Append the objects of another reading of the same photo."""
        self.boxes += other.boxes
        self.names += other.names
        self.ignore += other.ignore

    def objects(self, position: Mapping[str, int]) -> Objects:
        """The objects, with `position[name]` as the label of each."""
        if not self.boxes:
            return Objects.none()
        return Objects(
            torch.tensor(self.boxes, dtype=torch.float32),
            torch.tensor([position[name] for name in self.names]),
            torch.tensor(self.ignore),
        )


def problem(kind: str, where: str, found: str) -> str:
    """The sentence that describes what is left out."""
    return f"{kind}: {where}: {found}"


def kind_of(sentence: str) -> str:
    """The kind of problem that a sentence of `problem` begins with."""
    return sentence.partition(": ")[0]


def detection_set(
    photos: Iterable[AnnotatedPhoto],
    found: Sequence[str],
    classes: Sequence[str] | None,
    source: Path,
    problems: list[str],
) -> DetectionSet:
    """Number the classes and hand everything over.

    Args:
        photos: What was read.
        found: Classes that `source` names, in the order to take by default.
        classes: Class names expected, in order; None for `found`.
        source: The annotations, for the message.
        problems: Sentences about what was left out.

    Raises:
        DataError: If a photo holds an object of a class that is not in `classes`.
    """
    photos = list(photos)
    names = list(found if classes is None else classes)
    position = {name: index for index, name in enumerate(names)}
    used = {name for photo in photos for name in photo.names}
    strange = sorted(used - position.keys())
    if strange:
        raise DataError(
            f"{source}: the annotated categories {', '.join(strange)} are not among the classes "
            f"{', '.join(names)}; rename them or remove their annotations"
        )
    objects = [photo.objects(position) for photo in photos]
    return DetectionSet([photo.path for photo in photos], objects, names, problems)


def check_photo(
    folder: Path, name: object, stated: tuple[object, object], where: str, problems: list[str]
) -> AnnotatedPhoto | None:
    """The photo `name` of `folder`, without boxes; None, and a sentence more, if it is not usable.

    Only the photo's header is read.

    Args:
        folder: The images folder; names that leave it are refused.
        name: File name as the annotations give it.
        stated: Width and height as the annotations give them; None or 0 where they do not.
        where: The annotation file and the entry, for the sentence.
        problems: Takes the sentence.
    """
    if not isinstance(name, str) or not name:
        problems.append(
            problem(
                "photo without a file name", where, f"expected a text, got {reprlib.repr(name)}"
            )
        )
        return None
    if leaves_folder(name):
        problems.append(
            problem("photo outside the images folder", where, f"{name!r} is not below {folder}")
        )
        return None
    path = inside(folder, name)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        problems.append(
            problem("photo missing", where, f"no file {name!r} in {folder}; add it or its folder")
        )
        return None
    try:
        size = upright_size(path)
    except DataError as error:
        problems.append(problem("photo unreadable", where, str(error)))
        return None
    width, height = (_whole(side) for side in stated)
    # None and 0: some tools write 0 when they do not know.
    if (width or size[0], height or size[1]) != size:
        problems.append(
            problem(
                "photo size differs",
                where,
                f"{reprlib.repr(width)} x {reprlib.repr(height)} pixels are stated, but {path} is "
                f"{size[0]} x {size[1]} when upright, so its boxes would be wrong; the photo is "
                "left out: restore the file that was annotated, or annotate this one anew",
            )
        )
        return None
    return AnnotatedPhoto(path, size)


def inside(folder: Path, name: str) -> Path:
    """Path of a file of `folder`; a name that was written on Windows is understood too."""
    return folder / PureWindowsPath(name).as_posix()


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or goes up, in the manner of any operating system."""
    path = PureWindowsPath(name)  # takes both / and \ for separators
    return bool(path.anchor) or ".." in path.parts


def _whole(side: object) -> object:
    """A number that is written as a text, as the number."""
    return int(side) if isinstance(side, str) and side.isdecimal() else side


def is_set(flag: object) -> bool:
    """Whether a flag of 0 or 1 is 1, written as a number, a truth value or a text."""
    return str(flag).strip().lower() in ("1", "1.0", "true")


def four_numbers(values: object, where: str, problems: list[str]) -> Corners | None:
    """`values` as four finite numbers; None, and a sentence more, if they are something else."""
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        found = f"expected 4 numbers, got {reprlib.repr(values)}"
        problems.append(problem("box is not 4 numbers", where, found))
        return None
    if not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and _finite(v) for v in values
    ):
        found = f"expected 4 finite numbers, got {reprlib.repr(values)}"
        problems.append(problem("box with a coordinate that is no finite number", where, found))
        return None
    a, b, c, d = (float(v) for v in values)
    return a, b, c, d


def check_box(
    corners: Corners, size: tuple[int, int], where: str, problems: list[str]
) -> Corners | None:
    """The part of a box that lies inside the photo; None, and a sentence more, if there is none.

    A box that sticks out by more than a pixel is cut off and mentioned, by less just cut off.

    Args:
        corners: Box (x1, y1, x2, y2) in pixels, finite.
        size: Width and height of the photo in pixels.
        where: The annotation file and the entry, for the sentence.
        problems: Takes the sentence.
    """
    (x1, y1, x2, y2), (width, height) = corners, size
    shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not _has_area(corners):
        problems.append(problem("box without area", where, f"{shown} has no width or no height"))
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if not _has_area(clipped):
        found = f"{shown} lies outside the photo of {width} x {height} pixels"
        problems.append(problem("box outside the photo", where, found))
        return None
    excess = max(abs(new - old) for new, old in zip(clipped, corners, strict=True))
    if excess > _TOLERATED_PIXELS:
        found = (
            f"{shown} sticks out of the photo of {width} x {height} pixels by {excess:g} pixels; "
            "the part inside is kept"
        )
        problems.append(problem("box cut off", where, found))
    return clipped


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _has_area(corners: Corners) -> bool:
    # In single precision, which boxes are kept in: a sliver may vanish there, and torchvision's
    # detectors stop at a box without area.
    with np.errstate(over="ignore"):
        x1, y1, x2, y2 = np.array(corners, dtype=np.float32)
    return bool(x2 > x1 and y2 > y1)
