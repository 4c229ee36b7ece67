"""Settings of a training: from flags and files, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from knownot.errors import ConfigError
from knownot.training.config import make_config


def test_yaml_equals_flags_and_flags_win(tmp_path: Path) -> None:
    flags = {"data": Path("photos"), "epochs": 7, "phi": "free-mlp", "tail_probability": 1e-6}
    file = tmp_path / "c.yaml"
    file.write_text(make_config(flags).to_yaml())
    assert make_config({}, file) == make_config(flags)
    assert make_config({"epochs": 9, "alpha": None}, file).epochs == 9
    assert yaml.safe_load(file.read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: p\nepoch: 3", "epoch: unknown setting; did you mean epochs"),
        ("data: p\nalpha: 7", "alpha: .* got 7"),
        ("data: p\nfinetune: some", "finetune: .* got 'some'"),
        ("- a list", "expected `key: value` lines"),
        ("a: [", "not valid YAML"),
        ("epochs: 3", "no folder of photos was given"),
    ],
)
def test_wrong_configuration_files_are_explained(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        make_config({}, file)


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
