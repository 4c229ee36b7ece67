"""What a training loop may get wrong about `VirtualOutlierLoss`, told before VOS starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from knownot.core.gaussians import ClassGaussians
from knownot.core.outliers import OutlierSampler
from knownot.core.window_gaussians import WindowGaussians

_ANOTHER_HEAD = 0.3  # of the logits: far beyond any rounding


def refuse_batch_norm(head: Callable[[Tensor], Tensor]) -> None:
    """Raise `ValueError` for a head whose statistics virtual outliers would enter."""
    if isinstance(head, nn.Module) and any(isinstance(m, _BatchNorm) for m in head.modules()):
        raise ValueError(
            "head: holds a batch norm, whose statistics virtual outliers would enter; give the layers "
            "after it as the head, and what it returns as the features"
        )


def check_parts(
    gaussians: ClassGaussians, sampler: OutlierSampler, num_classes: int, feature_dim: int
) -> None:
    """Raise `ValueError` for parts that are not of K classes and D features, or not of each other."""
    if (gaussians.num_classes, gaussians.feature_dim) != (num_classes, feature_dim):
        raise ValueError(
            f"gaussians: expected those of {num_classes} classes, {feature_dim} wide, got "
            f"{gaussians.num_classes} and {gaussians.feature_dim}"
        )
    if sampler.feature_dim != feature_dim:
        raise ValueError(
            f"outliers: expected a sampler of {feature_dim} features, got one of {sampler.feature_dim}"
        )
    if sampler.reads_windows and not isinstance(gaussians, WindowGaussians):
        raise ValueError(
            f"outliers: {type(sampler).__name__} is made from features themselves; "
            'it needs gaussians="window"'
        )


def check_rows(
    features: Tensor, logits: Tensor, labels: Tensor, feature_dim: int, columns: int
) -> None:
    """Raise `ValueError` for what does not belong together.

    Args:
        features: Should be (N, D).
        logits: Should be (N, C), a background column included.
        labels: Should be (N,), integers.
        feature_dim: Width D.
        columns: Number C of logits of a row.
    """
    for name, given in (("features", features), ("logits", logits), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(given).__name__}")
    if features.ndim != 2 or features.shape[1] != feature_dim:
        raise ValueError(
            f"features: expected shape (N, {feature_dim}), got {tuple(features.shape)}"
        )
    rows = len(features)
    if logits.shape != (rows, columns):
        raise ValueError(
            f"logits: expected shape {(rows, columns)}, a row for each row of features, got "
            f"{tuple(logits.shape)}"
        )
    if labels.shape != (rows,) or labels.is_floating_point():
        raise ValueError(
            f"labels: expected shape ({rows},), integers, the index of each row's class, got "
            f"{tuple(labels.shape)}, {labels.dtype}"
        )


@torch.no_grad()
def check_columns(head: Callable[[Tensor], Tensor], features: Tensor, columns: int) -> None:
    """Send a row of zeros through the head; torch's random numbers stay as they were.

    Args:
        head: What the loss sends outliers through.
        features: Rows (N, D), of the dtype that it takes.
        columns: Number C of logits of a row.

    Raises:
        ValueError: If the head takes no such row, or makes another number of columns of it.
    """
    head = getattr(head, "_orig_mod", head)  # a compiled one would be compiled anew for one row
    row = features.new_zeros(1, features.shape[1])
    devices = [features.device] if features.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        try:
            found = head(row)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"head: takes no row of {row.shape[1]} features ({reason})") from error
    if found.shape != (1, columns):
        made = found.shape[1] if found.ndim == 2 else f"{tuple(found.shape)}, no"
        raise ValueError(f"head: makes {made} columns of the features, the logits have {columns}")


@torch.no_grad()
def warn_of_another_head(
    head: Callable[[Tensor], Tensor], features: Tensor, logits: Tensor
) -> None:
    """Warn if the head is not what made the logits: the loss would train a layer nobody uses.

    Of a linear layer alone: others may answer otherwise at every call.

    Args:
        head: What the loss sends outliers through.
        features: Rows (N, D), of the dtype that it takes.
        logits: Their logits (N, C), which may be infinite where classes are masked.
    """
    if not isinstance(head, nn.Linear) or not len(features):
        return
    found = head(features).float()
    compared = logits.isfinite()
    off = (found - logits)[compared].abs().mean() / found[compared].abs().mean()
    if off > _ANOTHER_HEAD:
        warnings.warn(
            "VirtualOutlierLoss: the logits are not what `head` makes of the features (off by "
            f"{float(off):.2g} times their size on average). Give it the layer that the model uses "
            "now, that layer's input as the features, and its output, not probabilities, as the logits",
            stacklevel=2,
        )
