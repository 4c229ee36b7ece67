"""The whole path on real photos, by the commands: a folder of cats and dogs, then unknown things."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import knownot
from tests.conftest import link_photos

pytestmark = pytest.mark.photos


def run(*args: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "knownot", *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(cats_dogs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "model"
    run("train", cats_dogs, "-o", folder, "--epochs", 60, "--device", "cpu")
    return folder


def test_cats_and_dogs_are_known_and_others_are_not(
    trained: Path, cats_dogs: Path, ood_photos: Path, tmp_path: Path
) -> None:
    summary = json.loads(
        run(
            "evaluate", trained, "--id", cats_dogs / "test",
            "--ood", ood_photos / "textures", ood_photos / "people",
            "-o", tmp_path / "report", "--json",
        )
    )  # fmt: skip
    assert summary["n_id"] == 80
    assert summary["id_acc"] > 0.9
    low, high = summary["flagged_id_interval"]
    assert low < 0.1
    assert high > 0.01
    for ood in summary["ood"].values():
        assert ood["n"] == 40
        assert ood["auroc"] > 0.97
        assert ood["flagged"] > 0.8
        # What the combination is for: never far from the best of its parts.
        assert ood["auroc"] >= max(s["auroc"] for s in ood["scores"].values()) - 0.02
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 1


def test_a_person_is_not_a_cat(trained: Path, ood_photos: Path, cats_dogs: Path) -> None:
    """The story the package starts from, through the interface in code."""
    model = knownot.load(trained)
    people = model.predict(sorted((ood_photos / "people").iterdir()))
    assert sum(answer.label == "unknown" for answer in people) > 30
    dogs = model.predict(sorted((cats_dogs / "test" / "dog").iterdir()))
    assert sum(answer.label == "dog" for answer in dogs) > 30


def test_fine_tuning_the_whole_network(cats_dogs: Path, tmp_path: Path) -> None:
    for split, count in (("train", 16), ("val", 24)):
        for name in ("cat", "dog"):
            link_photos(cats_dogs / split / name, tmp_path / "photos" / split / name, count)
    printed = run(
        "train", tmp_path / "photos", "-o", tmp_path / "model", "--finetune", "all", "--device", "cpu",
        "--image-size", 96, "--epochs", 3, "--batch-size", 8, "--workers", 1, "--json",
    )  # fmt: skip
    numbers = json.loads(printed)
    assert numbers["vos_started"]
    assert numbers["val_accuracy"] > 0.6
    answers = knownot.load(tmp_path / "model").predict(
        sorted((cats_dogs / "test" / "cat").iterdir())[:4]
    )
    assert all(0 < answer.p_value <= 1 for answer in answers)
