"""Jobs on real Ray: their rows, and what does not disturb them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from knownot.errors import ConfigError, MissingExtraError, ScoringError
from knownot.runtime import OnnxClassifier
from knownot.scale.parts import Parts
from knownot.scale.score import _digest, require_ray, score_photos
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy
from tests.pages import run_page

COLUMNS = ["path", "label", "ood_score", "p_value", "is_unknown", "error"]
pytestmark = pytest.mark.usefixtures("ray_running")


def rows_of(output: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(output).to_pylist()


def at_first_part(act: Callable[[], None]) -> Callable[[int], None]:
    """Progress that calls `act` once, when the first part of this run is done."""
    acted = []

    def progress(done: int) -> None:
        if done and not acted:
            acted.append(done)
            act()

    return progress


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Names of 24 photos, known and unknown."""
    folder = tmp_path / "photos"
    for name, colour in {**COLOURS, "blue": UNKNOWN_COLOUR}.items():
        (folder / name).mkdir(parents=True)
        for i in range(8):
            noisy(colour, 50 + i).save(folder / name / f"{i}.png")
    return sorted(map(str, folder.rglob("*.png")))


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


def test_rows_are_the_answers_of_the_model(
    exported_file: Path,
    photos: list[str],
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have another folder
    Path("photos/red/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    Path("photos/red/empty.png").write_bytes(b"")
    odd = os.fsdecode(b"photos/red/z\xff.png")  # of a disk of another system
    noisy(UNKNOWN_COLOUR, 3).save(odd)
    Path(odd + ".jpg").write_bytes(b"cut")
    done = knownot_command("score", exported_file, "photos/**/*", "-o", "s.parquet", "--alpha", 0.2)
    assert done.code == 0, done.err
    assert "28 photos" in done.out
    assert "not readable 3 photos" in done.err
    rows = rows_of(Path("s.parquet"))
    names = sorted(str(path) for path in Path("photos").rglob("*.*"))
    expected = OnnxClassifier(exported_file).predict(names, alpha=0.2)
    for row, answer in zip(rows, expected, strict=True):
        known = {name: getattr(answer, name) for name in COLUMNS}
        failed = dict.fromkeys(COLUMNS) | {"path": answer.path, "error": answer.error}
        wanted = failed if answer.error else known
        assert row == {
            name: value.replace("\udcff", "\\xff") if isinstance(value, str) else value
            for name, value in wanted.items()
        }
    assert [Path(row["path"]).name for row in rows if row["error"]] == [
        "cut.jpg",
        "empty.png",
        "z\\xff.png.jpg",
    ]
    assert {row["label"] for row in rows} == {"red", "green", "unknown", None}
    assert {path.name for path in Path().iterdir()} == {"photos", "s.parquet"}
    Path("s.parquet").rename("scores.parquet")
    unknown = run_page("scaling.md")["unknown"]
    assert unknown == [row["path"] for row in rows if row["is_unknown"]]


def test_a_killed_worker_costs_no_row_and_doubles_none(
    exported_file: Path, photos: list[str], tmp_path: Path
) -> None:
    held = HeldPhoto(photos[10])
    killed = []

    def kill() -> None:
        held.wait_for_reader()
        held.put_back()
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # Ray ends idle ones itself
                if "MapWorker" in "".join(child.cmdline()):
                    child.kill()
                    killed.append(child)
        held.let_go()

    output = tmp_path / "scores.parquet"
    summary = score_photos(
        exported_file, photos, output, workers=2, part_size=4, progress=at_first_part(kill)
    )
    assert killed
    assert [row["path"] for row in rows_of(output)] == photos
    assert (summary.photos, summary.errors) == (24, 0)


def test_a_photo_that_kills_its_readers_becomes_a_row(
    exported_file: Path, photos: list[str], tmp_path: Path
) -> None:
    held, over = HeldPhoto(photos[10]), threading.Event()
    killed = []

    def kill_readers() -> None:
        while not over.is_set():
            with suppress(OSError, psutil.Error):  # nobody reads it just now, or any more
                held.writer = os.open(held.path, os.O_WRONLY | os.O_NONBLOCK)
                readers: list[psutil.Process] = []
                while not readers and not over.is_set():  # it may be about to open it
                    below = psutil.Process().children(recursive=True)
                    readers = [process for process in below if held.path in opened_by(process)]
                for process in readers:
                    process.kill()
                    process.wait(60)
                    killed.append(process)
                held.let_go()
            time.sleep(0.01)

    killer = threading.Thread(target=kill_readers)
    killer.start()
    output = tmp_path / "scores.parquet"
    try:
        summary = score_photos(exported_file, photos, output, workers=1, part_size=12)
    finally:
        over.set()
        killer.join()
    assert len(killed) == 3  # two workers, and the process that read for the third
    assert summary.errors == 1
    rows = rows_of(output)
    assert [row["path"] for row in rows] == photos
    assert rows[10]["error"] == f"{photos[10]}: whoever reads it dies (out of memory?)"


def opened_by(process: psutil.Process) -> set[str]:
    """Files that a process has open, pipes with a name included."""
    with suppress(OSError):
        return {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
    return set()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_continues(
    exported_file: Path, photos: list[str], tmp_path: Path, sent: signal.Signals
) -> None:
    output = tmp_path / "scores.parquet"
    job: dict[str, Any] = {"model": exported_file, "output": output, "part_size": 6, "workers": 1}
    handler = signal.getsignal(signal.SIGTERM)
    interrupt = at_first_part(lambda: os.kill(os.getpid(), sent))
    with pytest.raises(KeyboardInterrupt):
        score_photos(photos=photos, progress=interrupt, **job)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not output.exists()
    with pytest.raises(ScoringError, match="begun with other photos; continue with the same"):
        score_photos(photos=photos[1:], **job)
    with pytest.raises(ScoringError, match="begun with other alpha"):
        score_photos(photos=photos, alpha=0.5, **job)
    (part,) = Path(f"{output}.parts").glob("0*.parquet")
    kept = rows_of(part)
    # What is done is not done again: this photo is not there any more.
    Path(kept[0]["path"]).unlink()
    summary = score_photos(photos=photos, **job)
    assert (summary.photos, summary.continued, summary.errors) == (24, 6, 0)
    assert [row["path"] for row in rows_of(output)] == photos


def test_a_changed_photo_is_scored_anew_and_stale_parts_are_not_joined(
    exported_file: Path, photos: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "scores.parquet"
    job: dict[str, Any] = {"model": exported_file, "output": output, "part_size": 6, "workers": 1}
    job["photos"] = photos
    with pytest.raises(KeyboardInterrupt):
        score_photos(progress=at_first_part(lambda: os.kill(os.getpid(), signal.SIGINT)), **job)
    (part,) = Path(f"{output}.parts").glob("0*.parquet")
    changed, other = (row["path"] for row in rows_of(part)[:2])
    shutil.copyfile(other, changed)
    os.utime(changed, ns=(1, 1))  # of the same size it would be seen by its time
    summary = score_photos(**job)
    assert summary.continued == 0
    rows = {row["path"]: row for row in rows_of(output)}
    assert rows[changed]["ood_score"] == rows[other]["ood_score"]

    # Without its description a folder is no job: its parts are of anyone.
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        score_photos(progress=at_first_part(lambda: os.kill(os.getpid(), signal.SIGINT)), **job)
    Path(f"{output}.parts", "job.json").unlink()
    assert score_photos(alpha=0.99, **job).continued == 0
    assert all(row["is_unknown"] for row in rows_of(output) if row["p_value"] < 0.99)


def test_two_processes_do_not_write_one_output(
    exported_file: Path, photos: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "scores.parquet"
    with (
        Parts(output, photos, 6).alone(),
        pytest.raises(ScoringError, match="another process is writing it"),
    ):
        score_photos(exported_file, photos, output)
    assert list(tmp_path.glob("scores*")) == []


def test_a_job_goes_on_with_its_own_model_of_the_hub_alone() -> None:
    assert _digest(Path("owner/one")) == _digest(Path("owner/one"))
    assert _digest(Path("owner/one")) != _digest(Path("owner/other"))


def test_mistakes_are_explained_and_leave_nothing(
    exported_file: Path,
    photos: list[str],
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.parquet").write_bytes(b"something")
    for arguments, reason in (
        (["nowhere/*.jpg"], "nowhere/*.jpg: no such file or folder, and no photo matches it"),
        (["photos", "-o", "scores.csv"], "expected the name of a file that ends in .parquet"),
        (["photos", "-o", "old.parquet"], "old.parquet: is there already; remove it, or choose"),
        (["photos", "--score", "none"], "score: expected one of"),
    ):
        done = knownot_command("score", exported_file, *arguments)
        assert (done.code, reason in done.err) == (1, True), done.err
    with pytest.raises(ConfigError, match="part_size: expected at least 1, got 0"):
        score_photos(exported_file, photos, "new.parquet", part_size=0)
    done = knownot_command("score", "missing.onnx", "photos")
    assert (done.code, "missing.onnx: no such file" in done.err) == (1, True), done.err
    assert {path.name for path in Path().iterdir()} == {"photos", "old.parquet"}


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'knownot\[ray\]'"):
        require_ray()
