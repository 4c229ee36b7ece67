"""Image sets as folders of photos of one small size, as `knownot train` reads them.

CIFAR's images have 32 pixels. Where a network is to see them larger, the photos of other sets are
scaled to 32 first: sets then differ in what they show, not in how sharp it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from knownot.benchmark.image_sets import Images, known_images, ood_images
from knownot.benchmark.workplace import Workplace
from knownot.data.image_folder import list_photos
from knownot.data.kept_files import write_whole
from knownot.data.photo import open_photo
from knownot.data.square import centre_square
from knownot.errors import DataError

_VAL_SHARE = 10  # a tenth of the training images


class ScaledPhotos:
    """Writes each set once, below the benchmark's output, as PNG files.

    Args:
        place: Settings and folders.
        side: Pixels of each side.
    """

    def __init__(self, place: Workplace, side: int) -> None:
        self.place = place
        self.side = side
        self.folder = place.output / "images" / str(side)

    def known(self) -> Path:
        """The known set: `train`, `val` and `test`, each with a folder for every class.

        The same tenth of the training images is `val` always.
        """
        folder = self.folder / self.place.config.known
        if not folder.is_dir():
            write_whole(folder, self._write_known)
        return folder

    def ood(self, name: str) -> list[Path]:
        """The photos of an OOD set; images that cannot be read are left out."""
        folder = self.place.scaled_folder(name, self.side)
        if not folder.is_dir():
            images = ood_images(name, self.place.data, self.place.config.max_images)
            write_whole(folder, lambda to: self._write(images, [to] * len(images), name))
        return list_photos(folder)

    def _write_known(self, root: Path) -> None:
        for split in ("train", "test"):
            known = known_images(self.place.config.known, self.place.data, split)
            folders = [root / split / known.classes[label] for label in known.labels.tolist()]
            if split == "train":
                order = torch.randperm(len(folders), generator=torch.Generator().manual_seed(0))
                for i in order[: len(order) // _VAL_SHARE].tolist():
                    folders[i] = root / "val" / folders[i].name
            self._write(known.images, folders, f"{self.place.config.known} {split}")

    def _write(self, images: Images, folders: Sequence[Path], what: str) -> None:
        progress: Callable[[int], None] = self.place.reporter.stage(f"scaling {what}", len(images))
        for folder in dict.fromkeys(folders):
            folder.mkdir(parents=True)
        for i, folder in enumerate(folders):
            try:
                image = images[i]
                pixels = centre_square(
                    open_photo(image) if isinstance(image, Path) else image, self.side, 1.0
                )
            except (DataError, OSError) as error:
                self.place.reporter.say(f"left out: {what}, image {i} ({error})")
            else:
                Image.fromarray(pixels).save(folder / f"{i:06}.png", compress_level=1)
            progress(1)
