"""Where the shared photos are, and small photo folders cut from them."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Several test processes with several threads each wait for one another: before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine is no failure.
settings.register_profile("knownot", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("knownot")


def _shared_photos() -> Path | None:
    named = os.environ.get("KNOWNOT_DATA")
    if named:
        return Path(named)
    beside = Path(__file__).parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def _dear(file: Path) -> str | None:
    """What a file's tests share that takes long to make: a trained detector, exported models."""
    if "detector_folder" in file.read_text(encoding="utf-8"):
        return "detector"
    return "exported" if file.parent.name in ("export", "runtime", "scale", "serve") else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes (`-n`) one runs all tests of a file, and of files that share a dear thing."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return _dear(config.rootpath / file) or file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes longest begins first.
    first = {path: _dear(path) or "later" for path in {item.path for item in items}}
    items.sort(key=lambda item: first[item.path])
    photos = _shared_photos()
    if photos is not None and (photos / "cats_dogs").is_dir():
        return
    where = "KNOWNOT_DATA is not set" if photos is None else f"{photos} holds no cats_dogs"
    reason = f"needs the shared photos: {where}"
    if os.environ.get("KNOWNOT_REQUIRE_PHOTOS"):
        raise pytest.UsageError(reason)
    for item in items:
        if "photos" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws does not depend on the tests before it in its process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared photos; only for tests marked `photos`."""
    photos = _shared_photos()
    assert photos is not None
    return photos


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of backbone features for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell that starts the tests in the background makes them, and their children, deaf to it."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(feature_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("KNOWNOT_CACHE", str(feature_cache))
        yield


def link_photos(source: Path, target: Path, count: int, start: int = 0) -> None:
    """Copy `count` photos of a folder, in order of their names."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jpg"))[start : start + count]:
        shutil.copy2(path, target / path.name)


@pytest.fixture(scope="session")
def cats_dogs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cats-and-dogs set: 60 + 60 for training, 60 + 60 for validation, 40 + 40 to test."""
    root = tmp_path_factory.mktemp("cats_dogs")
    for split, count in (("train", 60), ("val", 60), ("test", 40)):
        for name in ("cat", "dog"):
            link_photos(shared_data / "cats_dogs" / split / name, root / split / name, count)
    return root


@pytest.fixture(scope="session")
def ood_photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty textures and forty people."""
    root = tmp_path_factory.mktemp("ood")
    for name in ("textures", "people"):
        link_photos(shared_data / "ood" / name, root / name, 40)
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small rendered scenes with COCO annotations: four known shapes, three held-out ones."""
    from knownot.demo.scenes import write_scenes

    root = tmp_path_factory.mktemp("scenes") / "scenes"
    return write_scenes(root, train=96, val=40, test=40, ood=24, side=96)


@pytest.fixture(scope="session")
def detector_folder(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector trained on the scenes for a minute or two; do not write into it."""
    from knownot.training.config import DetectionConfig
    from knownot.training.train_detector import train_detector

    output = tmp_path_factory.mktemp("detector") / "model"
    config = DetectionConfig(
        data=scenes, output=output, image_size=128, epochs=8, batch_size=2, device="cpu"
    )
    return train_detector(config).folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Any, Path]]:
    """A small classifier and its ONNX file, by whether calibration is by class.

    The second file says, too, which training photos are the nearest.
    """
    from knownot.export.export import export_model
    from tests.helpers import tiny_model

    pairs = {}
    for classwise in (False, True):
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        pairs[classwise] = (tiny_model(classwise), path)
        export_model(*pairs[classwise], nearest=classwise)
    return pairs


@pytest.fixture
def exported_file(exported: dict[bool, tuple[Any, Path]]) -> Path:
    """The ONNX file of a small classifier that knows red from green; do not write to it."""
    return exported[False][1]


@pytest.fixture(scope="session")
def exported_detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small detector and its ONNX file; tracing takes some seconds. Do not write to it."""
    from knownot.export.export import export_model
    from tests.helpers import tiny_detector

    path = tmp_path_factory.mktemp("exported_detector") / "detector.onnx"
    model = tiny_detector()
    export_model(model, path)
    return model, path
