"""A benchmark's settings: YAML files in `configs`, or one of your own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from knownot.benchmark.own_scores import beside, digest, load_score, split_name
from knownot.benchmark.scores import GROUPS, SCORES, Score
from knownot.benchmark.trainings import TRAININGS, Training
from knownot.data.kept_files import content_digest
from knownot.data.plain_yaml import read_settings
from knownot.errors import ConfigError

_OWN_NAME = r"[a-z0-9][a-z0-9.-]*"  # of trainings and scores: they name files
_NETWORK_NAME = r"\w[\w.-]*"
# What parts of the known set, and means over sets, are called in results.
_RESERVED = {"train", "val", "test", "known", "mean", "near", "far"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhotoTraining(_Strict):
    """Training on a folder of photos by `knownot train`."""

    recipe: Literal["photos"] = "photos"
    settings: dict[str, Any] = Field({}, description="of knownot train")
    pixels: int | None = Field(
        None,
        ge=8,
        description="every image of `known`, a set's name, and of others is first scaled so",
    )


class SmallImageTraining(_Strict):
    """Training a Wide ResNet from nothing on small images that fit into memory.

    The defaults are the paper's recipe for CIFAR-10.
    """

    recipe: Literal["small_images"] = "small_images"
    depth: int = Field(40, ge=10, description="6 n + 4")
    width: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    image_size: Literal[32] = 32
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    vos_start: float = Field(0.4, ge=0, le=1, description="share of the steps before VOS")
    val_images: int = Field(5000, ge=1, description="training images set aside for calibration")
    train_images: int | None = Field(None, ge=2, description="of the rest; all by default")
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true",
        description="of the backbone while it is trained; float32 where a CPU has no bfloat16",
    )
    device: str = "auto"

    @model_validator(mode="after")
    def _has_whole_blocks(self) -> SmallImageTraining:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth: expected 6 n + 4 (10, 16, 22, ...), got {self.depth}")
        return self


class FinishedNetworks(_Strict):
    """No training: outputs of networks of one's own, in files (`network_files`)."""

    recipe: Literal["networks"] = "networks"


class OwnTraining(_Strict):
    """A training that the file itself describes, such as an ablation.

    Settings are named as `knownot train` names them; those not given are the benchmark's.
    """

    about: str = Field(description="what it is, in a few words")
    settings: dict[str, Any] = {}
    scores: list[str]


class BenchmarkConfig(_Strict):
    """What is trained and compared, on what. An unknown key is an error."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    about: str
    known: str = Field(
        "",
        description="labelled photo folder below the data folder, or a set's name; of finished networks none",
    )
    training: Annotated[
        PhotoTraining | SmallImageTraining | FinishedNetworks, Field(discriminator="recipe")
    ]
    methods: dict[str, list[str] | OwnTraining] = Field(
        min_length=1,
        description="scores, or groups of them, by training; or a training of one's own",
    )
    own_scores: dict[str, str] = Field(
        {}, description="file.py:function, beside this file, by name: scores of one's own"
    )
    tables: dict[str, list[str]] = Field(
        {}, description="trainings that the report compares, by title, in place of one table of all"
    )
    near: list[str] = []
    far: list[str] = []
    apart: list[str] = Field([], description="of these sets, those that no mean contains")
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    max_images: int = Field(10_000, ge=1, description="of an OOD set")
    replicates: int = Field(500, ge=20, description="of the bootstrap")

    @model_validator(mode="after")
    def _names_exist(self) -> BenchmarkConfig:
        for name, where in self.own_scores.items():
            if name in {**SCORES, **GROUPS} or not re.fullmatch(_OWN_NAME, name):
                raise ValueError(_no_own_name("own_scores", name, "score", {**SCORES, **GROUPS}))
            split_name(where)
        if bool(self.known) == self.finished:
            raise ValueError(
                "known: expected none for finished networks"
                if self.finished
                else "known: is missing"
            )
        known_scores = {**SCORES, **GROUPS, **self.own_scores}
        for training, method in self.methods.items():
            if self.finished:
                self._check_network(training)
            elif not isinstance(method, OwnTraining):
                _known("methods", training, TRAININGS)
            elif training in TRAININGS or not re.fullmatch(_OWN_NAME, training):
                raise ValueError(_no_own_name("methods", training, "training", TRAININGS))
            for score in _scores(method):
                _known(f"methods.{training}", score, known_scores)
        for title, trainings in self.tables.items():
            for training in trainings:
                _known(f"tables.{title}", training, self.methods)
        sets = self.sets
        if not sets or len(set(sets)) < len(sets):
            raise ValueError(f"near, far: expected different sets, at least one, got {sets}")
        files = [file_name(name) for name in sets]
        for name, file in zip(sets, files, strict=True):
            if name in _RESERVED or files.count(file) > 1:
                raise ValueError(
                    f"near, far: {name!r} cannot name a set: results or files are called so"
                )
        if self.known in sets:
            raise ValueError(f"near, far: {self.known} is the known set")
        for name in self.apart:
            _known("apart", name, dict.fromkeys(sets))
        if set(self.apart) == set(sets):
            raise ValueError("apart: every set is apart, and no mean is left")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {self.seeds}")
        return self

    def _check_network(self, name: str) -> None:
        method = self.methods[name]
        if isinstance(method, OwnTraining) and method.settings:
            raise ValueError(f"methods.{name}: settings: a finished network is not trained")
        if not re.fullmatch(_NETWORK_NAME, name):
            raise ValueError(
                f"methods: {name!r} cannot name a network; expected letters, digits, -, _ and ."
            )
        if sum(other.lower() == name.lower() for other in self.methods) > 1:
            raise ValueError(f"methods: {name!r} differs from another network by capitals alone")

    @property
    def finished(self) -> bool:
        """Whether networks that were trained elsewhere are measured."""
        return isinstance(self.training, FinishedNetworks)

    @property
    def sets(self) -> list[str]:
        """All OOD sets."""
        return [*self.near, *self.far]

    def group(self, name: str) -> str:
        """Whether an OOD set is "near" or "far"."""
        return "near" if name in self.near else "far"

    def scores(self, training: str) -> list[str]:
        """The scores of a training, groups resolved, each once."""
        names = (GROUPS.get(name, [name]) for name in _scores(self.methods[training]))
        return list(dict.fromkeys(score for group in names for score in group))

    def score(self, name: str) -> Score:
        """The score of that name; the file of one's own is run for it."""
        return load_score(self.own_scores[name]) if name in self.own_scores else SCORES[name]

    def code(self, score: str) -> str:
        """What tells a score of one's own from the same after a change of its file; else empty."""
        return f"-{digest(self.own_scores[score])}" if score in self.own_scores else ""

    def training_of(self, name: str) -> Training:
        """One of this benchmark's trainings."""
        own = self.methods.get(name)
        if isinstance(own, OwnTraining):
            return Training(own.about, own.settings)
        return Training(name) if self.finished else TRAININGS[name]

    def fingerprint(self, training: str) -> str:
        """Eight digits that differ for models trained with other settings."""
        settings: dict[str, Any] = {
            "known": self.known,
            "training": self.training.model_dump(mode="json", exclude={"device"}),
            "changes": dict(self.training_of(training).settings),
        }
        given = dict(self.training.settings if isinstance(self.training, PhotoTraining) else {})
        weights = Path(str((given | settings["changes"]).get("weights", "")))
        if weights.is_file():  # another one of that name makes other models
            settings["weights"] = content_digest(weights)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The settings as a file that `knownot benchmark --config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def file_name(name: str) -> str:
    """A name, of a set or a score, as that of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def shipped() -> list[str]:
    """Names of the benchmarks that the package ships."""
    folder = resources.files("knownot.benchmark") / "configs"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_config(name_or_file: str, changes: dict[str, Any] | None = None) -> BenchmarkConfig:
    """Read a benchmark's settings.

    With the key `like`, those that a file does not give are those of another shipped benchmark.

    Args:
        name_or_file: One of `shipped()`, or a YAML file.
        changes: Settings that replace those of the file where they are not None.

    Raises:
        ConfigError: If there is no such file, or it is wrong; names the key.
    """
    return make_config(_read(name_or_file), name_or_file, changes)


def make_config(
    values: Mapping[str, Any], origin: str, changes: Mapping[str, Any] | None = None
) -> BenchmarkConfig:
    """Settings of these values; `changes` replace them where they are not None.

    Raises:
        ConfigError: If they are wrong; names the key and where they are from.
    """
    given = {key: value for key, value in (changes or {}).items() if value is not None}
    values = {**values, **given}
    try:
        return BenchmarkConfig(**values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"]))  # none where settings do not fit together
            text = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {text}" if place else text)
        raise ConfigError(f"{origin}: {'; '.join(problems)}") from None


def _read(name_or_file: str) -> dict[str, Any]:
    """The keys of a shipped benchmark or a YAML file, with those of the one that it is like."""
    if name_or_file in shipped():
        text = (
            resources.files("knownot.benchmark") / "configs" / f"{name_or_file}.yaml"
        ).read_text(encoding="utf-8")
    else:
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"config: {name_or_file} cannot be read ({error}); expected a YAML file or one of "
                f"{', '.join(shipped())}"
            ) from None
    values = read_settings(text, name_or_file)
    own = values.get("own_scores")
    if isinstance(own, dict):
        try:
            values["own_scores"] = {k: beside(Path(name_or_file), v) for k, v in own.items()}
        except (AttributeError, ValueError) as error:
            raise ConfigError(f"{name_or_file}: own_scores: {error}") from None
    if (base := values.pop("like", None)) is not None:
        if base not in shipped():
            raise ConfigError(
                f"{name_or_file}: like: expected one of {', '.join(shipped())}, got {base!r}"
            )
        return _read(base) | values
    return values


def _scores(method: list[str] | OwnTraining) -> list[str]:
    return method.scores if isinstance(method, OwnTraining) else method


def _no_own_name(key: str, name: str, what: str, taken: Iterable[str]) -> str:
    return (
        f"{key}: {name!r} cannot name a {what} of your own; expected small letters, digits, - and ., and "
        f"none of {', '.join(taken)}"
    )


def _known(key: str, name: str, names: Mapping[str, Any]) -> None:
    if name not in names:
        import difflib

        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key}: {name!r} is none of {', '.join(names)}{hint}")
