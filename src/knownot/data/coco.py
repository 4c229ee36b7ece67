"""Read COCO annotations, and leave out, with a sentence each, what would teach a detector wrongly."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knownot.data.box_checks import (
    AnnotatedPhoto,
    check_box,
    check_photo,
    detection_set,
    four_numbers,
    inside,
    is_set,
    leaves_folder,
    problem,
)
from knownot.data.detection_set import DetectionSet
from knownot.errors import DataError

_KEYS = ("images", "annotations", "categories")
_EXPECTED = 'expected a COCO object {"images": [...], "annotations": [...], "categories": [...]}'

# Which of the folders is meant is asked of this many file names: the first photo may be missing.
_NAMES_TRIED = 100


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> DetectionSet:
    """Read a COCO file and check every photo and box of it.

    Boxes are cut off at the border of the upright photo; crowds are marked `ignore`. Photos without
    boxes are kept. Categories of the same name are one class.

    Args:
        annotations: The JSON file.
        images: Folder that the file names are relative to; by default the first of `images/`,
            `<split>/`, `<split>2017/`, the file's own folder and the root that holds the first
            photo. The root is the file's folder, or that above if this is `annotations/`.
        classes: Class names expected, in order; by default all categories, sorted by id.

    Returns:
        The photos with boxes; `problems` says what was left out and why.

    Raises:
        DataError: If the file cannot be read or is no COCO file, the photos are not found, or an
            object's category is not in `classes`.
    """
    path = Path(annotations)
    content = _load(path)
    categories = _category_names(content["categories"], path)
    entries = [entry for entry in content["images"] if isinstance(entry, dict)]
    folder = _images_folder(path, images, [entry.get("file_name") for entry in entries])
    problems: list[str] = []
    if len(entries) < len(content["images"]):
        found = f"{len(content['images']) - len(entries)} entries of images are no objects"
        problems.append(problem("entry unreadable", str(path), found))
    photos = _read_photos(entries, folder, path, problems)
    _read_boxes(content["annotations"], photos, categories, path, problems)
    kept = {id(photo): photo for photo in photos.values() if photo is not None}.values()
    ids = _smallest_ids(categories)
    return replace(detection_set([*kept], [*ids], classes, path, problems), category_ids=ids)


@dataclass(frozen=True)
class CocoNames:
    """What the ids of a COCO file stand for.

    Attributes:
        images: Id and file name of each image, in order.
        categories: Smallest id of each category, by name.
        last_category: Largest id of a category; 0 if there is none.
    """

    images: list[tuple[Any, str]]
    categories: dict[str, int]
    last_category: int


def read_coco_names(annotations: str | Path) -> CocoNames:
    """Read the ids of a COCO file; the photos are not looked at, and boxes need not be there.

    Raises:
        DataError: If the file cannot be read or is no COCO file.
    """
    path = Path(annotations)
    content = _load(path, ("images", "categories"))
    names = _category_names(content["categories"], path)
    images = [
        (_key(entry.get("id")), entry.get("file_name"))
        for entry in content["images"]
        if isinstance(entry, dict)
    ]
    named = [(number, str(name)) for number, name in images if number is not None and name]
    return CocoNames(named, _smallest_ids(names), max(names, default=0))


def _smallest_ids(names: dict[int, str]) -> dict[str, int]:
    """Smallest id of each category, ascending, of names by ascending id."""
    smallest: dict[str, int] = {}
    for number, name in names.items():
        smallest.setdefault(name, number)
    return smallest


def _load(path: Path, keys: Sequence[str] = _KEYS) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_EXPECTED}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_EXPECTED}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); {_EXPECTED}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; {_EXPECTED}")
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path}: has no list of {', '.join(missing)}; {_EXPECTED}")
    return content


def _category_names(entries: list[Any], path: Path) -> dict[int, str]:
    """Name of each category id, sorted by id."""
    names: dict[int, str] = {}
    for entry in entries:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(number, int) or not isinstance(name, str) or not name:
            raise DataError(
                f"{path}: category {reprlib.repr(entry)} is not usable; expected "
                '{"id": <whole number>, "name": <text>}'
            )
        if names.setdefault(number, name) != name:
            raise DataError(
                f"{path}: category id {number} is both {names[number]!r} and {name!r}; give each "
                "category an id of its own"
            )
    return dict(sorted(names.items()))


def _images_folder(path: Path, images: str | Path | None, names: list[Any]) -> Path:
    """The folder that the file names are relative to, see `read_coco`."""
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"{images}: no such folder; expected the photos that {path} names")
        return Path(images)
    root = path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
    # "instances_train2017" -> "train": COCO's own names; other files are called by their split.
    split = re.sub(r"^.*_|\d+$", "", path.stem)
    folders = list(
        dict.fromkeys([root / "images", root / split, root / f"{split}2017", path.parent, root])
    )
    safe = [name for name in names if isinstance(name, str) and name and not leaves_folder(name)]
    for name in safe[:_NAMES_TRIED]:
        for folder in folders:
            if os.path.isfile(inside(folder, name)):
                return folder
    if not safe:
        return path.parent
    raise DataError(
        f"{path}: its photos, for example {safe[0]!r}, are in none of "
        f"{', '.join(str(folder) for folder in folders)}; put them into the first of these"
    )


def _read_photos(
    entries: list[dict[str, Any]], folder: Path, path: Path, problems: list[str]
) -> dict[Any, AnnotatedPhoto | None]:
    """Photo of each image id; None for those that are left out, whose boxes go with them."""
    names = defaultdict(set)
    for entry in entries:
        names[_key(entry.get("id"))].add(repr(entry.get("file_name")))
    photos: dict[Any, AnnotatedPhoto | None] = {}
    files: dict[Path, AnnotatedPhoto] = {}
    for entry in entries:
        number = _key(entry.get("id"))
        where = f"{path}, image {number}"
        if number is None:
            found = f"{reprlib.repr(entry.get('file_name'))} has no id, a number or a text"
            problems.append(problem("image without an id", str(path), found))
        elif number in photos:
            same = ", ".join(sorted(names[number]))
            found = f"{len(names[number])} file(s) carry this id: {same}; give each its own id"
            problems.append(problem("image id used twice", where, found))
            if len(names[number]) > 1:
                # Whose boxes are whose cannot be known: neither photo is used.
                photos[number] = None
        else:
            stated = entry.get("width"), entry.get("height")
            photo = check_photo(folder, entry.get("file_name"), stated, where, problems)
            if photo is not None and files.setdefault(photo.path, photo) is not photo:
                # As some tools write it, an image for each box: apart, each would lack the others'.
                photo = files[photo.path]
                found = (
                    f"{photo.path} has another id as well; it is one photo, with the boxes of all"
                )
                problems.append(problem("file with several image ids", where, found))
            photos[number] = photo
    return photos


def _read_boxes(
    entries: list[Any],
    photos: dict[Any, AnnotatedPhoto | None],
    categories: dict[int, str],
    path: Path,
    problems: list[str],
) -> None:
    """Add the boxes to their photos."""
    seen: Counter[Any] = Counter()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            found = f"annotation number {index} is no object but {reprlib.repr(entry)}"
            problems.append(problem("entry unreadable", str(path), found))
            continue
        number = _key(entry.get("id"))
        where = f"{path}, annotation {f'number {index}' if number is None else number}"
        seen[number] += 1
        if number is not None and seen[number] > 1:
            found = "an earlier one carries this id; the later one is left out"
            problems.append(problem("annotation id used twice", where, found))
            continue
        image = _key(entry.get("image_id"))
        if image not in photos:
            found = f"there is no image {reprlib.repr(entry.get('image_id'))}"
            problems.append(problem("unknown image id", where, found))
            continue
        photo = photos[image]
        if photo is not None:
            _read_box(entry, photo, categories, f"{where} of {photo.path.name!r}", problems)


def _read_box(
    entry: dict[str, Any],
    photo: AnnotatedPhoto,
    categories: dict[int, str],
    where: str,
    problems: list[str],
) -> None:
    name = categories.get(_key(entry.get("category_id")))
    if name is None:
        found = f"there is no category {reprlib.repr(entry.get('category_id'))}"
        problems.append(problem("unknown category id", where, found))
        return
    bbox = four_numbers(entry.get("bbox"), where, problems)
    if bbox is None:
        return
    x, y, width, height = bbox
    box = check_box((x, y, x + width, y + height), photo.size, where, problems)
    if box is not None:
        photo.add(box, name, is_set(entry.get("iscrowd")))


def _key(value: Any) -> Any:
    """An id that can be looked up, or None."""
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
