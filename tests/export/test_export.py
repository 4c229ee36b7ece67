"""Exported classifiers: the same answers, whole files or none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import knownot
from knownot.core.combination import CombinedScore
from knownot.errors import ConfigError, DataError, ExportError, ModelFileError
from knownot.export.export import export_model
from knownot.export.parity import TOLERANCE, Parity, check_parity, generated_photos
from knownot.export.torch_program import load_program
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.prediction import Prediction
from knownot.runtime import OnnxClassifier
from knownot.training.config import make_config
from knownot.training.train import train
from tests.helpers import COLOURS, SIZE, UNKNOWN_COLOUR, colour_folder, noisy, tiny_model

PHOTOS = [noisy(colour, 900 + i) for i in range(4) for colour in COLOURS.values()]
PHOTOS += [noisy(UNKNOWN_COLOUR, i) for i in range(4)]


@pytest.fixture(params=[False, True], ids=["pooled", "classwise"])
def pair(
    request: pytest.FixtureRequest, exported: dict[bool, tuple[UnknownAwareClassifier, Path]]
) -> tuple[UnknownAwareClassifier, Path]:
    """A small model and its export."""
    return exported[request.param]


def test_answers_are_the_models_own(pair: tuple[UnknownAwareClassifier, Path]) -> None:
    model, path = pair
    exported = OnnxClassifier(path)
    for options in ({}, {"score": "knn"}, {"alpha": 0.3}, {"score": "energy", "batch_size": 3}):
        expected, found = model.predict(PHOTOS, **options), exported.predict(PHOTOS, **options)
        for one, other in zip(expected, found, strict=True):
            assert (one.label, one.is_unknown, one.nearest_class) == (
                other.label,
                other.is_unknown,
                other.nearest_class,
            )
            # Features of this small network have collapsed, and distances magnify their last digits,
            # by which two of 60 calibration photos may change places; real photos below are held to
            # 1e-4.
            assert other.p_value == pytest.approx(one.p_value, abs=1.5 / 61)
            assert other.ood_score == pytest.approx(one.ood_score, abs=3e-4, rel=3e-4)
            assert other.confidence == pytest.approx(one.confidence, abs=1e-5)
            assert other.scores == pytest.approx(one.scores, abs=3e-4, rel=3e-4)
    assert {answer.is_unknown for answer in exported.predict(PHOTOS)} == {True, False}


def test_the_graph_alone_takes_photos_of_any_size(
    pair: tuple[UnknownAwareClassifier, Path],
) -> None:
    model, path = pair
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for _, image in generated_photos(SIZE):
        pixels = np.array(image)
        names = ["class_index", "ood_score", "p_value", "is_unknown"]
        k, score, p, unknown = session.run(names, {"photos": pixels[None]})
        (expected,) = model.predict(image)
        assert (model.classes[k[0]], unknown[0]) == (expected.nearest_class, expected.is_unknown)
        assert p[0] == expected.p_value
        assert score[0] == pytest.approx(expected.ood_score, abs=3e-4, rel=3e-4)


def test_the_file_tells_what_it_holds(pair: tuple[UnknownAwareClassifier, Path]) -> None:
    model, path = pair
    metadata = OnnxClassifier(path).metadata
    assert metadata.classes == model.classes
    assert metadata.scores == list(model.calibrations)
    assert (metadata.alpha, metadata.default_score) == (model.alpha, "combined")
    assert metadata.threshold == model.threshold()
    assert metadata.classwise == model.classwise
    assert metadata.image_size == SIZE
    assert metadata.versions["knownot"] == knownot.__version__
    assert metadata.parity["photos"] == len(list(generated_photos(SIZE)))
    assert metadata.parity["max_relative"] <= metadata.parity["tolerance"] == 1e-4


def test_another_model_is_told_apart(pair: tuple[UnknownAwareClassifier, Path]) -> None:
    _, path = pair
    with pytest.raises(ExportError, match=r"differently in \d+ of \d+ cases.*noise 0, 1 x 1"):
        check_parity(tiny_model(seed=1), OnnxClassifier(path))


def test_a_shift_of_one_score_is_told(pair: tuple[UnknownAwareClassifier, Path]) -> None:
    model, path = pair
    exported = OnnxClassifier(path)
    bank = model.feature_scores.bank
    original = bank.clone()
    try:
        bank += 0.02
        with pytest.raises(ExportError, match="knn"):
            check_parity(model, exported)
    finally:
        bank.copy_(original)
    check_parity(model, exported)


def test_a_steep_combined_score_is_held_against_what_its_own_parts_make() -> None:
    """Where held-out scores lie close together, the last digit of a part moves it by a thousandth."""
    model = tiny_model()
    model.combined = CombinedScore(["vos"]).fit({"vos": torch.linspace(0, 1e-3, 100)})

    def answer(vos: float, combined: float | None = None) -> Prediction:
        own = float(model.combined({"vos": torch.tensor([vos])}))
        scores = {"vos": vos, "combined": own if combined is None else combined}
        return replace(Prediction.failed(""), ood_score=scores["combined"], scores=scores)

    first, moved = answer(1e-3), answer(1e-3 + 2e-7)
    assert abs(first.ood_score / moved.ood_score - 1) > 2 * TOLERANCE
    parity = Parity.of(model)
    parity.compare("a", first, moved)
    assert not parity.differences
    assert parity.max_relative <= TOLERANCE < parity.max_difference
    for other in (
        answer(1e-3 + 2e-7, 1.001 * moved.ood_score),  # combined in another way
        answer(3e-3),  # another part
        replace(moved, label="red"),
        answer(1e-3, math.nan),
    ):
        parity = Parity.of(model)
        parity.compare("a", first, other)
        assert parity.differences


def test_a_torch_program_answers_alike(tmp_path: Path) -> None:
    model = tiny_model(classwise=True)
    path = tmp_path / "model.pt2"
    metadata = export_model(model, path, form="torch")
    assert metadata.parity["answers"] == 2 * len(list(generated_photos(SIZE)))
    exported = load_program(path)
    assert exported.metadata == metadata
    for one, other in zip(model.predict(PHOTOS), exported.predict(PHOTOS), strict=True):
        assert (one.label, one.p_value) == (other.label, other.p_value)


class Restless(nn.Module):
    """A backbone that never answers twice the same."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.backbone(images), 0.5, training=True)


def test_a_model_whose_answers_differ_leaves_no_file(tmp_path: Path) -> None:
    model = tiny_model()
    model.backbone = Restless(model.backbone)
    with pytest.raises(ExportError, match="was not kept"):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_told_before_the_work(tmp_path: Path) -> None:
    model = tiny_model()
    taken = tmp_path / "taken.onnx"
    taken.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        export_model(model, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(DataError, match="is a folder"):
        export_model(model, tmp_path)
    model.calibrations = {}
    with pytest.raises(ModelFileError, match="not calibrated"):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == [taken]


def test_photos_to_compare_on_must_be_photos(
    pair: tuple[UnknownAwareClassifier, Path], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_text("no photo")
    with pytest.raises(DataError, match="none of the 1 can be read"):
        check_parity(pair[0], OnnxClassifier(pair[1]), [tmp_path / "a.jpg"])


@pytest.mark.photos
def test_a_pretrained_backbone_answers_alike_on_real_photos(
    cats_dogs: Path, ood_photos: Path, tmp_path: Path
) -> None:
    settings = {"data": cats_dogs, "output": tmp_path / "model", "epochs": 5, "device": "cpu"}
    train(make_config(settings))
    model = knownot.load(tmp_path / "model")
    photos = sorted([*(cats_dogs / "test").rglob("*.jpg"), *ood_photos.rglob("*.jpg")])[::4]
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos[0].read_bytes()[:500])
    metadata = export_model(model, tmp_path / "model.onnx", photos=[*photos, torn])
    assert metadata.parity["given"] == len(photos)
    answers = OnnxClassifier(tmp_path / "model.onnx").predict([*photos, torn])
    assert answers[-1].error is not None
    assert "torn.jpg" in answers[-1].error
    for one, other in zip(model.predict(photos), answers[:-1], strict=True):
        assert (one.path, one.label) == (other.path, other.label)


def test_photos_that_are_no_files(pair: tuple[UnknownAwareClassifier, Path]) -> None:
    model, path = pair
    image = PHOTOS[0].convert("L")
    kinds = [image, np.array(image), torch.from_numpy(np.array(image))[None], [image]]
    labels = [OnnxClassifier(path).predict(kind)[0].ood_score for kind in kinds]
    assert len(set(labels)) == 1
    assert labels[0] == pytest.approx(model.predict(image)[0].ood_score, abs=1e-4, rel=1e-4)
    with pytest.raises(ConfigError, match="score: expected one of"):
        OnnxClassifier(path).predict(image, score="max")
    with pytest.raises(ConfigError, match="alpha"):
        OnnxClassifier(path).predict(image, alpha=5)
    for size in (0, -1):
        with pytest.raises(ConfigError, match="batch_size: expected at least 1"):
            OnnxClassifier(path).predict([image] * 3, batch_size=size)
    assert "photo: expected" in str(OnnxClassifier(path).predict([3])[0].error)


def test_a_folder_of_files_is_predicted_in_order(
    pair: tuple[UnknownAwareClassifier, Path], tmp_path: Path
) -> None:
    _, path = pair
    files = sorted(colour_folder(tmp_path, 10).rglob("*.png"))
    (tmp_path / "empty.png").touch()
    files.insert(3, tmp_path / "empty.png")
    answers = OnnxClassifier(path).predict(files, batch_size=4)
    assert [answer.path for answer in answers] == [str(file) for file in files]
    assert [bool(answer.error) for answer in answers].index(True) == 3
