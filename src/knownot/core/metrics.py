"""How well an `ood_score` separates in-distribution (ID) from out-of-distribution (OOD) inputs.

Every function takes two score vectors, larger meaning more out-of-distribution, and is exact with
ties. FPR95 has two definitions that differ by tens of points on the same scores: `fpr95` (ID is
the positive class; VOS, energy and most papers) and `fpr95_ood_positive` (OpenOOD, pytorch-ood).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def fpr_at_tpr(id_scores: Tensor, ood_scores: Tensor, tpr: float = 0.95) -> float:
    """Share of OOD inputs accepted while a share `tpr` of ID ones is.

    In-distribution is the positive class. The threshold is the lowest one that accepts at least
    `tpr` of `id_scores`; a score equal to it is accepted.

    Args:
        id_scores: Scores of the in-distribution set, shape (N,), in any unit.
        ood_scores: Scores of the out-of-distribution set, shape (M,), in the same unit.
        tpr: True-positive rate to hold, a fraction in (0, 1].

    Returns:
        False-positive rate, a fraction in [0, 1]; lower is better.

    Raises:
        ValueError: If a set is empty, not one-dimensional or holds NaN, or `tpr` is outside (0, 1].

    Example:
        >>> fpr_at_tpr(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.5, 5.0]), tpr=0.75)
        0.5

    Reference:
        Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022.
    """
    id_scores, ood_scores = _of_one_dtype(*_checked(id_scores, ood_scores))
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr: expected a fraction in (0, 1], got {tpr}; 95 % is written 0.95")
    threshold = _rank_reaching(id_scores, tpr)
    return float((ood_scores <= threshold).double().mean())


def fpr95(id_scores: Tensor, ood_scores: Tensor) -> float:
    """FPR@95TPR with ID as the positive class: OOD accepted when 95 % of ID is; see `fpr_at_tpr`.

    Example:
        >>> fpr95(torch.arange(100.0), torch.tensor([94.0, 95.0, 200.0, 300.0]))
        0.25
    """
    return fpr_at_tpr(id_scores, ood_scores, 0.95)


def fpr95_ood_positive(id_scores: Tensor, ood_scores: Tensor) -> float:
    """FPR@95TPR with OOD as the positive class: ID rejected when 95 % of OOD is caught.

    The definition of OpenOOD and pytorch-ood. Arguments, range and errors as in `fpr_at_tpr`.

    Example:
        >>> fpr95_ood_positive(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 4.0]))
        0.5
    """
    # In float64, as integers without a sign cannot be negated.
    id_scores, ood_scores = (s.double() for s in _checked(id_scores, ood_scores))
    return fpr_at_tpr(-ood_scores, -id_scores, 0.95)


def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Probability that a random OOD input scores above a random ID one, ties counting half.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    id_scores, ood_scores = _sorted(id_scores, ood_scores)
    below = torch.searchsorted(id_scores, ood_scores)
    not_above = torch.searchsorted(id_scores, ood_scores, right=True)
    pairs = 2 * len(id_scores) * len(ood_scores)
    return int(below.sum() + not_above.sum()) / pairs


def aupr_out(
    id_scores: Tensor, ood_scores: Tensor, rule: Literal["trapezoid", "step"] = "trapezoid"
) -> float:
    """Area under the precision-recall curve with OOD as the positive class, in [0, 1].

    Args:
        id_scores: Scores of the in-distribution set, shape (N,).
        ood_scores: Scores of the out-of-distribution set, shape (M,).
        rule: "trapezoid" joins the points of the curve by lines (OpenOOD, pytorch-ood); "step" is
            scikit-learn's average precision (the VOS authors' code), never above it.
    """
    return _aupr(*_sorted(id_scores, ood_scores), rule)


def aupr_in(
    id_scores: Tensor, ood_scores: Tensor, rule: Literal["trapezoid", "step"] = "trapezoid"
) -> float:
    """Area under the precision-recall curve with ID as the positive class; see `aupr_out`."""
    id_scores, ood_scores = _sorted(id_scores, ood_scores)
    return _aupr(-ood_scores.flip(0), -id_scores.flip(0), rule)


def oscr(id_scores: Tensor, id_correct: Tensor, ood_scores: Tensor) -> float:
    """Open-set classification rate: area of correct classification rate over false-positive rate.

    A perfect detector reaches the closed-set accuracy, a random one half of it.

    Args:
        id_scores: Scores of the in-distribution set, shape (N,).
        id_correct: Whether each ID input was classified correctly, shape (N,), bool.
        ood_scores: Scores of the out-of-distribution set, shape (M,).

    Returns:
        A fraction in [0, 1]; higher is better.

    Reference:
        Dhamija et al., "Reducing Network Agnostophobia", NeurIPS 2018.
    """
    id_scores, ood_scores = _checked(id_scores, ood_scores)
    correct = torch.as_tensor(id_correct, device=id_scores.device).bool()
    if correct.shape != id_scores.shape:
        raise ValueError(
            f"id_correct: expected shape {tuple(id_scores.shape)}, got {tuple(correct.shape)}"
        )
    if not correct.any():
        return 0.0
    # Integrating the rate of the correct ones over OOD is their AUROC times the accuracy.
    return float(correct.double().mean()) * auroc(id_scores[correct], ood_scores)


def _rank_reaching(scores: Tensor, fraction: float) -> Tensor:
    """The smallest score such that at least `fraction` of all scores are no larger."""
    n = len(scores)
    # 1e-9: 0.07 * 100 is 7.000000000000001 in floating point and would round up to 8.
    rank = max(1, math.ceil(fraction * n - 1e-9))
    return scores.kthvalue(rank).values


def _checked(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    checked = []
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        scores = torch.as_tensor(scores).detach()
        if scores.device.type == "mps":  # which has no float64
            scores = scores.cpu()
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(
                f"{name}: expected a non-empty vector of scores, got shape {tuple(scores.shape)}"
            )
        if scores.isnan().any():
            raise ValueError(f"{name}: {int(scores.isnan().sum())} of {len(scores)} scores are NaN")
        checked.append(scores)
    return checked[0], checked[1]


def _sorted(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    id_scores, ood_scores = _of_one_dtype(*_checked(id_scores, ood_scores))
    return _sort(id_scores), _sort(ood_scores)


def _of_one_dtype(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: a threshold of one set must not be rounded for the other."""
    dtype = torch.promote_types(id_scores.dtype, ood_scores.dtype)
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float64
    return id_scores.to(dtype), ood_scores.to(dtype)


def _sort(scores: Tensor) -> Tensor:
    if scores.device.type != "cpu":
        return scores.sort().values
    import numpy as np  # ten times as fast as torch where the processor has AVX-512

    return torch.from_numpy(np.sort(scores.numpy()))


def _aupr(negatives: Tensor, positives: Tensor, rule: str) -> float:
    """Area under the precision-recall curve of sorted scores, positives larger.

    Recall grows at the scores of positives alone. From one of them to the next lower one the curve
    leads from the precision just above it, with all negatives in between accepted, to its own.
    """
    if rule not in ("trapezoid", "step"):
        raise ValueError(f'rule: expected "trapezoid" or "step", got {rule!r}')
    thresholds, number = torch.unique_consecutive(positives, return_counts=True)
    true_above = len(positives) - number.cumsum(0)
    false_above = len(negatives) - torch.searchsorted(negatives, thresholds, right=True)
    true = true_above + number
    false = len(negatives) - torch.searchsorted(negatives, thresholds)
    precision = true / (true + false).double()
    if rule == "trapezoid":
        # Where nothing is accepted yet, the curve starts at precision 1.
        accepted = true_above + false_above
        above = torch.where(accepted > 0, true_above / accepted.double(), 1.0)
        precision = (precision + above) / 2
    return float((number * precision).sum() / len(positives))
