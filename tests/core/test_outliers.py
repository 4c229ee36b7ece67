"""The exact tail sampler against brute force and against textbook quantiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from knownot.core.chi_square import ChiSquareTail, radius_ratio
from knownot.core.outliers import draw_tail_noise, place_outliers, tail_radii

# One false alarm in a thousand runs, were the seeds not fixed.
P_LEAST = 1e-3


def radii_of(
    repeats: int, t: int, dim: int, draws: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    exponential = draw_tail_noise(repeats, t, ChiSquareTail(dim), generator=generator).exponential
    return tail_radii(exponential, ChiSquareTail(dim), draws)


def outliers_of(
    means: torch.Tensor,
    upper: torch.Tensor,
    seed: int,
    *,
    t: int = 1,
    draws: float = 10_000.0,
    radius_scale: float = 1.0,
) -> torch.Tensor:
    tail = ChiSquareTail(means.shape[1])
    noise = draw_tail_noise(len(means), t, tail, generator=torch.Generator().manual_seed(seed))
    return place_outliers(
        noise, means, upper, tail, draws_per_class=draws, radius_scale=radius_scale
    )


def brute_force(dim: int, n: int, t: int, repeats: int, seed: int) -> np.ndarray:
    """Draw n vectors, keep the t least likely: their vectors (repeats, t, dim)."""
    random = np.random.default_rng(seed)
    kept = []
    for _ in range(repeats):
        draws = random.normal(size=(n, dim))
        likelihood = -0.5 * np.square(draws).sum(1)
        kept.append(draws[np.argsort(likelihood)[:t]])
    return np.array(kept)


@pytest.mark.parametrize(("dim", "n", "t"), [(1, 50, 1), (2, 200, 3), (16, 300, 1), (64, 100, 5)])
def test_radii_follow_the_law_of_brute_force(dim: int, n: int, t: int) -> None:
    slow = np.linalg.norm(brute_force(dim, n, t, 800, seed=dim), axis=-1)
    generator = torch.Generator().manual_seed(dim)
    fast = radii_of(4000, t, dim, n, generator).numpy()
    for rank in range(t):
        assert stats.ks_2samp(slow[:, rank], fast[:, rank]).pvalue > P_LEAST


@pytest.mark.parametrize(("dim", "draws", "t"), [(1, 10_000, 1), (128, 10_000, 1), (4096, 1e12, 1)])
def test_radii_follow_the_exact_law_of_the_largest(dim: int, draws: float, t: int) -> None:
    # P(largest of n <= r) = (1 - q(r))^n, through the tail so that it keeps its digits.
    generator = torch.Generator().manual_seed(0)
    radii = radii_of(5000, t, dim, draws, generator).numpy()[:, 0]
    uniform = np.exp(draws * np.log1p(-stats.chi2.sf(radii**2, dim)))
    assert stats.kstest(uniform, "uniform").pvalue > P_LEAST


def test_radii_descend_and_stay_above_a_single_draw() -> None:
    radii = radii_of(100, 6, 3, 1000)
    assert (radii.diff(dim=1) <= 0).all()
    assert radii.dtype == torch.float64


def test_keeping_all_draws_gives_the_whole_law() -> None:
    # t = n: nothing is thrown away, so the pooled radii are plain chi radii.
    generator = torch.Generator().manual_seed(3)
    radii = radii_of(500, 10, 4, 10, generator).flatten().numpy()
    assert stats.kstest(radii, stats.chi(4).cdf).pvalue > P_LEAST


def test_directions_are_uniform_on_the_sphere() -> None:
    outliers = outliers_of(torch.zeros(4000, 3), torch.eye(3), seed=0)[:, 0]
    direction = (outliers / outliers.norm(dim=1, keepdim=True)).numpy()
    # In three dimensions every coordinate of a uniform direction is uniform on [-1, 1].
    for axis in (*np.eye(3), np.ones(3) / math.sqrt(3)):
        assert stats.kstest(direction @ axis, stats.uniform(-1, 2).cdf).pvalue > P_LEAST


def test_directions_do_not_depend_on_radii() -> None:
    outliers = outliers_of(torch.zeros(4000, 2), torch.eye(2), seed=1, draws=5)[:, 0]
    radius, angle = outliers.norm(dim=1), torch.atan2(outliers[:, 1], outliers[:, 0])
    assert abs(stats.spearmanr(radius, angle).statistic) < 0.06


def test_outliers_have_the_covariance_of_their_class() -> None:
    upper = torch.tensor([[2.0, 1.5], [0.0, 0.5]])
    means = torch.tensor([[10.0, -5.0], [0.0, 0.0]])
    outliers = outliers_of(means, upper, seed=2, t=5000, draws=5000)
    for k in range(2):
        assert torch.allclose(outliers[k].mean(0), means[k], atol=0.15)
        assert torch.allclose(outliers[k].T.cov(), upper.T @ upper, atol=0.3)


@given(scale=st.floats(0.5, 4), seed=st.integers(0, 2**16))
def test_radius_scale_stretches_every_radius(scale: float, seed: int) -> None:
    def draw(radius_scale: float) -> torch.Tensor:
        return outliers_of(torch.zeros(3, 4), torch.eye(4), seed, t=2, radius_scale=radius_scale)

    assert torch.allclose(draw(scale), draw(1.0) * scale, rtol=1e-5)


def test_fewer_draws_than_outliers_is_refused() -> None:
    with pytest.raises(ValueError, match="draws"):
        radii_of(2, 5, 3, 4)


TAILS = [0.5, 0.1, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12]


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 64, 100, 128, 511, 1024, 2048, 4096])
def test_quantiles_are_scipys(dim: int) -> None:
    exact = stats.chi2.isf(TAILS, dim)
    ours = ChiSquareTail(dim).squared_radius(torch.tensor(TAILS, dtype=torch.float64)).numpy()
    assert np.abs(ours / exact - 1).max() < 1e-6


@pytest.mark.parametrize("dim", [1, 5, 64, 1000, 4096])
def test_the_tail_beyond_our_quantile_has_the_probability_asked_for(dim: int) -> None:
    # Another way than the quantile function the table was made with: the survival function, at
    # probabilities between the nodes of the table.
    q = np.exp(np.random.default_rng(dim).uniform(math.log(1e-12), math.log(0.9), 300))
    r2 = ChiSquareTail(dim).squared_radius(torch.from_numpy(q)).numpy()
    error_in_r2 = (stats.chi2.sf(r2, dim) - q) / (stats.chi2.pdf(r2, dim) * r2)
    assert np.abs(error_in_r2).max() < 1e-6


@given(dim=st.integers(1, 4096), q=st.floats(1e-12, 0.999))
def test_thinner_tails_begin_farther_out(dim: int, q: float) -> None:
    tail = ChiSquareTail(dim)
    assert tail.squared_radius(q * 0.99) > tail.squared_radius(q)


def test_no_scipy_call_in_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import special

    tail = ChiSquareTail(7)
    for name in ("gammainccinv", "gammaincinv", "gammaln"):
        monkeypatch.delattr(special, name)
    noise = draw_tail_noise(3, 2, tail)
    assert place_outliers(noise, torch.zeros(3, 7), torch.eye(7), tail).isfinite().all()


@pytest.mark.parametrize(
    ("dim", "expected"),
    [(16, 1.75), (64, 1.36), (128, 1.25), (512, 1.12), (1024, 1.09), (2048, 1.06)],
)
def test_radius_ratio_as_known(dim: int, expected: float) -> None:
    assert radius_ratio(dim) == pytest.approx(expected, abs=0.01)


def test_radius_ratio_is_the_ratio_of_medians() -> None:
    slow = np.linalg.norm(brute_force(8, 500, 1, 2000, seed=0), axis=-1)
    data = np.linalg.norm(np.random.default_rng(1).normal(size=(20_000, 8)), axis=1)
    assert radius_ratio(8, 500) == pytest.approx(np.median(slow) / np.median(data), rel=0.01)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="dim"):
        ChiSquareTail(0)
    with pytest.raises(ValueError, match="draws"):
        radius_ratio(3, 0.5)
