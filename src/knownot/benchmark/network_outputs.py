"""Save what a network of one's own makes of image sets, for `knownot benchmark --networks`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from knownot.benchmark.network_files import (
    ALTERED,
    HEAD,
    PARTS,
    checked,
    existing,
    read_arrays,
)
from knownot.data.altered import ALTERATIONS, alter
from knownot.data.kept_files import write_tensors
from knownot.errors import ConfigError, DataError
from knownot.models.finished import split_head

_NAME = r"(train|val|test|(near|far)/\w[\w.-]*)"
_SEEN = "seen"  # beside the last layer: features of a picture, which tell one network from another


def save_outputs(
    folder: str | Path,
    network: nn.Module,
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
        ConfigError: If a name is wrong, batches hold no images, logits are not the output of a linear
            layer, or images are not in [0, 1] by `mean` and `std`.
        DataError: If a set is empty, labels of a known one are missing or wrong, or the folder holds
            another network.
    """
    folder = Path(folder)
    _check_names(sets)
    normalised = _Normalised(mean, std) if mean is not None or std is not None else None
    first = next((_images(batch) for some in sets.values() for batch in some), None)
    if first is None:
        raise DataError("sets: expected batches of images, got none")
    if normalised is not None:
        normalised.check(first)
    parts = _Parts(network, first.shape[-1])
    parts.keep_head(folder)
    for name, batches in sets.items():
        if existing(folder / name) is None:
            outputs = parts.outputs(name, batches, with_labels=name in PARTS)
            write_tensors(folder / f"{name}.safetensors", outputs)
    if normalised is not None and "val" in sets:
        for name in ALTERATIONS:
            stem = folder / ALTERED / name.replace(" ", "-")
            if existing(stem) is None:
                batches = normalised.altered(name, sets["val"])
                outputs = parts.outputs(f"val, {name}", batches, with_labels=False)
                write_tensors(stem.with_suffix(".safetensors"), outputs)


class _Normalised:
    """Images (N, 3, S, S) from which a mean was subtracted, and which were divided then."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        if mean is None or std is None or not all(value > 0 for value in std):
            raise ConfigError(f"mean, std: expected both, std above 0, got {mean} and {std}")
        self.mean, self.std = (
            torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1) for values in (mean, std)
        )

    def check(self, images: Tensor) -> None:
        """Raise `ConfigError` unless images were in [0, 1] before."""
        before = images.cpu().float() * self.std + self.mean
        low, high = float(before.min()), float(before.max())
        if not -0.02 <= low <= high <= 1.02:
            raise ConfigError(
                f"mean, std: with these the images were not in [0, 1], but from {low:.3g} to {high:.3g}"
            )

    def altered(self, name: str, batches: Iterable[Any]) -> Iterator[Tensor]:
        """The same batches, their images altered by one of `ALTERATIONS`."""
        for seed, batch in enumerate(batches):
            before = _images(batch).cpu().float() * self.std + self.mean
            photos = (before * 255).round().clamp(0, 255)
            yield (alter(name, photos, seed) / 255 - self.mean) / self.std


def _check_names(sets: Mapping[str, Iterable[Any]]) -> None:
    if wrong := [name for name in sets if not re.fullmatch(_NAME, name)]:
        raise ConfigError(
            f"sets: expected train, val, test, near/NAME or far/NAME, got {', '.join(wrong)}"
        )
    if passing := [name for name, batches in sets.items() if iter(batches) is batches]:
        raise ConfigError(
            f"sets: {', '.join(passing)} can be read once only; expected a DataLoader or a list of batches"
        )


class _Parts:
    """A network as its backbone, where its weights are, and its last layer, on the CPU."""

    def __init__(self, network: nn.Module, side: int) -> None:
        backbone, head = split_head(network, side)
        self.backbone, self.side, self.device = backbone.eval(), side, head.weight.device
        self.head = head.cpu()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the last layer reads of images (N, 3, S, S): (N, D), float32, on the CPU."""
        features: Tensor = self.backbone(images.to(self.device).float())
        return features.float().cpu()

    def keep_head(self, folder: Path) -> None:
        """Write the last layer, or raise `DataError` if that of another network is there."""
        generator = torch.Generator().manual_seed(0)
        seen = self.features(torch.rand(1, 3, self.side, self.side, generator=generator))[0]
        now = {**self.head.state_dict(), f"{_SEEN}{self.side}": seen}
        if existing(folder / HEAD) is None:
            write_tensors(folder / f"{HEAD}.safetensors", now)
            return
        kept, before = read_arrays(folder / HEAD)
        # Features of another device are rounded differently; those of another size were not kept.
        for name, values in now.items():
            near = 1e-2 * float(values.std(correction=0))
            if name in before and not (
                before[name].shape == values.shape
                and torch.allclose(before[name], values, rtol=1e-2, atol=near)
            ):
                raise DataError(
                    f"{kept}: is of another network; choose another folder, or remove this one"
                )

    def outputs(self, name: str, batches: Iterable[Any], with_labels: bool) -> dict[str, Tensor]:
        """Logits, features and labels of a set, checked; a bar shows how far it is."""
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        features, labels = [], []
        for batch in track(batches, name, console=console, disable=not console.is_terminal):
            features.append(self.features(_images(batch)))
            if with_labels:
                if isinstance(batch, Tensor) or len(batch) < 2:
                    raise DataError(f"{name}: expected batches of images and labels")
                labels.append(torch.as_tensor(batch[1]))
        if not features:
            raise DataError(f"{name}: expected batches of images, got none")
        found = {"features": torch.cat(features)}
        with torch.no_grad():
            found["logits"] = self.head(found["features"])
        if with_labels:
            found["labels"] = torch.cat(labels)
        return checked(found, self.head, with_labels, where=name)


def _images(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if isinstance(images, Tensor) and images.ndim == 4:
        return images
    got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise ConfigError(
        f"sets: expected batches of images (N, 3, S, S), or of images and labels, got {got}"
    )
