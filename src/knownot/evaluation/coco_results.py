"""A detector's answers in COCO's format for results, which pycocotools' `loadRes` reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from knownot.errors import DataError
from knownot.models.prediction import UNKNOWN, DetectionPrediction


@dataclass(frozen=True)
class CocoIds:
    """Ids of photos and categories.

    Attributes:
        images: Id of each photo, by path.
        categories: Id of each class, by name, and of "unknown".
        source: The annotation file that they are from, or None if they were made up.
        left_out: Photos without an id.
        notes: What a user should know about them.
    """

    images: dict[str, Any]
    categories: dict[str, int]
    source: Path | None = None
    left_out: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self, answer: DetectionPrediction) -> list[dict[str, Any]]:
        """The boxes of one photo, most certain first.

        `bbox` is (x, y, width, height) in pixels, `score` the detector's of the nearest class. The
        category of an unknown box is "unknown"; `nearest_category_id` has that of its class, None for
        a proposal that no class claims.
        """
        assert answer.path is not None
        rows = []
        for box in answer.boxes:
            x1, y1, x2, y2 = box.box
            rows.append(
                {
                    "image_id": self.images[answer.path],
                    "category_id": self.categories[box.label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": box.confidence,
                    "is_unknown": box.is_unknown,
                    "ood_score": box.ood_score,
                    "p_value": box.p_value,
                    "nearest_category_id": self.categories.get(box.nearest_class),
                }
            )
        return rows

    def image(self, answer: DetectionPrediction) -> dict[str, Any]:
        """COCO's entry for the photo of an answer."""
        assert answer.path is not None
        size = {"width": answer.width, "height": answer.height}
        return {"id": self.images[answer.path], "file_name": answer.path, **size}

    def annotations(self, images: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A COCO file of `images` and all categories, without objects."""
        categories = [{"id": number, "name": name} for name, number in self.categories.items()]
        return {"images": list(images), "annotations": [], "categories": categories}


def numbered(photos: Iterable[Path], classes: Sequence[str]) -> CocoIds:
    """Photos 1 … n in their order, categories 1 … K in the model's, "unknown" K + 1."""
    images = {str(photo): number for number, photo in enumerate(dict.fromkeys(photos), 1)}
    categories = {name: number for number, name in enumerate([*classes, UNKNOWN], 1)}
    return CocoIds(images, categories, notes=[_unknown_id(categories)])


def _unknown_id(categories: dict[str, Any]) -> str:
    return f"category_id of unknown boxes: {categories[UNKNOWN]}"


def ids_of(annotations: Path, photos: Iterable[Path], classes: Sequence[str]) -> CocoIds:
    """The ids of a COCO file.

    A photo is the image whose file name its path ends with, failing that the only image of the same
    name in another folder. Classes that the file does not have, and "unknown", get ids after its
    largest.

    Raises:
        DataError: If the file is not usable, has none of the photos or of the classes, a photo
            may be several of its images, or several photos are one image.
    """
    from knownot.data.coco import read_coco_names  # loads torch

    names = read_coco_names(annotations)
    by_name: dict[str, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
    for number, name in names.images:
        parts = PureWindowsPath(name).parts  # takes both / and \ for separators
        by_name[parts[-1] if parts else ""].append((parts, number))
    images: dict[str, Any] = {}
    taken: dict[Any, Path] = {}
    left_out = []
    for photo in dict.fromkeys(photos):
        found = _images_of(photo, by_name.get(photo.name, []))
        if not found:
            left_out.append(photo)
            continue
        number = found[0]
        if len(found) > 1:
            raise DataError(
                f"{photo}: {annotations} has {len(found)} images of this name; its file names "
                "must tell the folder, and the photo must lie in one that is called so"
            )
        if taken.setdefault(number, photo) != photo:
            raise DataError(
                f"{photo}: is the same image of {annotations} as {taken[number]}; leave one out"
            )
        images[str(photo)] = number
    if not images:
        first = f", for example {left_out[0].name!r}" if left_out else ""
        known = f", which has {names.images[0][1]!r}" if names.images else ""
        raise DataError(f"{annotations}: has none of the photos{first}{known}")
    categories = _categories(annotations, names.categories, names.last_category, classes)
    notes = []
    missing = [name for name in classes if name not in names.categories]
    if missing:
        told = ", ".join(f"{name} is {categories[name]}" for name in missing)
        notes.append(f"{annotations} lacks {len(missing)} of the model's classes: {told}")
    if UNKNOWN not in names.categories:
        notes.append(_unknown_id(categories))
    absent = len(names.images) - len(taken)
    if absent:
        notes.append(
            f"{absent} images of {annotations} were not given: an evaluation counts their objects "
            "as missed unless it is limited to the others"
        )
    return CocoIds(images, categories, annotations, left_out, notes)


def _images_of(photo: Path, same_name: list[tuple[tuple[str, ...], Any]]) -> list[Any]:
    """Ids that may be meant: those whose folders agree, else all."""
    agreeing = [(p, number) for p, number in same_name if photo.parts[-len(p) :] == p]
    most = max((len(parts) for parts, _ in agreeing), default=0)
    chosen = [(p, number) for p, number in agreeing if len(p) == most] or same_name
    return list(dict.fromkeys(number for _, number in chosen))


def _categories(
    annotations: Path, known: dict[str, int], last: int, classes: Sequence[str]
) -> dict[str, int]:
    if not set(classes) & set(known):
        raise DataError(
            f"{annotations}: has none of the model's classes {', '.join(classes)}; its categories "
            f"are {', '.join(list(known)[:10])}"
        )
    categories = {}
    for name in [*classes, UNKNOWN]:
        if name not in known:
            last += 1
        categories[name] = known.get(name, last)
    return categories
