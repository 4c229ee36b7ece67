"""Other virtual outliers: each against a slow loop over the same random numbers."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.covariance import oas
from torch import Tensor, nn

from knownot.core.other_outliers import (
    DiagonalTail,
    Mixup,
    Noise,
    NoisyFeatures,
    NonParametric,
    OutlierName,
    PerClassTail,
)
from knownot.core.outliers import OutlierSampler
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.core.window_gaussians import WindowGaussians

DIM, QUEUE = 3, 20
CPU = torch.device("cpu")
UNSEEN = 2
CLASSES = torch.tensor([3, 0])  # a turn of `classes_per_step`


@pytest.fixture(scope="module")
def gaussians() -> WindowGaussians:
    """Four classes: a window that overflowed, one that is part-filled, none, two rows."""
    found = WindowGaussians(4, DIM, QUEUE)
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 7 + [3] * 2)
    rows = torch.randn(len(labels), DIM, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    found.update(rows + 4 * labels.unsqueeze(1), labels)
    return found


def windows(gaussians: WindowGaussians) -> dict[int, np.ndarray]:
    rows, labels = gaussians.features()
    return {k: rows[labels == k].double().numpy() for k in (0, 1, 3)}


def outliers(
    sampler: OutlierSampler, gaussians: WindowGaussians, classes: Tensor | None = None
) -> tuple[Tensor, np.ndarray]:
    """The random numbers, and the outliers (C, t, D)."""
    upper = gaussians.cholesky().T.float()
    count = gaussians.num_classes if classes is None else len(classes)
    noise = sampler.draw(count, CPU, torch.Generator().manual_seed(1))
    placed = sampler.place(noise, gaussians, upper, classes)
    assert placed.shape == (count, sampler.outliers_per_class, DIM)
    assert placed.isfinite().all()
    return noise, placed.numpy()


def spread(gaussians: WindowGaussians) -> float:
    return float(np.sqrt(np.trace(gaussians.covariance().numpy()) / DIM))


def test_diagonal_tails_are_those_of_independent_features(gaussians: WindowGaussians) -> None:
    _, found = outliers(DiagonalTail(DIM, 20_000, 20_000), gaussians)  # all draws kept
    deviations = gaussians.covariance().diagonal().sqrt().numpy()
    for k in (0, 1, 3):
        standard = (found[k] - gaussians.means[k].numpy()) / deviations
        np.testing.assert_allclose(np.cov(standard.T), np.eye(DIM), atol=0.05)


def test_per_class_tails_have_the_covariance_of_scikit_learn(gaussians: WindowGaussians) -> None:
    sampler = PerClassTail(DIM, 2)
    factors = sampler.factor(gaussians, gaussians.upper, None).double().numpy()
    for k, rows in windows(gaussians).items():
        expected, _ = oas(rows - rows.mean(0), assume_centered=True)
        np.testing.assert_allclose(factors[k].T @ factors[k], expected, rtol=1e-5, atol=1e-6)
    noise, found = outliers(sampler, gaussians)
    direction = noise.normal / noise.normal.norm(dim=-1, keepdim=True)
    step = (found - gaussians.means.unsqueeze(1).numpy())[0] @ np.linalg.inv(factors[0])
    np.testing.assert_allclose(
        step / np.linalg.norm(step, axis=1, keepdims=True), direction[0], atol=1e-4
    )


def test_noise_has_the_mean_square_of_the_features(gaussians: WindowGaussians) -> None:
    _, found = outliers(Noise(DIM, 20_000), gaussians)
    rows = np.concatenate(list(windows(gaussians).values()))
    # The covariance behind it is shrunk, which keeps its trace.
    assert np.square(found).mean() == pytest.approx(np.square(rows).mean(), rel=0.02)
    assert abs(found.mean()) < 0.1


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_noisy_features_are_features_of_the_class(gaussians: WindowGaussians, classes) -> None:
    noise, found = outliers(NoisyFeatures(DIM, 400), gaussians, classes)
    clean = found - spread(gaussians) * noise.normal.numpy()
    known = windows(gaussians)
    for place, k in enumerate(range(4) if classes is None else classes.tolist()):
        if k == UNSEEN:
            continue
        distance = np.linalg.norm(clean[place][:, None] - known[k], axis=-1)
        assert distance.min(1).max() < 1e-4
        assert len(np.unique(distance.argmin(1))) == len(known[k])  # all of them


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_mixup_joins_features_of_two_classes(gaussians: WindowGaussians, classes) -> None:
    noise, found = outliers(Mixup(DIM, 300), gaussians, classes)
    known, shares = windows(gaussians), noise[3].numpy()
    for place, k in enumerate(range(4) if classes is None else classes.tolist()):
        if k == UNSEEN:
            continue
        others = [j for j in known if j != k]
        pairs = {j: (known[k][:, None], known[j][None]) for j in others}
        nearest = []
        for outlier, share in zip(found[place], shares[place], strict=True):
            distances = [
                np.linalg.norm(share * one + (1 - share) * two - outlier, axis=-1).min()
                for one, two in pairs.values()
            ]
            assert min(distances) < 1e-4
            nearest.append(others[int(np.argmin(distances))])
        assert all(100 < nearest.count(j) < 200 for j in others)


def test_a_class_that_is_alone_is_mixed_with_itself() -> None:
    alone = WindowGaussians(3, DIM, QUEUE)
    alone.update(torch.randn(10, DIM) * 0.1 + 7, torch.full((10,), 1))
    _, found = outliers(Mixup(DIM, 50), alone)
    assert np.abs(found[1] - 7).max() < 1


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_npos_keeps_the_farthest_copy_of_a_boundary_feature(
    gaussians: WindowGaussians, classes
) -> None:
    sampler = NonParametric(DIM, 5, neighbour=0.3, boundary=0.2, candidates=8)
    noise, found = outliers(sampler, gaussians, classes)
    for place, k in enumerate(range(4) if classes is None else classes.tolist()):
        if k == UNSEEN:
            continue
        rows = windows(gaussians)[k]
        # A part-filled window counts each of its features several times.
        rows = np.array([rows[i % len(rows)] for i in range(QUEUE)])

        def far(point: np.ndarray, rows: np.ndarray = rows) -> float:
            return float(np.sort(np.linalg.norm(rows - point, axis=1))[6 - 1])

        of_rows = [far(row) for row in rows]
        least = sorted(of_rows)[-4]
        for j in range(5):
            # The anchor is found again from each copy: the copy that is kept is the farthest.
            copies_of = found[place, j] - spread(gaussians) * noise.normal[place, j].numpy()
            on_boundary = [
                (copy, row)
                for copy, anchor in enumerate(copies_of)
                for row, distance in zip(rows, of_rows, strict=True)
                if np.abs(anchor - row).max() < 1e-4 and distance >= least - 1e-6
            ]
            assert on_boundary
            copy, anchor = on_boundary[0]
            copies = anchor + spread(gaussians) * noise.normal[place, j].numpy()
            assert int(np.argmax([far(point) for point in copies])) == copy


@pytest.mark.parametrize("name", get_args(OutlierName))
def test_every_kind_trains_compiled_as_it_does_eagerly(name: OutlierName) -> None:
    torch.compiler.reset()
    losses: list[list[float]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        head = nn.Linear(DIM, 4)
        vos = VirtualOutlierLoss(
            head, 4, DIM, queue_size=10, outliers_per_class=2, classes_per_step=3, outliers=name
        )
        vos.generator = torch.Generator().manual_seed(1)
        if compiled:
            vos.compile(backend="aot_eager", fullgraph=True)
        losses.append([])
        for _ in range(4):
            labels = torch.randint(0, 3, (12,))  # class 3 never comes
            features = torch.randn(12, DIM) + labels.unsqueeze(1)
            loss = vos(features, head(features), labels)
            losses[-1].append(loss.item())
            loss.backward()
        assert head.weight.grad is not None
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert min(losses[0]) > 0
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["per-class", "noisy-features", "mixup", "npos"])
def test_what_reads_features_needs_windows(name: OutlierName) -> None:
    with pytest.raises(ValueError, match='it needs gaussians="window"'):
        VirtualOutlierLoss(nn.Linear(2, 2), 2, 2, gaussians="streaming", outliers=name)


@pytest.mark.parametrize("name", ["noise", "noisy-features", "mixup", "npos"])
@pytest.mark.parametrize("setting", ["radius_ratio", "tail_probability"])
def test_settings_of_tails_are_refused_where_there_is_none(name: OutlierName, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: 0.5 would do nothing"):
        VirtualOutlierLoss(nn.Linear(2, 2), 2, 2, outliers=name, **{setting: 0.5})
    assert VirtualOutlierLoss(nn.Linear(2, 2), 2, 2, outliers=name).radius_ratio is None


def test_a_sampler_of_ones_own_is_used() -> None:
    class Origin(OutlierSampler):
        def draw(self, classes, device, generator):
            return torch.zeros(classes, self.outliers_per_class, self.feature_dim)

        def place(self, noise, gaussians, upper, classes):
            return noise

    vos = VirtualOutlierLoss(nn.Linear(2, 2), 2, 2, outliers=Origin(2, 3))
    assert torch.equal(vos.sample_outliers(), torch.zeros(6, 2))
    assert vos.radius_ratio is None
    assert vos(torch.randn(4, 2), torch.randn(4, 2), torch.arange(4) % 2).item() > 0
