"""Settings of a training: from flags and files, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from knownot.errors import ConfigError
from knownot.training.config import TrainConfig, make_config
from knownot.training.schedule import one_cycle


def test_yaml_equals_flags_and_flags_win(tmp_path: Path) -> None:
    flags = {"data": Path("photos"), "epochs": 7, "phi": "free-mlp", "tail_probability": 1e-6}
    file = tmp_path / "c.yaml"
    file.write_text(make_config(flags).to_yaml())
    assert make_config({}, file) == make_config(flags)
    assert make_config({"epochs": 9, "alpha": None}, file).epochs == 9
    assert yaml.safe_load(file.read_text())["seed"] == 0


def test_keys_of_a_file_may_be_written_as_options_are(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: p\ntask: detect\nfrom: det/\nvos-weight: 0.2\n")
    config = make_config({}, file)
    assert (config.start_from, config.vos_weight) == (Path("det"), 0.2)  # type: ignore[union-attr]
    file.write_text("data: p\nvos-weight: 0.2\nvos_weight: 0.3\n")
    with pytest.raises(ConfigError, match="vos_weight stands there twice"):
        make_config({}, file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: p\nepoch: 3", "epoch: unknown setting; did you mean epochs"),
        ("data: p\nalpha: 7", "alpha: .* got 7"),
        ("data: p\nfinetune: some", "finetune: .* got 'some'"),
        ("- a list", "expected `key: value` lines"),
        ("a: [", "not valid YAML"),
        ("epochs: 2024-13-45", "not valid YAML .month must be in"),
        ("epochs: " + "[" * 5000, "not valid YAML"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", r"(?s)a second 'epochs'.*line 3"),
        ("epochs: 3", "no folder of photos was given"),
        ("data:", "data: expected a folder, got None"),
        ("data: 5", "data: expected a folder, got 5"),
        ("data: p\n1: 2", "keys must be words, got 1"),
        ("? [a, b]\n: c", "unhashable key"),
        ("data: p\ntask: [classify]", r"task: .* got \['classify'\]"),
    ],
)
def test_wrong_configuration_files_are_explained(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        make_config({}, file)


def test_settings_may_be_merged_as_yaml_does(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: p\nseed: 3\n<<: {seed: 1, epochs: 4}\n")
    assert (make_config({}, file).seed, make_config({}, file).epochs) == (3, 4)


def test_settings_of_tails_are_refused_where_there_is_none() -> None:
    config = make_config({"data": Path("p"), "outliers": "mixup", "radius_ratio": 3})
    with pytest.raises(ConfigError, match="radius_ratio: does nothing for mixup outliers"):
        config.vos_settings(10, 64)


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read"):
        make_config({}, tmp_path / "no.yaml")


def test_many_wide_classes_take_streaming_moments() -> None:
    config = make_config({"data": Path("p")})
    assert config.vos_settings(10, 128).gaussians == "window"
    assert config.vos_settings(1000, 2048).gaussians == "streaming"
    assert (config.bottleneck_for(1280), config.bottleneck_for(128)) == (64, None)
    assert make_config({"data": Path("p"), "bottleneck": 0}).bottleneck_for(1280) is None


@pytest.mark.parametrize(("classes", "outliers"), [(2, 16), (16, 16), (100, 2), (1000, 1)])
def test_outliers_of_a_step_are_bounded_for_any_number_of_classes(
    classes: int, outliers: int
) -> None:
    config = make_config({"data": Path("p"), "task": "classify"})
    assert config.vos_settings(classes, 64).outliers_per_class == outliers
    told = config.model_copy(update={"outliers_per_class": 3})
    assert told.vos_settings(classes, 64).outliers_per_class == 3


@pytest.mark.parametrize("way", [{"task": "detect"}, {"task": "classify", "finetune": "all"}])
def test_whole_networks_draw_the_papers_one_outlier_of_a_class(way: dict[str, str]) -> None:
    config = make_config({"data": Path("p"), **way})
    assert config.vos_settings(5, 128).outliers_per_class == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"draws_per_class": 5, "outliers_per_class": 6}, "more than the 5 draws"),
        ({"tail_probability": 0.1, "outliers_per_class": 16}, "more than the 10 draws"),
        ({"seed": 2**32}, "seed"),
        ({"device": "gpu"}, "device"),
        ({"queue_size": 1}, "queue_size"),
        ({"precision": "64-true"}, "precision"),
    ],
)
def test_settings_that_would_fail_later_are_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config({"data": Path("photos"), "task": "classify", **setting})


def test_few_draws_make_few_outliers() -> None:
    assert TrainConfig(data=Path("photos"), draws_per_class=5).outliers_for(2) == 5


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_any_number_of_steps_has_a_schedule(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = one_cycle(optimizer, steps, warmup)
    for _ in range(steps):
        optimizer.step()
        schedule.step() if steps > 1 else None
        assert 0 <= optimizer.param_groups[0]["lr"] <= 0.1 + 1e-9
