"""The whole of training on small real files: results, bad photos, loss that explodes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from knownot.core.calibration import ConformalCalibration
from knownot.data.photo import open_photo
from knownot.data.thumbnails import Thumbnails
from knownot.errors import ConfigError, DataError, TrainingError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import load
from knownot.training.fit import Silent
from knownot.training.plan import make_plan
from knownot.training.recorded_photos import classifier_photos
from tests.helpers import (
    COLOURS,
    UNKNOWN_COLOUR,
    colour_folder,
    noisy,
    pixels,
    tiny_backbone,
    tiny_model,
)
from tests.training.small_training import run, settings, weights


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_folder_of_photos_becomes_a_model_folder(photos: Path, tmp_path: Path, finetune) -> None:
    result = run(photos, tmp_path / "m", finetune=finetune)
    assert result.metrics["val_accuracy"] > 0.95
    assert result.metrics["n_train"] == 80
    assert result.metrics["vos_started"]
    assert not (tmp_path / "m" / "thumbnails").exists()  # only for who asks for them
    assert os.listdir(tmp_path) == ["m"]  # neither run folder nor temporary is left
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert {
        "README.md", "config.json", "model.safetensors", "calibration.safetensors",
        "training/config.yaml", "training/metrics.json", "training/skipped.json",
        "training/csv/metrics.csv",
    } <= files  # fmt: skip
    assert any("tfevents" in name for name in files)
    log = (tmp_path / "m" / "training" / "csv" / "metrics.csv").read_text().splitlines()
    assert "vos_loss" in log[0]
    assert len(log) == 1 + 6
    assert json.loads((tmp_path / "m" / "training" / "metrics.json").read_text()) == result.metrics
    card = (tmp_path / "m" / "README.md").read_text()
    low, high = result.metrics["val_accuracy_interval"]
    assert low <= result.metrics["val_accuracy"] <= high
    assert f"| {result.metrics['val_accuracy']:.1%} | {low:.1%} to {high:.1%} |" in card
    for title in ("Data and classes", "Measured", "Calibration", "Limits", "Use"):
        assert f"\n## {title}\n" in card
    header = yaml.safe_load(card.split("---\n")[1])
    (measured,) = header["model-index"][0]["results"]
    assert measured["metrics"][0]["value"] == result.metrics["val_accuracy"]

    model = load(tmp_path / "m", backbone=tiny_backbone(7))
    known = model.predict([noisy(c, 9000) for c in COLOURS.values()])
    assert [a.nearest_class for a in known] == list(COLOURS)
    unknown = model.predict([noisy(UNKNOWN_COLOUR, 9000 + i) for i in range(5)])
    assert all(answer.is_unknown for answer in unknown)


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_an_export_takes_the_photos_that_were_held_out_or_none(
    tmp_path: Path, finetune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_folder(tmp_path / "data", 40)
    (tmp_path / "data" / "red" / "0003.png").write_text("no photo")
    monkeypatch.chdir(tmp_path)
    run(Path("data"), Path("m"), finetune=finetune, epochs=1)
    assert len(classifier_photos(Path("m"), sorted(COLOURS))[1]) == 16
    for number in range(6):  # other photos are set aside then
        noisy(COLOURS["green"], 90 + number).save(tmp_path / "data" / "green" / f"a{number}.png")
    assert classifier_photos(Path("m"), sorted(COLOURS)) == ([], [])


def test_thumbnails_are_those_of_the_features_kept(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "p")
    for name in ("green/0000.png", "red/0020.png"):  # what is skipped shifts the rows
        (tmp_path / "p" / "train" / name).write_text("no photo")
    for finetune in ("head", "all"):
        output = tmp_path / finetune
        run(tmp_path / "p", output, finetune=finetune, epochs=1, keep_thumbnails=True)
        model = load(output, backbone=tiny_backbone())
        thumbnails = Thumbnails(output / "thumbnails", 2)
        bank = model.feature_scores.bank
        assert len(thumbnails.labels) == len(bank) == 78
        assert thumbnails.labels == [0] * 39 + [1] * 39
        paths = sorted((tmp_path / "p" / "train").rglob("*.png"))
        originals = {path: np.asarray(open_photo(path), float) for path in paths if is_photo(path)}
        for number, row in enumerate(bank):
            small = np.asarray(Image.open(io.BytesIO(thumbnails.jpeg(number))), float)
            path = min(originals, key=lambda path: np.abs(originals[path] - small).mean())
            with torch.no_grad():
                features = model.backbone_features(model.preprocessing.read(path)[None])
            assert torch.allclose(row, F.normalize(features)[0], atol=1e-5)
        thumbnails.close()


def is_photo(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("changes", [{"arch": "resnet18"}, {"weights": "mine.safetensors"}])
def test_a_network_that_is_given_stands_alone(
    photos: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    (name, value), *_ = changes.items()
    with pytest.raises(ConfigError, match=f"{name} {value}: was asked for, and a network is given"):
        run(photos, tmp_path / "m", **changes)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_the_same_seed_gives_the_same_model(photos: Path, tmp_path: Path, finetune: str) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        run(photos, tmp_path / name, finetune=finetune, seed=seed)
    one, same, other = (weights(tmp_path / name) for name in ("one", "same", "other"))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_streaming_moments_make_no_outliers_of_features(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outliers: npos is made from remembered features"):
        run(photos, tmp_path / "m", gaussians="streaming", outliers="npos")


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_bad_photos_are_skipped_and_listed(tmp_path: Path, finetune: str) -> None:
    colour_folder(tmp_path / "train", 30)
    colour_folder(tmp_path / "val", 25, start=100)
    bad = [tmp_path / "train" / "red" / "zero.jpg", tmp_path / "val" / "green" / "text.jpg"]
    bad[0].touch()
    bad[1].write_text("no photo")
    for _ in range(2):  # the second run finds features in the cache, and still reports them
        result = run(tmp_path, tmp_path / "m", finetune=finetune, overwrite=True)
        assert set(result.skipped) == set(bad)
        assert result.metrics["n_train"] == 60
        listed = json.loads((tmp_path / "m" / "training" / "skipped.json").read_text())
        assert "the file is empty" in listed[str(bad[0])]


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_class_of_bad_photos_only_is_named(tmp_path: Path, finetune: str) -> None:
    colour_folder(tmp_path / "train", 12)
    colour_folder(tmp_path / "val", 12, start=50)
    for path in (tmp_path / "train" / "red").iterdir():
        path.write_text("broken")
    with pytest.raises(DataError, match="no readable training photo of class red"):
        run(tmp_path, tmp_path / "m", finetune=finetune)


def test_validation_photos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    colour_folder(tmp_path / "train", 12)
    for path in colour_folder(tmp_path / "val", 3, start=50).rglob("*.png"):
        path.write_text("broken")
    with pytest.raises(DataError, match="no readable validation photo"):
        run(tmp_path, tmp_path / "m")


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_loss_that_is_not_finite_stops_with_its_cause(photos, tmp_path: Path, finetune) -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch \d+, step \d+: .* lower --"):
        run(photos, tmp_path / "m", finetune=finetune, lr=1e30, backbone_lr=1e30)
    assert not (tmp_path / "m").exists()


def test_weights_that_the_last_step_spoilt_are_no_model(photos: Path, tmp_path: Path) -> None:
    class Spoil(Silent):
        def callbacks(self) -> list[L.Callback]:
            class Last(L.Callback):
                def on_train_end(self, trainer, module) -> None:
                    next(module.parameters()).data.fill_(torch.nan)

            return [Last()]

    with pytest.raises(TrainingError, match="the last step left weights that are not finite"):
        run(photos, tmp_path / "m", Spoil(), finetune="all")
    assert not (tmp_path / "m").exists()


def test_weight_zero_is_plain_cross_entropy(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "ce", vos_weight=0.0)
    run(photos, tmp_path / "late", vos_start=1.0)  # the loss never starts
    one, other = weights(tmp_path / "ce"), weights(tmp_path / "late")
    assert torch.equal(one["head.weight"], other["head.weight"])
    run(photos, tmp_path / "vos")
    assert not torch.equal(one["head.weight"], weights(tmp_path / "vos")["head.weight"])


def test_an_existing_model_is_not_touched(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "m")
    with pytest.raises(DataError, match="add --overwrite"):
        run(photos, tmp_path / "m")


def test_a_place_that_cannot_be_written_is_named_before_any_work(photos, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        run(photos, tmp_path / "file" / "m")


def test_the_plan_says_when_windows_are_ready_and_what_is_wrong(tmp_path: Path) -> None:
    colour_folder(tmp_path / "train", 40)
    (tmp_path / "train" / "rare").mkdir()
    noisy(UNKNOWN_COLOUR, 0).save(tmp_path / "train" / "rare" / "one.png")
    colour_folder(tmp_path / "val", 10, start=50)

    class Keep(Silent):
        def plan(self, plan) -> None:
            self.kept = plan

    keeper = Keep()
    run(tmp_path, tmp_path / "m", keeper, radius_ratio=1.05)
    plan = keeper.kept
    assert plan.steps == 6 * 5  # 81 photos in batches of 16; the lone last photo is left out
    assert plan.start_step == 12
    by_name = {row["name"]: row for row in plan.classes}
    assert by_name["red"]["ready_step"] == 1
    assert by_name["red"]["window_full_step"] == 3
    assert by_name["rare"]["ready_step"] == 11
    notes = " ".join(plan.notes)
    assert "radius ratio 1.05" in notes
    assert "'rare' has only 1 training photo" in notes
    assert "'rare' has no validation photo" in notes
    assert json.dumps(plan.to_dict())
    answer = load(tmp_path / "m", backbone=tiny_backbone()).predict(noisy(COLOURS["red"], 3))[0]
    assert answer.nearest_class == "red"


def test_logged_means_are_over_the_rows_that_took_part(tmp_path: Path) -> None:
    """33 photos in batches of 16: a mean over all would stay below 1."""
    colour_folder(tmp_path / "train", 16)
    noisy(COLOURS["red"], 500).save(tmp_path / "train" / "red" / "one_more.png")
    colour_folder(tmp_path / "val", 10, start=50)
    run(tmp_path, tmp_path / "m", epochs=20)
    with (tmp_path / "m" / "training" / "csv" / "metrics.csv").open() as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file)]
    assert len(accuracies) == 20
    assert accuracies[-1] == 1.0


@pytest.mark.parametrize(("val", "noted"), [(19, True), (20, False)])
def test_too_few_validation_photos_for_any_unknown_are_noted(
    photos: Path, val: int, noted: bool
) -> None:
    from knownot.data.image_folder import PhotoSet, Splits, read_splits

    config = settings(photos, Path("m"), alpha=0.05)
    train = read_splits(photos).train
    few = PhotoSet(train.paths[:val], train.labels[:val], train.classes)
    notes = " ".join(make_plan(tiny_model(), Splits(train, few, []), config, "cpu").notes)
    assert ("nothing can be called unknown" in notes) == noted
    farthest = ConformalCalibration(torch.zeros(val)).is_unknown(torch.tensor([1e9]), 0.05)
    assert bool(farthest) != noted


def test_rare_classes_are_noted(photos: Path) -> None:
    from knownot.data.image_folder import read_splits

    config = settings(photos, Path("m"), epochs=1, batch_size=4)
    splits = read_splits(photos)
    model = tiny_model()
    model.vos.min_count = 30
    assert any(
        "late or never: green, red" in n for n in make_plan(model, splits, config, "cpu").notes
    )


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ({"fix_norms": True, "backbone_lr": 0.1}, "fix_norms, backbone_lr: does nothing while"),
        ({"head_first": False, "fix_norms": False}, None),
        ({"standardise": True}, "standardise: does nothing without a bottleneck"),
        ({"bottleneck_relu": False}, "bottleneck_relu: does nothing without a bottleneck"),
        ({"finetune": "all", "head_first": True, "backbone_lr": 0.1}, None),
    ],
)
def test_settings_that_do_nothing_are_noted(
    photos: Path, given: dict[str, Any], noted: str | None
) -> None:
    from knownot.data.image_folder import read_splits

    config = settings(photos, Path("m"), **({"backbone_lr": None} | given))
    model = UnknownAwareClassifier(
        tiny_backbone(), 8, list(COLOURS), bottleneck=4 if config.finetune == "all" else None
    )
    notes = make_plan(model, read_splits(photos), config, "cpu").notes
    about = [note for note in notes if "does nothing" in note]
    assert [note.startswith(noted or "") for note in about] == ([True] if noted else [])


def test_pixels_helper_matches_saved_photos(tmp_path: Path) -> None:
    """The helper's tensors are what reading the saved files gives."""
    path = tmp_path / "a.png"
    noisy(COLOURS["red"], 5).save(path)
    model = tiny_model()
    assert torch.equal(model.preprocessing.read(path), pixels(1, COLOURS["red"], 5)[0])
