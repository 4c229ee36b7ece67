"""Networks of one's own by their outputs in files: the same numbers, and what is wrong is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from knownot.benchmark.config import BenchmarkConfig, load_config, make_config
from knownot.benchmark.network_files import read_head
from knownot.benchmark.network_recipe import NetworkRecipe, networks_config
from knownot.benchmark.results import Row, read_rows
from knownot.benchmark.run import BenchmarkResult, run_benchmark
from knownot.benchmark.workplace import Silent, Workplace
from knownot.cli.main import app
from knownot.core import metrics
from knownot.data.altered import ALTERATIONS
from knownot.errors import ConfigError, DataError
from tests.benchmark.networks import Sets, trained
from tests.helpers import UNKNOWN_COLOUR, colour_folder, noisy
from tests.pages import DOCS, blocks, run_page


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "networks"))


def compared(folder: Path, output: Path, **changes) -> tuple[BenchmarkResult, list[Row]]:
    config = make_config(networks_config(folder), str(folder), {"replicates": 20} | changes)
    result = run_benchmark(Workplace(config, folder, output))
    return result, read_rows(output / "results.csv")


def numbers(rows: list[Row]) -> dict[tuple, float]:
    return {(r.training, r.score, r.seed, r.set, r.metric): r.value for r in rows}


@torch.no_grad()
def test_the_numbers_are_those_of_the_network_itself(
    saved: Path, sets: Sets, networks, tmp_path: Path
) -> None:
    result, rows = compared(saved, tmp_path)
    assert not result.failed
    found = numbers(rows)
    for seed, network in networks.items():
        logits = torch.cat([network(images) for images, _ in sets["test"]])
        labels = torch.cat([labels for _, labels in sets["test"]])
        accuracy = (logits.argmax(1) == labels).double().mean()
        assert found["Tiny_1", "", seed, "known", "accuracy"] == pytest.approx(float(accuracy))
        for name, images in (
            ("blue", torch.cat(sets["far/blue"])),
            ("grey", sets["near/grey"][0][0]),
        ):
            known, unknown = (-rows.logsumexp(1) for rows in (logits, network(images)))
            area = pytest.approx(
                metrics.auroc(known, unknown), abs=0.02
            )  # of a tenth of the images
            assert found["Tiny_1", "energy", seed, name, "auroc"] == area
            assert found["Tiny_1", "Energy", seed, name, "auroc"] == area
            assert found["Tiny_1", "combined", seed, name, "auroc"] > 0.9
    assert {r.group for r in rows if r.set == "grey"} == {"near"}
    assert "| **Tiny_1** | **combined (ours)** |" in (tmp_path / "report.md").read_text()


def test_altered_validation_images_choose_the_parts_of_the_default(folder: Path) -> None:
    config = make_config(networks_config(folder), str(folder))
    recipe = NetworkRecipe(Workplace(config, folder, folder))
    run, altered = ("Tiny_1", 0), folder / "Tiny_1" / "0" / "altered"
    model = recipe.model(*run)
    assert [len(rows) for rows in recipe.altered(model, run)] == [60] * len(ALTERATIONS)
    # What the last layer does not see: energy calls them known, distances do not.
    unseen = torch.linalg.svd(model.head.weight.detach()).Vh[-1]
    for i, file in enumerate(sorted(altered.iterdir())):
        val = load_file(altered.parent / "val.safetensors")
        save_file({**val, "features": val["features"] + (0.017 + 0.001 * i) * unseen}, file)
    chosen = recipe.model(*run).combined
    assert chosen is not None
    assert "vos" not in chosen.parts
    shutil.rmtree(altered)
    given_none = recipe.model(*run).combined
    assert given_none is not None
    assert given_none.parts == ["vos", "mahalanobis", "knn"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_files_of_numpy_give_the_same(folder: Path, tmp_path: Path, dtype: str) -> None:
    scores = {"scores": ["energy", "knn", "combined"], "about": "tiny"}
    expected = numbers(compared(folder, tmp_path / "a", methods={"Tiny_1": scores})[1])
    for path in sorted(folder.rglob("*.safetensors")):
        arrays = {k: v.numpy() for k, v in load_file(path).items()}
        arrays = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}
        np.savez(path.with_suffix(".npz"), **arrays)
        path.unlink()
    found = numbers(compared(folder, tmp_path / "b", methods={"Tiny_1": scores})[1])
    assert found == pytest.approx(expected, abs=0.05 if dtype == "float16" else 1e-6)


def test_a_second_run_measures_nothing_and_changed_outputs_are_measured_anew(
    folder: Path, tmp_path: Path
) -> None:
    few = {"methods": {"Tiny_1": ["energy", "combined"]}}
    shutil.rmtree(folder / "Tiny_1" / "1")
    measured = []

    def scores_of(output: Path) -> set[Path]:
        measured.append(numbers(compared(folder, output, **few)[1]))
        return set((tmp_path / "out" / "scores").glob("*/*"))

    first = scores_of(tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in first}
    assert scores_of(tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in first} == written
    of_run = folder / "Tiny_1" / "0"
    test, blue = (of_run / f"{name}.safetensors" for name in ("test", "far/blue"))
    known = load_file(test)
    del known["labels"]
    save_file({k: v[:12].contiguous() for k, v in known.items()}, blue)  # as many as before
    assert scores_of(tmp_path / "out") > first
    fresh = numbers(compared(folder, tmp_path / "fresh", **few)[1])
    assert {k: v for k, v in measured[-1].items() if v != measured[0].get(k)} != {}
    summary = (tmp_path / "out" / "summary.csv").read_text()
    assert summary == (tmp_path / "fresh" / "summary.csv").read_text()
    assert fresh["Tiny_1", "energy", 0, "blue", "auroc"] < 0.8
    # So are those that move to the other group, and altered images that come later.
    blue.rename(of_run / "near" / "blue.safetensors")
    shutil.rmtree(of_run / "altered")
    (of_run / "far" / "grey.safetensors").write_bytes(
        (of_run / "near/grey.safetensors").read_bytes()
    )
    (of_run / "near" / "grey.safetensors").unlink()
    compared(folder, tmp_path / "out", **few)
    compared(folder, tmp_path / "moved", **few)
    summary = (tmp_path / "out" / "summary.csv").read_text()
    assert summary == (tmp_path / "moved" / "summary.csv").read_text()


def test_a_repaired_file_is_taken_and_what_was_measured_before_is_kept(
    folder: Path, tmp_path: Path
) -> None:
    few = {"methods": {"Tiny_1": ["energy"]}}
    file = folder / "Tiny_1" / "1" / "test.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"1/test\.safetensors: cannot be read"):
        compared(folder, tmp_path / "out", **few)
    (kept,) = (tmp_path / "out" / "scores").glob("*seed0*/*")
    before = kept.stat().st_mtime_ns
    file.write_bytes(whole)
    assert len(compared(folder, tmp_path / "out", **few)[1]) == 2 * (1 + 2 * 3)
    assert kept.stat().st_mtime_ns == before


def test_a_class_that_training_images_lack_is_told(folder: Path, tmp_path: Path) -> None:
    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    file = folder / "Tiny_1" / "0" / "train.safetensors"
    rows = load_file(file)
    some = rows["labels"] == 1
    save_file({name: values[some].contiguous() for name, values in rows.items()}, file)
    config = make_config(networks_config(folder), "networks")
    place = Workplace(config, folder, tmp_path, reporter=Heard())
    NetworkRecipe(place).model("Tiny_1", 0)
    assert said == [
        "Tiny_1, seed 0: train lacks images of 1 of 2 classes (0, ...); some scores need each, others "
        "are worse"
    ]


def changed(**arrays: Callable[[Tensor], Tensor] | None) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        found = load_file(file)
        for name, of_array in arrays.items():
            values = found.pop(name)
            if of_array is not None:
                found[name] = of_array(values).contiguous()
        save_file(found, file)

    return change


def with_nan(rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[[2, 5], 1] = torch.nan
    return rows


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "test",
            changed(features=lambda x: x[:, :5]),
            r"an array features \(N, 8\), got \(40, 5\)",
        ),
        ("test", changed(features=None), r"an array features \(N, 8\), got none"),
        ("far/blue", changed(logits=lambda x: x[:3]), "logits of 3 images, features of 12"),
        ("far/blue", changed(logits=lambda x: x[:0]), r"logits \(N, 2\), got \(0, 2\)"),
        ("near/grey", changed(features=with_nan), "features of 2 images are not finite"),
        ("val", changed(features=lambda x: x.relu() + 1), "not what the last layer makes"),
        ("val", changed(logits=lambda x: x.softmax(1)), "logits before softmax"),
        ("train", changed(labels=lambda x: x + 1), "classes from 0 to 1, got 1 to 2"),
        ("train", changed(labels=lambda x: x.float()), r"labels \(60,\) of whole numbers"),
        ("train", changed(labels=None), r"labels \(60,\) of whole numbers"),
        ("head", changed(weight=lambda x: x[0]), r"weight \(K, D\) and"),
        ("head", changed(weight=lambda x: x.T), r"got .*'weight': \(8, 2\)"),
        ("head", changed(bias=lambda x: x[:1]), r"'bias': \(1,\)"),
        ("altered/jigsaw", lambda file: file.write_bytes(b"no tensors"), "cannot be read"),
        ("test", lambda file: np.savez(file.with_suffix(".npz"), x=1), "which of the two counts"),
        ("test", lambda file: file.unlink(), r"test: there is no such file, \.safetensors or"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_name(
    folder: Path, tmp_path: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    change(folder / "Tiny_1" / "1" / f"{name}.safetensors")
    with pytest.raises(DataError, match=message) as caught:
        compared(folder, tmp_path / "out", methods={"Tiny_1": ["combined"]})
    assert str(folder / "Tiny_1" / "1" / name) in str(caught.value)


def test_a_bias_may_be_missing_and_pickles_are_never_read(folder: Path, tmp_path: Path) -> None:
    file = folder / "Tiny_1" / "0" / "head.safetensors"
    changed(bias=None)(file)
    assert not read_head(file.parent).bias.any()
    file.unlink()
    np.savez(file.with_suffix(".npz"), weight=np.array([[1.0], None], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_head(file.parent)


def test_folders_that_hold_no_networks(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no NETWORK/SEED/train\.safetensors"):
        networks_config(saved / "Tiny_1" / "0")
    with pytest.raises(DataError, match="NETWORK/SEED"):
        networks_config(tmp_path)
    with pytest.raises(DataError, match=r"0/altered: expected folders NETWORK/SEED below .*Tiny_1"):
        networks_config(saved / "Tiny_1")
    without = shutil.copytree(saved, tmp_path / "a", ignore=shutil.ignore_patterns("near", "far"))
    with pytest.raises(DataError, match="holds no OOD set"):
        networks_config(Path(without))
    (tmp_path / "a" / "other" / "5").mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "a", dirs_exist_ok=True)
    with pytest.raises(DataError, match="Tiny_1/5/head: there is no such file"):
        compared(tmp_path / "a", tmp_path / "out")


def test_the_command_takes_the_folder_alone(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["benchmark", "--networks", str(folder), "-o", str(output), "--seeds", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "combined (ours)" in done.output
    assert {row.seed for row in read_rows(output / "results.csv")} == {1}
    for wrong, message in (
        (["--networks", str(folder), "--data", str(folder)], "in place of --config and --data"),
        (["--networks", str(tmp_path / "none")], "is no folder"),
    ):
        done = CliRunner().invoke(app, ["benchmark", *wrong])
        assert isinstance(done.exception, ConfigError)
        assert message in str(done.exception)


def settings(**changes) -> dict:
    values = {"name": "mine", "about": "Mine", "training": {"recipe": "networks"}}
    values |= {"methods": {"Tiny_1": ["energy"]}, "near": ["grey"], "far": ["blue"]}
    return values | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"known": "cats"}, "known: expected none"),
        ({"methods": {"a b": ["energy"]}}, "'a b' cannot name a network"),
        ({"methods": {"../x": ["energy"]}}, "cannot name a network"),
        ({"methods": {"net": ["energy"], "Net": ["energy"]}}, "by capitals alone"),
        ({"methods": {"net": ["enrgy"]}}, "did you mean energy"),
        (
            {"methods": {"net": {"about": "n", "settings": {"epochs": 3}, "scores": ["energy"]}}},
            "a finished network is not trained",
        ),
        ({"training": {"recipe": "photos"}}, "known: is missing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings(**changes), "mine.yaml")


def test_a_name_of_the_packages_trainings_is_a_network_of_that_name() -> None:
    config = make_config(settings(methods={"vos": ["energy"]}), "mine.yaml")
    assert config.training_of("vos").about == "vos"
    assert not config.training_of("vos").settings


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count, start in (("train", 20, 0), ("val", 20, 100), ("test", 20, 200)):
        colour_folder(tmp_path / "photos" / split, count, start)
    for name, colour in (("other_animals", (120, 120, 120)), ("textures", UNKNOWN_COLOUR)):
        (tmp_path / name / "any").mkdir(parents=True)
        for i in range(6):
            noisy(colour, i).save(tmp_path / name / "any" / f"{i}.png")
    run_page("networks.md", network=trained(0))
    assert (tmp_path / "networks/resnet50/0/altered/inverted.safetensors").is_file()
    (page,) = blocks(DOCS / "networks.md", "yaml")
    (tmp_path / "mine.yaml").write_text(page)
    config = load_config("mine.yaml")
    assert isinstance(config, BenchmarkConfig)
    assert config.finished
    values = yaml.safe_load(page)
    del values["methods"]["resnet50-mixup"]
    values |= {"far": ["textures"], "apart": [], "seeds": [0]}
    config = make_config(values, "mine.yaml")
    result = run_benchmark(Workplace(config, Path("networks"), Path("out")))
    assert result.summary.line("resnet50", "combined", "textures", "auroc") is not None
    assert "resnet50, ODIN" in result.failed
