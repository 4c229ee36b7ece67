"""Odd names of files, and places that answers, reports and models cannot or must not replace."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Run
from tests.helpers import COLOURS, noisy


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_names_that_are_no_text_or_look_like_markup(
    knownot_command: Run, model: Path, tmp_path: Path, form: str
) -> None:
    folder, target = tmp_path / "br[", tmp_path / f"answers.{form}"
    folder.mkdir()
    (folder / "b] [old].jpg").write_text("not a photo")
    odd = os.fsencode(folder) + b"/\xff.png"
    noisy(COLOURS["red"], 5).save(os.fsdecode(odd))
    result = knownot_command("predict", model, folder, "-o", target)
    assert result.code == 1
    assert "br[/b] [old].jpg: not a readable photo" in " ".join(result.err.split())
    if form == "jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(target.open(errors="surrogateescape")))
    assert {row["path"] for row in rows} == {os.fsdecode(odd), f"{folder}/b] [old].jpg"}
    report = knownot_command(
        "evaluate", model, "--id", folder.parent, "--ood", folder, "-o", target
    )
    assert "is a file; give the name of a folder" in report.err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_no_text_are_printed_where_output_is_strict(
    model: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    noisy(COLOURS["red"], 5).save(os.fsdecode(odd))
    done = subprocess.run(
        [sys.executable, "-m", "knownot", "predict", model, os.fsdecode(odd)],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "400"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert odd in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_the_same_in_json_and_reports_in_folders_with_brackets(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    ood = tmp_path / "ood [raw]"
    ood.mkdir()
    (ood / os.fsdecode(b"\xff.png")).write_text("no photo")
    noisy(COLOURS["red"], 1).save(ood / "a.png")
    report = tmp_path / "rep [raw]"
    arguments = ("evaluate", model, "--id", photos / "test", "--ood", ood, "-o", report)
    done = knownot_command(*arguments, "--json")
    (skipped,) = json.loads(done.out)["skipped"]
    assert skipped == os.path.join(ood, os.fsdecode(b"\xff.png"))
    assert "\\udcff" in done.out
    assert "rep [raw]/report.html" in knownot_command(*arguments).err
    wrong = knownot_command("evaluate", model, "--id", tmp_path / "no", "-o", tmp_path / "none")
    assert (wrong.code, (tmp_path / "none").exists()) == (1, False)
    nowhere = knownot_command(*arguments[:-1], "/proc/report")
    assert "/proc/report: cannot be written" in nowhere.err
    assert "a name ending in .jsonl" in knownot_command("predict", model, ood, "-o", "x.json").err
    assert "no such file" in knownot_command("predict", model, "a" * 300 + ".jpg").err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="about pipes")
def test_answers_go_into_a_pipe_and_not_in_its_place(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(pipe.read_text)
        red = photos / "test" / "red" / "0200.png"
        assert knownot_command("predict", model, red, "-o", pipe).code == 0
        assert json.loads(text.result(60))["path"] == str(red)
    assert pipe.is_fifo()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "kept" / "answers.csv")
    (tmp_path / "kept" / "answers.csv").write_text("old")
    assert knownot_command("predict", model, red, "-o", tmp_path / "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert "0200.png" in (tmp_path / "kept" / "answers.csv").read_text()
    refused = knownot_command("predict", model, red, "--format", "jsonl", "-o", tmp_path)
    assert "is a folder" in refused.err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_report_shows_photos_whose_names_are_no_text(
    knownot_command: Run, photos: Path, model: Path, tmp_path: Path
) -> None:
    ood = tmp_path / "a_$5_$10"
    ood.mkdir()
    for i in range(3):
        noisy(COLOURS["red"], i).save(os.fsdecode(os.fsencode(ood) + b"/\xff%d.png" % i))
    report = tmp_path / "report"
    done = knownot_command("evaluate", model, "--id", photos / "test", "--ood", ood, "-o", report)
    assert done.code == 0, done.err
    assert b"\xff0.png" in (report / "report.html").read_bytes()


def test_places_that_cannot_be_replaced_are_told_before_training(
    knownot_command: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, said in ((tmp_path / "link", "link to nothing"), (".", "name the model's folder")):
        result = knownot_command("train", photos, "-o", place, *SMALL)
        assert said in " ".join(result.err.split())
        assert "VOS from step" not in result.err
