"""Digits 0 to 7 are known; 8, 9 and patches of photos are not: one network, with and without VOS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from knownot.core.calibration import flagged
from knownot.core.metrics import auroc, fpr95
from knownot.evaluation.measures import binomial_interval
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.preprocessing import Preprocessing
from knownot.models.unknown_aware import VosSettings

_KNOWN = 8
_SIZE = 8
_FEATURES = 32 * (_SIZE // 2) ** 2
_EPOCHS, _BATCH = 30, 64
_VOS_START = 0.4
_PATCHES = 1000


@dataclass(frozen=True)
class DigitSets:
    """Images as uint8 (N, 3, 8, 8), labels int64 (N,).

    Attributes:
        train: Known digits to train on.
        val: Known digits to calibrate on.
        test: Known digits to measure on.
        ood: Unknown images by name: the digits held out, and patches of photos.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    ood: dict[str, Tensor]


def load_sets(seed: int) -> DigitSets:
    """Split scikit-learn's digits and cut grey patches from its two photos."""
    digits = load_digits()
    images = _as_images(digits.images / 16)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    known = labels < _KNOWN
    indices = torch.nonzero(known).flatten().numpy()
    train, rest = train_test_split(
        indices, test_size=0.5, stratify=labels[indices], random_state=seed
    )
    val, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=seed)
    random = np.random.default_rng(seed)
    photos = [photo.mean(axis=2) / 255 for photo in load_sample_images().images]
    patches = [_patch(photos[i % len(photos)], random) for i in range(_PATCHES)]
    return DigitSets(
        train=(images[train], labels[train]),
        val=(images[val], labels[val]),
        test=(images[test], labels[test]),
        ood={"digits 8 and 9": images[~known], "photo patches": _as_images(np.stack(patches))},
    )


def train_digits(sets: DigitSets, seed: int, vos_weight: float) -> UnknownAwareClassifier:
    """Train a small network from scratch; `vos_weight` 0 is plain cross-entropy."""
    torch.manual_seed(seed)
    model = UnknownAwareClassifier(
        _backbone(),
        _FEATURES,
        [str(digit) for digit in range(_KNOWN)],
        Preprocessing(image_size=_SIZE, crop=1.0),
        vos=VosSettings(weight=vos_weight, queue_size=80),
    )
    images, labels = sets.train
    steps = _EPOCHS * (len(images) // _BATCH)
    model.vos.start_step = int(_VOS_START * steps)
    of_vos = {id(parameter) for parameter in model.vos.parameters()}
    network = [p for p in model.parameters() if id(p) not in of_vos]
    groups: list[dict[str, Any]] = [
        {"params": network, "weight_decay": 1e-4},
        {"params": [*model.vos.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images))
        for batch in order[: len(images) // _BATCH * _BATCH].view(-1, _BATCH):
            output = model(images[batch])
            loss = F.cross_entropy(output.logits, labels[batch])
            loss = loss + model.vos(output.features, output.logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        model.fit_scores(model.scored_features(images), labels)
        model.calibrate(model.scored_features(sets.val[0]))
    return model


@torch.no_grad()
def measure_digits(
    model: UnknownAwareClassifier, sets: DigitSets
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Numbers of a trained model, and the scores behind them: set name to score name to (N,)."""
    images, labels = sets.test
    output = model(images)
    known = model.scores(output)
    p_values = model.p_values(output, known, model.default_score)
    rejected = int(flagged(p_values, model.alpha).sum())
    unknown = {name: model.scores(model(photos)) for name, photos in sets.ood.items()}
    numbers = {
        "accuracy": float((output.logits.argmax(1) == labels).double().mean()),
        "flagged_id": rejected / len(labels),
        "flagged_id_interval": binomial_interval(rejected, len(labels)),
        "ood": {
            name: {
                score: {
                    "fpr95": fpr95(known[score], s[score]),
                    "auroc": auroc(known[score], s[score]),
                }
                for score in known
            }
            for name, s in unknown.items()
        },
    }
    return numbers, {"known digits": known, **unknown}


def _backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
    )


def _as_images(grey: np.ndarray) -> Tensor:
    pixels = torch.from_numpy((grey * 255).round().astype(np.uint8))
    return pixels.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def _patch(photo: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random 32-pixel square, averaged down to 8 x 8 and stretched to the full range of grey."""
    top, left = (random.integers(0, size - 32) for size in photo.shape)
    small: np.ndarray = (
        photo[top : top + 32, left : left + 32].reshape(_SIZE, 4, _SIZE, 4).mean(axis=(1, 3))
    )
    low, high = small.min(), small.max()
    stretched: np.ndarray = (small - low) / max(high - low, 1e-6)
    return stretched
