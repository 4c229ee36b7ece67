"""Exported models in 16 and 8 bits: what is converted, calibrated anew, and refused."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from knownot.data.detection_set import DetectionSet, Objects
from knownot.data.image_folder import names_digest
from knownot.errors import ConfigError, DataError, ExportError
from knownot.export.agreement import Agreement, check_agreement
from knownot.export.export import export_model
from knownot.export.precision import PrecisionName, halve_backbone, in_int8
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_folder import save
from knownot.runtime import OnnxClassifier, OnnxDetector
from knownot.training.recorded_photos import classifier_photos
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import (
    COLOURS,
    UNKNOWN_COLOUR,
    colour_folder,
    noisy,
    tiny_detector,
    tiny_model,
)


def files(root: Path, count: int, start: int = 0) -> list[Path]:
    return sorted(colour_folder(root, count, start).rglob("*.png"))


def record(model: Path, data: Path) -> None:
    """What a training leaves of where its photos are."""
    path = model / "training" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": str(data), "val_fraction": 0.2, "seed": 0}))


def kinds_of(path: Path) -> tuple[set[int], set[int]]:
    """Number formats of the weights of the backbone's convolutions, and of all around it."""
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    matrices = {
        k for name, k in kinds.items() if re.search(r"backbone\..*weight(_quantized)?$", name)
    }
    around = {k for name, k in kinds.items() if re.match(r"model\.(?!backbone)", name)}
    return matrices, around


FULL = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}


@pytest.mark.parametrize(
    ("precision", "anew", "kind"),
    [("float16", False, onnx.TensorProto.FLOAT16), ("int8", True, onnx.TensorProto.INT8)],
)
def test_the_backbone_alone_is_converted(
    precision: PrecisionName, anew: bool, kind: int, tmp_path: Path
) -> None:
    model = tiny_model()
    before = dict(model.calibrations)
    photos, path = files(tmp_path / "val", 30, start=500), tmp_path / "small.onnx"
    known = {"trained_on": files(tmp_path / "train", 10), "validated_on": photos}
    metadata = export_model(
        model, path, precision=precision, photos=photos, **(known if anew else {})
    )
    assert metadata.precision == precision
    assert metadata.parity["photos"] == len(photos)
    assert metadata.parity["calibrated_on"] == (len(photos) if anew else 0)
    assert model.calibrations == before
    matrices, around = kinds_of(path)
    assert matrices == {kind}
    assert around <= FULL

    exported = OnnxClassifier(path)
    new = files(tmp_path / "new", 20, start=900)
    for one, other in zip(model.predict(new), exported.predict(new), strict=True):
        assert one.nearest_class == other.nearest_class
        assert one.scores != other.scores
        assert other.scores["energy"] == pytest.approx(one.scores["energy"], abs=0.5)
    if anew:
        # Each validation photo's p-value is its own rank: by the scores of this file, no other.
        ranks = sorted(answer.p_value for answer in exported.predict(photos, score="knn"))
        assert ranks == pytest.approx(np.arange(2, len(photos) + 2) / (len(photos) + 1))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_model_that_reads_an_earlier_map_knows_the_unknown(
    precision: PrecisionName, tmp_path: Path
) -> None:
    model = tiny_model(architecture="test_resnet", earlier=True)
    photos, path = files(tmp_path / "val", 60, start=500), tmp_path / "small.onnx"
    known = {"trained_on": files(tmp_path / "train", 10), "validated_on": photos}
    metadata = export_model(model, path, precision=precision, photos=photos, **known)
    assert metadata.parity["unknown_exported"] > 0
    matrices, around = kinds_of(path)
    kind = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert kind in matrices
    assert around <= FULL
    blue = [noisy(UNKNOWN_COLOUR, i) for i in range(10)]
    assert all(answer.is_unknown for answer in model.predict(blue))
    assert all(answer.is_unknown for answer in OnnxClassifier(path).predict(blue))


def test_a_model_that_calls_nothing_unknown_any_more_is_refused(tmp_path: Path) -> None:
    photos = files(tmp_path / "val", 15)
    sound, deaf = tiny_model(), tiny_model()
    deaf.calibrations = {
        name: type(calibration)(calibration.scores + 1e6)
        for name, calibration in deaf.calibrations.items()
    }
    export_model(deaf, tmp_path / "deaf.onnx")
    with pytest.raises(ExportError, match=r"made-up photos.* calls 0 unknown"):
        check_agreement(sound, OnnxClassifier(tmp_path / "deaf.onnx"), photos)


def test_the_command_finds_the_photos_of_the_record(
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(architecture="test_resnet")
    model.classes.sort()  # as a training does; which of them is which plays no part
    model.alpha = 0.01  # few are near the threshold, on whatever processor
    save(model, tmp_path / "model")
    train, val = files(tmp_path / "data" / "train", 10), files(tmp_path / "data" / "val", 60, 500)
    record(tmp_path / "model", tmp_path / "data")
    command = (
        "export",
        tmp_path / "model",
        "-o",
        tmp_path / "small.onnx",
        "--precision",
        "float16",
    )
    few = knownot_command(*command, "--photos", train[0])
    assert (few.code, "needs 20 photos of the known classes or more" in few.err) == (1, True)
    done = knownot_command(*command)
    assert done.code == 0, done.err
    assert f"calibrated anew on {len(val)} validation photos" in done.out
    assert "of 120 photos of known classes" in done.out
    matrices, around = kinds_of(tmp_path / "small.onnx")
    # Its batch norms are folded where they could be; those that could not stay as they were.
    assert onnx.TensorProto.FLOAT16 in matrices
    assert around <= FULL

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    missing = knownot_command(*command)
    said = "error: the export needs onnxscript: pip install 'knownot[export]'"
    assert (missing.code, missing.err.strip()) == (1, said)


def test_a_file_that_answers_otherwise_is_refused(
    exported: dict[bool, tuple[UnknownAwareClassifier, Path]], tmp_path: Path
) -> None:
    model, path = exported[False]
    photos = files(tmp_path, 15)
    assert check_agreement(model, OnnxClassifier(path), photos).same == len(photos)
    wary = copy.deepcopy(model)
    wary.alpha = 0.9
    with pytest.raises(ExportError, match="of 30 photos of the known classes"):
        check_agreement(wary, OnnxClassifier(path), photos)


def test_what_answers_cannot_be_compared_on_is_told(
    exported: dict[bool, tuple[UnknownAwareClassifier, Path]], tmp_path: Path
) -> None:
    model, exported_path = exported[False]
    path = tmp_path / "small.onnx"
    for photos in ([], files(tmp_path / "few", 2)):
        with pytest.raises(DataError, match=f"known classes or more.* found {len(photos)} "):
            export_model(model, path, precision="float16", photos=photos)
    with pytest.raises(DataError, match="0 of 25 can be read, and fewer than 20"):
        check_agreement(model, OnnxClassifier(exported_path), [tmp_path / "none.png"] * 25)
    with pytest.raises(ConfigError, match=r"torch\.export program is exported in float32 only"):
        export_model(model, tmp_path / "small.pt2", form="torch", precision="int8")
    assert not list(tmp_path.glob("*small*"))


def test_the_record_tells_what_photos_a_classifier_saw(tmp_path: Path) -> None:
    data = tmp_path / "data"
    train, val = files(data / "train", 50), files(data / "val", 5, start=50)
    record(tmp_path / "model", data)
    some, held_out = classifier_photos(tmp_path / "model", sorted(COLOURS))
    assert 32 <= len(some) <= 64
    assert set(some) < set(train)
    assert held_out == val
    numbers = tmp_path / "model" / "training" / "metrics.json"
    numbers.write_text(json.dumps({"val_digest": names_digest(val[1:], data)}))
    (numbers.parent / "skipped.json").write_text(json.dumps({str(val[0]): "unreadable"}))
    assert classifier_photos(tmp_path / "model", sorted(COLOURS)) == (some, val)
    (data / "val" / "red" / "new.png").write_bytes(val[0].read_bytes())
    assert classifier_photos(tmp_path / "model", sorted(COLOURS)) == ([], [])
    numbers.unlink()
    assert classifier_photos(tmp_path / "model", ["cat", "dog"]) == ([], [])
    assert classifier_photos(tmp_path, sorted(COLOURS)) == ([], [])


Pair = tuple[UnknownAwareDetector, Path]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(24)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(path)
    return paths


def shown(model: UnknownAwareDetector, photos: list[Path]) -> DetectionSet:
    """The photos, with what the detector shows in them for annotations."""
    objects = []
    for answer in model.predict(photos):
        boxes = torch.tensor([box.box for box in answer.boxes])
        labels = torch.tensor([model.classes.index(box.nearest_class) for box in answer.boxes])
        objects.append(Objects(boxes, labels, torch.zeros(len(labels)).bool()))
    return DetectionSet(photos, objects, model.classes)


def test_a_detector_in_float16(tmp_path: Path, noise: list[Path]) -> None:
    model, path = tiny_detector(), tmp_path / "half.onnx"
    photos = shown(model, noise)
    metadata = export_model(model, path, precision="float16", photos=noise, validated_on=photos)
    assert (metadata.task, metadata.precision) == ("detect", "float16")
    gate = metadata.parity
    assert (gate["photos"], gate["calibrated_on"]) == (24, 24)
    assert gate["answers"] > 24
    assert gate["same"] >= 0.95 * gate["answers"]
    matrices, around = kinds_of(path)
    assert onnx.TensorProto.FLOAT16 in matrices
    assert around <= FULL

    # Calibrated on the boxes that find what is annotated, which here is what float32 shows: their
    # p-values are evenly spread ranks.
    assert metadata.calibration is not None
    found = sum(metadata.calibration.histograms["energy"].counts)
    annotated = sum(len(objects.labels) for objects in photos.objects)
    assert 0.9 * gate["same_class"] <= found <= annotated
    answers = OnnxDetector(path).predict(noise, score="energy", alpha=1e-9)
    ranks = [box.p_value for answer in answers for box in answer.boxes]
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.05)


def test_a_detector_in_int8(exported_detector: Pair, noise: list[Path], tmp_path: Path) -> None:
    graph = in_int8(
        exported_detector[1].read_bytes(), ({"photo": np.array(Image.open(p))} for p in noise)
    )
    (tmp_path / "small.onnx").write_bytes(graph)
    matrices, around = kinds_of(tmp_path / "small.onnx")
    assert matrices == {onnx.TensorProto.INT8}
    assert around <= FULL
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    boxes = session.run(["boxes"], {"photo": np.array(Image.open(noise[0]))})[0]
    assert len(boxes) > 0


def test_boxes_are_counted_that_only_one_of_two_shows(
    exported_detector: Pair, noise: list[Path]
) -> None:
    model, path = exported_detector
    agreement = check_agreement(model, OnnxDetector(path), noise)
    assert agreement.same == agreement.same_class == agreement.answers > agreement.photos == 24
    answer = model.predict(noise[0])[0].boxes
    fewer = Agreement()
    fewer.compare_boxes(answer, answer[1:], model.classes)
    fewer.compare_boxes(answer[1:], answer, model.classes)
    assert (fewer.answers, fewer.same) == (2 * len(answer), 2 * len(answer) - 2)
    assert fewer.unknown == fewer.unknown_exported
    eager = copy.deepcopy(model)
    eager.box_threshold /= 2
    with pytest.raises(ExportError, match=r"boxes on the known classes get the label"):
        check_agreement(eager, OnnxDetector(path), noise)


def test_frozen_norms_are_halved_as_well() -> None:
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    for values in norm.buffers():
        values.uniform_(0.5, 1.5)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 5, 1))
    photos, graph = torch.rand(2, 3, 9, 9), nn.Module()
    expected = backbone(photos)
    graph.model = nn.Module()
    graph.model.backbone = backbone
    halve_backbone(graph)
    found = graph.model.backbone(photos)
    assert found.dtype == torch.float32
    assert backbone[2].weight.dtype == torch.float16
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    assert not torch.equal(found, expected)
