"""From unknown photos to a new class: `predict --keep-unknown`, `triage`, `triage --name`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from knownot.data.image_folder import read_labelled
from knownot.data.inbox import Inbox
from knownot.errors import ConfigError, DataError
from knownot.evaluation import triage as module
from knownot.evaluation.triage import copy_named, parsed_names, triage
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import UNKNOWN_COLOUR, colour_folder, noisy


def test_predict_keeps_unknown_photos(
    exported_file: Path,
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(*_: object) -> bool:
        raise DataError("a.jpg: cannot be written (No space left on device)")

    new = colour_folder(tmp_path / "new", 2)
    noisy(UNKNOWN_COLOUR, 1).save(new / "blue.png")
    (new / "torn.png").write_text("torn")
    unknown = tmp_path / "unknown"
    arguments = ("predict", exported_file, new, "--json", "--keep-unknown", unknown)
    done = knownot_command(*arguments)
    assert done.code == 1  # a photo could not be read
    answers = [json.loads(line) for line in done.out.splitlines()]
    flagged = [one for one in answers if one["is_unknown"]]
    assert "blue.png" in {Path(one["path"]).name for one in flagged}
    assert len(list(unknown.glob("*.jpg"))) == len(flagged)
    knownot_command(*arguments)
    assert len(list(unknown.glob("*.jpg"))) == len(flagged)
    # What cannot be kept costs no answer.
    for kept in unknown.iterdir():
        kept.unlink()
    monkeypatch.setattr(Inbox, "_keep", full_disk)
    done = knownot_command(*arguments[:-3], "-o", tmp_path / "a.jsonl", *arguments[-2:])
    assert done.code == 1
    assert "not kept" in done.err
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == len(answers)
    (tmp_path / "v.mp4").write_text("")
    refused = knownot_command(
        "predict", exported_file, tmp_path / "v.mp4", "--keep-unknown", unknown
    )
    assert (refused.code, "is a video" in refused.err) == (1, True)


@pytest.mark.photos
def test_kinds_of_unknown_photos_become_classes(
    shared_data: Path,
    tmp_path: Path,
    knownot_command: Run,  # noqa: F811
) -> None:
    inbox = tmp_path / "unknown"
    inbox.mkdir()
    for kind, pattern in (("people", "*.jpg"), ("near_animals", "*giraffe*.jpg")):
        for path in sorted((shared_data / "ood" / kind).glob(pattern))[:14]:
            shutil.copy(path, inbox / f"{kind}-{path.name}")
    for path in inbox.glob("people-*.jpg"):
        path.with_suffix(".json").write_text('{"nearest_class": "dog"}')
    (inbox / "torn.jpg").write_text("torn")
    done = knownot_command("triage", inbox, "--json")
    assert done.code == 0, done.err
    groups = json.loads(done.out)["groups"]
    kinds = [Counter(Path(p).name.split("-")[0] for p in group["photos"]) for group in groups]
    # Each group is of one kind, and most photos are in one.
    assert all(len(kind) == 1 for kind in kinds)
    assert sum(kind.total() for kind in kinds) > 0.7 * 28
    assert set().union(*kinds) == {"people", "near_animals"}
    nearest = {
        group["nearest_class"]
        for group, kind in zip(groups, kinds, strict=True)
        if "people" in kind
    }
    assert nearest == {"dog"}
    page = (inbox / "triage.html").read_text()
    assert "similar, nearest class dog" in page
    assert page.count("data:image/jpeg") > 20
    names = [
        argument
        for group, kind in zip(groups, kinds, strict=True)
        for argument in (
            "--name",
            f"{group['number']}={'person' if 'people' in kind else 'giraffe'}",
        )
    ]
    for _ in range(2):  # again changes nothing
        named = knownot_command("triage", inbox, *names, "-o", tmp_path / "set")
        assert named.code == 0, named.err
        made = read_labelled(tmp_path / "set")
        assert made.classes == ["giraffe", "person"]
        assert len(made) == sum(kind.total() for kind in kinds)


def test_what_cannot_be_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run knownot triage"):
        copy_named(tmp_path, {1: "bear"}, tmp_path / "set")
    record = tmp_path / "triage.json"
    record.write_text('{"1": ["a.jpg"]}')
    for name in ("../bear", "", ".bear", "a/b", "unknown"):
        with pytest.raises(ConfigError, match="cannot be the name"):
            copy_named(tmp_path, {1: name}, tmp_path / "set")
    with pytest.raises(ConfigError, match="group 1 is named twice"):
        parsed_names(["1=bear", "2=cow", "1=seal"])
    with pytest.raises(ConfigError, match="no group 2"):
        copy_named(tmp_path, {2: "bear"}, tmp_path / "set")
    with pytest.raises(DataError, match="any more"):
        copy_named(tmp_path, {1: "bear"}, tmp_path / "set")
    for text in ('{"1": ["../../etc/passwd"]}', '{"1": ["/etc/passwd"]}', "[]", "{", '{"1": [1]}'):
        record.write_text(text)
        with pytest.raises(DataError, match="damaged"):
            copy_named(tmp_path, {1: "bear"}, tmp_path / "set")


def test_photos_that_have_gone_are_told(tmp_path: Path, knownot_command: Run) -> None:  # noqa: F811
    (tmp_path / "in").mkdir()
    noisy(UNKNOWN_COLOUR, 1).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "triage.json").write_text('{"1": ["a.png", "b.png"], "2": ["c.png"]}')
    done = knownot_command(
        "triage", tmp_path / "in", "--name", "1=bear", "-o", tmp_path / "set", "--json"
    )
    assert json.loads(done.out) == {str(tmp_path / "set" / "bear"): 1}
    assert "1 of these photos are in" in done.err


def test_a_lone_photo_and_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_text("torn")
    with pytest.raises(DataError, match="none of its 1 photos"):
        triage(tmp_path)
    noisy(UNKNOWN_COLOUR, 1).save(tmp_path / "a.png")
    found = triage(tmp_path)
    assert (found.clusters, found.alone) == ([], [tmp_path / "a.png"])
    assert "No group is large enough" in found.gallery.read_text()


def test_photos_of_the_same_name_replace_nothing(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "train"
    for number, camera in enumerate(("cam1", "cam2")):
        (inbox / camera).mkdir(parents=True)
        noisy((number * 90, 30, 60), number).save(inbox / camera / "IMG_0.png")
    record = {"1": ["cam1/IMG_0.png"], "2": ["cam2/IMG_0.png"]}
    (inbox / "triage.json").write_text(json.dumps(record))
    old = noisy((9, 200, 9), 5)
    (output / "bear").mkdir(parents=True)
    old.save(output / "bear" / "IMG_0.png")
    kept = (output / "bear" / "IMG_0.png").read_bytes()
    for _ in range(2):  # the second time all of it is there
        assert copy_named(inbox, {1: "bear", 2: "bear"}, output) == {"bear": 2}
    assert (output / "bear" / "IMG_0.png").read_bytes() == kept
    contents = {path.read_bytes() for path in (output / "bear").iterdir()}
    assert contents == {kept, *(path.read_bytes() for path in inbox.glob("*/*.png"))}


def test_of_very_many_photos_a_sample_makes_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), [120, 90, 60, 30])
    features = rng.normal(size=(4, 40))[kinds] * 3 + rng.normal(size=(300, 40))
    features = np.vstack([features, 30 * rng.normal(size=(2, 40))]).astype(np.float32)
    paths = [Path(f"{i}.jpg") for i in range(302)]

    def groups() -> list[set[int]]:
        found, _ = module._clusters(paths, features, 3)
        return [{int(photo.stem) for photo in cluster.photos} for cluster in found]

    every = groups()
    assert [len(group) for group in every] == [120, 90, 60, 30]
    monkeypatch.setattr(module, "_MOST_PAIRED", 100)
    assert groups() == every
