"""Outputs of networks of one's own in files: what `knownot benchmark --networks` reads.

    networks/resnet50/0/       a network, and the seed of its training
        head                   the last layer: weight (K, D), bias (K,)
        train, val, test       logits (N, K), features (N, D), labels (N,)
        near/NAME, far/NAME    OOD sets: logits, features
        altered/NAME           validation images altered until they show no class: logits, features

Each is a `.safetensors` or `.npz` file that holds arrays of these names. Features are what the last layer
reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from knownot.data.kept_files import content_digest
from knownot.errors import DataError

PARTS = ("train", "val", "test")
HEAD, ALTERED = "head", "altered"
_ENDINGS = (".safetensors", ".npz")
# How far logits may be from what the last layer makes of the features: of their standard deviation, and
# of their size, as float16 rounds them.
_TOLERANCE, _ROUNDING = 0.02, 2e-3
_COMPARED = 1000  # rows


def read_head(folder: Path) -> nn.Linear:
    """The last layer of a network.

    Raises:
        DataError: If its file is missing or wrong.
    """
    path, arrays = read_arrays(folder / HEAD)
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = {k: tuple(v.shape) for k, v in arrays.items() if k in ("weight", "bias")}
        raise DataError(
            f"{path}: expected weight (K, D) and, where there is one, bias (K,), got {shapes}"
        )
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.zero_() if bias is None else head.bias.copy_(bias)
    return head


def read_outputs(folder: Path, name: str, head: nn.Linear) -> dict[str, Tensor]:
    """Logits (N, K), features (N, D) and, of `PARTS`, labels (N,) of a set.

    Raises:
        DataError: If the file is missing, or its arrays do not fit the last layer.
    """
    path, arrays = read_arrays(folder / name)
    return checked(arrays, head, with_labels=name in PARTS, where=str(path))


def checked(
    arrays: Mapping[str, Tensor], head: nn.Linear, with_labels: bool, where: str
) -> dict[str, Tensor]:
    """The arrays of a set, float32 and int64, if they fit a last layer and each other.

    Raises:
        DataError: If they do not; begins with `where`.
    """
    found = {}
    for name, columns in (("logits", head.out_features), ("features", head.in_features)):
        rows = arrays.get(name)
        if rows is None or rows.ndim != 2 or rows.shape[1] != columns or not len(rows):
            shape = "none" if rows is None else str(tuple(rows.shape))
            raise DataError(f"{where}: expected an array {name} (N, {columns}), got {shape}")
        found[name] = rows.float()
        if wrong := int((~found[name].isfinite()).any(1).sum()):
            raise DataError(f"{where}: {name} of {wrong} images are not finite")
    if len(found["logits"]) != len(found["features"]):
        raise DataError(
            f"{where}: holds logits of {len(found['logits'])} images, features of {len(found['features'])}"
        )
    _check_logits(found["logits"], found["features"], head, where)
    if with_labels:
        count, classes = found["logits"].shape
        found["labels"] = _labels(arrays.get("labels"), count, classes, where)
    return found


def output_file(folder: Path, name: str) -> Path:
    """The file of a set.

    Raises:
        DataError: If there is none, or two.
    """
    path = existing(folder / name)
    if path is None:
        raise DataError(
            f"{folder / name}: there is no such file, {' or '.join(_ENDINGS)}; every network needs every "
            "set, of every seed"
        )
    return path


def existing(stem: Path) -> Path | None:
    """A file of whatever ending, or None.

    Raises:
        DataError: If there are two.
    """
    found = [file for ending in _ENDINGS if (file := stem.with_name(stem.name + ending)).is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]}: which of the two counts? Remove one")
    return found[0] if found else None


def names_in(folder: Path) -> list[str]:
    """Names of the sets that are files of a folder, sorted."""
    files = (path for path in folder.glob("[!.]*") if path.suffix in _ENDINGS and path.is_file())
    return sorted({path.stem for path in files})


def read_arrays(stem: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file and the arrays in it.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = output_file(stem.parent, stem.name)
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                return path, {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        from safetensors.torch import load_file

        return path, load_file(path)
    except Exception:  # of a damaged file numpy, zipfile and safetensors raise many
        raise DataError(f"{path}: cannot be read as a {path.suffix} file of numbers") from None


def digest(folder: Path, names: Iterable[str]) -> str:
    """Eight digits that differ for another content of the files of these sets, or of `ALTERED`.

    Raises:
        DataError: If one is missing.
    """
    found = hashlib.sha256()
    for name in [*names, *(f"{ALTERED}/{name}" for name in names_in(folder / ALTERED))]:
        found.update(f"{name} {content_digest(output_file(folder, name))}\n".encode())
    return found.hexdigest()[:8]


def _check_logits(logits: Tensor, features: Tensor, head: nn.Linear, where: str) -> None:
    some = torch.linspace(0, len(logits) - 1, min(len(logits), _COMPARED)).long()
    given = logits[some]
    with torch.no_grad():
        away = float((head(features[some]) - given).abs().max())
    usual = _TOLERANCE * float(given.std(correction=0)) + _ROUNDING * float(given.abs().max())
    if away > max(usual, 1e-6):
        raise DataError(
            f"{where}: its logits are not what the last layer makes of its features (up to {away:.3g} away); "
            "expected the features that this layer reads, and logits before softmax"
        )


def _labels(labels: Tensor | None, count: int, classes: int, where: str) -> Tensor:
    if labels is None or labels.is_floating_point() or labels.shape != (count,):
        raise DataError(f"{where}: expected an array labels ({count},) of whole numbers")
    labels = labels.long()
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{where}: labels: expected classes from 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return labels
