"""Jobs on real Ray: their rows, and what does not disturb them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from knownot.errors import DataError, MissingExtraError, ScoringError
from knownot.scale.cluster import require_ray
from knownot.scale.score import ScoreSummary, score_photos
from knownot.scale.sources import list_photos
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import COLOURS, noisy

COLUMNS = ["path", "label", "ood_score", "p_value", "is_unknown", "error"]
pytestmark = pytest.mark.usefixtures("ray_running")


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output).to_pylist()


def at_first_part(act: Callable[[], None]) -> Callable[[str, int | None], Callable[[int], None]]:
    """Progress that calls `act` once, when the first part of this run is done."""
    acted = []

    def begin(stage: str, total: int | None) -> Callable[[int], None]:
        def advance(done: int) -> None:
            if stage == "scoring" and done and not acted:
                acted.append(done)
                act()

        return advance

    return begin


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Names of 24 photos."""
    folder = tmp_path / "many"
    folder.mkdir()
    for name, colour in COLOURS.items():
        for i in range(12):
            noisy(colour, 50 + i).save(folder / f"{name}-{i:02}.png")
    return list(list_photos([str(folder)]))


class HeldPhoto:
    """A photo that nobody finishes reading until it is let go: a pipe in its place."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.rename(path, path + ".real")
        os.mkfifo(path)

    def wait_for_reader(self) -> None:
        """Return when a worker is reading it."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):  # there is no reader yet
                self.writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                return
            time.sleep(0.01)
        raise AssertionError("no worker read the photo")

    def put_back(self) -> None:
        """From now on it is the photo; who reads the pipe still waits."""
        os.replace(self.path + ".real", self.path)

    def let_go(self) -> None:
        """Who reads the pipe, if somebody lives, finds it empty."""
        os.close(self.writer)


def test_rows_are_the_answers_of_predict(
    exported_file: Path,
    photos: Path,
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have another folder
    given = ["photos/**/*", "photos/red/00.png"]
    assert knownot_command("predict", exported_file, *given, "-o", "answers.jsonl").code == 1
    expected = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    done = knownot_command(
        "score", exported_file, *given, "-o", "scores.parquet", "--part-size", 5, "--json"
    )
    assert done.code == 0, done.err
    rows = rows_of(Path("scores.parquet"))
    assert [list(row) for row in rows] == [COLUMNS] * 33
    for row, answer in zip(rows, expected, strict=True):
        answer["label"] = answer["label"] or None
        assert row == {name: answer[name] for name in COLUMNS}
    assert {row["label"] for row in rows} == {"red", "green", "unknown", None}
    errors = [row["path"] for row in rows if row["error"]]
    assert errors == ["photos/green/empty.png", "photos/red/05 cut.jpg"]
    summary = json.loads(done.out)
    unknown = sum(row["is_unknown"] is True for row in rows)
    counts = {"photos": 33, "errors": 2, "unknown": unknown, "continued": 0, "workers": 2}
    assert summary.items() >= counts.items()
    assert not Path("scores.parquet.parts").exists()


def test_a_killed_worker_costs_no_row_and_doubles_none(
    exported_file: Path, many: list[str], tmp_path: Path
) -> None:
    held = HeldPhoto(many[10])
    killed = []

    def kill() -> None:
        held.wait_for_reader()
        held.put_back()
        below = psutil.Process().children(recursive=True)
        killed.extend(child for child in below if "MapWorker" in "".join(child.cmdline()))
        for worker in killed:
            worker.kill()
        psutil.wait_procs(killed, timeout=60)
        held.let_go()

    output = tmp_path / "scores.parquet"
    settings = {"workers": 2, "part_size": 4}
    summary = score_photos(exported_file, many, output, begin=at_first_part(kill), **settings)
    assert len(killed) == 2
    assert not any(worker.is_running() for worker in killed)
    assert [row["path"] for row in rows_of(output)] == many
    assert (summary.photos, summary.errors) == (24, 0)


def test_an_interrupted_job_continues(
    exported_file: Path, many: list[str], tmp_path: Path, exported: dict[bool, tuple[Any, Path]]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def score(
        output: str = "scores.parquet", photos: list[str] = many, **more: Any
    ) -> ScoreSummary:
        settings = {"model": exported_file, "part_size": 8, "workers": 2} | more
        return score_photos(photos=photos, output=tmp_path / output, **settings)

    with pytest.raises(KeyboardInterrupt):
        score(begin=at_first_part(interrupt))
    (part,) = (tmp_path / "scores.parquet.parts").glob("0*.parquet")
    kept = rows_of(part)
    assert len(kept) == 8
    with pytest.raises(ScoringError, match=r"scores.parquet.parts: is of another job \(another mo"):
        score(model=exported[True][1])
    with pytest.raises(ScoringError, match="other photos, another number"):
        score(photos=many[1:])
    with pytest.raises(ScoringError, match=r"\(alpha\)"):
        score(alpha=0.5)
    # What is done is not done again: this photo is not there any more.
    Path(kept[0]["path"]).unlink()
    summary = score()
    assert (summary.photos, summary.continued, summary.errors) == (24, 8, 0)
    rows = rows_of(tmp_path / "scores.parquet")
    assert [row["path"] for row in rows] == many
    assert [row for row in rows if row in kept] == kept
    # A finished job is not done again either, and not overwritten by another.
    before = (tmp_path / "scores.parquet").read_bytes()
    assert score().workers == 0
    with pytest.raises(ScoringError, match=r"scores.parquet: is of another job \(other photos"):
        score(photos=many[::-1])
    assert (tmp_path / "scores.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.glob("scores*")] == ["scores.parquet"]


def test_a_killed_job_continues(exported_file: Path, many: list[str], tmp_path: Path) -> None:
    held = HeldPhoto(many[-1])
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(many))
    output = tmp_path / "scores.parquet"
    command = [sys.executable, "-m", "knownot", "score", str(exported_file), "-o", str(output)]
    command += ["--list", str(listed), "--workers", "1", "--part-size", "6", "--json"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    held.wait_for_reader()
    parts = output.with_name("scores.parquet.parts")
    while len(list(parts.glob("0*.parquet"))) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    with pytest.raises(ScoringError, match="another process is at this job"):
        score_photos(exported_file, many, output, part_size=6)
    below = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    out, err = job.communicate()
    assert (out, err) == ("", "")  # nothing of Ray's own either
    assert not psutil.wait_procs(below, timeout=60)[1]  # Ray ends with the process that started it
    held.put_back()
    held.let_go()
    summary = score_photos(exported_file, many, output, part_size=6)
    assert (summary.continued, summary.errors) == (18, 0)
    assert [row["path"] for row in rows_of(output)] == many


def test_photos_that_none_can_be_read_end_with_1(
    exported_file: Path,
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    output = tmp_path / "scores.parquet"
    done = knownot_command("score", exported_file, tmp_path, "-o", output)
    assert done.code == 1
    assert "1 photos; the column error tells why" in done.err
    (row,) = rows_of(output)
    assert (
        row["error"] == f"{tmp_path}/a.jpg: not a readable photo (cannot identify the format); "
        "repair or remove it"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere/*.jpg"], "nowhere/*.jpg: no such file or folder, and no photo matches it"),
        ([], "give files, folders or globs, or --list FILE"),
        (["photos", "-o", "scores.csv"], "expected the name of a file that ends in .parquet"),
        (["photos", "--score", "none"], "score: expected one of"),
        (["photos", "--alpha", "7"], "alpha: expected a fraction in (0, 1), got 7.0"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(
    arguments: list[str],
    reason: str,
    exported_file: Path,
    photos: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos.parent)
    done = knownot_command("score", exported_file, *arguments)
    assert done.code == 1
    assert reason in done.err
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_files_of_others_are_not_overwritten(
    exported_file: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.parquet"
    output.write_bytes(b"something else")
    with pytest.raises(ScoringError, match="description is damaged; remove it, or choose another"):
        score_photos(exported_file, list_photos([str(photos)]), output)
    assert output.read_bytes() == b"something else"
    with pytest.raises(DataError, match="cannot be written"):
        score_photos(exported_file, ["a.jpg"], output / "below.parquet")


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'knownot\[ray\]'"):
        require_ray()
