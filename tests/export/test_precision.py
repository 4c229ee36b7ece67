"""Exported classifiers in 16 and 8 bits: what is converted, calibrated anew, and refused."""

from __future__ import annotations

import copy
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
from knownot.runtime import OnnxClassifier
from tests.helpers import COLOURS, colour_folder, tiny_model


def files(root: Path, count: int, start: int = 0) -> list[Path]:
    return sorted(colour_folder(root, count, start).rglob("*.png"))


@pytest.mark.parametrize(
    ("precision", "suffix", "kind"),
    [("float16", "", onnx.TensorProto.FLOAT16), ("int8", "_quantized", onnx.TensorProto.INT8)],
)
def test_the_backbone_alone_is_converted(
    precision: PrecisionName, suffix: str, kind: int, tmp_path: Path
) -> None:
    model = tiny_model()
    before = dict(model.calibrations)
    photos, path = files(tmp_path / "val", 30, start=500), tmp_path / "small.onnx"
    anew = {"trained_on": files(tmp_path / "train", 10), "validated_on": photos}
    metadata = export_model(
        model, path, precision=precision, photos=photos, **(anew if suffix else {})
    )
    assert metadata.precision == precision
    assert metadata.parity["photos"] == len(photos)
    assert metadata.parity["calibrated_on"] == (len(photos) if suffix else 0)
    assert model.calibrations == before

    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    (weight,) = (name for name in kinds if name.endswith(f"backbone.0.weight{suffix}"))
    assert kinds[weight] == kind
    for name, found in kinds.items():
        if name.startswith("model.") and "backbone" not in name:
            assert found in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE), name

    exported = OnnxClassifier(path)
    new = files(tmp_path / "new", 20, start=900)
    for one, other in zip(model.predict(new), exported.predict(new), strict=True):
        assert one.nearest_class == other.nearest_class
        assert one.scores != other.scores
        assert other.scores["energy"] == pytest.approx(one.scores["energy"], abs=0.5)
    if suffix:
        # Each validation photo's p-value is its own rank: by the scores of this file, no other.
        ranks = sorted(answer.p_value for answer in exported.predict(photos, score="knn"))
        assert ranks == pytest.approx(np.arange(2, len(photos) + 2) / (len(photos) + 1))


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
    record = tmp_path / "model" / "training" / "config.yaml"
    record.parent.mkdir(parents=True)
    record.write_text(yaml.safe_dump({"data": str(data), "val_fraction": 0.2, "seed": 0}))
    some, held_out = classifier_photos(tmp_path / "model", sorted(COLOURS))
    assert 32 <= len(some) <= 64
    assert set(some) < set(train)
    assert held_out == val
    assert classifier_photos(tmp_path / "model", ["cat", "dog"]) == ([], [])
    assert classifier_photos(tmp_path, sorted(COLOURS)) == ([], [])
