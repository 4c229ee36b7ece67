"""Scores against obvious recomputations."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import oas
from sklearn.neighbors import NearestNeighbors

from knownot.core.combination import CombinedScore
from knownot.core.scores import FeatureScores, knn, mahalanobis, max_softmax
from knownot.core.window_gaussians import WindowGaussians


def test_max_softmax_is_one_minus_the_largest_and_keeps_its_digits() -> None:
    logits = torch.randn(50, 7)
    assert torch.allclose(max_softmax(logits), 1 - logits.softmax(1).amax(1), atol=1e-6)
    sure = torch.tensor([[30.0, 0.0], [40.0, 0.0]])
    assert 0 < max_softmax(sure)[1] < max_softmax(sure)[0]


def test_mahalanobis_is_the_distance_to_the_nearest_mean() -> None:
    random = np.random.default_rng(0)
    covariance = np.cov(random.normal(size=(50, 4)).T)
    means, x = random.normal(size=(3, 4)), random.normal(size=(20, 4))
    inverse = np.linalg.inv(covariance)
    expected = [min((row - m) @ inverse @ (row - m) for m in means) for row in x]
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    ours = mahalanobis(*(torch.from_numpy(a) for a in (x, means @ whitening, whitening)))
    assert np.allclose(ours.numpy(), expected)


def test_mahalanobis_of_many_classes_keeps_its_digits_near_a_mean() -> None:
    random = torch.Generator().manual_seed(0)
    means = torch.randn(300, 64, generator=random)
    rows = torch.cat([
        10 * torch.randn(500, 64, generator=random),
        means[:100] + 1e-3 * torch.randn(100, 64, generator=random),  # where products would cancel
    ])  # fmt: skip
    expected = torch.cdist(
        rows.double(), means.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    ours = mahalanobis(rows, means, torch.eye(64))
    assert torch.allclose(ours.double(), expected.amin(1).square(), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 30, 99])
def test_knn_is_the_cosine_distance_to_the_kth_neighbour(k: int) -> None:
    bank = F.normalize(torch.randn(30, 6), dim=1)
    x = F.normalize(torch.randn(10, 6), dim=1)
    search = NearestNeighbors(n_neighbors=min(k, 30), metric="cosine").fit(bank.numpy())
    expected = search.kneighbors(x.numpy())[0][:, -1]
    assert np.allclose(knn(x, bank, k).numpy(), expected, atol=1e-5)


def test_feature_scores_are_fitted_on_unit_features() -> None:
    features, labels = torch.randn(80, 5).abs(), torch.arange(80) % 2
    fitted = FeatureScores.fit(features, labels, 2, k=3)
    scores = fitted(features[:10])
    unit = F.normalize(features, dim=1).double().numpy()
    means = np.stack([unit[k::2].mean(0) for k in range(2)])
    covariance, _ = oas(unit - means[labels.numpy()], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    expected = [min((r - m) @ inverse @ (r - m) for m in means) for r in unit[:10]]
    assert np.allclose(scores["mahalanobis"].numpy(), expected, rtol=1e-3)
    assert torch.allclose(scores["knn"], knn(torch.from_numpy(unit[:10]).float(), fitted.bank, 3))
    # The length of a feature does not matter.
    for name, values in fitted(features[:10] * 50).items():
        assert torch.allclose(values, scores[name], rtol=1e-3, atol=1e-5), name


def test_an_earlier_layer_is_read_by_the_mahalanobis_distance_at_a_length_of_its_own() -> None:
    last, earlier, labels = torch.randn(90, 5), torch.randn(90, 3).abs(), torch.arange(90) % 2
    fitted = FeatureScores.fit(torch.cat([last, earlier], 1), labels, 2, k=3, earlier_dim=3)
    unit = torch.cat([F.normalize(last, dim=1), F.normalize(earlier, dim=1)], 1).double().numpy()
    means = np.stack([unit[k::2].mean(0) for k in range(2)])
    covariance, _ = oas(unit - means[labels.numpy()], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    expected = [min((r - m) @ inverse @ (r - m) for m in means) for r in unit]
    scores = fitted(torch.cat([7 * last, 0.1 * earlier], 1))
    assert np.allclose(scores["mahalanobis"].numpy(), expected, rtol=1e-3)
    # Neighbours are those of the last layer.
    plain = FeatureScores.fit(last, labels, 2, k=3)
    assert torch.allclose(scores["knn"], plain(last)["knn"], atol=1e-6)
    both = torch.cat([last, earlier], 1)
    assert torch.equal(fitted.nearest(both, 3), plain.nearest(last, 3))


def test_a_large_bank_is_a_random_part() -> None:
    features = torch.randn(100, 4)
    fitted = FeatureScores.fit(features, torch.arange(100) % 2, 2, max_bank=40)
    assert fitted.bank.shape == (40, 4)
    unit = F.normalize(features, dim=1)
    assert torch.equal(fitted.bank, unit[fitted.bank_rows])
    assert len(fitted.bank_rows.unique()) == 40
    order = torch.cdist(unit, fitted.bank).argsort(1)
    assert torch.equal(fitted.nearest(3 * features, 3), order[:, :3])
    assert torch.equal(fitted.nearest(features, 50), order)  # no more than there are


def test_half_precision_features_are_scored() -> None:
    features = torch.randn(60, 5)
    fitted = FeatureScores.fit(features, torch.arange(60) % 3, 3)
    for values in fitted(features.half()).values():
        assert values.isfinite().all()
        assert values.dtype == torch.float32


def test_autocast_costs_no_digit() -> None:
    features, labels = torch.randn(300, 16) @ torch.randn(16, 16) + 3, torch.arange(300) % 3
    scores = FeatureScores.fit(features, labels, 3)
    combined = CombinedScore(["mahalanobis", "knn"]).fit(scores(features))
    plain = scores(features)
    with torch.autocast("cpu", torch.bfloat16):
        cast = scores(features)
        together = combined(plain)
        nearest = scores.nearest(features, 3)
    for name, values in plain.items():
        assert torch.equal(cast[name], values)
    assert torch.equal(together, combined(plain))
    assert torch.equal(nearest, scores.nearest(features, 3))


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_rows_that_are_not_finite_or_of_no_class_take_no_part(spoilt: float) -> None:
    features, labels = torch.randn(60, 8), torch.arange(60) % 2
    fitted = FeatureScores.fit(features, labels, 2)
    more = torch.cat([torch.full((12, 8), spoilt), features, torch.randn(2, 8)])
    of_more = torch.cat([torch.zeros(12, dtype=torch.int64), labels, torch.tensor([-100, 2])])
    with pytest.warns(UserWarning, match="expected classes from 0 to 1, got 2 as well"):
        again = FeatureScores.fit(more, of_more, 2)
    assert torch.equal(again.bank, fitted.bank)
    assert torch.equal(again.bank_rows, fitted.bank_rows + 12)
    for name, values in fitted(features).items():
        assert torch.equal(again(features)[name], values)
    with pytest.raises(ValueError, match="no row of finite numbers"):
        FeatureScores.fit(more[:12], of_more[:12], 2)


def test_features_that_a_network_still_trains_leave_no_graph() -> None:
    network = torch.nn.Linear(4, 8)
    features, labels = network(torch.randn(40, 4)), (torch.arange(40) % 2).to(torch.uint8)
    fitted = FeatureScores.fit(features, labels, 2)
    assert not any(values.requires_grad for values in fitted.buffers())
    copy.deepcopy(fitted)
    for _ in range(2):
        fitted(network(torch.randn(3, 4)))["mahalanobis"].sum().backward()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="k of at least 1"):
        knn(torch.ones(1, 2), torch.ones(3, 2), 0)
    with pytest.raises(ValueError, match="non-empty bank"):
        knn(torch.ones(1, 2), torch.empty(0, 2), 1)


def test_moments_are_those_of_windows_that_hold_all_rows() -> None:
    labels = torch.cat([torch.zeros(5000), torch.ones(40), torch.full((3,), 2.0)]).long()
    features = torch.randn(len(labels), 6) @ torch.randn(6, 6) + labels.unsqueeze(1)
    features[17] = torch.nan
    fitted = FeatureScores.fit(features, labels, num_classes=4)
    windows = WindowGaussians(4, 6, queue_size=5000)
    windows.update(F.normalize(features, dim=1), labels)
    assert torch.allclose(fitted.means[:3].double(), windows.means[:3], atol=1e-6)
    assert torch.equal(fitted.means[3], fitted.means[0])  # of no row: nothing is nearest to it
    white = torch.linalg.inv(windows.cholesky()).T
    assert torch.allclose(fitted.whitening.double(), white, rtol=1e-5, atol=1e-5)


def test_what_follows_from_stored_numbers_is_there_after_loading_and_casting() -> None:
    features, labels = torch.randn(80, 5), torch.arange(80) % 4
    fitted = FeatureScores.fit(features, labels, 4, k=3)
    expected = fitted(features)["mahalanobis"]
    assert "white_means" not in fitted.state_dict()
    loaded = torch.nn.ModuleDict({"scores": FeatureScores(4, 5, 80, 3)})
    loaded.load_state_dict({f"scores.{name}": t for name, t in fitted.state_dict().items()})
    with torch.autocast("cpu"):
        among_half = FeatureScores.fit(features, labels, 4, k=3)
    for again in (
        among_half,
        loaded["scores"],
        copy.deepcopy(loaded)["scores"],
        copy.deepcopy(fitted).half(),
    ):
        assert torch.equal(again(features)["mahalanobis"], expected)
