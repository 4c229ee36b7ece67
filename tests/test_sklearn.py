"""The scikit-learn estimator: its conventions, its promise, and rows that nothing taught it."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from knownot.sklearn import UnknownAwareClassifier
from knownot.sklearn.folds import folds

Rows = np.ndarray


def blobs(n: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Three classes in five columns, of very different units."""
    X, y = make_blobs(n, 5, centers=3, random_state=7, cluster_std=1.5)
    order = np.random.default_rng(seed).permutation(n)
    return (X * [1, 10, 100, 0.1, 1])[order], y[order]


@pytest.fixture(scope="module")
def model() -> UnknownAwareClassifier:
    return UnknownAwareClassifier(random_state=0).fit(*(part[:600] for part in blobs(1600)))


def test_scikit_learns_checks_pass() -> None:
    # Its batches are of other sizes, and float32 rounds them otherwise: a difference of 3e-7.
    reason = {"check_methods_subset_invariance": "scores are computed in float32"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        never = UnknownAwareClassifier(alpha=0, cv=0)  # an answer "unknown" is none of the classes
        check_estimator(never, expected_failed_checks=reason)


def test_rows_of_the_known_classes_are_kept_and_others_are_not(
    model: UnknownAwareClassifier,
) -> None:
    X, y = (part[600:] for part in blobs(1600))
    answers = model.predict(X)
    assert (answers[answers != -1] == y[answers != -1]).mean() > 0.98
    # Calibrated on 120 rows, so that the share scatters by two points around 5 %.
    assert 0.01 < (answers == -1).mean() < 0.11
    far = model.centre_ + 30 * model.scale_ * np.random.default_rng(0).normal(size=(200, 5))
    assert (model.predict(far) == -1).all()
    assert model.predict_proba(far).max(1).mean() > 0.9  # softmax is sure of them all the same


def test_the_promise_holds_on_average() -> None:
    shares = []
    for seed in range(20):
        X, y = blobs(260, seed)
        fitted = UnknownAwareClassifier(random_state=seed, cv=0, epochs=10).fit(X[:200], y[:200])
        shares.append(fitted.is_unknown(X[200:]).mean())
    # 40 rows calibrate a fit and 60 test it: a share scatters by 4.4 points, the mean by 1.
    assert np.mean(shares) < 0.05 + 3 * 0.01


@pytest.mark.parametrize("score", ["combined", "vos", "knn"])
def test_all_ways_of_asking_agree(score: str) -> None:
    X, y = blobs(500)
    fitted = UnknownAwareClassifier(random_state=0, ood_score=score, epochs=10).fit(X, y)
    rows = np.vstack([X, X * 3])
    unknown = fitted.is_unknown(rows)
    assert 0 < unknown.sum() < len(rows)
    assert np.array_equal(fitted.predict(rows) == -1, unknown)
    assert np.array_equal(fitted.p_values(rows) < 0.05, unknown)
    assert np.array_equal(fitted.score_samples(rows) < fitted.offset_, unknown)
    known = fitted.classes_[fitted.predict_proba(rows).argmax(1)]
    assert np.array_equal(fitted.predict(rows)[~unknown], known[~unknown])
    fitted.set_params(alpha=0.5)
    assert fitted.is_unknown(rows).sum() > unknown.sum()


@pytest.mark.parametrize(
    ("classes", "label"),
    [((0, 1, 2), -1), ((-1, 0, 1), -2), (("a", "b", "c"), "unknown"), ((0.0, 1.0, 2.0), -1.0)],
)
def test_the_label_of_unknown_rows_is_none_of_the_classes(classes: tuple, label: Any) -> None:
    X, y = blobs(120)
    fitted = UnknownAwareClassifier(random_state=0, cv=0).fit(X, np.array(classes)[y])
    answers = fitted.predict(np.vstack([X, X + 1e6]))
    assert set(answers[120:].tolist()) == {label}
    assert set(answers[:120].tolist()) <= {*classes, label}


def test_lengths_count_for_tables_and_not_for_embeddings() -> None:
    X, y = blobs(400)
    X = X - X.min(0) + 1
    table, embedding = (
        UnknownAwareClassifier(metric=metric, random_state=0).fit(X, y)
        for metric in ("euclidean", "cosine")
    )
    assert table.is_unknown(100 * X).all()
    assert np.allclose(embedding.score_samples(100 * X), embedding.score_samples(X), atol=1e-3)


def test_a_copy_answers_alike_and_a_seed_repeats_a_fit(model: UnknownAwareClassifier) -> None:
    X, y = blobs(600)
    assert np.array_equal(
        pickle.loads(pickle.dumps(model)).score_samples(X), model.score_samples(X)
    )
    state = torch.random.get_rng_state()
    again, other = (
        clone(model).set_params(random_state=seed, epochs=3).fit(X, y) for seed in (0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(clone(again).fit(X, y).score_samples(X), again.score_samples(X))
    assert not np.array_equal(other.score_samples(X), again.score_samples(X))
    pipeline = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    assert pipeline.score(X, y) > 0.85


def test_few_rows_are_calibrated_in_folds_and_very_few_are_warned_of() -> None:
    X, y = blobs(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = UnknownAwareClassifier(random_state=0).fit(X, y)
    assert fitted.model_.calibrated_on == 60
    assert fitted.is_unknown(X + 1e6).all()
    with pytest.warns(UserWarning, match="takes at least 20 rows set aside .* there are 12"):
        UnknownAwareClassifier(random_state=0, cv=0).fit(X, y)
    with pytest.warns(UserWarning, match="there are 0"):  # every class has a single row
        lone = UnknownAwareClassifier(random_state=0).fit(X[:3], [0, 1, 2])
    assert lone.predict(X).shape == (60,)


@pytest.mark.parametrize("cv", [0, 2, 5])
def test_folds_hold_every_row_once_and_never_a_lone_one(cv: int) -> None:
    of_rows = np.array([0] * 12 + [1] * 7 + [2] + [3] * 3)
    held: list[int] = []
    for kept, out in folds(of_rows, cv, 0.2, seed=0):
        assert sorted([*kept, *out]) == list(range(len(of_rows)))
        assert {*of_rows[kept]} == {0, 1, 2, 3}
        held += out
    assert 19 not in held
    assert len(set(held)) == len(held) == (22 if cv else 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "manhattan"}, "metric: expected euclidean or cosine"),
        ({"alpha": 1.0}, "alpha: expected a fraction"),
        ({"alpha": "0.05"}, "alpha: expected a number, got '0.05'"),
        ({"cv": 1}, "cv: expected 0, two folds"),
        ({"cv": 2.5}, "cv: expected 0, two folds or more, or None, got 2.5"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"unknown_label": 2}, "unknown_label: 2 is one of the classes"),
        ({"ood_score": "max"}, "ood_score: expected one of"),
        ({"vos_weight": -1.0}, "vos_weight: expected a number of at least 0"),
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"hidden": 2.5}, "hidden: expected a whole number of at least 0, got 2.5"),
        ({"n_neighbors": 0}, "n_neighbors: expected a whole number"),
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UnknownAwareClassifier(random_state=0, epochs=1).set_params(**wrong).fit(*blobs(90))


@pytest.mark.parametrize(
    "classes",
    [
        np.array([0, 1, 255], np.uint8),
        np.array([-128, -1, 3], np.int8),
        np.array([0, 1, 2], np.uint64),
        np.array([0, 1, 2], np.int16),
    ],
)
def test_narrow_labels_have_room_for_the_unknown(classes: Rows) -> None:
    X, y = blobs(120)
    fitted = UnknownAwareClassifier(random_state=0, cv=0).fit(X, classes[y])
    answers = fitted.predict(np.vstack([X, X + 1e6]))
    label = -129 if -1 in classes else -1
    assert set(answers[120:].tolist()) == {label}
    known = answers[:120] != label
    assert (answers[:120] == classes[y].astype(np.int64))[known].mean() > 0.95


def test_a_word_among_numbers_leaves_them_numbers() -> None:
    X, y = blobs(120)
    fitted = UnknownAwareClassifier(random_state=0, cv=0, unknown_label="?").fit(X, y)
    answers = fitted.predict(np.vstack([X, X + 1e6])).tolist()
    assert set(answers[120:]) == {"?"}
    assert set(answers[:120]) <= {*y.tolist(), "?"}


def test_a_number_among_words_leaves_them_words() -> None:
    X, y = blobs(120)
    words = np.array(["one", "two", "three"])[y]
    fitted = UnknownAwareClassifier(random_state=0, cv=0, unknown_label=-1).fit(X, words)
    answers = fitted.predict(np.vstack([X, X + 1e6])).tolist()
    assert set(answers[120:]) == {-1}
    assert set(answers[:120]) <= {*words.tolist(), -1}


def test_rows_that_are_the_same_few_are_warned_of() -> None:
    y = np.arange(60) % 2
    with pytest.warns(UserWarning, match="only 2 different rows among 60"):
        UnknownAwareClassifier(random_state=0, epochs=1).fit(np.c_[y, 1 - y], y)


def test_a_column_that_is_the_same_in_all_rows_says_nothing() -> None:
    X, y = blobs(300)
    constant = np.full((len(X), 1), 0.1)
    fitted = UnknownAwareClassifier(random_state=0, epochs=10).fit(np.hstack([X, constant]), y)
    rounded = np.hstack([X, constant]).astype(np.float32)
    assert fitted.is_unknown(rounded).mean() < 0.15
    assert (fitted.scale_[-1], fitted.scale_[0] > 0) == (1.0, True)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_numbers_of_any_size_have_a_score(metric: Any) -> None:
    X, y = blobs(120)
    fitted = UnknownAwareClassifier(random_state=0, cv=0, epochs=5, metric=metric).fit(X, y)
    far = np.vstack([np.full(5, 1e300), [1e300, -1e300, 0, 0, 1]])
    assert np.isfinite(fitted.score_samples(far)).all()
    assert np.isfinite(fitted.predict_proba(far)).all()
