"""A model folder gives the same answers back, and a damaged or hostile one is refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import knownot
from knownot.errors import DataError, ModelFileError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import choose_device, load, save
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, tiny_backbone, tiny_model

PHOTOS = [noisy(c, 40 + i) for i in range(6) for c in (*COLOURS.values(), UNKNOWN_COLOUR)]


def saved(folder: Path, **options) -> UnknownAwareClassifier:
    model = tiny_model(**options)
    save(model, folder)
    return model


@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("gaussians", ["window", "streaming"])
@pytest.mark.parametrize("phi", ["monotone", "free-mlp"])
def test_round_trip_gives_the_same_answers(tmp_path: Path, classwise, gaussians, phi) -> None:
    model = saved(tmp_path / "m", classwise=classwise, gaussians=gaussians, phi=phi)
    again = load(tmp_path / "m", backbone=tiny_backbone(5))
    assert again.predict(PHOTOS) == model.predict(PHOTOS)
    assert again.threshold() == model.threshold()
    assert torch.equal(again.vos.gaussians.means, model.vos.gaussians.means)
    assert again.vos.steps == model.vos.steps


def test_the_public_load_is_this_one() -> None:
    assert knownot.load is load


def test_the_folder_is_readable_by_others_and_complete(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["m"]  # no temporary is left
    files = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert files == ["calibration.safetensors", "config.json", "model.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    for path in (tmp_path / "m").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    with pytest.raises(DataError, match="add --overwrite"):
        save(model, tmp_path / "m")
    model.alpha = 0.2
    save(model, tmp_path / "m", overwrite=True)
    assert load(tmp_path / "m", backbone=tiny_backbone()).alpha == 0.2
    assert sorted(os.listdir(tmp_path)) == ["m"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DataError, match="is no model folder and is not overwritten"):
        save(model, tmp_path / "mine", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        save(model, tmp_path / "file")


def test_a_failed_save_leaves_the_old_model_and_no_rest(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    before = model.predict(PHOTOS)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left on device\); free some space"):
        save(model, tmp_path / "m", overwrite=True, extra=fail)
    assert sorted(os.listdir(tmp_path)) == ["m"]
    assert load(tmp_path / "m", backbone=tiny_backbone()).predict(PHOTOS) == before


@pytest.mark.parametrize("limit", [100, 10_000], ids=["configuration", "weights"])
def test_a_disk_that_takes_no_more_is_named(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    model = tiny_model()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the kernel refuses larger files
    try:
        with pytest.raises(DataError, match=r"m: cannot be written"):
            save(model, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_failed_exchange_puts_the_old_model_back(tmp_path: Path, monkeypatch) -> None:
    model = saved(tmp_path / "m")
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(DataError, match="Input/output error"):
        save(model, tmp_path / "m", overwrite=True)
    monkeypatch.undo()
    assert load(tmp_path / "m", backbone=tiny_backbone()).classes == model.classes


def test_an_uncalibrated_model_is_not_saved(tmp_path: Path) -> None:
    model = UnknownAwareClassifier(tiny_backbone(), 8, ["a", "b"], bottleneck=None)
    with pytest.raises(ModelFileError, match="not calibrated"):
        save(model, tmp_path / "m")


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        load(tmp_path / "empty")
    saved(tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"give load\(\.\.\., backbone=module\)"):
        load(tmp_path / "m")
    (tmp_path / "m" / "calibration.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"calibration\.safetensors is missing"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_a_hub_id_without_a_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFileError, match="not found on the hub"):
        load("nobody/no-such-model-here")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("name", ["model.safetensors", "calibration.safetensors"])
def test_a_pickle_in_disguise_is_not_executed(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelFileError):
        load(tmp_path / "m", backbone=tiny_backbone())
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bank_size", 10_000_000),
        ("backbone_dim", 1_000_000),
        ("bottleneck", 999_999),
        ("classes", ["a", "b", "c"]),
        ("classes", ["only"]),
        ("alpha", 7),
        ("alpha", "NaN"),
        ("format_version", 2),
        ("task", "launch"),
        ("default_score", "magic"),
        ("combined_parts", ["a"]),
        ("architecture", "../../etc/passwd"),
        ("surprise", 1),
        ("vos", {"queue_size": 10**9}),
    ],
)
def test_a_configuration_that_lies_is_refused(tmp_path: Path, key: str, value) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config[key] = value if key != "vos" else config["vos"] | value
    path.write_text(json.dumps(config))
    backbone = None if key == "architecture" else tiny_backbone()
    with pytest.raises(knownot.errors.KnownotError):
        load(tmp_path / "m", backbone=backbone)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff\xfe", '{"classes": 1}'])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    saved(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load(tmp_path / "m", backbone=tiny_backbone())


@pytest.mark.parametrize("change", ["truncate", "drop", "add", "nan calibration"])
def test_damaged_weights_are_named(tmp_path: Path, change: str) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    if change == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "nan calibration":
        path = tmp_path / "m" / "calibration.safetensors"
        tensors = load_file(path)
        save_file({k: v * float("nan") for k, v in tensors.items()}, path)
    else:
        tensors = load_file(path)
        if change == "drop":
            del tensors["head.bias"]
        else:
            tensors["extra"] = torch.ones(1)
        save_file(tensors, path)
    with pytest.raises(ModelFileError, match="m"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_the_device_is_chosen_and_may_be_named() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
