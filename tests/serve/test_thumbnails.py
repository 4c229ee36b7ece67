"""The training photos nearest to a photo: named by the service, shown as thumbnails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from knownot.data.thumbnails import write_thumbnails
from knownot.errors import ModelFileError
from knownot.runtime import OnnxClassifier
from knownot.serve.model_file import open_thumbnails
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy
from tests.serve.conftest import BLUE, RED, Running, encoded, running


def test_the_nearest_training_photos_are_named_and_shown(
    exported: dict[bool, tuple[Any, Path]], thumbnails: Path
) -> None:
    model, path = exported[True]
    bank = model.feature_scores.bank.double()
    images = [noisy(c, 900 + i) for i in range(4) for c in (*COLOURS.values(), UNKNOWN_COLOUR)]
    with running(path, thumbnails=thumbnails) as server:
        answers = [server.predict(encoded(image)).json()["photos"][0] for image in images]
        address = answers[0]["nearest_photos"][0]["thumbnail"]
        thumbnail = server.http.get("/" + address)
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert "immutable" in thumbnail.headers["cache-control"]
        wrong = ("120", "-1", "9" * 30, "0.jpg", "..%2flabels.json", "labels.json")
        answered = {number: server.http.get(f"/thumbnails/{number}") for number in wrong}
    assert all(answer.status_code in (404, 422) for answer in answered.values())
    assert np.array(Image.open(io.BytesIO(thumbnail.content))).mean((0, 1))[0] > 150  # it is red
    for image, answer in zip(images, answers, strict=True):
        rows = [int(p["thumbnail"].split("/")[1].split("?")[0]) for p in answer["nearest_photos"]]
        labels = [photo["label"] for photo in answer["nearest_photos"]]
        assert labels == [list(COLOURS)[row // 60] for row in rows]
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            features = F.normalize(model.backbone_features(pixels[None])).double()
        similar = bank @ features[0]
        assert len(set(rows)) == 3
        # As far as float32 tells them apart: red photos are all but one point to the small network.
        assert torch.allclose(similar[rows], similar.topk(3).values, rtol=0, atol=5e-7)


def test_without_thumbnails_nothing_is_named(server: Running) -> None:
    for photo in server.predict(RED, BLUE).json()["photos"]:
        assert photo["nearest_photos"] == []
    assert server.http.get("/thumbnails/0").status_code == 404


def test_thumbnails_of_another_model_are_refused(
    exported: dict[bool, tuple[Any, Path]], thumbnails: Path, tmp_path: Path
) -> None:
    plain, finding = (OnnxClassifier(exported[nearest][1]) for nearest in (False, True))
    assert open_thumbnails(exported[True][1], finding) is None
    with pytest.raises(ModelFileError, match="does not find the nearest training photos"):
        open_thumbnails("model.onnx", plain, thumbnails)
    write_thumbnails(tmp_path / "thumbnails", [], [])
    with pytest.raises(
        ModelFileError, match="is of another model, with 0 training photos, not 120"
    ):
        open_thumbnails(tmp_path, finding)
