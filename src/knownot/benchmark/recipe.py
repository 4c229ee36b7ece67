"""What a benchmark asks of its models: train or load one, give the arrays of a set."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from knownot.benchmark.arrays import Arrays
from knownot.models.classifier import UnknownAwareClassifier

Part = Literal["train", "val", "test"]


class Recipe(Protocol):
    """Models and images of one benchmark."""

    def check(self) -> None:
        """Look at all image sets before anything is trained: a wrong path is told at once."""

    def model(self, training: str, seed: int) -> UnknownAwareClassifier:
        """The model, trained or, where it was before, loaded; in evaluation mode."""

    def known(self, model: UnknownAwareClassifier, run: tuple[str, int], part: Part) -> Arrays:
        """Arrays of a part of the known images; `run` is the model's training and seed."""

    def ood(self, model: UnknownAwareClassifier, run: tuple[str, int], name: str) -> Arrays:
        """Arrays of an OOD set."""

    def altered(self, model: UnknownAwareClassifier, run: tuple[str, int]) -> list[Tensor]:
        """Backbone features (n, B) of altered validation images, for each of `ALTERATIONS`.

        They stand in for OOD images where a setting is to be chosen.
        """
