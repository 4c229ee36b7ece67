"""Exported classifiers in 16 and 8 bits: what is converted, calibrated anew, and refused."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from knownot.errors import ConfigError, DataError, ExportError
from knownot.export.agreement import check_agreement
from knownot.export.export import export_model
from knownot.export.precision import PrecisionName
from knownot.export.recorded_photos import classifier_photos
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import save
from knownot.runtime import OnnxClassifier
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import COLOURS, colour_folder, tiny_model


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
    assert classifier_photos(tmp_path / "model", ["cat", "dog"]) == ([], [])
    assert classifier_photos(tmp_path, sorted(COLOURS)) == ([], [])
