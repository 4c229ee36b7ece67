"""The picture of detections in the README: real photos, a detector of `benchmarks/detection.py`.

    python benchmarks/detection_picture.py models/natural5-3/VOS

Two photos of known classes that no training saw, and four of `ood_coco`; one box is a mistake, the
cat. Licences: raccoons MIT (datitran/raccoon_dataset); the others CC BY 2.0, photos 3573516590,
8033724167, 5258978143 and 8250132140 of flickr.com.
Writes `docs/images/detections.jpg`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageOps

import knownot
from cats_dogs import default_data
from knownot.evaluation.annotate import drawn
from knownot.models.detector import UnknownAwareDetector

KNOWN = ("raccoon-101.jpg", "raccoon-139.jpg")
UNKNOWN = ("000000000030.jpg", "000000000127.jpg", "000000000629.jpg", "000000000599.jpg")
TILE = (400, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="detector trained on natural5")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--output", type=Path, default=Path("docs/images/detections.jpg"))
    options = parser.parse_args()
    folder = options.data / "detection"
    photos = [folder / "natural5" / "images" / name for name in KNOWN]
    photos += [folder / "ood_coco" / "images" / name for name in UNKNOWN]
    model = knownot.load(options.model)
    assert isinstance(model, UnknownAwareDetector)
    sheet = Image.new("RGB", (3 * TILE[0], 2 * TILE[1]), "white")
    for i, answer in enumerate(model.predict(photos)):
        assert answer.error is None, answer.error
        tile = ImageOps.pad(drawn(answer, model.classes), TILE, color="white")
        sheet.paste(tile, (i % 3 * TILE[0], i // 3 * TILE[1]))
        print(Path(answer.path or "").name, [(b.label, round(b.p_value, 3)) for b in answer.boxes])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.output, quality=85)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
