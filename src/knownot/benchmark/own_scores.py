"""A score of one's own: a function in a Python file, named in a benchmark's settings.

def feature_norm(fitted):  # Fitted: the model, its training and validation images
    mean = fitted.train.features.norm(dim=1).mean()
    return lambda arrays: (arrays.features.norm(dim=1) - mean).abs()  # (N,) for Arrays of N images
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import cast

from knownot.benchmark.scores import Score
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
    """Eight digits that differ for another content of the file: numbers of another code are others.

    Raises:
        ConfigError: If there is no such file.
    """
    file, function = split_name(where)
    try:
        return hashlib.sha256(f"{function} ".encode() + file.read_bytes()).hexdigest()[:8]
    except OSError as error:
        raise ConfigError(f"own_scores: {file} cannot be read ({error.strerror})") from None


def load_score(where: str) -> Score:
    """The function; the file is run, and may import others beside it.

    Raises:
        ConfigError: If the file fails, or has no such function.
    """
    file, function = split_name(where)
    name = f"_knownot_own_{digest(where)}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"own_scores: {file} fails: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(file.parent))
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"own_scores: {file} has no function {function}")
    return cast(Score, found)
