"""A model folder gives the same answers back, and a damaged or hostile one is refused."""

from __future__ import annotations

import copy
import functools
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


trained = functools.cache(tiny_model)


def saved(folder: Path, **options) -> UnknownAwareClassifier:
    model = copy.deepcopy(trained(**options))
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


def test_what_a_backbone_is_wrapped_in_for_training_is_not_saved(tmp_path: Path) -> None:
    model = copy.deepcopy(trained())
    expected, backbone = model.predict(PHOTOS), model.backbone
    model.backbone = torch.compile(backbone)
    save(model, tmp_path / "m")
    assert load(tmp_path / "m", backbone=tiny_backbone(5)).predict(PHOTOS) == expected
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model.backbone = torch.nn.parallel.DistributedDataParallel(backbone)
        save(model, tmp_path / "d")
    finally:
        torch.distributed.destroy_process_group()
    assert load(tmp_path / "d", backbone=tiny_backbone(5)).predict(PHOTOS) == expected


def test_a_folder_from_before_the_factor_was_kept_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    state = load_file(weights)
    del state["vos.gaussians.upper"], state["vos.gaussians._extra_state"]
    save_file(state, weights)
    again = load(tmp_path / "m", backbone=tiny_backbone())
    assert torch.equal(again.vos.gaussians.means, model.vos.gaussians.means)


def test_the_public_load_is_this_one() -> None:
    assert knownot.load is load


def test_the_folder_is_readable_by_others_and_complete(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["m"]  # no temporary is left
    files = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert files == ["README.md", "calibration.safetensors", "config.json", "model.safetensors"]
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
    (tmp_path / "file.onnx").write_bytes(b"")
    with pytest.raises(ModelFileError, match="is a file; expected the folder of a model"):
        load(tmp_path / "file.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        load(tmp_path / "empty")
    saved(tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"in Python load\(\.\.\., backbone=module\)"):
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


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "calibration.safetensors"])
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
        ("bank_size", 0),
        ("classes", ["a", "../../etc/cron.d/x"]),
        ("classes", ["a", "..\\up"]),
        ("classes", ["a", "/etc/passwd"]),
        ("classes", ["a", "\x1b[2J"]),
        ("classes", ["a", ""]),
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
        ("combined_parts", ["vos.phi"]),
        ("combined_parts", []),
        ("architecture", "../../etc/passwd"),
        ("architecture", "hf-hub:nobody/evil"),
        ("architecture", "vit_giant_patch14_clip_224"),  # 4 GB, were it built
        ("surprise", 1),
        ("vos", {"queue_size": 10**9}),
        ("vos", {"queue_size": 10**18}),
        ("vos", {"queue_size": 10**30}),
        ("vos", {"draws_per_class": 1, "outliers_per_class": 5}),
        ("vos", {"outliers": "mixup", "gaussians": "streaming"}),
        ("vos", {"outliers": "noise", "radius_ratio": 2.0}),
        ("architecture", "resnet10t.nobodys_tag"),
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


def test_sizes_that_would_fill_the_memory_take_none(tmp_path: Path) -> None:
    """Without a bottleneck, features 1,000,000 wide ask for 8 TB of Gaussians."""
    saved(tmp_path / "m")
    folder = tmp_path / "m"
    config = json.loads((folder / "config.json").read_text())
    config |= {"backbone_dim": 1_000_000, "bottleneck": None, "standardise": False, "bank_size": 1}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors["head.weight"] = torch.zeros(2, 1_000_000)  # the wide tensors that are small are there
    tensors["feature_scores.means"] = torch.zeros(2, 1_000_000)
    tensors["feature_scores.bank"] = torch.zeros(1, 1_000_000)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"has shape .* config\.json says .*1000000"):
        load(folder, backbone=tiny_backbone())


@pytest.mark.parametrize("shape", [[2**40, 2**40], [-1], [2**63], [10**30], "8", None], ids=str)
@pytest.mark.parametrize("name", ["model.safetensors", "calibration.safetensors"])
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str, shape) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / name
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header[next(key for key in header if key != "__metadata__")]["shape"] = shape
    lying = json.dumps(header).encode()
    path.write_bytes(len(lying).to_bytes(8, "little") + lying + data[end:])
    with pytest.raises(ModelFileError):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_a_header_as_long_as_the_address_space_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelFileError, match="not a readable weights file"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_a_configuration_without_end_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    with (tmp_path / "m" / "config.json").open("r+b") as file:
        file.truncate(2**40)  # a sparse file of a terabyte
    with pytest.raises(ModelFileError, match="is larger than 16 MiB"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_scores_that_no_model_has_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "calibration.safetensors"
    save_file(load_file(path) | {"magic.scores": torch.ones(3)}, path)
    with pytest.raises(ModelFileError, match="magic"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_pickles_beside_the_model_are_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m")
    for name in ("pytorch_model.bin", "model.pth", "calibration.pkl", "modeling.py"):
        (tmp_path / "m" / name).write_bytes(pickle.dumps(Evil()))
    load(tmp_path / "m", backbone=tiny_backbone())
    assert not (tmp_path / "pwned").exists()


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


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    save_file(load_file(path) | {"stranger": torch.ones(3)}, path)
    with pytest.raises(ModelFileError, match=r"weights are damaged or do not fit .*stranger"):
        load(tmp_path / "m", backbone=tiny_backbone())


def test_a_folder_that_an_earlier_version_wrote_answers_as_it_did() -> None:
    """`folder_of_before` is kept as it was written in November 2026: what users have must stay readable."""
    model = load(Path(__file__).with_name("folder_of_before"), backbone=tiny_backbone())
    red, strange = model.predict([noisy(COLOURS["red"], 1), noisy((40, 40, 220), 2)])
    assert (red.label, red.nearest_class, strange.label) == ("red", "red", "unknown")
    assert red.confidence == pytest.approx(0.99572, abs=1e-3)
    assert red.scores["vos"] == pytest.approx(-5.02394, abs=1e-2)
    assert red.p_value == pytest.approx(0.7377, abs=0.05)
    assert strange.p_value == pytest.approx(0.01639, abs=1e-3)
    assert model.vos.gaussians.counts.tolist() == [50, 50]
