"""Models go to the hub and come back; what a hostile repository holds is not fetched.

The hub is a local HTTP stand-in of the endpoints used (hub_stand_in.py). huggingface_hub reads its
address when it is imported, so these calls run in an interpreter of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import knownot
from knownot.errors import ModelFileError
from knownot.models.hub import FILES, download, is_hub_id
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, tiny_backbone, tiny_model
from tests.models.hub_stand_in import TOKEN, hub_stand_in

PHOTOS = [noisy(c, 40 + i) for i in range(6) for c in (*COLOURS.values(), UNKNOWN_COLOUR)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier with something beside it that is nobody's business."""
    folder = tmp_path_factory.mktemp("hub") / "m"
    tiny_model().save_pretrained(folder)
    (folder / "training").mkdir()
    (folder / "training" / "config.yaml").write_text("data: /home/me/photos\n")
    (folder / "thumbnails").mkdir()
    noisy(COLOURS["red"], 0).save(folder / "thumbnails" / "000000.jpg")
    return folder


CODE = """
import sys
import knownot
from tests.helpers import tiny_backbone

def told(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))

folder, again = sys.argv[1:]
model = knownot.load(folder, backbone=tiny_backbone())
print(model.push_to_hub("user/model", private=True))
knownot.load("user/model", backbone=tiny_backbone(5)).save_pretrained(again)
knownot.load("user/traps", backbone=tiny_backbone())
told(lambda: knownot.load("user/nothing"))
told(lambda: model.push_to_hub("user/model", token="hf_wrong"))
"""


@dataclass
class Visit:
    """What one interpreter did at the hub: its lines, the repositories after, what was asked."""

    lines: list[str]
    again: Path
    cache: Path
    address: str
    repositories: dict[str, dict[str, bytes]]
    asked: list[str]


@pytest.fixture(scope="module")
def visit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    scratch = tmp_path_factory.mktemp("visit")
    traps = ["pytorch_model.bin", "modeling.py", "x.safetensors", "../config.json", "a/config.json"]
    traps += ["thumbnails/000000.jpg", "thumbnails/labels.json"]
    held = {name: (folder / name).read_bytes() for name in FILES}
    repositories = {"user/traps": held | dict.fromkeys(traps, b"trap"), "user/nothing": {}}
    with hub_stand_in(repositories) as (address, hub):
        env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(scratch), "HF_TOKEN": TOKEN}
        env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(folder), str(scratch / "again")],
            env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return Visit(lines, scratch / "again", scratch, address, repositories, hub.asked)


def test_a_model_goes_to_the_hub_and_comes_back(visit: Visit, folder: Path) -> None:
    assert visit.lines[0].startswith(f"{visit.address}/user/model/commit/")
    sent = visit.repositories["user/model"]
    assert sorted(sent) == sorted([".gitattributes", *FILES])  # no settings, no thumbnails
    before = knownot.load(folder, backbone=tiny_backbone())
    after = knownot.load(visit.again, backbone=tiny_backbone(5))
    assert after.predict(PHOTOS) == before.predict(PHOTOS)
    assert after.card == before.card


def test_only_the_files_of_a_model_folder_are_fetched(visit: Visit) -> None:
    fetched = {line.split("/resolve/")[1] for line in visit.asked if "user/traps/resolve" in line}
    assert {name.split("/", 1)[1] for name in fetched} == set(FILES)
    stored = {path.name for path in visit.cache.glob("hub/models--user--traps/snapshots/*/*")}
    assert stored == set(FILES)


def test_what_goes_wrong_is_told(visit: Visit) -> None:
    nothing, wrong_token = visit.lines[-2:]
    assert nothing.startswith("ModelFileError")
    assert "config.json is missing" in nothing
    assert wrong_token.startswith("HfHubHTTPError")
    assert "Invalid credentials" in wrong_token


def test_without_a_network_the_remedy_is_named() -> None:
    with pytest.raises(ModelFileError, match="check the name and the network"):
        download("user/model", local_files_only=True)


def test_from_pretrained_takes_a_folder_and_checks_the_kind(folder: Path) -> None:
    model = knownot.UnknownAwareClassifier.from_pretrained(folder, backbone=tiny_backbone())
    assert model.classes == list(COLOURS)
    with pytest.raises(ModelFileError, match="holds an UnknownAwareClassifier, not an"):
        knownot.UnknownAwareDetector.from_pretrained(folder, backbone=tiny_backbone())


def test_saving_again_replaces_a_model_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    model = knownot.load(folder, backbone=tiny_backbone())
    model.save_pretrained(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == set(FILES)
    model.alpha = 0.2
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["alpha"] == 0.2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(knownot.errors.DataError, match="is no model folder"):
        model.save_pretrained(tmp_path / "mine")


def test_a_model_saved_by_hand_has_a_card_that_claims_nothing(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    head = yaml.safe_load(header)
    assert head["library_name"] == "knownot"
    assert head["pipeline_tag"] == "image-classification"
    assert "model-index" not in head
    assert "Nothing was recorded" in body
    assert "among 120 validation" in body


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/a/b", "model", "model/", "a/b/c", "~/model"]
)
def test_paths_are_no_hub_ids(name: str) -> None:
    assert is_hub_id("user/model")
    assert not is_hub_id(name)
