"""Sets that are downloaded, from small files in their own formats; noise; what is missing."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from knownot.benchmark import image_sets
from knownot.benchmark.image_sets import Opened, _archive, known_images, ood_images
from knownot.errors import DataError
from tests.helpers import UNKNOWN_COLOUR, cifar_tar, colour_folder, noisy

RANDOM = np.random.default_rng(0)


def pixels_of(image) -> np.ndarray:
    return np.array(image if isinstance(image, Image.Image) else Image.open(image).convert("RGB"))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def save_pictures(folder: Path, count: int, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noisy(UNKNOWN_COLOUR, i).save(folder / f"{i}.{suffix}")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once, here as for a user without a network."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def test_svhn_is_read_from_its_matlab_file(tmp_path: Path, monkeypatch) -> None:
    from scipy.io import savemat

    images = RANDOM.integers(0, 255, (32, 32, 3, 5), dtype=np.uint8)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": images, "y": np.arange(5)[:, None]})
    # torchvision compares checksums: these are the small file's.
    monkeypatch.setitem(
        datasets.SVHN.split_list, "test", ["http://127.0.0.1", file.name, md5(file)]
    )
    found = ood_images("svhn", tmp_path, 10)
    assert len(found) == 5
    np.testing.assert_array_equal(pixels_of(found[3]), images[..., 3])


def test_dtd_is_all_three_parts(tmp_path: Path) -> None:
    folder = tmp_path / "dtd" / "dtd"
    save_pictures(folder / "images" / "dotted", 6, "jpg")
    (folder / "labels").mkdir()
    for i, split in enumerate(("train", "val", "test")):
        lines = f"dotted/{2 * i}.jpg\ndotted/{2 * i + 1}.jpg\n"
        (folder / "labels" / f"{split}1.txt").write_text(lines)
    found = ood_images("dtd", tmp_path, 10)
    assert len(found) == 6
    expected = pixels_of(folder / "images" / "dotted" / "4.jpg")
    np.testing.assert_array_equal(pixels_of(found[4]), expected)


def test_places365_is_its_small_validation_part(tmp_path: Path, monkeypatch) -> None:
    save_pictures(tmp_path / "val_256", 3, "jpg")
    names = {
        "categories_places365.txt": "/a/airfield 0\n",
        "places365_val.txt": "0.jpg 0\n2.jpg 0\n",
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    kind, (first, second) = datasets.Places365, names
    monkeypatch.setattr(kind, "_CATEGORIES_META", (first, md5(tmp_path / first)))
    monkeypatch.setitem(kind._FILE_LIST_META, "val", (second, md5(tmp_path / second)))
    found = ood_images("places365", tmp_path, 10)
    assert len(found) == 2
    np.testing.assert_array_equal(pixels_of(found[1]), pixels_of(tmp_path / "val_256" / "2.jpg"))


def test_cifar100_is_its_pickles_test_part(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rows = RANDOM.integers(0, 255, (4, 3 * 32 * 32), dtype=np.uint8)
    content = {"train": None, "test": {"data": rows, "fine_labels": [1, 0, 1, 0]}}
    content["meta"] = {"fine_label_names": ["apple", "bear"]}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
    kind = datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(kind, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setitem(kind.meta, "md5", md5(folder / "meta"))
    found = ood_images("cifar100", tmp_path, 10)
    np.testing.assert_array_equal(
        pixels_of(found[2]), rows[2].reshape(3, 32, 32).transpose(1, 2, 0)
    )
    known = known_images("cifar100", tmp_path, "test")
    assert known.labels.tolist() == [1, 0, 1, 0]
    assert known.classes == ["apple", "bear"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lsun_crop", "LSUN/test"),
        ("lsun_resize", "LSUN_resize/LSUN_resize"),
        ("isun", "iSUN/iSUN_patches"),
    ],
)
def test_archives_are_folders_of_pictures(tmp_path: Path, name: str, folder: str) -> None:
    save_pictures(tmp_path / folder, 3)
    assert [Path(str(p)).name for p in ood_images(name, tmp_path, 10)] == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_half_an_archive_is_not_taken_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    source = tmp_path / "source"
    save_pictures(source / "iSUN" / "iSUN_patches", 5)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "isun.tar.gz", "w:gz") as tar:  # as downloaded before
        tar.add(source / "iSUN", "iSUN")
    unpack = utils.extract_archive

    def interrupted(archive: str, to: str, *more: object) -> None:
        save_pictures(Path(to) / "iSUN" / "iSUN_patches", 2)
        raise KeyboardInterrupt

    load = _archive("isun", "iSUN/iSUN_patches", lambda: ("https://none.invalid", "isun.tar.gz"))
    monkeypatch.setattr(utils, "extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "data")
    monkeypatch.setattr(utils, "extract_archive", unpack)
    assert len(load(tmp_path / "data")) == len(load(tmp_path / "data")) == 5
    assert not list((tmp_path / "data").glob(".unpacking*"))


def test_cifar10_is_read_from_its_archive_without_unpacking(tmp_path: Path) -> None:
    cifar_tar(tmp_path / "cifar10.tar.gz", {"train": 3, "test": 2})
    known = known_images("cifar10", tmp_path, "train")
    assert known.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert known.classes == ["green", "red"]
    assert pixels_of(known.images[0]).mean((0, 1)).argmax() == 1
    assert pixels_of(known.images[5]).mean((0, 1)).argmax() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10.tar.gz"]


@pytest.mark.parametrize("content", [b"", b"no archive", "truncated"])
def test_a_damaged_archive_is_named(tmp_path: Path, content) -> None:
    file = tmp_path / "cifar10.tar.gz"
    if content == "truncated":
        cifar_tar(file, {"train": 20})
        content = file.read_bytes()[:3000]
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cifar10\.tar\.gz: (not a readable|holds no)"):
        known_images("cifar10", tmp_path, "train")


def test_noise_is_the_same_for_everyone_and_of_its_law(tmp_path: Path) -> None:
    uniform, gaussian = (ood_images(f"{n}_noise", tmp_path, 50) for n in ("uniform", "gaussian"))
    assert len(uniform) == len(gaussian) == 50
    assert not np.array_equal(pixels_of(uniform[0]), pixels_of(uniform[1]))
    np.testing.assert_array_equal(
        pixels_of(uniform[7]), pixels_of(ood_images("uniform_noise", tmp_path, 50)[7])
    )
    spread = np.stack([pixels_of(image) for image in uniform]).std()
    assert spread == pytest.approx(255 / np.sqrt(12), rel=0.02)
    values = np.stack([pixels_of(image) for image in gaussian])
    assert (values == 0).mean() == pytest.approx(0.0228, abs=0.005)  # two deviations below
    assert values.mean() == pytest.approx(127.5, abs=1)


def test_a_limit_chooses_the_same_images_from_the_whole_set(tmp_path: Path) -> None:
    save_pictures(tmp_path / "ood" / "blue", 30)
    some = ood_images("blue", tmp_path, 10)
    assert some == ood_images("blue", tmp_path, 10)
    assert len(set(some)) == 10
    assert max(int(Path(str(p)).stem) for p in some) > 15


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", ["svhn", "isun", "lsun_crop", "cifar100"])
def test_what_is_missing_and_cannot_be_had_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not there"):
        ood_images(name, tmp_path, 10)


def test_a_folder_of_ones_own_comes_before_a_registered_set(tmp_path: Path) -> None:
    colour_folder(tmp_path / "ood" / "svhn", 2)
    assert len(ood_images("svhn", tmp_path, 100)) == 4


def test_an_unknown_set_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no set 'blu'.*svhn"):
        ood_images("blu", tmp_path, 10)
    with pytest.raises(DataError, match="known: expected one of cifar10, cifar100"):
        known_images("mnist", tmp_path, "train")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    save_pictures(tmp_path / "kind", 2, "jpg")
    torn = tmp_path / "kind" / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    images = Opened(datasets.ImageFolder(str(tmp_path)))
    assert images[0].size == (32, 32)
    with pytest.raises(DataError, match=r"picture 1 cannot be read .*truncated"):
        images[1]


def test_limits_keep_lazy_sets_lazy(tmp_path: Path) -> None:
    class Counting(torch.utils.data.Dataset):
        opened = 0

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int):
            Counting.opened += 1
            return noisy(UNKNOWN_COLOUR, index), 0

    image_sets.OOD_SETS["counting"] = lambda data: image_sets.Opened(Counting())
    try:
        found = ood_images("counting", tmp_path, 5)
        assert (len(found), Counting.opened) == (5, 0)
        assert pixels_of(found[4]).shape == (32, 32, 3)
        assert Counting.opened == 1
    finally:
        del image_sets.OOD_SETS["counting"]
