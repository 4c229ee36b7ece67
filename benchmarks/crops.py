"""Classification sets cut from detection sets, which took no part in designing a classifier's scores.

    python -m benchmarks crops -o crops       # folders of photos and four settings files, seconds
    knownot benchmark --config crops/fod_a_head.yaml --data crops -o crops/fod_a_head
    knownot benchmark --config crops/natural5_all.yaml --data crops -o crops/natural5_all

Every annotated box becomes a photo, with a tenth of its size around it. Known are the ten kinds of debris
of `fod_a`, near OOD the seven kinds of `ood_fod_a`, far OOD the things of `ood_coco`; and the five
classes of `natural5` with both as far OOD. A seeded half of the validation photos calibrates, the other
half is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml

from cats_dogs import default_data
from knownot.data.detection_folder import read_detection, read_detection_splits
from knownot.data.detection_set import DetectionSet
from knownot.data.kept_files import write_whole
from knownot.data.photo import open_photo

_MARGIN, _LEAST = (
    0.1,
    16,
)  # share of the box's size on each side; pixels below which a box is left out
OOD = {"fod_a": {"near": ["fod_a"], "far": ["coco"]}, "natural5": {"far": ["coco", "fod_a"]}}
WAYS = {"head": {}, "all": {"image_size": 160}}
METHODS = {
    "cross-entropy": ["posthoc", "ours"],
    "vos": ["ours"],
    "vos-last": {
        "about": "VOS, Mahalanobis of the last features alone",
        "settings": {"earlier_map": False},
        "scores": ["ours"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("-o", "--output", type=Path, default=Path("crops"))
    options = parser.parse_args()
    source, output = options.data / "detection", options.output
    for name in OOD:
        whole(output / name, partial(cut_known, source / name))
    for name in ("fod_a", "coco"):
        photos = read_detection(source / f"ood_{name}")
        whole(output / "ood" / name, partial(cut, photos, by_class=False))
    for name, sets in OOD.items():
        for way, settings in WAYS.items():
            benchmark = {
                "name": f"crops_{name}_{way}",
                "about": f"Objects cut from {name}, EfficientNet-Lite0, --finetune {way}",
                "known": name,
                "training": {"recipe": "photos", "settings": {"finetune": way, **settings}},
                "methods": METHODS,
                **sets,
            }
            file = output / f"{name}_{way}.yaml"
            file.write_text(yaml.safe_dump(benchmark, sort_keys=False), "utf-8")
            print(file)


def whole(folder: Path, write: Callable[[Path], None]) -> None:
    if not folder.exists():
        write_whole(folder, write)


def cut_known(source: Path, to: Path) -> None:
    """`train`, `val` and `test`, each with a folder for every class."""
    splits = read_detection_splits(source)
    order = torch.randperm(len(splits.val), generator=torch.Generator().manual_seed(0)).tolist()
    middle = len(order) // 2
    cut(splits.train, to / "train")
    cut(splits.val.subset(order[:middle]), to / "val")
    cut(splits.val.subset(order[middle:]), to / "test")


def cut(photos: DetectionSet, to: Path, by_class: bool = True) -> None:
    """A file for every box, in the folder of its class or all in one."""
    for path, objects in zip(photos.paths, photos.objects, strict=True):
        image = open_photo(path)
        for number, (box, k) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
            size = (box[2:] - box[:2]).repeat(2)
            if size.min() < _LEAST:
                continue
            edge = torch.tensor([image.width, image.height]).repeat(2)
            grown = box + _MARGIN * size * torch.tensor([-1, -1, 1, 1])
            folder = to / photos.classes[k] if by_class else to
            folder.mkdir(parents=True, exist_ok=True)
            inside = torch.minimum(grown, edge).clamp(min=0).round().int().tolist()
            image.crop(inside).save(folder / f"{path.stem}-{number}.jpg", quality=95)


if __name__ == "__main__":
    main()
