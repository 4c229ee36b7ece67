"""Outputs of a network of one's own, in files: what `knownot benchmark --networks` reads.

    networks/resnet50/0/       a network, and the seed of its training
        head                   the last layer: weight (K, D), bias (K,)
        train, val, test       logits (N, K), features (N, D), labels (N,)
        near/NAME, far/NAME    OOD sets: logits, features
        altered/NAME           validation images altered until they show no class: logits, features

Each is a `.safetensors` or `.npz` file that holds arrays of these names. Features are what the last layer
reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knownot.data.altered import ALTERATIONS, alter
from knownot.data.kept_files import write_tensors
from knownot.errors import ConfigError, DataError
from knownot.models.finished import split_head

PARTS = ("train", "val", "test")
HEAD, ALTERED = "head", "altered"
_NAME = r"(train|val|test|(near|far)/\w[\w.-]*)"
_ENDINGS = (".safetensors", ".npz")
# Of the logits' standard deviation: how far they may be from what the last layer makes of the features.
_TOLERANCE = 0.02


def save_outputs(
    folder: str | Path,
    network: torch.nn.Module,
    sets: Mapping[str, Iterable[Any]],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Save what a network makes of image sets, for `knownot benchmark --networks`.

    Files that are there are kept: interrupted, the same call goes on; other sets may be added later.

    Args:
        folder: Of the network and the seed of its training: `networks/NAME/SEED`.
        network: Maps normalised images (N, 3, S, S) to logits (N, K), a linear layer being the last thing
            that it does. Runs where its weights are, in evaluation mode, and is left as it is.
        sets: Batches, as a `DataLoader` gives them, by "train", "val", "test", "near/NAME" or "far/NAME":
            images, or images and labels. Training images without augmentation, validation images that
            nothing was trained on.
        mean: That was subtracted from images in [0, 1], of each channel (3,). With `std`, outputs for
            altered validation images are saved too: they choose the parts of the default score.
        std: What they were divided by then (3,).

    Raises:
        ConfigError: If a name is wrong, or logits are not the output of a linear layer.
        DataError: If a set is empty, a known one has no labels, or the folder holds another network.
    """
    folder = Path(folder)
    if wrong := [name for name in sets if not re.fullmatch(_NAME, name)]:
        raise ConfigError(
            f"sets: expected train, val, test, near/NAME or far/NAME, got {', '.join(wrong)}"
        )
    if passing := [name for name, batches in sets.items() if iter(batches) is batches]:
        raise ConfigError(
            f"sets: {', '.join(passing)} can be read once only; expected a DataLoader or a list of batches"
        )
    first = next((_images_and_labels(batch)[0] for some in sets.values() for batch in some), None)
    if first is None:
        raise DataError("sets: expected batches of images, got none")
    backbone, head = split_head(network, first.shape[-1])
    backbone.eval()
    _keep_head(folder, head)
    for name, batches in sets.items():
        if _existing(folder / name) is None:
            outputs = _outputs(name, backbone, head, batches)
            if name not in PARTS:
                outputs.pop("labels", None)
            elif "labels" not in outputs:
                raise DataError(f"{name}: expected batches of images and labels")
            write_tensors(folder / f"{name}.safetensors", outputs)
    if mean is not None and std is not None and "val" in sets:
        for name in ALTERATIONS:
            path = folder / ALTERED / name.replace(" ", "-")
            if _existing(path) is None:
                batches = _altered(name, sets["val"], mean, std)
                outputs = _outputs(f"val, {name}", backbone, head, batches)
                write_tensors(path.with_suffix(".safetensors"), outputs)


def read_head(folder: Path) -> torch.nn.Linear:
    """The last layer of a network.

    Raises:
        DataError: If its file is missing or wrong.
    """
    path, arrays = _read(folder / HEAD)
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if weight is None or weight.ndim != 2:
        raise DataError(
            f"{path}: expected an array weight (K, D), and bias (K,) where there is one"
        )
    head = torch.nn.Linear(weight.shape[1], weight.shape[0])
    bias = torch.zeros(len(weight)) if bias is None else bias
    if bias.shape != head.bias.shape:
        raise DataError(f"{path}: expected bias ({len(weight)},), got {tuple(bias.shape)}")
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def read_outputs(folder: Path, name: str, head: torch.nn.Linear) -> dict[str, Tensor]:
    """Logits (N, K), features (N, D) and, of `PARTS`, labels (N,) of a set.

    Raises:
        DataError: If the file is missing, or its arrays do not fit the last layer.
    """
    path, arrays = _read(folder / name)
    wanted = {"logits": head.out_features, "features": head.in_features}
    found = {}
    for array, columns in wanted.items():
        rows = arrays.get(array)
        if rows is None or rows.ndim != 2 or rows.shape[1] != columns or not len(rows):
            shape = "none" if rows is None else str(tuple(rows.shape))
            raise DataError(f"{path}: expected an array {array} (N, {columns}), got {shape}")
        found[array] = rows.float()
        if wrong := int((~found[array].isfinite()).any(1).sum()):
            raise DataError(f"{path}: {array} of {wrong} images are not finite")
    if len(found["logits"]) != len(found["features"]):
        raise DataError(
            f"{path}: holds logits of {len(found['logits'])} images, features of {len(found['features'])}"
        )
    _check_logits(path, found["logits"], found["features"], head)
    if name in PARTS:
        found["labels"] = _labels(path, arrays.get("labels"), found["logits"])
    return found


def output_file(folder: Path, name: str) -> Path:
    """The file of a set.

    Raises:
        DataError: If there is none, or two.
    """
    path = _existing(folder / name)
    if path is None:
        raise DataError(f"{folder / name}: there is no such file, {' or '.join(_ENDINGS)}")
    return path


def names_in(folder: Path) -> list[str]:
    """Names of the sets that are files of a folder, sorted."""
    return sorted({path.stem for path in folder.glob("*") if path.suffix in _ENDINGS})


def _existing(path: Path) -> Path | None:
    found = [file for ending in _ENDINGS if (file := path.with_name(path.name + ending)).is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]}: which of the two counts? Remove one")
    return found[0] if found else None


def _read(stem: Path) -> tuple[Path, dict[str, Tensor]]:
    path = output_file(stem.parent, stem.name)
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                return path, {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        from safetensors.torch import load_file

        return path, load_file(path)
    except Exception as error:  # of a damaged file numpy, zipfile and safetensors raise many
        raise DataError(f"{path}: cannot be read ({error})") from None


def _check_logits(path: Path, logits: Tensor, features: Tensor, head: torch.nn.Linear) -> None:
    some = slice(0, 1000)
    with torch.no_grad():
        away = float((head(features[some]) - logits[some]).abs().max())
    if away > _TOLERANCE * max(float(logits[some].std(correction=0)), 1e-6):
        raise DataError(
            f"{path}: its logits are not what the last layer makes of its features (up to {away:.3g} away); "
            "expected the features that this layer reads, and logits before softmax"
        )


def _labels(path: Path, labels: Tensor | None, logits: Tensor) -> Tensor:
    count, classes = logits.shape
    whole = labels is not None and not labels.is_floating_point() and labels.shape == (count,)
    if labels is None or not whole:
        raise DataError(f"{path}: expected an array labels ({count},) of whole numbers")
    labels = labels.long()
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{path}: labels: expected classes from 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return labels


def _keep_head(folder: Path, head: torch.nn.Linear) -> None:
    now = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    kept = _existing(folder / HEAD)
    if kept is None:
        write_tensors(folder / f"{HEAD}.safetensors", now)
        return
    before = read_head(folder).state_dict()
    if not all(torch.equal(before[name], now[name]) for name in now):
        raise DataError(f"{kept}: is of another network; choose another folder, or remove this one")


@torch.no_grad()
def _outputs(
    name: str, backbone: torch.nn.Module, head: torch.nn.Linear, batches: Iterable[Any]
) -> dict[str, Tensor]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    logits, features, labels = [], [], []
    for batch in track(batches, name, console=console, disable=not console.is_terminal):
        images, of_images = _images_and_labels(batch)
        features.append(backbone(images.to(head.weight.device).float()))
        logits.append(head(features[-1]).cpu())
        features[-1] = features[-1].cpu()
        if of_images is not None:
            labels.append(of_images)
    if not logits:
        raise DataError(f"{name}: expected batches of images, got none")
    outputs = {"logits": torch.cat(logits), "features": torch.cat(features)}
    return outputs | ({"labels": torch.cat(labels).long()} if labels else {})


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        return batch[0], torch.as_tensor(batch[1]) if len(batch) > 1 else None
    raise ConfigError(
        "sets: expected batches of images (N, 3, S, S), or of images and labels, got "
        f"{type(batch).__name__}"
    )


def _altered(
    name: str, batches: Iterable[Any], mean: Sequence[float], std: Sequence[float]
) -> Iterable[Tensor]:
    middle, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    for seed, batch in enumerate(batches):
        images = _images_and_labels(batch)[0].cpu().float()
        photos = ((images * spread + middle) * 255).round().clamp(0, 255)
        yield (alter(name, photos, seed) / 255 - middle) / spread
