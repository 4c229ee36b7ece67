"""p-values keep their promise on fresh in-distribution data, and thresholds agree with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knownot.core.calibration import CalibrationTable, ConformalCalibration
from knownot.core.combination import CombinedScore, TailLogP

few_values = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=50)


@given(calibration=few_values, new=few_values)
def test_p_value_is_its_formula(calibration, new) -> None:
    p = ConformalCalibration(torch.tensor(calibration)).p_value(torch.tensor(new))
    n = len(calibration)
    assert p.tolist() == [(1 + sum(c >= s for c in calibration)) / (n + 1) for s in new]


@given(calibration=few_values, new=few_values, alpha=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]))
def test_unknown_is_exactly_above_the_threshold(calibration, new, alpha) -> None:
    conformal = ConformalCalibration(torch.tensor(calibration))
    unknown = conformal.is_unknown(torch.tensor(new), alpha)
    assert unknown.tolist() == [s > conformal.threshold(alpha) for s in new]


@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_at_most_alpha_of_fresh_data_is_flagged(classwise: bool, ties: bool) -> None:
    """Mean over many calibrations of the share flagged, against alpha and its error."""
    random, flagged = np.random.default_rng(0), []
    for _ in range(400):
        groups = torch.from_numpy(random.integers(0, 2, 600))
        scores = torch.from_numpy(random.gamma(2, 1, 600)) * (1 + groups)
        scores = scores.round() if ties else scores
        given_groups = groups if classwise else None
        conformal = ConformalCalibration(
            scores[:200], None if given_groups is None else given_groups[:200]
        )
        new_groups = None if given_groups is None else given_groups[200:]
        flagged.append(conformal.is_unknown(scores[200:], 0.05, new_groups).double().mean())
    share, error = np.mean(flagged), np.std(flagged) / math.sqrt(len(flagged))
    assert share <= 0.05 + 3 * error
    if not ties:
        assert share >= 0.05 - 3 * error - 2 / 101


def test_a_rare_group_uses_the_pooled_scores() -> None:
    scores = torch.arange(100.0)
    groups = torch.tensor([0] * 95 + [1] * 5)
    conformal = ConformalCalibration(scores, groups)
    assert conformal.threshold(0.05, group=1) == conformal.threshold(0.05)
    assert conformal.threshold(0.05, group=0) < conformal.threshold(0.05)
    p = conformal.p_value(torch.tensor([97.0, 97.0, 97.0]), torch.tensor([0, 1, 9]))
    assert p.tolist() == pytest.approx([1 / 96, 4 / 101, 4 / 101])


def test_too_few_scores_flag_nothing() -> None:
    conformal = ConformalCalibration(torch.arange(10.0))
    assert conformal.threshold(0.05) == math.inf
    assert not conformal.is_unknown(torch.tensor([1e30]), 0.05).any()


def test_nan_counts_as_most_unusual() -> None:
    conformal = ConformalCalibration(torch.arange(99.0))
    assert conformal.p_value(torch.tensor([math.nan])).item() == pytest.approx(0.01)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        ConformalCalibration(torch.empty(0))
    with pytest.raises(ValueError, match="NaN"):
        ConformalCalibration(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="groups"):
        ConformalCalibration(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="predicted classes"):
        ConformalCalibration(torch.ones(3), torch.ones(3)).p_value(torch.ones(1))
    with pytest.raises(ValueError, match="alpha"):
        ConformalCalibration(torch.ones(3)).threshold(5)
    for alpha in (5, -1, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            ConformalCalibration(torch.ones(3)).is_unknown(torch.ones(3), alpha)
    for scores in (torch.empty(0), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="scores: expected one or more, and no NaN"):
            CombinedScore(["a"]).fit({"a": scores})
    assert len(ConformalCalibration(torch.ones(3))) == 3


@given(seed=st.integers(0, 2**16), n=st.integers(2, 400), levels=st.sampled_from([3, 10**6]))
def test_tail_log_p_never_falls_and_is_at_least_zero(seed, n, levels) -> None:
    random = np.random.default_rng(seed)
    fit = torch.from_numpy(np.round(random.normal(size=n) * levels) / levels)
    log_p = TailLogP().fit(fit)
    x = torch.linspace(-9, 9, 300)
    values = log_p(x)
    assert values.isfinite().all()
    assert (values >= 0).all()
    assert (values.diff() >= -1e-5).all()


def test_tail_log_p_is_the_law_inside_and_exponential_beyond() -> None:
    fit = torch.from_numpy(np.random.default_rng(0).exponential(size=20_000))
    log_p = TailLogP().fit(fit)
    x = torch.linspace(0.05, 12, 40)  # -log P(X >= x) = x for this law, far beyond the data too
    assert torch.allclose(log_p(x), x, rtol=0.06, atol=0.03)


def test_tail_log_p_of_a_constant_score() -> None:
    log_p = TailLogP().fit(torch.full((50,), 3.0))
    assert log_p(torch.tensor([2.0])).item() == 0
    assert log_p(torch.tensor([4.0])) > log_p(torch.tensor([3.5]))


def test_combined_score_is_the_weighted_sum_of_its_parts() -> None:
    scores = {"a": torch.randn(300), "b": torch.rand(300)}
    combined = CombinedScore(["a", "b"], [1.0, 2.0]).fit(scores)
    expected = combined.log_p["a"](scores["a"]) + 2 * combined.log_p["b"](scores["b"])
    assert torch.allclose(combined(scores), expected)


@given(seed=st.integers(0, 2**10))
def test_combined_score_rises_with_each_part(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randn(100, generator=generator) for name in "ab"}
    combined = CombinedScore(["a", "b"]).fit(scores)
    base = combined({"a": torch.zeros(1), "b": torch.zeros(1)})
    assert combined({"a": torch.ones(1), "b": torch.zeros(1)}) > base
    assert combined({"a": torch.zeros(1), "b": torch.ones(1)}) > base


def test_out_of_fold_scores_are_those_of_fits_without_the_row() -> None:
    scores = {"a": torch.randn(60)}
    combined = CombinedScore(["a"])
    out_of_fold = combined.fit_and_score(scores, folds=10)
    rest = torch.arange(60) % 10 != 3
    by_hand = CombinedScore(["a"]).fit({"a": scores["a"][rest]})
    assert torch.allclose(out_of_fold[~rest], by_hand({"a": scores["a"][~rest]}))
    assert torch.allclose(combined(scores), CombinedScore(["a"]).fit(scores)(scores))


@pytest.mark.parametrize("n", [1, 2, 5, 19])
def test_out_of_fold_scores_of_very_few_rows(n: int) -> None:
    out = CombinedScore(["a"]).fit_and_score({"a": torch.arange(float(n))})
    assert out.isfinite().all()
    assert len(out) == n


def test_recalibrated_combination_flags_what_it_promises() -> None:
    """Dependent parts: the textbook law of Fisher's sum would flag far more than 5 %."""
    random, flagged = np.random.default_rng(1), []
    for _ in range(150):
        base = random.normal(size=(700, 1))
        parts = torch.from_numpy(base + 0.3 * random.normal(size=(700, 3))).float()
        held = {str(i): parts[:200, i] for i in range(3)}
        combined = CombinedScore(list(held))
        conformal = ConformalCalibration(combined.fit_and_score(held))
        fresh = combined({str(i): parts[200:, i] for i in range(3)})
        flagged.append(conformal.is_unknown(fresh, 0.05).double().mean())
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 1.0], [0.0, 0.0], [math.nan, 1.0]])
def test_wrong_weights_are_named(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        CombinedScore(["a", "b"], weights)


@given(
    n=st.integers(25, 80),
    seed=st.integers(0, 2**16),
    by_group=st.booleans(),
    ties=st.booleans(),
    alpha=st.sampled_from([0.01, 0.03, 0.04, 0.05, 0.5]),
)
def test_the_table_gives_the_p_values_of_the_calibrations(
    n: int, seed: int, by_group: bool, ties: bool, alpha: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (n,), generator=generator) if by_group else None
    values = torch.randn(2, n, generator=generator)
    scores = (3 * values).round() if ties else values
    calibrations = [ConformalCalibration(row, groups) for row in scores]
    table = CalibrationTable(calibrations, num_groups=4)
    new = torch.cat([scores[0, :5], torch.randn(20, generator=generator)])
    new = torch.cat([new, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    classes = torch.randint(0, 4, (len(new),), generator=generator)  # class 3: never seen
    for which, calibration in enumerate(calibrations):
        expected = calibration.p_value(new, classes if by_group else None, alpha)
        exact = torch.tensor(alpha, dtype=torch.float64)
        assert torch.equal(table(new, torch.tensor(which), classes, exact), expected)


@pytest.mark.parametrize("alpha", [0.05, 0.02, 0.01, 0.003])
def test_a_group_too_small_for_alpha_uses_all_scores(alpha: float) -> None:
    calibration = ConformalCalibration(torch.randn(500), torch.arange(500) % 10)
    far, group = torch.tensor([1e9]), torch.tensor([3])
    assert calibration.is_unknown(far, alpha, group)
    assert not calibration.is_unknown(-far, alpha, group)
    limit = calibration.threshold(alpha, group=3)
    assert not calibration.is_unknown(torch.tensor([limit]), alpha, group)
    assert calibration.is_unknown(torch.tensor([limit + 1e-3]), alpha, group)
