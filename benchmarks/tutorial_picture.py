"""The picture of the cats-and-dogs tutorial: real photos with the answers of the model it trains.

    python benchmarks/tutorial_picture.py model/

Six photos of `ood_coco` chosen by hand. Licences: CC BY 2.0, photos 8250132140, 5083164728, 8352611405,
5881310882, 5569738713 and 5258978143 of flickr.com.
Writes `docs/images/cats_dogs.jpg`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

import knownot
from cats_dogs import default_data
from knownot.evaluation.annotate import save_annotated
from knownot.models.classifier import UnknownAwareClassifier

PHOTOS = ("599", "309", "072", "073", "450", "629")
TILE = (400, 340)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="classifier trained on cats and dogs")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--output", type=Path, default=Path("docs/images/cats_dogs.jpg"))
    options = parser.parse_args()
    folder = options.data / "detection" / "ood_coco" / "images"
    model = knownot.load(options.model)
    assert isinstance(model, UnknownAwareClassifier)
    sheet = Image.new("RGB", (3 * TILE[0], 2 * TILE[1]), "white")
    with tempfile.TemporaryDirectory() as scratch:
        for i, answer in enumerate(model.predict([folder / f"000000000{n}.jpg" for n in PHOTOS])):
            print(
                Path(answer.path or "").name, answer.label, answer.nearest_class, answer.confidence
            )
            with Image.open(save_annotated(answer, Path(scratch))) as photo:
                tile = ImageOps.pad(photo, TILE, color="white")
            sheet.paste(tile, (i % 3 * TILE[0], i // 3 * TILE[1]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.output, quality=80)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
