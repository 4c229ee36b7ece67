"""The whole of `knownot benchmark`: models, scores, numbers, report."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from knownot.benchmark.arrays import Arrays, Fitted
from knownot.benchmark.config import PhotoTraining
from knownot.benchmark.image_sets import photo_folder
from knownot.benchmark.network_recipe import NetworkRecipe
from knownot.benchmark.photo_recipe import PhotoRecipe
from knownot.benchmark.protocols import file_of, get_protocol
from knownot.benchmark.recipe import Recipe
from knownot.benchmark.report import write_report
from knownot.benchmark.results import KNOWN, Row, read_rows, versions, write_rows
from knownot.benchmark.small_images import SmallImageRecipe
from knownot.benchmark.summary import Summary, summarise
from knownot.benchmark.workplace import Workplace
from knownot.data.image_folder import walk_photos
from knownot.data.kept_files import alone_in, read_tensors, write_tensors, write_text
from knownot.data.plain_yaml import read_settings
from knownot.errors import ConfigError, KnownotError
from knownot.models.classifier import UnknownAwareClassifier

RESULTS, SUMMARY, SETTINGS, DATA = "results.csv", "summary.csv", "settings.yaml", "data.txt"
Failures = dict[str, dict[int, str]]  # reason by training and score, and by seed


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark left.

    Attributes:
        summary: Means over seeds, with intervals.
        failed: Method and reason of what could not be computed.
        report: The HTML report; the Markdown one is beside it.
    """

    summary: Summary
    failed: dict[str, str]
    report: Path


def run_benchmark(place: Workplace, protocol: str = "paper") -> BenchmarkResult:
    """Measure every method that the output folder does not hold yet, and write the reports.

    A model, a score and a number that are there already are not made again; what is being made
    when the run is interrupted is lost at most since the last epoch.

    Raises:
        ConfigError: If a name is wrong.
        DataError: If images are missing, or the output cannot be written.
    """
    get_protocol(protocol)
    for name in place.config.own_scores:  # what is wrong there is told before anything is trained
        place.config.score(name)
    recipe = make_recipe(place)
    recipe.check()
    # Of two, one's numbers would be lost.
    busy = ConfigError(
        f"{place.output}: another benchmark is writing there; wait for its end, or choose another "
        "folder with -o"
    )
    with alone_in(place.output, busy):
        rows = _rows_of_before(place)
        failed: Failures = {}
        for seed in place.config.seeds:
            for training in place.config.methods:
                _measure(place, recipe, protocol, training, seed, rows, failed)
        summary = summarise(place, protocol, rows)
        summary.save(place.output / file_of(SUMMARY, protocol))
        told = _by_method(failed, place.config.seeds)
        report = write_report(place, protocol, summary, told)
        return BenchmarkResult(summary, told, report)


def _by_method(failed: Failures, seeds: list[int]) -> dict[str, str]:
    """What failed, with the seed unless it failed so in every one."""
    told = {}
    for method, reasons in failed.items():
        if len(reasons) == len(seeds) and len(set(reasons.values())) == 1:
            told[method] = next(iter(reasons.values()))
        else:
            told |= {f"{method}, seed {seed}": reason for seed, reason in reasons.items()}
    return told


def _rows_of_before(place: Workplace) -> list[Row]:
    """The numbers that an earlier run left and that are of the same images."""
    data, settings = place.output / DATA, place.output / SETTINGS
    here = str(place.data.resolve())
    digests = {} if place.config.finished else _photo_digests(place)
    # Names of folders may be no text.
    text = data.read_text("utf-8", "surrogateescape") if data.is_file() else here
    before, *lines = text.splitlines()
    if before != here:
        raise ConfigError(
            f"{place.output}: holds numbers of the images in {before}; choose another folder with -o "
            f"(or remove {data}, if those in {here} are the same)"
        )
    digests_before = dict(line.rsplit(" ", 1) for line in lines)
    for name, digest in digests.items():
        if digests_before.setdefault(name, digest) != digest:
            raise ConfigError(
                f"{name}: the photos have changed since {place.output} was begun, and new numbers "
                "would stand beside those of other photos; choose another folder with -o"
            )
    rows = read_rows(place.output / RESULTS)
    if settings.is_file():
        most = read_settings(settings.read_text("utf-8"), str(settings)).get("max_images")
        if most != place.config.max_images:  # the scores of each number of images are kept
            rows = [row for row in rows if row.set == KNOWN]
            write_rows(place.output / RESULTS, rows)
    lines = [here, *(f"{name} {digest}" for name, digest in digests_before.items())]
    write_text(data, "\n".join(lines) + "\n")
    write_text(settings, place.config.to_yaml())
    return rows


def _photo_digests(place: Workplace) -> dict[str, str]:
    """Of names and sizes of the photos of each set that is a folder, the known one's included."""
    config = place.config
    folders = {config.known: place.data / config.known}
    folders |= {name: folder for name in config.sets if (folder := photo_folder(name, place.data))}
    digests = {}
    for name, folder in folders.items():
        if folder.is_dir():
            digest = hashlib.sha256()
            for path in sorted(map(Path, walk_photos(folder))):
                size = path.stat().st_size if path.exists() else 0
                digest.update(f"{path.relative_to(folder)} {size}\0".encode("utf-8", "replace"))
            digests[name] = digest.hexdigest()
    return digests


def make_recipe(place: Workplace) -> Recipe:
    """Models and images of the benchmark that `place` describes."""
    if place.config.finished:
        return NetworkRecipe(place)
    photos = isinstance(place.config.training, PhotoTraining)
    return PhotoRecipe(place) if photos else SmallImageRecipe(place)


def _measure(
    place: Workplace,
    recipe: Recipe,
    protocol: str,
    training: str,
    seed: int,
    rows: list[Row],
    failed: Failures,
) -> None:
    """All scores of one model; adds to `rows` (and the results file) and `failed`."""
    settings = place.fingerprint(training, seed)
    names = ["", *place.config.scores(training)]  # "": the model's accuracy
    methods = {
        name: (protocol, training, name, seed, settings + place.config.code(name)) for name in names
    }
    measured: dict[str, set[str]] = {name: set() for name in names}
    for row in rows:
        if methods.get(row.score) == row.method:
            measured[row.score].add(row.set)
    wanted = {name: set(place.config.sets) for name in names} | {"": {KNOWN}}
    missing = [name for name in names if not wanted[name] <= measured[name]]
    if not missing:
        return
    # A set that was added is measured with the others anew, by the scores that are kept.
    again = {methods[name] for name in missing}
    rows[:] = [row for row in rows if row.method not in again]
    model = _Model(place, recipe, training, seed)
    before = len(rows)
    advance = place.reporter.stage(f"{training}, seed {seed}: scores", len(missing))
    for name in missing:
        try:
            rows += model.accuracy(protocol) if name == "" else model.rows(protocol, name)
        except KnownotError:
            raise
        except Exception as error:  # one detector that fails must not lose the others
            reasons = failed.setdefault(f"{training}, {name}", {})
            reasons[seed] = str(error) or type(error).__name__
        write_rows(place.output / RESULTS, rows)
        advance(1)
    place.reporter.say(f"{training}, seed {seed}: {len(rows) - before} numbers")


class _Model:
    """One trained model with its arrays, loaded when they are needed."""

    def __init__(self, place: Workplace, recipe: Recipe, training: str, seed: int) -> None:
        self.place, self.recipe, self.training, self.seed = place, recipe, training, seed
        self._model: UnknownAwareClassifier | None = None
        self._arrays: dict[str, Arrays] = {}

    @property
    def model(self) -> UnknownAwareClassifier:
        if self._model is None:
            self._model = self.recipe.model(self.training, self.seed)
        return self._model

    def arrays(self, part: str) -> Arrays:
        """Arrays of a part of the known images, or of an OOD set."""
        if part not in self._arrays:
            run = self.training, self.seed
            get = self.recipe.known if part in ("train", "val", "test") else self.recipe.ood
            self._arrays[part] = get(self.model, run, part)  # type: ignore[arg-type]
        return self._arrays[part]

    def accuracy(self, protocol: str) -> list[Row]:
        """The row of the model's accuracy on ID test images."""
        test = self.arrays("test")
        correct = (test.logits.argmax(1) == test.labels).double().mean()
        return [self._row(protocol, "", KNOWN, "accuracy", float(correct), len(test), 0)]

    def rows(self, protocol: str, score: str) -> list[Row]:
        """The rows of one score."""
        scores = self.scores(score)
        known = scores[KNOWN]
        measure = get_protocol(protocol).measure
        return [
            self._row(protocol, score, name, metric, value, len(known), len(scores[name]))
            for name in self.place.config.sets
            for metric, value in measure(known, scores[name], name).items()
        ]

    def scores(self, score: str) -> dict[str, Tensor]:
        """One score of the ID test images ("known") and of every OOD set, kept on disk."""
        config = self.place.config
        file = self.place.scores_file(self.training, self.seed, score)
        kept = read_tensors(file)
        wanted = {KNOWN: "test"} | {name: name for name in self.place.config.sets}
        if kept is not None and set(wanted) <= set(kept):
            return kept
        # Libraries that a score of one's own calls may draw from any of them.
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        fitted = Fitted(self.model, self.arrays("train"), self.arrays("val"))
        scorer = config.score(score)(fitted)
        found = {}
        for name, part in wanted.items():
            values = torch.as_tensor(scorer(self.arrays(part))).detach().cpu().double()
            if values.shape != (len(self.arrays(part)),):
                raise ValueError(
                    f"expected one number for each of the {len(self.arrays(part))} images of {name}, got "
                    f"shape {tuple(values.shape)}"
                )
            if values.isnan().any():
                raise ValueError(f"{int(values.isnan().sum())} scores of {name} are NaN")
            found[name] = values
        write_tensors(file, found)
        return found

    def _row(
        self, protocol: str, score: str, name: str, metric: str, value: float, n_id: int, n_ood: int
    ) -> Row:
        config = self.place.config
        return Row(
            benchmark=config.name,
            protocol=protocol,
            training=self.training,
            score=score,
            seed=self.seed,
            set=name,
            group=KNOWN if name == KNOWN else config.group(name),
            averaged=name != KNOWN and name not in config.apart,
            metric=metric,
            value=float(f"{value:.6g}"),  # as the file holds it: a second report is the same
            n_id=n_id,
            n_ood=n_ood,
            settings=self.place.fingerprint(self.training, self.seed) + config.code(score),
            versions=versions(),
        )
