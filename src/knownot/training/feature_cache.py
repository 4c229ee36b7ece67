"""Backbone features of photos, computed once and kept on disk in small, atomic pieces.

A piece holds the features of 256 consecutive photos under a key made of everything they depend on:
the backbone's weights, the preprocessing, alterations, and path, size and change time of every photo;
and the features of made-up photos, which tell whether the backbone's code is still the same. A changed
photo or backbone therefore never meets an old feature, and an interrupted run loses at most a piece.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from knownot.data.altered import alter
from knownot.data.kept_files import read_tensors, write_tensors
from knownot.data.reading import read_batches
from knownot.data.spread import Workers
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.cpu_workers import cpu_workers
from knownot.models.modes import evaluating

_PIECE = 256
_ROUNDING = 1e-2  # of a feature, and of their spread: threads and processors round differently
_PATCHES = 4


@dataclass(frozen=True)
class Features:
    """Features of the photos that could be read.

    Attributes:
        rows: Features (M, S), as `scored_features` has them, or (M, A, S) after A alterations, float32.
        indices: Which of the asked-for photos each row belongs to (M,), int64, ascending.
        skipped: Path and reason of every photo that could not be read.
    """

    rows: Tensor
    indices: Tensor
    skipped: dict[Path, str]


def default_cache() -> Path:
    """`$KNOWNOT_CACHE`, else `~/.cache/knownot`."""
    named = os.environ.get("KNOWNOT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "knownot"


@torch.no_grad()
def extract_features(
    model: UnknownAwareClassifier,
    paths: Sequence[Path],
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    altered: Sequence[str] = (),
) -> Features:
    """What head and feature scores read of photos, in evaluation mode.

    Args:
        model: Whose backbone, preprocessing and device are used.
        paths: Photos, in the order wanted.
        cache: Folder of pieces to read and write, or None to keep nothing.
        progress: Called with the number of photos done since the last call.
        altered: Some of `knownot.data.altered.ALTERATIONS`, each applied by itself; photos are
            mixed with those that go through the network with them.

    Returns:
        Features of all readable photos; unreadable ones are listed, not fatal.
    """
    fingerprint = b"" if cache is None else _fingerprint(model) + ",".join(altered).encode()
    rows, indices, skipped = [], [], {}
    with (
        evaluating(model),
        cpu_workers(model.device, len(paths), model.batch_size) as workers,
    ):
        probe = None if cache is None else _probe(model)
        for start in range(0, len(paths), _PIECE):
            piece = paths[start : start + _PIECE]
            stored = cache and cache / "features" / f"{_key(fingerprint, piece)}.safetensors"
            found = _read(stored, probe) if stored and probe is not None else None
            if found is None:
                bad: dict[Path, str] = {}
                found = _compute(model, piece, bad, progress, workers, altered)
                skipped.update(bad)
                # A piece with bad photos is not stored: they are reported again next time.
                if stored and probe is not None and not bad:
                    _write(stored, found, probe)
            elif progress:
                progress(len(piece))
            rows.append(found[0])
            indices.append(found[1] + start)
    return Features(
        torch.cat([_empty(model, altered), *rows]),
        torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64),
        skipped,
    )


def _compute(
    model: UnknownAwareClassifier,
    paths: Sequence[Path],
    skipped: dict[Path, str],
    progress: Callable[[int], None] | None,
    workers: Workers,
    altered: Sequence[str],
) -> tuple[Tensor, Tensor]:
    rows, indices = [_empty(model, altered)], []
    batches = read_batches(paths, model.preprocessing.read, model.batch_size, skipped)
    for batch, found in workers.spread(batches, lambda photos: _of_batch(model, photos, altered)):
        rows.append(found)
        indices += batch
        if progress:
            progress(len(batch))
    if progress and skipped:
        progress(len(skipped))
    return torch.cat(rows), torch.tensor(indices, dtype=torch.int64)


@torch.no_grad()
def _of_batch(model: UnknownAwareClassifier, photos: Tensor, altered: Sequence[str]) -> Tensor:
    if not altered:
        return model.scored_features(photos.to(model.device)).float().cpu()
    kinds = [_of_batch(model, alter(name, photos, seed=0), ()) for name in altered]
    return torch.stack(kinds, dim=1)


def _empty(model: UnknownAwareClassifier, altered: Sequence[str]) -> Tensor:
    kinds = [len(altered)] if altered else []
    return torch.empty(0, *kinds, model.scored_dim)


def _fingerprint(model: UnknownAwareClassifier) -> bytes:
    digest = hashlib.sha256(model.preprocessing.model_dump_json().encode())
    digest.update(f"{model.device.type} {model.earlier_map}".encode())
    for name, tensor in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _probe(model: UnknownAwareClassifier) -> Tensor:
    """What the backbone makes of patches of all colours, and of noise (2, S).

    Patches show what noise does not: mirrored, or with its channels in another order, it looks the same
    to a network that takes means over a photo.
    """
    side = model.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    sizes = (_PATCHES, side)
    patches, noise = (
        torch.randint(256, (1, 3, size, size), generator=generator).float() for size in sizes
    )
    pixels = torch.cat([F.interpolate(patches, (side, side)), noise])
    return _of_batch(model, pixels.byte(), ())


def _key(fingerprint: bytes, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(fingerprint)
    for path in paths:
        try:
            status = path.stat()
            identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:
            identity = f"{path}\0missing\0"
        digest.update(identity.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _read(stored: Path, probe: Tensor) -> tuple[Tensor, Tensor] | None:
    tensors = read_tensors(stored)
    if tensors is None or not {"rows", "indices", "probe"} <= set(tensors):
        return None  # a damaged piece is computed anew
    before, near = tensors["probe"], _ROUNDING * float(probe.std(correction=0))
    if before.shape != probe.shape or not torch.allclose(before, probe, rtol=_ROUNDING, atol=near):
        return None
    return tensors["rows"], tensors["indices"]


def _write(stored: Path, found: tuple[Tensor, Tensor], probe: Tensor) -> None:
    # The cache only saves time: a full disk must not stop the run.
    with suppress(Exception):
        write_tensors(stored, {"rows": found[0], "indices": found[1], "probe": probe})
