"""Image sets by name: photo folders, archives and arrays that are downloaded, noise.

A name that is not registered is a folder of photos: `NAME`, or `ood/NAME`, below the data folder; one
in `ood/` comes before a registered set of its name.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from knownot.data.image_folder import list_photos
from knownot.data.photo import to_rgb
from knownot.errors import DataError, MissingExtraError

# What a set is made of: files, or pictures that are opened when asked for.
Images = Sequence[Path] | Sequence[Image.Image]
# Gets the data folder.
OodSet = Callable[[Path], Images]

_NOISE_IMAGES, _NOISE_SIDE = 2000, 32


@dataclass(frozen=True)
class KnownImages:
    """A labelled set of the known classes.

    Attributes:
        images: N pictures.
        labels: Class of each (N,), int64.
        classes: Names of the classes.
    """

    images: Images
    labels: torch.Tensor
    classes: list[str]


class _Pictures(Sequence[Image.Image]):
    """Pictures that are made when they are asked for."""

    def picture(self, index: int) -> Image.Image:
        """The picture at a place from 0 on."""
        raise NotImplementedError  # abstract

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.picture(index)


class Opened(_Pictures):
    """A data set of torchvision's kind as its pictures alone, RGB, opened one by one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> Image.Image:
        """Opened and converted; raises `DataError` if it is damaged."""
        try:
            return to_rgb(self.dataset[index][0])
        except OSError as error:
            raise DataError(f"picture {index} cannot be read ({error})") from None


def ood_images(name: str, data: Path, limit: int) -> Images:
    """The images of an OOD set, at most `limit` of them, always the same.

    Raises:
        DataError: If there is no such set, or it cannot be read or downloaded.
    """
    folder = photo_folder(name, data)
    if folder is None and name not in OOD_SETS:
        raise DataError(
            f"{data}: holds no set {name!r} (looked for ood/{name} and {name}); other known sets: "
            f"{', '.join(OOD_SETS)}"
        )
    images = OOD_SETS[name](data) if folder is None else list_photos(folder)
    if len(images) <= limit:
        return images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:limit]
    order = chosen.sort().values.tolist()
    if isinstance(images, Opened):
        return Opened(torch.utils.data.Subset(images.dataset, order))
    return [images[i] for i in order]


def known_images(name: str, data: Path, split: str) -> KnownImages:
    """A split, "train" or "test", of a registered labelled set.

    Raises:
        DataError: If there is no such set, or it cannot be read or downloaded.
    """
    if name not in KNOWN_SETS:
        raise DataError(f"known: expected one of {', '.join(KNOWN_SETS)}, got {name!r}")
    return KNOWN_SETS[name](data, split)


def photo_folder(name: str, data: Path) -> Path | None:
    """The folder of photos that an OOD set is, or None for a registered one or none."""
    folders = [data / "ood" / name]
    if name not in OOD_SETS:  # a folder of that name may be what a download left
        folders += [data / name, Path(name)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _loaded(what: str, load: Callable[[bool], Any]) -> Any:
    """A torchvision data set from disk, or downloaded where it is missing."""
    try:
        return load(False)
    except (RuntimeError, OSError):  # what torchvision raises for files that are missing or differ
        pass
    try:
        return load(True)
    except Exception as error:  # network, disk, checksum: many types
        raise DataError(f"{what}: is not there and could not be downloaded ({error})") from None


def _torchvision(name: str, what: str, **options: Any) -> OodSet:
    def load(data: Path) -> Images:
        from torchvision import datasets

        kind = getattr(datasets, name)
        return Opened(_loaded(what, lambda download: kind(data, download=download, **options)))

    return load


def _textures(data: Path) -> Images:
    """All of DTD: the three parts of its first partition."""
    from torch.utils.data import ConcatDataset
    from torchvision import datasets

    def part(split: str) -> Any:
        return _loaded("Textures", lambda download: datasets.DTD(data, split, download=download))

    return Opened(ConcatDataset([part(split) for split in ("train", "val", "test")]))


def _archive(name: str, folder: str, source: Callable[[], tuple[str, str]]) -> OodSet:
    """Pictures in an archive, unpacked to `data/folder`; `source` gives its address and file name."""

    def load(data: Path) -> Images:
        if not (data / folder).is_dir():
            from torchvision.datasets.utils import download_and_extract_archive

            url, filename = source()
            try:
                # Beside its place first: half an archive would be taken for all of it ever after.
                (data / folder).parent.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(dir=data, prefix=".unpacking-") as scratch:
                    download_and_extract_archive(url, str(data), scratch, filename)
                    os.replace(Path(scratch, folder), data / folder)
            except Exception as error:  # network, disk, archive: many types
                raise DataError(
                    f"{name}: {data / folder} is not there, and {url} could not be downloaded "
                    f"({error}); unpack it there by hand"
                ) from None
        return list_photos(data / folder)

    return load


def _of_odin(name: str) -> Callable[[], tuple[str, str]]:
    def source() -> tuple[str, str]:
        try:
            from pytorch_ood.dataset import img
        except ImportError:
            raise MissingExtraError("pytorch-ood", "baselines", "its download address") from None
        kind = getattr(img, name)
        return kind.url, kind.filename

    return source


class _Noise(_Pictures):
    """Noise pictures, the same for everyone: picture i follows from i alone."""

    def __init__(self, draw: Callable[[np.random.Generator, tuple[int, ...]], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return _NOISE_IMAGES

    def picture(self, index: int) -> Image.Image:
        """Drawn from a generator of its own."""
        pixels = self.draw(np.random.default_rng(index), (_NOISE_SIDE, _NOISE_SIDE, 3))
        return Image.fromarray((255 * pixels).round().astype(np.uint8))


def _gaussian(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    # As in the code of the energy and VOS papers: standard deviation 0.5 on a scale from -1 to 1.
    return (random.normal(0, 0.5, shape).clip(-1, 1) + 1) / 2


def _cifar10(data: Path, split: str) -> KnownImages:
    """The package's arrays, or an archive `cifar10.tar.gz` of JPEG copies, whichever is there."""
    jpeg = data / "cifar10.tar.gz"
    if jpeg.is_file() and not (data / "cifar-10-batches-py").is_dir():
        return _pictures_in_tar(jpeg, f"cifar10/{split}")
    from torchvision import datasets

    return _cifar(datasets.CIFAR10, "CIFAR-10", data, split)


def _cifar100(data: Path, split: str) -> KnownImages:
    from torchvision import datasets

    return _cifar(datasets.CIFAR100, "CIFAR-100", data, split)


def _cifar(kind: Any, what: str, data: Path, split: str) -> KnownImages:
    found = _loaded(what, lambda download: kind(data, train=split == "train", download=download))
    return KnownImages(Opened(found), torch.tensor(found.targets), list(found.classes))


def _pictures_in_tar(path: Path, folder: str) -> KnownImages:
    """Pictures `folder/CLASS/NAME` of an archive, in order of their names; nothing is unpacked."""
    found: list[tuple[str, Image.Image]] = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not (member.isfile() and member.name.startswith(f"{folder}/")):
                    continue
                content = tar.extractfile(member)
                if content is None or member.size > 2**20:
                    raise DataError(f"{path}: {member.name} is no small picture")
                found.append((member.name, Image.open(BytesIO(content.read()))))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: not a readable archive of pictures ({error})") from None
    if not found:
        raise DataError(f"{path}: holds no picture in {folder}/<class>/")
    found.sort(key=lambda item: item[0])
    of_class = [name.split("/")[-2] for name, _ in found]
    classes = sorted(set(of_class))
    labels = torch.tensor([classes.index(name) for name in of_class])
    return KnownImages(Opened([(image,) for _, image in found]), labels, classes)


KNOWN_SETS: dict[str, Callable[[Path, str], KnownImages]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}

OOD_SETS: dict[str, OodSet] = {
    "uniform_noise": lambda data: _Noise(lambda random, shape: random.uniform(0, 1, shape)),
    "gaussian_noise": lambda data: _Noise(_gaussian),
    "cifar10": lambda data: _cifar10(data, "test").images,
    "cifar100": lambda data: _cifar100(data, "test").images,
    "svhn": _torchvision("SVHN", "SVHN", split="test"),
    "dtd": _textures,
    "places365": _torchvision("Places365", "Places365", split="val", small=True),
    "lsun_crop": _archive("LSUN (crop)", "LSUN/test", _of_odin("LSUNCrop")),
    "lsun_resize": _archive("LSUN (resize)", "LSUN_resize/LSUN_resize", _of_odin("LSUNResize")),
    "isun": _archive(
        "iSUN",
        "iSUN/iSUN_patches",
        # The address that the energy paper's code gives.
        lambda: ("https://www.dropbox.com/s/raw/ssz7qxfqae0cca5/iSUN.tar.gz", "iSUN.tar.gz"),
    ),
}
