"""Metrics against obvious definitions and against pytorch-ood's, in both conventions, with ties."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from knownot.core import metrics

# Few distinct values: most examples hold ties within and between the sets.
scores = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60)


def slow_fpr(positives: list[float], negatives: list[float], tpr: float) -> float:
    """Accept from the lowest score up until `tpr` of the positives are in."""
    for threshold in sorted(positives):
        if sum(p <= threshold for p in positives) >= tpr * len(positives) - 1e-9:
            return sum(n <= threshold for n in negatives) / len(negatives)
    raise AssertionError


@given(known=scores, unknown=scores, tpr=st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0]))
def test_fpr_at_tpr_is_its_definition(known, unknown, tpr) -> None:
    ours = metrics.fpr_at_tpr(torch.tensor(known), torch.tensor(unknown), tpr)
    assert ours == pytest.approx(slow_fpr(known, unknown, tpr))


@given(known=scores, unknown=scores)
def test_the_other_convention_exchanges_the_roles(known, unknown) -> None:
    ours = metrics.fpr95_ood_positive(torch.tensor(known), torch.tensor(unknown))
    expected = slow_fpr([-s for s in unknown], [-s for s in known], 0.95)
    assert ours == pytest.approx(expected)


@given(known=scores, unknown=scores)
def test_auroc_counts_pairs_and_half_ties(known, unknown) -> None:
    pairs = [(u > k) + 0.5 * (u == k) for u in unknown for k in known]
    ours = metrics.auroc(torch.tensor(known), torch.tensor(unknown))
    assert ours == pytest.approx(sum(pairs) / len(pairs))


@given(known=scores, unknown=scores, seed=st.integers(0, 99))
def test_oscr_is_the_area_under_its_curve(known, unknown, seed) -> None:
    correct = np.random.default_rng(seed).random(len(known)) < 0.7
    ours = metrics.oscr(torch.tensor(known), torch.from_numpy(correct), torch.tensor(unknown))
    # Dhamija's curve, one point per distinct score, joined by lines.
    points = [(0.0, 0.0)]
    for threshold in sorted({*known, *unknown}):
        rate = sum(c and s <= threshold for s, c in zip(known, correct, strict=True)) / len(known)
        points.append((sum(u <= threshold for u in unknown) / len(unknown), rate))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert ours == pytest.approx(area)


def peer(known: torch.Tensor, unknown: torch.Tensor) -> dict[str, float]:
    from pytorch_ood.metrics import OODMetrics

    theirs = OODMetrics()
    theirs.update(known, torch.arange(len(known)))
    theirs.update(unknown, torch.full((len(unknown),), -1))
    return theirs.compute()


@pytest.mark.parametrize("levels", [None, 50, 7], ids=["no ties", "ties", "many ties"])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_pytorch_oods(levels: int | None, seed: int) -> None:
    random = np.random.default_rng(seed)
    known, unknown = random.normal(0, 1, 400), random.normal(1.5, 1, 250)
    if levels is not None:
        known, unknown = (np.round(x * levels / 8) for x in (known, unknown))
    known, unknown = torch.from_numpy(known), torch.from_numpy(unknown)
    theirs = peer(known, unknown)
    assert metrics.auroc(known, unknown) == pytest.approx(theirs["AUROC"], abs=1e-6)
    assert metrics.aupr_in(known, unknown) == pytest.approx(theirs["AUPR-IN"], abs=1e-6)
    assert metrics.aupr_out(known, unknown) == pytest.approx(theirs["AUPR-OUT"], abs=1e-6)
    assert metrics.fpr95_ood_positive(known, unknown) == pytest.approx(theirs["FPR95TPR"], abs=1e-6)
    # The papers' convention is theirs with the sets exchanged and the scores turned around.
    assert metrics.fpr95(known, unknown) == pytest.approx(
        peer(-unknown, -known)["FPR95TPR"], abs=1e-6
    )


def test_the_two_conventions_differ() -> None:
    known = torch.arange(100.0)
    unknown = torch.cat([torch.full((10,), -1.0), torch.full((90,), 200.0)])
    assert metrics.fpr95(known, unknown) == pytest.approx(0.1)
    assert metrics.fpr95_ood_positive(known, unknown) == 1.0


@given(known=scores, unknown=scores)
def test_step_rule_is_average_precision(known, unknown) -> None:
    is_ood = [0] * len(known) + [1] * len(unknown)
    expected = average_precision_score(is_ood, known + unknown)
    ours = metrics.aupr_out(torch.tensor(known), torch.tensor(unknown), rule="step")
    assert ours == pytest.approx(expected)


@given(known=scores, unknown=scores)
def test_trapezoid_rule_is_the_area_under_scikit_learns_curve(known, unknown) -> None:
    is_ood = np.array([0] * len(known) + [1] * len(unknown))
    both = np.array(known + unknown)
    for ours, positive, sign in ((metrics.aupr_out, is_ood, 1), (metrics.aupr_in, 1 - is_ood, -1)):
        precision, recall, _ = precision_recall_curve(positive, sign * both)
        expected = auc(recall, precision)
        assert ours(torch.tensor(known), torch.tensor(unknown)) == pytest.approx(expected)


@given(known=scores, unknown=scores, power=st.integers(-20, 20), shift=st.integers(-5, 5))
def test_every_metric_depends_on_the_order_alone(known, unknown, power, shift) -> None:
    known, unknown = torch.tensor(known).double(), torch.tensor(unknown).double()
    for metric in (metrics.fpr95, metrics.fpr95_ood_positive, metrics.auroc, metrics.aupr_in):
        value = metric(known, unknown)
        assert 0 <= value <= 1
        moved = metric(known * 2.0**power + shift, unknown * 2.0**power + shift)
        assert value == pytest.approx(moved, abs=1e-12)


def test_a_threshold_is_not_rounded_for_the_other_set() -> None:
    known = torch.cat([torch.full((95,), 0.9985), torch.full((5,), 2.0)])
    unknown = torch.ones(100, dtype=torch.bfloat16)  # in which 0.9985 is 1
    assert metrics.fpr95(known, unknown) == 0.0
    assert metrics.fpr95(known.double(), unknown.float()) == 0.0


def test_infinite_scores_keep_their_order() -> None:
    known, unknown = torch.tensor([-math.inf, 0.0]), torch.tensor([1.0, math.inf])
    assert metrics.auroc(known, unknown) == 1.0
    assert metrics.fpr95(known, unknown) == 0.0


def test_perfect_detector_reaches_the_accuracy_in_oscr() -> None:
    known, unknown = torch.zeros(10), torch.ones(5)
    correct = torch.arange(10) < 8
    assert metrics.oscr(known, correct, unknown) == pytest.approx(0.8)
    assert metrics.oscr(known, torch.zeros(10), unknown) == 0.0


@pytest.mark.parametrize(
    "metric", [metrics.fpr95, metrics.fpr95_ood_positive, metrics.auroc, metrics.aupr_out]
)
def test_unusable_scores_are_named(metric) -> None:
    fine = torch.ones(3)
    with pytest.raises(ValueError, match="id_scores: expected a non-empty"):
        metric(torch.empty(0), fine)
    with pytest.raises(ValueError, match=r"ood_scores: .* NaN"):
        metric(fine, torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="vector"):
        metric(torch.ones(2, 2), fine)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"95 % is written 0\.95"):
        metrics.fpr_at_tpr(torch.ones(3), torch.ones(3), 95)
    with pytest.raises(ValueError, match="rule"):
        metrics.aupr_in(torch.ones(3), torch.ones(3), rule="spline")
    with pytest.raises(ValueError, match="id_correct"):
        metrics.oscr(torch.ones(3), torch.ones(2), torch.ones(3))


def test_integers_without_a_sign_are_scores_too() -> None:
    known, ood = torch.tensor([0, 3], dtype=torch.uint8), torch.tensor([2, 4], dtype=torch.uint8)
    assert metrics.fpr95_ood_positive(known, ood) == 0.5
