"""The commands as a user types them, on small real files: output, files, exit codes."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
import yaml
from PIL import Image

import knownot
from knownot.cli.main import app
from knownot.models.model_folder import load, save
from knownot.training.config import DetectionConfig, TrainConfig
from tests.cli.conftest import SMALL, Run
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, tiny_detector

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "audit",
    "predict",
    "export",
    "serve",
    "score",
    "benchmark",
    "info",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(knownot_command: Run, command: str) -> None:
    result = knownot_command(command, "--help")
    assert result.code == 0
    assert f"knownot {command}" in result.out.split("Usage:")[1].split("\n", 1)[1]
    for option in ("--json", "--seed"):
        assert option in result.out


def test_every_setting_is_a_flag_and_the_help_knows_its_default() -> None:
    params = typer.main.get_command(app).commands["train"].params  # type: ignore[attr-defined]
    helps = {param.name: param.help for param in params}
    fields = TrainConfig.model_fields | DetectionConfig.model_fields
    assert set(helps) == {*fields, "config", "json_output"}
    for kind in (TrainConfig, DetectionConfig):
        for name, field in kind.model_fields.items():
            if name == "task":
                continue  # "auto" on the command line: the data decide
            told = re.search(r"\(default: (\S+?)(?:; detector (\S+))?\)", helps[name])
            if isinstance(field.default, (str, int, float, Path)) and field.default is not False:
                assert told, name
                default = told[2] if told[2] and kind is DetectionConfig else told[1]
                assert type(field.default)(default) == field.default, name


def test_the_group_lists_commands_and_exit_codes(knownot_command: Run) -> None:
    result = knownot_command("--help")
    assert all(command in result.out for command in COMMANDS)
    assert "130 interrupted" in result.out
    assert knownot_command("--version").out == f"knownot {knownot.__version__}\n"


@pytest.mark.parametrize(
    "args", [("trian",), ("train", "--epoch"), ("predict", "model/"), ("train", "", "-o", "m")]
)
def test_a_wrong_command_line_is_two(knownot_command: Run, args: tuple[str, ...]) -> None:
    result = knownot_command(*args)
    assert result.code == 2
    assert result.out == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_output_that_cannot_be_written_is_told(model: Path) -> None:
    command = [sys.executable, "-m", "knownot", "info", str(model)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device)\n"


def test_train_writes_a_model_folder_that_loads(model: Path) -> None:
    loaded = load(model)
    assert loaded.classes == sorted(COLOURS)
    config = yaml.safe_load((model / "training" / "config.yaml").read_text())
    assert config["image_size"] == 32
    assert config["epochs"] == 40


def test_the_saved_configuration_trains_the_same_model(
    knownot_command: Run, model: Path, tmp_path: Path
) -> None:
    result = knownot_command(
        "train", "--config", model / "training" / "config.yaml", "-o", tmp_path / "again", "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["val_accuracy"] > 0.9
    first, second = load(model), load(tmp_path / "again")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5), name


def test_train_json_is_one_object_and_the_plan_is_silent(
    knownot_command: Run, photos: Path, tmp_path: Path
) -> None:
    result = knownot_command("train", photos, "-o", tmp_path / "m", *SMALL, "--json")
    assert result.code == 0
    numbers = json.loads(result.out)
    assert numbers["model"] == str(tmp_path / "m")
    assert numbers["n_train"] == 60
    assert "Plan" not in result.err


def test_the_weight_is_chosen_where_it_is_auto(
    knownot_command: Run, photos: Path, tmp_path: Path
) -> None:
    result = knownot_command("train", photos, "-o", tmp_path / "m", *SMALL, "--vos-weight", "auto")
    assert result.code == 0
    assert "training steps, weight 0.3" in result.err
    settings = yaml.safe_load((tmp_path / "m" / "training" / "config.yaml").read_text())
    row = next(line for line in result.out.splitlines() if "weight of VOS" in line)
    assert f"{settings['vos_weight']:g}, chosen of 0.1, 0.3, 1, 3, 10" in row
    again = knownot_command("predict", tmp_path / "m", photos / "val", "--json")
    assert again.code == 0


def test_an_existing_model_is_kept(knownot_command: Run, photos: Path, model: Path) -> None:
    before = (model / "model.safetensors").stat().st_mtime_ns
    result = knownot_command("train", photos, "-o", model, *SMALL)
    assert result.code == 1
    assert "--overwrite" in result.err
    assert (model / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("train", "nowhere"), "nowhere"),
        (("train",), "no folder of photos was given"),
        (("train", "{photos}", "--arch", "resnet5O"), "did you mean"),
        (("train", "{photos}", "--alpha", "1.5"), "alpha"),
        (("train", "{photos}", "--config", "none.yaml"), "none.yaml"),
        (("train", "{photos}/ood", "-o", "{tmp}/m"), "one class"),
        (("predict", "nowhere", "{photos}/ood"), "nowhere"),
        (("predict", "{model}", "no-such-photo.jpg"), "no-such-photo.jpg"),
        (("predict", "{model}", "{photos}/*.gif"), "*.gif"),
        (("predict", "{model}", "{photos}/ood", "--alpha", "0"), "alpha"),
        (("predict", "{model}", "{photos}/ood", "--score", "entropy"), "mahalanobis"),
        (("predict", "{model}", "{photos}/ood", "-o", "{tmp}/answers.txt"), ".jsonl or .csv"),
        (("predict", "{model}", "{photos}/ood", "-o", "{tmp}/a.csv", "--format", "table"), "table"),
        (("evaluate", "{model}", "--id", "nowhere"), "nowhere"),
        (("evaluate", "{model}", "--id", "{photos}/test", "--ood", "nowhere"), "nowhere"),
        (("evaluate", "{model}", "--id", "{photos}/ood"), "blue"),
        (("info", "{photos}"), "config.json"),
    ],
)
def test_mistakes_are_one_sentence_that_names_them(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path, args, said: str
) -> None:
    filled = [a.format(photos=photos, model=model, tmp=tmp_path) for a in args]
    result = knownot_command(*filled)
    assert result.code == 1
    assert "error:" in result.err
    assert said in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_predict_prints_a_table(knownot_command: Run, photos: Path, model: Path) -> None:
    red, blue = photos / "test" / "red" / "0200.png", photos / "ood" / "blue"
    result = knownot_command("predict", model, red, blue)
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if ".png" in line]
    assert len(lines) == 13
    assert "red" in lines[0]
    assert sum("unknown" in line for line in lines[1:]) >= 10
    assert "13 photos" in result.out


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("to_file", [True, False])
def test_predict_writes_lines_for_programs(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path, form: str, to_file: bool
) -> None:
    pattern = f"{photos}/test/**/020*.png"
    target = tmp_path / "new" / f"answers.{form}"
    option = ("-o", target) if to_file else ("--format", form)
    result = knownot_command("predict", model, pattern, *option)
    assert result.code == 0, result.err
    text = target.read_text() if to_file else result.out
    if form == "jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        assert set(rows[0]["scores"]) >= {"vos", "knn", "combined"}
    else:
        rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 20
    expected = load(model).predict([row["path"] for row in rows])
    for row, answer in zip(rows, expected, strict=True):
        assert row["label"] == answer.label
        assert float(row["ood_score"]) == pytest.approx(answer.ood_score, rel=1e-3, abs=1e-4)
        assert str(row["is_unknown"]) == str(answer.is_unknown)
    if to_file:
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_bad_photos_are_answers_with_an_error_and_exit_one(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("not a photo")
    noisy(COLOURS["red"], 5).convert("L").save(tmp_path / "grey.png")
    result = knownot_command("predict", model, tmp_path, "--json")
    assert result.code == 1
    rows = {Path(row["path"]).name: row for row in map(json.loads, result.out.splitlines())}
    assert "bad.jpg" in rows["bad.jpg"]["error"]
    assert rows["bad.jpg"]["is_unknown"] is None
    assert rows["grey.png"]["error"] is None
    assert "bad.jpg" in result.err


def test_a_model_that_can_call_nothing_unknown_says_so(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    red = photos / "test" / "red"
    said = "nothing can be called unknown: alpha 0.001 takes calibration on 1000"
    measure = ("evaluate", model, "--id", red.parent, "-o", tmp_path / "report")
    for args in (("predict", model, red), measure):
        assert said in " ".join(knownot_command(*args, "--alpha", "0.001").err.split())
        assert said in " ".join(knownot_command(*args, "--alpha", "0.001", "--json").err.split())
        assert "nothing can be" not in knownot_command(*args).err


def test_annotated_copies(knownot_command: Run, photos: Path, model: Path, tmp_path: Path) -> None:
    result = knownot_command(
        "predict", model, photos / "ood" / "blue", "--save-images", tmp_path / "seen"
    )
    assert result.code == 0
    copies = sorted((tmp_path / "seen").iterdir())
    assert [path.stem for path in copies] == [f"blue-{i:02}" for i in range(12)]
    with Image.open(copies[0]) as image:
        assert image.height > 32


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_copies_that_cannot_be_written_cost_no_answer(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    arguments = ("predict", model, photos / "ood" / "blue", "-o", tmp_path / "answers.jsonl")
    result = knownot_command(*arguments, "--save-images", "/proc/self")
    assert result.code == 1
    assert "/proc/self: cannot be written" in result.err
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 12
    (tmp_path / "file").touch()
    result = knownot_command(*arguments, "--save-images", tmp_path / "file")  # told at once
    assert result.code == 1
    assert result.err.startswith("error:")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM to a process")
def test_sigterm_leaves_no_half_file(photos: Path, model: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    photo = next((photos / "ood" / "blue").iterdir())
    for i in range(5000):
        (many / f"{i}.png").hardlink_to(photo)
    command = [sys.executable, "-m", "knownot", "predict", model, many, "-o", tmp_path / "a.csv"]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / ".a.csv.part").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("interrupted")
    assert os.listdir(tmp_path) == ["many"]


def test_audit_lists_photos_and_measures_without_them(
    model: Path, photos: Path, tmp_path: Path, knownot_command: Run
) -> None:
    (tmp_path / "ood").mkdir()
    noisy(UNKNOWN_COLOUR, 1).save(tmp_path / "ood" / "blue.png")
    noisy(COLOURS["red"], 1).save(tmp_path / "ood" / "red.png")
    arguments = ("audit", model, "--id", photos / "test", "--ood", tmp_path / "ood")
    arguments += (photos / "ood" / "blue", "--top", 2, "-o", tmp_path / "audit")
    done = knownot_command(*arguments)
    assert done.code == 0, done.err
    assert "audit.html" in done.out
    listed = (tmp_path / "audit" / "audit.csv").read_text()
    assert len(listed.splitlines()) == 1 + 3 * 2
    filled = re.sub(r"(?m)^(.*red\.png,ood,.*)$", r"\1n", listed)
    (tmp_path / "filled.csv").write_text(filled)
    done = knownot_command(*arguments, "--decisions", tmp_path / "filled.csv")
    assert "without 1" in done.out
    given = json.loads((tmp_path / "audit" / "audit.json").read_text())["ood"]
    assert {name: row["left_out"] for name, row in given.items()} == {"ood": 1, "blue": 0}
    (tmp_path / "filled.csv").rename(tmp_path / "audit" / "audit.csv")
    early = knownot_command("audit", tmp_path / "no model", *arguments[2:])
    assert "holds decisions already" in " ".join(early.err.split())
    save(tiny_detector(), tmp_path / "detector")
    elsewhere = ("-o", tmp_path / "other")
    refused = knownot_command("audit", tmp_path / "detector", *arguments[2:-2], *elsewhere)
    assert (refused.code, "is a detector" in refused.err) == (1, True)


def test_evaluate_takes_any_number_of_folders(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    noisy(UNKNOWN_COLOUR, 1).save(more / "a.png")
    result = knownot_command(
        "evaluate", model, "--id", photos / "test", "--ood", photos / "ood" / "blue", more,
        "-o", tmp_path / "report",
    )  # fmt: skip
    assert result.code == 0, result.err
    for said in ("40 known photos", "blue", "more", "mean over sets", "every score", "FPR95"):
        assert said in result.out
    assert "report.html" in result.err
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert set(summary["ood"]) == {"blue", "more"}
    assert summary["ood"]["blue"]["auroc"] > 0.9

    printed = knownot_command(
        "evaluate", model, "--id", photos / "test", "--ood", photos / "ood" / "blue", "--ood", more,
        "--json", "-o", tmp_path / "report",
    )  # fmt: skip
    assert json.loads(printed.out) == summary


def test_the_report_has_a_place_by_default(knownot_command: Run, photos: Path, model: Path) -> None:
    assert knownot_command("evaluate", model, "--id", photos / "test").code == 0
    assert (model.parent / "model-evaluation" / "report.html").is_file()


def test_info_describes_model_and_machine(knownot_command: Run, model: Path) -> None:
    facts = json.loads(knownot_command("info", model, "--json").out)
    assert facts["classes"] == sorted(COLOURS)
    assert facts["default score"] == "combined"
    assert facts["calibration photos"] == 80
    assert "tf_efficientnet_lite0" in knownot_command("info", model).out
    machine = json.loads(knownot_command("info", "--json").out)
    assert machine["torch"] == torch.__version__ or machine["torch"] in torch.__version__


def test_unknown_settings_in_a_file_are_named(
    knownot_command: Run, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("epoch: 3\n")
    result = knownot_command("train", photos, "--config", tmp_path / "c.yaml")
    assert result.code == 1
    assert "did you mean epochs" in result.err


def test_photos_that_the_model_has_seen_are_told(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    for split, said in (("val", "trained on 0 and calibrated on"), ("train", "calibrated on 0")):
        result = knownot_command("evaluate", model, "--id", photos / split, "-o", tmp_path / split)
        assert result.code == 0, result.err
        assert said in result.err
    unseen = knownot_command("evaluate", model, "--id", photos / "test", "-o", tmp_path / "test")
    assert "says too much good" not in unseen.err
    summary = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert (summary["id_trained_on"], summary["id_calibrated_on"]) == (0, 0)


def test_help_fits_a_narrow_screen(knownot_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    result = knownot_command("train", "--help")
    assert result.code == 0
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", result.out).splitlines())) <= 60


def test_an_export_predicts_like_its_folder(
    knownot_command: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "model.onnx"
    export = ("export", model, "-o", file)
    result = knownot_command(*export, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["file"], facts["classes"]) == (str(file), sorted(COLOURS))
    assert facts["bank_rows"] == 60  # since thumbnails of them are kept
    assert facts["parity"]["photos"] > 10
    for form in ("jsonl", "csv", "table"):
        ask = (photos / "test", photos / "ood", "--format", form)
        from_folder = knownot_command("predict", model, *ask)
        from_file = knownot_command("predict", file, *ask)
        assert from_file.code == 0, from_file.err
        if form == "jsonl":
            pairs = zip(from_folder.out.splitlines(), from_file.out.splitlines(), strict=True)
            for row, other in (map(json.loads, pair) for pair in pairs):
                for key in ("path", "label", "is_unknown", "error"):
                    assert row[key] == other[key]
                # 1280 features from 60 photos: this model turns the last digit of a feature into
                # the third of a score, too much for the gate on every photo (docs/export.md).
                assert row["scores"] == pytest.approx(other["scores"], rel=1e-2, abs=1e-2)
        else:  # the heading, and how many are unknown
            lines = from_file.out.splitlines(), from_folder.out.splitlines()
            assert len(lines[0]) == len(lines[1])
            if form == "csv":
                assert lines[0][0] == lines[1][0]
            else:
                assert lines[0][-1] == lines[1][-1]
    assert "float32" in knownot_command("info", file).out
    again = knownot_command(*export)
    assert again.code == 1
    assert "exists; choose another name with -o, or add --overwrite" in again.err
    other = knownot_command("export", model, "--format", "torch", "-o", tmp_path / "other.onnx")
    assert "ask for --format onnx" in " ".join(other.err.split())
    wrong = knownot_command("predict", file, photos / "test", "--device", "cuda")
    assert "an exported model runs on the CPU" in wrong.err
    stranger = photos / "test" / "red" / "0200.png"
    refused = knownot_command("predict", stranger, photos / "test")
    assert refused.code == 1
    assert "is no model that knownot exported" in " ".join(refused.err.split())


def test_a_folder_is_served_by_way_of_its_export(model: Path, photos: Path) -> None:
    from knownot.serve.model_file import load_model, open_thumbnails

    served = load_model(model)
    thumbnails = open_thumbnails(model, served)
    assert thumbnails is not None
    assert thumbnails.labels == [0] * 30 + [1] * 30
    thumbnails.close()
    paths = sorted((photos / "test").rglob("*.png"))[::10]
    for one, other in zip(knownot.load(model).predict(paths), served.predict(paths), strict=True):
        assert one.nearest_class == other.nearest_class
        assert one.scores == pytest.approx(other.scores, rel=1e-2, abs=1e-2)


def test_export_of_what_is_no_model(knownot_command: Run, tmp_path: Path) -> None:
    result = knownot_command("export", tmp_path / "nothing", "-o", tmp_path / "a.onnx")
    assert result.code == 1
    assert "no such model folder" in result.err
    result = knownot_command("export", "model", "--photos", tmp_path / "none")
    assert result.code == 1
    assert "no such file or folder" in result.err
    assert list(tmp_path.iterdir()) == []
