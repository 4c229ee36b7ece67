"""Settings of a benchmark: those that are shipped, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from knownot.benchmark.config import BenchmarkConfig, PhotoTraining, load_config, shipped
from knownot.benchmark.photo_recipe import PhotoRecipe
from knownot.benchmark.scores import OURS, POSTHOC
from knownot.benchmark.small_images import SmallImageRecipe
from knownot.benchmark.workplace import Workplace
from knownot.errors import ConfigError

GOOD = {
    "name": "mine",
    "about": "x",
    "known": "cats_dogs",
    "training": {"recipe": "photos"},
    "methods": {"vos": ["ours"]},
    "far": ["a"],
}
OWN = {"about": "β = 1", "settings": {"vos_weight": 1.0}, "scores": ["ours"]}


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_benchmark_is_valid_and_survives_its_own_file(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    (tmp_path / "copy.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "copy.yaml")) == config
    if config.tables:  # ablations: each training is in a table, and differs from the others
        assert {t for trainings in config.tables.values() for t in trainings} == set(config.methods)
        prints = {config.fingerprint(training) for training in config.methods}
        assert len(prints) == len(config.methods)
        return
    assert config.scores("cross-entropy") == [*POSTHOC, *OURS]
    assert {"vos", "vos-free-phi", "vos-pytorch-ood"} < set(config.methods)


@pytest.mark.parametrize("name", shipped())
def test_every_training_of_a_shipped_benchmark_has_settings_that_exist(
    name: str, tmp_path: Path
) -> None:
    config = load_config(name)
    place = Workplace(config, tmp_path, tmp_path / "out")
    (tmp_path / config.known).mkdir()
    for training in config.methods:
        if isinstance(config.training, PhotoTraining):
            settings = PhotoRecipe(place)._config(training, 0)
        else:
            settings = SmallImageRecipe(place)._settings(training)
        for key, value in config.training_of(training).settings.items():
            assert getattr(settings, key) == value


def test_the_papers_recipe_is_the_papers() -> None:
    training = load_config("cifar10_wrn40").training.model_dump()
    paper = {"depth": 40, "width": 2, "dropout": 0.3, "epochs": 100, "batch_size": 128, "lr": 0.1}
    paper |= {"momentum": 0.9, "weight_decay": 5e-4, "vos_start": 0.4}
    assert {key: training[key] for key in paper} == paper


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "metods: Extra inputs"),
        ({"methods": {"vos": ["enrgy"]}}, "'enrgy' is none of .*; did you mean energy"),
        ({"methods": {"voss": ["energy"]}}, "did you mean vos"),
        ({"methods": {"vos": OWN}}, "'vos' cannot name a training of your own"),
        ({"methods": {"../mine": OWN}}, "'../mine' cannot name"),
        ({"methods": {"mine": OWN | {"setings": {}}}}, "setings"),
        ({"tables": {"t": ["vso"]}}, "tables.t: 'vso' is none of vos; did you mean vos"),
        ({"far": []}, "near, far: expected different sets"),
        ({"near": ["a"]}, "near, far: expected different sets"),
        ({"far": ["a", "test"]}, "near, far: 'test' cannot name a set"),
        ({"far": ["near"]}, "near, far: 'near' cannot name a set"),
        ({"known": "a", "far": ["a"]}, "near, far: a is the known set"),
        ({"far": ["set 1", "set_1"]}, "near, far: 'set 1' cannot name a set"),
        ({"apart": ["a"]}, "apart: every set is apart"),
        ({"apart": ["b"]}, "apart: 'b' is none of a"),
        ({"seeds": [0, 0]}, "seeds: expected different numbers"),
        ({"seeds": []}, "seeds: "),
        ({"training": {"recipe": "other"}}, "recipe"),
        ({"training": {"recipe": "small_images", "depth": 41}}, r"depth: expected 6 n \+ 4"),
        ({"name": "../up"}, "name: "),
        ({"like": "cats_dog"}, "like: expected one of .*cats_dogs.*, got 'cats_dog'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, changes, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GOOD | changes))
    with pytest.raises(ConfigError, match=message):
        load_config(str(file))


def test_a_file_like_a_shipped_one_gives_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"like": "cats_dogs", "name": "mine", "near": []}))
    changed = {"name": "mine", "near": [], "apart": []}
    with pytest.raises(ConfigError, match="apart: 'wild_cats'"):
        load_config(str(file))
    file.write_text(yaml.safe_dump({"like": "cats_dogs", **changed}))
    assert load_config(str(file)) == load_config("cats_dogs").model_copy(update=changed)


@pytest.mark.parametrize("text", ["- 1", "a: [", "1: 2"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_config(str(tmp_path / "mine.yaml"))


def test_a_missing_file_names_what_is_shipped() -> None:
    with pytest.raises(ConfigError, match="expected a YAML file or one of ablations_cats_dogs, "):
        load_config("cats_and_dogs")


def test_models_of_other_settings_have_other_names() -> None:
    one, same = BenchmarkConfig(**GOOD), BenchmarkConfig(**GOOD | {"seeds": [5], "about": "y"})
    other = BenchmarkConfig(**GOOD | {"training": {"recipe": "photos", "settings": {"epochs": 3}}})
    assert one.fingerprint("vos") == same.fingerprint("vos")
    prints = {one.fingerprint("vos"), other.fingerprint("vos"), one.fingerprint("vos-free-phi")}
    assert len(prints) == 3


def test_models_of_another_weights_file_have_another_name(tmp_path: Path) -> None:
    weights = tmp_path / "net.pth"
    settings = {"recipe": "photos", "settings": {"weights": str(weights)}}
    config = BenchmarkConfig(**GOOD | {"training": settings})
    prints = {config.fingerprint("vos")}
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        prints.add(config.fingerprint("vos"))
    assert len(prints) == 3


def test_a_training_of_ones_own_has_a_name_of_its_settings() -> None:
    def prints(settings) -> str:
        methods = {"mine": OWN | {"settings": settings}}
        return BenchmarkConfig(**GOOD | {"methods": methods}).fingerprint("mine")

    assert prints({"vos_weight": 1.0}) == prints(OWN["settings"]) != prints({"vos_weight": 2.0})
    config = BenchmarkConfig(**GOOD | {"methods": {"mine": OWN}})
    assert config.scores("mine") == list(OURS)
    assert config.training_of("mine").about == "β = 1"
