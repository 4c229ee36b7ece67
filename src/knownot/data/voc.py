"""Read Pascal VOC annotations, and leave out, with a sentence each, what is broken or unsafe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from knownot.data.box_checks import (
    AnnotatedPhoto,
    check_box,
    check_photo,
    detection_set,
    four_numbers,
    is_set,
    problem,
)
from knownot.data.detection_set import DetectionSet
from knownot.data.photo import is_photo_name
from knownot.errors import DataError

_MAX_BYTES = 10_000_000
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    annotations: str | Path,
    images: str | Path,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> DetectionSet:
    """Read a folder of Pascal VOC files and check every photo and box of it.

    The photo of `a.xml` is `a.jpg` (or `a.png` and so on), of several the one that it names, and of
    none the file that it names.
    VOC counts pixels from 1 and includes the last; boxes returned are corners (x1, y1, x2, y2),
    which are (xmin - 1, ymin - 1, xmax, ymax). Objects marked difficult become `ignore`.

    Args:
        annotations: Folder of XML files.
        images: Folder of photos.
        names: File names without suffix, as a split lists them; by default all XML files.
        classes: Class names expected, in order; by default those found, sorted.

    Returns:
        The photos with boxes; `problems` says what was left out and why.

    Raises:
        DataError: If a folder is missing or holds no annotations, or an object's class is not in
            `classes`.
    """
    annotations, images = Path(annotations), Path(images)
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected Annotations/ beside JPEGImages/")
    files = {path.stem: path for path in sorted(annotations.iterdir()) if is_voc_name(path)}
    if not files:
        raise DataError(f"{annotations}: holds no annotations (looked for *.xml)")
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in sorted(images.iterdir()):
        if is_photo_name(path):
            by_stem[path.stem].append(path.name)
    problems: list[str] = []
    photos: dict[Path, AnnotatedPhoto] = {}
    for name in dict.fromkeys(files if names is None else names):
        if name not in files:
            found = (
                f"the split lists {name!r}, but there is no {name}.xml; add it or remove the line"
            )
            problems.append(problem("annotation file missing", str(annotations), found))
            continue
        photo = _read_file(files[name], images, by_stem.get(name, []), problems)
        if photo is not None and (first := photos.setdefault(photo.path, photo)) is not photo:
            # As some tools write it, a file for each box: apart, each would lack the others'.
            first.take_in(photo)
            found = f"{photo.path} has another file as well; it is one photo, with the boxes of all"
            problems.append(problem("photo with several annotation files", str(files[name]), found))
    found_classes = sorted({name for photo in photos.values() for name in photo.names})
    return detection_set([*photos.values()], found_classes, classes, annotations, problems)


def is_voc_name(path: Path) -> bool:
    """Whether a file name ends like an annotation and is not hidden."""
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def _read_file(
    path: Path, images: Path, of_stem: list[str], problems: list[str]
) -> AnnotatedPhoto | None:
    try:
        root = _parse(path)
    except DataError as error:
        problems.append(problem("annotation file unreadable", str(path), str(error)))
        return None
    stated = _number(root.findtext("size/width")), _number(root.findtext("size/height"))
    stated_name = (root.findtext("filename") or "").strip()
    if len(of_stem) > 1 and stated_name not in of_stem:
        found = f"{', '.join(of_stem)} in {images}; say which by <filename>"
        problems.append(problem("several photos of one name", str(path), found))
        return None
    # A single photo of the annotation's name is meant even where <filename> says otherwise: copies
    # of a set often keep an old one.
    name = of_stem[0] if len(of_stem) == 1 else stated_name or f"{path.stem}.jpg"
    photo = check_photo(images, name, stated, str(path), problems)
    if photo is None:
        return None
    for number, entry in enumerate(root.findall("object"), start=1):
        where = f"{path}, object {number}"
        label = (entry.findtext("name") or "").strip()
        if not label:
            found = "expected the class in <name>"
            problems.append(problem("object without a class", where, found))
            continue
        # "bndbox/xmin": parts of an object have boxes of their own, one level below.
        sides = four_numbers(
            [_number(entry.findtext(f"bndbox/{side}")) for side in _SIDES], where, problems
        )
        if sides is None:
            continue
        x1, y1, x2, y2 = sides
        box = check_box((x1 - 1, y1 - 1, x2, y2), photo.size, where, problems)
        if box is not None:
            photo.add(box, label, is_set(entry.findtext("difficult")))
    return photo


def _parse(path: Path) -> ElementTree.Element:
    """The root element of a file that is small, well formed and declares no entities."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(
                f"larger than {_MAX_BYTES / 1e6:.0f} MB, which no annotation of one photo is"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    # Entities can name other files or grow without bound. NULs go, so that UTF-16 hides nothing.
    plain = content.replace(b"\0", b"")
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise DataError("declares a document type or entities, which is unsafe; remove the lines")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: encodings
        raise DataError(f"not well-formed XML ({error}); repair or remove it") from None


def _number(text: str | None) -> float | str | None:
    """The number that a text holds; otherwise the text itself, for the message."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text
