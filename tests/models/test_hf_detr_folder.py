"""A DETR in a model folder: the same answers as before saving, nothing downloaded."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import knownot
from knownot.cli.main import app
from knownot.errors import KnownotError
from knownot.evaluation.evaluate_detector import evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_folder import save
from tests.models.tiny_detr import CLASSES, calibrated_detector, scene


@pytest.fixture(scope="module")
def model() -> UnknownAwareDetector:
    # As `load` has it: another order of sums would move the last digits.
    return calibrated_detector().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def folder(model: UnknownAwareDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("detr") / "model")


def write(image: Tensor, path: Path) -> Path:
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)
    return path


def coco(folder: Path, seeds: range) -> Path:
    """The scenes with their boxes, as validation photos."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    photos, boxes = [], []
    for seed in seeds:
        image, target = scene(seed)
        write(image, folder / "images" / f"{seed}.png")
        photos.append({"id": seed, "file_name": f"{seed}.png", "width": 64, "height": 64})
        for (x, y, right, below), label in zip(
            target["boxes"].tolist(), target["labels"].tolist(), strict=True
        ):
            box = {"bbox": [x, y, right - x, below - y], "area": (right - x) * (below - y)}
            box |= {"id": len(boxes) + 1, "image_id": seed, "category_id": label, "iscrowd": 0}
            boxes.append(box)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": photos, "annotations": boxes, "categories": categories}
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    return folder


def test_answers_and_figures_are_those_before_saving(
    model: UnknownAwareDetector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("a model folder needs no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    again = knownot.load(folder)
    assert isinstance(again, UnknownAwareDetector)
    photos = [scene(200, 50, 90)[0], scene(201)[0]]
    answers = model.predict(photos)
    assert any(answer.boxes for answer in answers)
    assert again.predict(photos) == answers
    known = coco(tmp_path / "known", range(300, 306))
    noise = tmp_path / "noise"
    noise.mkdir()
    write(torch.rand(3, 64, 64), noise / "a.png")
    before, after = (evaluate_detector(m, known, [noise]).summary for m in (model, again))
    assert after == before


def test_a_saved_folder_predicts_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    photo = write(scene(200)[0], tmp_path / "scene.png")
    done = CliRunner().invoke(app, ["predict", str(folder), str(photo), "--format", "jsonl"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["boxes"]
    told = CliRunner().invoke(app, ["info", str(folder)])
    assert "DETR on test_resnet" in told.output


def test_the_folder_holds_no_path_of_its_maker(model: UnknownAwareDetector) -> None:
    model.regions.model.config.name_or_path = "/home/maker/detr"
    assert "/home/maker" not in json.dumps(model.regions.describe())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"test_resnet"', '"hf-hub:stranger/net"', "timm has no model"),
        ('"timm_backbone"', '"stranger"', "transformers cannot build it"),
        ('"d_model": 16', '"d_model": 32', "has shape"),
        ('"d_model": 16', '"d_model": "wide"', "transformers cannot build it"),
        ('"backbone_config"', '"backbone"', "expected a backbone_config"),
        ('"score_threshold": 0.05', '"score_threshold": 2', "score_threshold"),
        ('"hf_detr"', '"regions"', "no 'regions' in this version"),
        ('"hf_detr"', '"faster_rcnn"', "no 'faster_rcnn' in this version"),
        ('"hf_detr"', '"../hf_detr"', "adapter"),
    ],
)
def test_a_folder_that_lies_is_refused(
    folder: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    lying = tmp_path / "lying"
    lying.mkdir()
    for file in folder.iterdir():
        (lying / file.name).symlink_to(file)
    text = (folder / "config.json").read_text()
    assert old in text
    (lying / "config.json").unlink()
    (lying / "config.json").write_text(text.replace(old, new))
    with pytest.raises(KnownotError, match=message):
        knownot.load(lying)
