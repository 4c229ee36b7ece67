"""Moments against a recomputation from scratch; never a failed factorisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import oas
from torch import Tensor

from knownot.core.gaussians import PAPER_RIDGE, ClassGaussians
from knownot.core.streaming_gaussians import StreamingGaussians
from knownot.core.window_gaussians import WindowGaussians

KINDS = [WindowGaussians, StreamingGaussians]


class SlowWindows:
    """Lists of features, everything computed from scratch."""

    def __init__(self, classes: int, queue: int) -> None:
        self.rows: list[list[np.ndarray]] = [[] for _ in range(classes)]
        self.queue = queue

    def update(self, features: Tensor, labels: Tensor) -> None:
        for row, label in zip(features.float().numpy(), labels.tolist(), strict=True):
            if 0 <= label < len(self.rows) and np.isfinite(row).all():
                self.rows[label] = [*self.rows[label], row.astype(np.float64)][-self.queue :]

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        dim = next(len(r) for rows in self.rows for r in rows)
        means = np.array([np.mean(r, 0) if r else np.zeros(dim) for r in self.rows])
        centred = [row - means[k] for k, rows in enumerate(self.rows) for row in rows]
        return means, np.einsum("ni,nj->ij", centred, centred) / len(centred)


class SlowStreaming:
    """The documented law of forgetting, one weight per feature ever seen."""

    def __init__(self, classes: int, dim: int, queue: int) -> None:
        self.queue, self.classes, self.dim = queue, classes, dim
        self.rows: list[list[tuple[np.ndarray, float]]] = [[] for _ in range(classes)]
        self.scatter, self.weight = np.zeros((dim, dim)), 0.0

    def _mean(self, k: int) -> tuple[np.ndarray, float]:
        total = sum(w for _, w in self.rows[k])
        if not total:
            return np.zeros(self.dim), 0.0
        return sum(w * row for row, w in self.rows[k]) / total, total

    def update(self, features: Tensor, labels: Tensor) -> None:
        x, y = features.double().numpy(), labels.numpy()
        keep = (1 - 1 / (self.queue * self.classes)) ** len(x)
        self.scatter, self.weight = self.scatter * keep, self.weight * keep + len(x)
        for k in range(self.classes):
            new = x[y == k]
            if not len(new):
                continue
            decay = (1 - 1 / self.queue) ** len(new)
            self.rows[k] = [(row, w * decay) for row, w in self.rows[k]]
            old_mean, old_weight = self._mean(k)
            self.rows[k] += [(row, 1.0) for row in new]
            mean, _ = self._mean(k)
            # What the batch adds: rows around the new mean, and the old mass that it displaced.
            self.scatter += sum(np.outer(row - mean, row - mean) for row in new)
            self.scatter += old_weight * np.outer(old_mean - mean, old_mean - mean)


def random_batches(seed: int, number: int, classes: int, dim: int, most: int = 12) -> list:
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(number):
        n = int(random.integers(0, most))
        labels = torch.from_numpy(random.integers(-1, classes + 1, n))
        features = torch.from_numpy(random.normal(size=(n, dim)).astype(np.float32))
        batches.append((features + 3 * labels.unsqueeze(1), labels))
    return batches


@pytest.mark.parametrize("queue", [1, 7, 40])
def test_window_moments_equal_a_recomputation_after_thousands_of_updates(queue: int) -> None:
    gaussians, slow = WindowGaussians(4, 5, queue, refresh_every=10**9), SlowWindows(4, queue)
    for features, labels in random_batches(0, 3000, 4, 5):
        gaussians.update(features, labels)
        slow.update(features, labels)
    means, covariance = slow.moments()
    assert np.allclose(gaussians.means.numpy(), means, rtol=0, atol=1e-9)
    assert np.allclose(gaussians.empirical_covariance().numpy(), covariance, rtol=0, atol=1e-9)
    rows, labels = gaussians.features()
    held = {k: sorted(map(tuple, rows[labels == k].tolist())) for k in range(4)}
    assert held == {k: sorted(tuple(r.tolist()) for r in slow.rows[k]) for k in range(4)}


@pytest.mark.parametrize("dim", [512, 517])  # wide: symmetric products are computed in parts
def test_wide_moments_equal_a_recomputation(dim: int) -> None:
    window, streaming = WindowGaussians(3, dim, 10), StreamingGaussians(3, dim, 10)
    slow, slow_streaming = SlowWindows(3, 10), SlowStreaming(3, dim, 10)
    for features, _ in random_batches(0, 8, 3, dim, most=20):
        labels = torch.arange(len(features)) % 3
        for gaussians in (window, streaming, slow, slow_streaming):
            gaussians.update(features, labels)
    covariance = slow.moments()[1]
    assert np.allclose(window.empirical_covariance().numpy(), covariance, rtol=0, atol=1e-9)
    expected = slow_streaming.scatter / slow_streaming.weight
    assert np.allclose(streaming.empirical_covariance().numpy(), expected, rtol=0, atol=1e-9)
    for gaussians in (window, streaming):
        factor = gaussians.cholesky()
        assert torch.allclose(factor @ factor.T, gaussians.covariance(), rtol=0, atol=1e-9)
        assert torch.equal(factor, factor.tril())


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_in_use_lags_by_no_more_than_its_share_of_the_rows(kind) -> None:
    gaussians = kind(2, 3, queue_size=50, factor_lag=0.1)  # 10 of 100 rows
    rows, at_factor = 0, 0
    for step in range(60):
        size = 3 if step % 2 else 5
        gaussians.update(torch.randn(size, 3), torch.arange(size) % 2)
        rows += size
        if gaussians.factor_due():
            gaussians.refactor()
            at_factor = rows
            expected = gaussians.cholesky().T.float()
        assert not gaussians.factor_due()
        assert rows - at_factor <= max(1, 0.1 * min(rows, 100))
        assert torch.equal(gaussians.upper, expected)
    assert at_factor < rows


def test_without_lag_the_factor_is_due_at_every_step() -> None:
    gaussians = WindowGaussians(2, 3, factor_lag=0)
    for _ in range(5):
        gaussians.update(torch.randn(1, 3), torch.zeros(1, dtype=torch.int64))
        assert gaussians.factor_due()


def test_window_keeps_only_the_last_rows_of_a_batch_longer_than_it() -> None:
    gaussians = WindowGaussians(1, 1, queue_size=3)
    gaussians.update(torch.arange(10.0).unsqueeze(1), torch.zeros(10, dtype=torch.int64))
    assert sorted(gaussians.features()[0].flatten().tolist()) == [7.0, 8.0, 9.0]
    assert gaussians.means.item() == pytest.approx(8.0)


def test_refresh_removes_what_a_huge_feature_left_behind() -> None:
    gaussians, slow = WindowGaussians(1, 2, 4, refresh_every=8), SlowWindows(1, 4)
    label = torch.zeros(1, dtype=torch.int64)
    for i in range(8):
        row = torch.tensor([[1e18, 1.0]]) if i == 1 else torch.rand(1, 2)
        gaussians.update(row, label)
        slow.update(row, label)
    means, covariance = slow.moments()
    assert np.allclose(gaussians.means.numpy(), means)
    assert np.allclose(gaussians.empirical_covariance().numpy(), covariance)


def test_streaming_moments_equal_the_slow_law() -> None:
    gaussians, slow = StreamingGaussians(3, 4, queue_size=20), SlowStreaming(3, 4, 20)
    random = np.random.default_rng(1)
    for _ in range(60):
        n = int(random.integers(1, 15))
        labels = torch.from_numpy(random.integers(0, 3, n))
        features = torch.from_numpy(random.normal(size=(n, 4))) + labels.unsqueeze(1)
        gaussians.update(features, labels)
        slow.update(features, labels)
    means = np.stack([slow._mean(k)[0] for k in range(3)])
    assert np.allclose(gaussians.means.numpy(), means, atol=1e-10)
    weights = [slow._mean(k)[1] for k in range(3)]
    assert np.allclose(gaussians.counts.numpy(), weights, atol=1e-10)
    expected = slow.scatter / max(1.0, slow.weight)
    assert np.allclose(gaussians.empirical_covariance().numpy(), expected, atol=1e-10)


def test_streaming_follows_a_law_that_moves() -> None:
    gaussians = StreamingGaussians(2, 3, queue_size=50)
    labels = torch.arange(20) % 2
    for shift in (0.0, 100.0):
        for _ in range(200):
            gaussians.update(torch.randn(20, 3) + shift, labels)
    assert torch.allclose(gaussians.means, torch.full((2, 3), 100.0, dtype=torch.float64), atol=1)
    assert gaussians.empirical_covariance().diagonal().max() < 3


def test_oas_shrinkage_is_scikit_learns() -> None:
    features = torch.randn(60, 12) @ torch.diag(torch.arange(1.0, 13.0))
    gaussians = WindowGaussians(1, 12, 100)
    gaussians.update(features, torch.zeros(60, dtype=torch.int64))
    expected, _ = oas(features.double().numpy())
    assert np.allclose(gaussians.covariance().numpy(), expected, rtol=1e-6, atol=1e-6)


def test_fixed_shrinkage_is_the_papers_ridge() -> None:
    gaussians = WindowGaussians(1, 3, 100, shrinkage="fixed")
    gaussians.update(torch.randn(50, 3), torch.zeros(50, dtype=torch.int64))
    added = gaussians.covariance() - gaussians.empirical_covariance()
    assert torch.allclose(added, PAPER_RIDGE * torch.eye(3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrinkage", ["oas", "fixed"])
@pytest.mark.parametrize(
    "features",
    [
        torch.empty(0, 40),
        torch.zeros(6, 40),
        torch.full((6, 40), 1e6),
        torch.ones(6, 40) * torch.arange(6.0).unsqueeze(1),
        torch.randn(1, 40).expand(6, 40),
        torch.randn(6, 40) * 1e-12,
        torch.randn(6, 40) * 1e12,
        torch.randn(6, 40) + 1e5,
        torch.cat([torch.randn(5, 40), torch.full((1, 40), torch.inf)]),
        torch.cat([torch.randn(5, 40), torch.full((1, 40), torch.nan)]),
        torch.randn(6, 40) * torch.logspace(-15, 15, 40),
        torch.full((6, 40), torch.finfo(torch.float32).max),
    ],
    ids=[
        *("empty", "zero", "constant", "collapsed", "duplicates", "tiny", "huge"),
        *("offset", "infinite", "nan", "scales", "largest"),
    ],
)
def test_cholesky_never_fails(kind: type[ClassGaussians], shrinkage, features: Tensor) -> None:
    gaussians = kind(3, 40, shrinkage=shrinkage)  # K·Q < D for these six rows
    gaussians.update(features, torch.arange(len(features)) % 3)
    factor = gaussians.cholesky()
    assert factor.isfinite().all()
    assert (factor.diagonal() > 0).all()
    covariance = gaussians.covariance()
    assert torch.allclose(
        factor @ factor.T, covariance, rtol=1e-6, atol=float(covariance.max()) * 1e-9
    )


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_cholesky_never_fails_without_float64(scale: float) -> None:
    gaussians = WindowGaussians(1, 300)
    for name in ("origin", "totals", "scatter"):  # as on a device that has float32 alone
        setattr(gaussians, name, getattr(gaussians, name).float())
    features = scale * torch.randn(400, 1) @ torch.randn(1, 300)
    gaussians.update(features, torch.zeros(400, dtype=torch.int64))
    factor = gaussians.cholesky()
    assert factor.dtype == torch.float32
    assert factor.isfinite().all()
    assert (factor.diagonal() > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_in_a_class_sits_at_its_mean(kind: type[ClassGaussians]) -> None:
    gaussians = kind(2, 3)
    features = torch.cat([torch.randn(30, 3), torch.full((1, 3), 7.0)])
    gaussians.update(features, torch.tensor([0] * 30 + [1]))
    assert gaussians.means[1].tolist() == pytest.approx([7.0, 7.0, 7.0])
    assert gaussians.counts.tolist()[1] == pytest.approx(1)
    # It adds no spread, whatever its place.
    spread = gaussians.empirical_covariance() * gaussians.counts.sum()
    alone = kind(1, 3)
    alone.update(features[:30], torch.zeros(30, dtype=torch.int64))
    assert torch.allclose(spread, alone.empirical_covariance() * 30, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**16), classes=st.integers(2, 5), dim=st.integers(1, 6))
def test_permuting_classes_permutes_the_means(kind, seed: int, classes: int, dim: int) -> None:
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    one, other = kind(classes, dim, 9), kind(classes, dim, 9)
    for features, labels in random_batches(seed, 8, classes, dim):
        inside = (labels >= 0) & (labels < classes)
        features, labels = features[inside], labels[inside]
        one.update(features, labels)
        other.update(features, order[labels])
    assert torch.allclose(one.means, other.means[order], atol=1e-9)
    assert torch.allclose(one.covariance(), other.covariance(), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**16), power=st.integers(-20, 20))
def test_scaling_features_scales_the_moments(kind, seed: int, power: int) -> None:
    scale = 2.0**power  # exact in floating point
    one, other = kind(3, 4, 9), kind(3, 4, 9)
    for features, labels in random_batches(seed, 8, 3, 4):
        one.update(features, labels)
        other.update(features * scale, labels)
    assert torch.allclose(one.means * scale, other.means, rtol=1e-9, atol=1e-12 * scale)
    first, second = one.covariance() * scale**2, other.covariance()
    assert torch.allclose(first, second, rtol=1e-6, atol=1e-9 * scale**2)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**16))
def test_state_dict_carries_everything(kind, seed: int) -> None:
    one, other = kind(3, 4, 9), kind(3, 4, 9)
    batches = random_batches(seed, 10, 3, 4)
    for batch in batches[:5]:
        one.update(*batch)
    other.load_state_dict(one.state_dict())
    for batch in batches[5:]:
        one.update(*batch)
        other.update(*batch)
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.cholesky(), other.cholesky())


@pytest.mark.parametrize("kind", KINDS)
def test_the_extra_state_keeps_its_shape(kind) -> None:
    """Model folders are held against it: with another number in it those of before are refused."""
    assert kind(3, 4, 9).get_extra_state().shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_casting_the_model_does_not_cast_the_moments(kind) -> None:
    gaussians = kind(2, 3)
    gaussians.update(torch.randn(8, 3), torch.arange(8) % 2)
    before = gaussians.means.clone()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float):
        cast(gaussians)
        assert gaussians.means.dtype == torch.float64
        assert torch.equal(gaussians.means, before)
    gaussians.to("meta")
    assert gaussians.means.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_taken_in(kind, dtype: torch.dtype) -> None:
    features = torch.randn(10, 3).to(dtype)
    gaussians = kind(2, 3)
    gaussians.update(features, torch.arange(10) % 2)
    expected = torch.stack([features[k::2].double().mean(0) for k in range(2)])
    assert torch.allclose(gaussians.means, expected, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_row_the_window_cannot_hold_is_as_if_it_were_not_there(value) -> None:
    features = torch.randn(9, 3, dtype=torch.float64)
    features[4, 1] = value
    labels = torch.arange(9) % 2
    gaussians, without = WindowGaussians(2, 3), WindowGaussians(2, 3)
    gaussians.update(features, labels)
    keep = torch.arange(9) != 4
    without.update(features[keep], labels[keep])
    assert torch.equal(gaussians.counts, without.counts)
    assert torch.allclose(gaussians.covariance(), without.covariance())


def test_wrong_arguments_are_named() -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match="num_classes"):
            kind(0, 3)
        with pytest.raises(ValueError, match="feature_dim"):
            kind(2, 0)
        with pytest.raises(ValueError, match="queue_size"):
            kind(2, 3, 0)
        with pytest.raises(ValueError, match="shrinkage"):
            kind(2, 3, shrinkage="ledoit")
        with pytest.raises(ValueError, match=r"expected shape \(N, 3\)"):
            kind(2, 3).update(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64))
        with pytest.raises(ValueError, match="labels"):
            kind(2, 3).update(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="refresh_every"):
        WindowGaussians(2, 3, refresh_every=0)
