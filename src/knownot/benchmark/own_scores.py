"""A score of one's own: a function in a Python file, named in a benchmark's settings.

    def feature_norm(fitted):  # Fitted: the model, its training and validation images
        mean = fitted.train.features.norm(dim=1).mean()
        return lambda arrays: (arrays.features.norm(dim=1) - mean).abs()  # (N,) for Arrays of N images

It gets copies, so that it cannot change what other scores read, and no label of what it is to score.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from knownot.benchmark.arrays import Arrays, Fitted
from knownot.benchmark.scores import Score, Scorer
from knownot.errors import ConfigError


def split_name(where: str) -> tuple[Path, str]:
    """File and function of `file.py:function`.

    Raises:
        ValueError: If it is written in another way.
    """
    file, _, function = where.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ValueError(f"expected file.py:function, got {where!r}")
    return Path(file), function


def beside(settings: Path, where: str) -> str:
    """The same with a whole path: a file is looked for beside the settings that name it."""
    file, function = split_name(where)
    return f"{(settings.parent / file).resolve()}:{function}"


def digest(where: str) -> str:
    """Eight digits that differ for another content of the file, or of another one beside it.

    Raises:
        ConfigError: If there is no such file.
    """
    file, function = split_name(where)
    found = hashlib.sha256(f"{file.name}:{function}".encode())
    try:
        file.read_bytes()
        for one in sorted(file.parent.glob("*.py")):
            found.update(one.name.encode() + b"\0" + one.read_bytes() + b"\0")
    except OSError as error:
        raise ConfigError(f"own_scores: {file} cannot be read ({error.strerror})") from None
    return found.hexdigest()[:8]


def load_score(where: str) -> Score:
    """The function as a score; the file is run, and may import others beside it.

    Raises:
        ConfigError: If the file fails, or has no such function.
    """
    file, function = split_name(where)
    spec = importlib.util.spec_from_file_location(f"_knownot_own_{digest(where)}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _imports_from(file.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"own_scores: {file} fails: {_told(error, file)}") from None
    own = getattr(module, function, None)
    if not callable(own):
        raise ConfigError(f"own_scores: {file} has no function {function}")
    return _on_copies(cast(Score, own), file)


def _on_copies(own: Score, file: Path) -> Score:
    def fit(fitted: Fitted) -> Scorer:
        with _failing_in(file):
            model = copy.deepcopy(fitted.model)
            scorer = own(Fitted(model, _copied(fitted.train), _copied(fitted.val)))

        def score(arrays: Arrays) -> Tensor:
            unlabelled = replace(arrays, labels=torch.full_like(arrays.labels, -1))
            with _failing_in(file):
                return scorer(_copied(unlabelled))

        return score

    return fit


def _copied(arrays: Arrays) -> Arrays:
    names = ("logits", "features", "scored_features", "labels")
    return replace(arrays, **{n: getattr(arrays, n).detach().clone() for n in names}, scores={})


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported; those of another folder may bear the same names later."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            came_from = getattr(sys.modules[name], "__file__", None)
            if came_from and Path(came_from).is_relative_to(folder):
                del sys.modules[name]


@contextmanager
def _failing_in(file: Path) -> Iterator[None]:
    """What goes wrong is told with its kind and its place."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise RuntimeError(_told(error, file)) from error


def _told(error: BaseException, file: Path) -> str:
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    where = f" (line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{where}"
