"""Image sets as folders of photos of one small size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knownot.benchmark.config import BenchmarkConfig
from knownot.benchmark.run import run_benchmark
from knownot.benchmark.scaled_photos import ScaledPhotos
from knownot.benchmark.workplace import Silent, Workplace
from tests.helpers import UNKNOWN_COLOUR, cifar_tar, noisy


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.texts.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    cifar_tar(root / "cifar10.tar.gz", {"train": 60, "test": 20})
    (root / "ood" / "blue").mkdir(parents=True)
    for i in range(12):
        noisy(UNKNOWN_COLOUR, i).resize((50, 40 + i)).save(root / "ood" / "blue" / f"{i:02}.png")
    (root / "ood" / "blue" / "damaged.png").write_bytes(b"no picture")
    return root


def place(data: Path, output: Path, said: Said | None = None) -> Workplace:
    settings = {"image_size": 32, "epochs": 20, "batch_size": 16, "device": "cpu"}
    config = BenchmarkConfig(
        name="scaled",
        about="Two colours",
        known="cifar10",
        training={"recipe": "photos", "pixels": 16, "settings": settings},
        methods={"vos": ["combined"]},
        far=["blue", "uniform_noise"],
        seeds=[0],
        max_images=20,
        replicates=50,
    )
    return Workplace(config, data, output, output / "cache", said or Silent())


def test_all_sets_are_scaled_alike_and_damaged_images_are_told(data: Path, tmp_path: Path) -> None:
    said = Said()
    scaled = ScaledPhotos(place(data, tmp_path, said), 16)
    root = scaled.known()
    counts = {split: len(list((root / split).rglob("*.png"))) for split in ("train", "val", "test")}
    assert counts == {"train": 108, "val": 12, "test": 40}
    blue = scaled.ood("blue")
    assert len(blue) == 12
    assert len(said.texts) == 1
    assert "damaged.png" in said.texts[0]
    sizes = {Image.open(path).size for path in [*blue, *root.rglob("*.png")]}
    assert sizes == {(16, 16)}
    # In place of its first image, which would be the same were it written again.
    np.testing.assert_allclose(np.array(Image.open(blue[0])).mean((0, 1)), UNKNOWN_COLOUR, atol=12)
    blue[0].write_bytes(b"")
    assert scaled.ood("blue") == blue
    assert blue[0].stat().st_size == 0


def test_validation_images_are_the_same_for_everyone(data: Path, tmp_path: Path) -> None:
    names = [
        sorted(
            p.name
            for p in (ScaledPhotos(place(data, tmp_path / o), 16).known() / "val").rglob("*.png")
        )
        for o in ("one", "other")
    ]
    assert names[0] == names[1]


def test_a_benchmark_runs_on_them(data: Path, tmp_path: Path) -> None:
    result = run_benchmark(place(data, tmp_path))
    accuracy = result.summary.line("vos", "", "known", "accuracy")
    assert accuracy is not None
    assert accuracy.mean > 0.9
    rate = result.summary.line("vos", "combined", "mean", "fpr95")
    assert rate is not None
    assert rate.mean < 0.5
