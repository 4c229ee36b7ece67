"""The description in an exported file: what it tells about calibration, and damage to that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knownot.errors import ModelFileError
from knownot.runtime import OnnxClassifier
from knownot.runtime.metadata import ExportMetadata


@pytest.mark.parametrize("classwise", [False, True])
def test_calibration_is_told(exported: dict[bool, tuple[Any, Path]], classwise: bool) -> None:
    model, path = exported[classwise]
    summary = OnnxClassifier(path).metadata.calibration
    assert summary is not None
    assert len(summary.sizes) == (len(model.classes) if classwise else 1)
    assert sum(summary.sizes) == len(model.calibration("combined"))
    for name, histogram in summary.histograms.items():
        scores = model.calibration(name).scores.numpy()
        assert np.histogram(scores, histogram.edges)[0].tolist() == histogram.counts


@pytest.mark.parametrize(
    "damage",
    [
        {"sizes": [0]},
        {"sizes": 5},
        {"sizes": ["many"]},
        {"histograms": []},
        {"histograms": {"knn": {"edges": [0, 1]}}},
        {"histograms": {"knn": {"edges": [0, 1], "counts": [1, 2]}}},
        {"histograms": {"knn": {"edges": [1, 0], "counts": [1]}}},
        {"histograms": {"knn": {"edges": [0, float("inf")], "counts": [1]}}},
        {"histograms": {"knn": {"edges": [0, 1], "counts": [-1]}}},
    ],
)
def test_damaged_calibration_is_refused(exported_file: Path, damage: dict[str, Any]) -> None:
    data = json.loads(OnnxClassifier(exported_file).metadata.to_json())
    assert ExportMetadata.from_json(json.dumps(data)).calibration is not None
    data["calibration"].update(damage)
    with pytest.raises(ModelFileError, match="damaged"):
        ExportMetadata.from_json(json.dumps(data))


def test_a_description_of_nothing_but_brackets_is_refused() -> None:
    with pytest.raises(ModelFileError, match="damaged"):
        ExportMetadata.from_json("[" * 200_000)


def test_files_of_before_have_none(exported_file: Path) -> None:
    data = json.loads(OnnxClassifier(exported_file).metadata.to_json())
    del data["calibration"]
    assert ExportMetadata.from_json(json.dumps(data)).calibration is None
