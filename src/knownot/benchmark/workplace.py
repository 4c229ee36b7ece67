"""Where a benchmark's files are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from knownot.benchmark.config import BenchmarkConfig, file_name
from knownot.benchmark.network_files import HEAD, PARTS, digest


class Reporter(Protocol):
    """What a benchmark tells its caller as it goes."""

    def say(self, text: str) -> None:
        """Something happened that a person waits for."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of `total` parts begins; the result is called with parts done."""


class Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Count nothing."""
        return lambda done: None


@dataclass(frozen=True)
class Workplace:
    """Settings, data folder and output folder of one benchmark.

    Attributes:
        config: What is compared.
        data: Folder with the image sets.
        output: Folder for models, scores, results and reports.
        cache: Folder for features of photos, or None for the user's own.
        reporter: Told about progress.
    """

    config: BenchmarkConfig
    data: Path
    output: Path
    cache: Path | None = None
    reporter: Reporter = field(default_factory=Silent)

    @property
    def outputs(self) -> list[str]:
        """The files that a finished network has to have."""
        sets = [f"{self.config.group(name)}/{name}" for name in self.config.sets]
        return [HEAD, *PARTS, *sets]

    def fingerprint(self, training: str, seed: int) -> str:
        """Digits that differ for other settings, and for other outputs of a finished network."""
        settings = self.config.fingerprint(training)
        if not self.config.finished:
            return settings
        return f"{settings}-{digest(self.network_folder(training, seed), self.outputs)}"

    def network_folder(self, training: str, seed: int) -> Path:
        """Where the outputs of a finished network are."""
        return self.data / training / str(seed)

    def run_name(self, training: str, seed: int) -> str:
        """Name of a model's folders; other settings give another name."""
        return f"{training}-seed{seed}-{self.fingerprint(training, seed)}"

    def model_folder(self, training: str, seed: int) -> Path:
        """Where a trained model is kept."""
        return self.output / "models" / self.run_name(training, seed)

    def arrays_file(self, training: str, seed: int, part: str) -> Path:
        """Where features of a set are kept."""
        return self._kept("arrays", training, seed) / f"{file_name(part)}.st"

    def scores_file(self, training: str, seed: int, score: str) -> Path:
        """Where one score of all sets is kept."""
        # A peer's Energy and our energy are one file where case does not count.
        name = file_name(score if score == score.lower() else f"{score}-capitals")
        return self._kept("scores", training, seed) / f"{name}{self.config.code(score)}.st"

    def scaled_folder(self, name: str, side: int) -> Path:
        """Where the photos of an OOD set are kept, scaled to squares of `side` pixels."""
        return self.output / "images" / str(side) / f"ood{self._of_so_many}" / file_name(name)

    def _kept(self, kind: str, training: str, seed: int) -> Path:
        return self.output / kind / f"{self.run_name(training, seed)}{self._of_so_many}"

    @property
    def _of_so_many(self) -> str:
        most, usual = self.config.max_images, type(self.config).model_fields["max_images"].default
        return "" if most == usual else f"-{most}-images"
