"""The commands on photos with boxes, as a user types them: output, files, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from knownot.demo.scenes import KNOWN_SHAPES
from tests.cli.conftest import Run
from tests.helpers import write_video
from tests.pages import run_page


def test_train_takes_boxes_for_a_detector(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m"
    args = ("--from", detector_folder, "--epochs", 1, "--lr", 1e-5, "--backbone-lr", 1e-6)
    args = (*args, "--alpha", 0.001)  # too small for so few photos
    code, out, err = knownot_command("train", scenes, "-o", model, *args, "--workers", 0)
    assert code == 0, err
    assert "Faster R-CNN" in err
    assert all(shape in err for shape in KNOWN_SHAPES)
    assert "mAP before, after VOS" in out
    assert "takes at least 1000 known objects found on validation photos" in " ".join(err.split())
    assert (model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--bottleneck", "64"), "one of classifiers"),
        (("--finetune", "head"), "finetune: Input should be 'all' or 'none'"),
        (("--task", "classify"), "class folder without a photo"),
        (("--arch", "resnet19"), "did you mean"),
        (("--epochs", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_one_sentence(
    knownot_command: Run, scenes: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    code, out, err = knownot_command("train", scenes, "-o", tmp_path / "m", *args)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_predict_prints_and_draws_boxes(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    photos = [scenes / "images" / f"test_000{i}.jpg" for i in range(3)]
    code, out, _ = knownot_command(
        "predict", detector_folder, *photos, "--save-images", tmp_path / "seen"
    )
    assert code == 0
    assert "3 photos" in out
    assert any(shape in out for shape in KNOWN_SHAPES)
    for photo in photos:
        with Image.open(photo) as before, Image.open(tmp_path / "seen" / photo.name) as after:
            assert min(after.size) >= 480 > min(before.size)


def test_predict_and_evaluate_with_proposals(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    photos = sorted((scenes / "images").glob("ood_*.jpg"))[:9]
    code, out, _ = knownot_command(
        *("predict", detector_folder, *photos, "--proposals", "--alpha", 0.5, "--json"),
        *("--save-images", tmp_path / "seen"),
    )
    assert code == 0
    boxes = [box for line in out.splitlines() for box in json.loads(line)["boxes"]]
    assert any(box["nearest_class"] == "" for box in boxes)
    assert len(list((tmp_path / "seen").iterdir())) == 9
    ood = scenes / "annotations" / "ood.json"
    args = ("--id", scenes, "--ood", ood, "-o", tmp_path / "report", "--proposals")
    code, out, _ = knownot_command("evaluate", detector_folder, *args)
    assert code == 0
    assert "unclaimed proposal" in out


def test_predict_writes_one_row_a_box(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    Image.new("RGB", (96, 96), "grey").save(blank)
    (tmp_path / "broken.jpg").write_text("no photo")
    photos = (scenes / "images" / "test_0001.jpg", blank, tmp_path / "broken.jpg")
    code, out, err = knownot_command("predict", detector_folder, *photos)
    assert code == 1  # one photo could not be read
    assert "3 photos, 1 not readable, " in out
    code, _, err = knownot_command("predict", detector_folder, *photos, "-o", tmp_path / "a.jsonl")
    assert code == 1
    assert "broken.jpg" in err
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == [photo.name for photo in photos]
    assert len(lines[0]["boxes"]) > 0
    knownot_command("predict", detector_folder, *photos, "-o", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(max(1, len(line["boxes"])) for line in lines)
    first = lines[0]["boxes"][0]
    assert float(rows[0]["x1"]) == first["box"][0]
    assert rows[0]["label"] == first["label"]
    assert rows[-1]["error"]


def test_evaluate_prints_every_measure(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    ood = scenes / "annotations" / "ood.json"
    args = ("evaluate", detector_folder, "--id", scenes, "--ood", ood, "-o", tmp_path / "report")
    code, out, _ = knownot_command(*args)
    assert code == 0
    for word in ("mAP", "boxes around known objects", "AOSE", "mahalanobis"):
        assert word in out
    assert (tmp_path / "report" / "report.html").is_file()
    code, out, _ = knownot_command(*args, "--json")
    assert json.loads(out) == json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert json.loads(out)["task"] == "detect"


def test_evaluate_leaves_out_what_nobody_annotated(
    knownot_command: Run, detector_folder: Path, scenes: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for photo in sorted((scenes / "images").glob("ood_*.jpg"))[:2]:
        shutil.copy(photo, bare)
    args = ("evaluate", detector_folder, "--id", scenes, "-o", tmp_path / "report", "--ood", bare)
    code, out, _ = knownot_command(*args)
    assert code == 0
    report = tmp_path / "report" / "report.html"
    assert "AOSE" not in out + report.read_text()
    code, out, _ = knownot_command(*args, scenes / "annotations" / "ood.json")
    assert code == 0
    assert "AOSE" in report.read_text()
    _, open_set = out.split("annotated unknown objects")
    assert "bare" not in open_set
    assert "ood" in open_set


def test_info_describes_a_detector(knownot_command: Run, detector_folder: Path) -> None:
    facts = json.loads(knownot_command("info", detector_folder, "--json")[1])
    assert facts["task"] == "detect"
    assert set(facts["classes"]) == set(KNOWN_SHAPES)
    assert 0 < facts["box threshold"] < 1
    assert 0 <= facts["validation map"] <= facts["validation map_50"] <= 1


def test_a_classifier_is_no_detector_to_start_from(
    knownot_command: Run, scenes: Path, tmp_path: Path
) -> None:
    from knownot.models.model_folder import save
    from tests.helpers import tiny_model

    model = save(tiny_model(), tmp_path / "classifier")
    code, _, err = knownot_command("train", scenes, "-o", tmp_path / "m", "--from", model)
    assert code == 1
    assert "error" in err
    shutil.rmtree(model)


def test_the_page_about_detectors_runs(
    detector_folder: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models import tiny_detr, tiny_rt_detr

    monkeypatch.chdir(tmp_path)
    tiny_rt_detr.tiny_network("RT-DETRv2").save_pretrained("detr")
    Path("detector").symlink_to(detector_folder)
    Path("photos").mkdir()
    Path("people").mkdir()
    for i in range(4):
        shutil.copy(scenes / "images" / f"test_000{i}.jpg", "photos")
        shutil.copy(scenes / "images" / f"ood_000{i}.jpg", "people")
    Path("coco").symlink_to(scenes)
    Path("images").symlink_to(scenes / "images")
    Path("coco.json").symlink_to(scenes / "annotations" / "test.json")
    Path("ood.json").symlink_to(scenes / "annotations" / "ood.json")
    shutil.copy("photos/test_0000.jpg", "street.jpg")
    with Image.open("street.jpg") as street:
        write_video(Path("street.mp4"), [street.convert("RGB")] * 6)
    images, targets = tiny_detr.scenes(2)
    given = {"name": "detr", "K": 2, "classes": tiny_detr.CLASSES}
    variables = run_page("detection.md", **given, images=images, targets=targets)
    assert variables["loss"] > 0
    assert {path.name for path in Path("seen").iterdir()} == {"street.jpg", "street.mp4"}
    assert json.loads(Path("results.json").read_text())
