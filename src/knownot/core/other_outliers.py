"""Other ways of making virtual outliers, to compare the paper's with; chosen by name.

Distances are in units of the spread `s`, the root mean variance of a feature within its class, so
that features of any scale are treated alike.

References: what they are compared with in Du et al., "VOS: Learning What You Don't Know by Virtual
Outlier Synthesis", ICLR 2022, section 4.2; mixup: Zhang et al., "mixup: Beyond Empirical Risk
Minimization", ICLR 2018, equation 1; NPOS: Tao et al., "Non-parametric Outlier Synthesis", ICLR 2023.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from knownot.core.gaussians import ClassGaussians, shrunk, upper_factor
from knownot.core.outliers import GaussianTail, OutlierSampler
from knownot.core.window_gaussians import WindowGaussians

OutlierName = Literal[
    "gaussian", "diagonal", "per-class", "noise", "noisy-features", "mixup", "npos"
]


def make_sampler(
    name: OutlierName,
    feature_dim: int,
    outliers_per_class: int,
    draws_per_class: float,
    radius_scale: float,
) -> OutlierSampler:
    """Build a sampler by name; the last two settings are those of Gaussian tails alone.

    Raises:
        ValueError: If the name is unknown.
    """
    if name in TAILS:
        return TAILS[name](feature_dim, outliers_per_class, draws_per_class, radius_scale)
    if name in _OTHERS:
        return _OTHERS[name](feature_dim, outliers_per_class)
    raise ValueError(f"outliers: expected one of {', '.join(get_args(OutlierName))}, got {name!r}")


class DiagonalTail(GaussianTail):
    """Tails of Gaussians whose covariance is the diagonal of the shared one."""

    def factor(self, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None) -> Tensor:
        """Factor (D, D): the standard deviations on its diagonal."""
        deviations: Tensor = torch.linalg.vector_norm(upper, dim=0)
        return deviations.diag()


class PerClassTail(GaussianTail):
    """Tails of Gaussians with a covariance for each class, shrunk as the shared one is."""

    reads_windows = True

    def factor(self, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None) -> Tensor:
        """Factors (C, D, D), computed anew from the windows."""
        chosen = _chosen(gaussians, classes)
        counts = gaussians.counts[chosen]
        rows = _windows(gaussians)[chosen].to(gaussians.means.dtype)
        filled = torch.arange(rows.shape[1], device=rows.device) < counts.unsqueeze(1)
        means = gaussians.means[chosen].unsqueeze(1)
        rows = (rows - means) * filled.unsqueeze(2)
        factors = [
            upper_factor(shrunk(r.T @ r, n, n, gaussians.shrinkage))
            for r, n in zip(rows.unbind(), counts.unbind(), strict=True)
        ]
        return torch.stack(factors).float()


class Noise(OutlierSampler):
    """Gaussian noise around the origin, with the mean square that features have."""

    def draw(self, classes: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Normal numbers (C, t, D)."""
        shape = classes, self.outliers_per_class, self.feature_dim
        return torch.randn(shape, device=device, generator=generator)

    def place(
        self, noise: Tensor, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Noise (C, t, D) around the origin."""
        counts = gaussians.counts.to(gaussians.means.dtype)
        squares = gaussians.means.square().mean(1) @ counts / counts.sum().clamp(min=1)
        return noise * (squares.float() + _spread(upper).square()).sqrt()


class FeatureNoise(NamedTuple):
    """Random numbers of samplers that start from features."""

    which: Tensor  # (C, t), uniform: the feature
    normal: Tensor  # (C, t, ..., D)


class NoisyFeatures(OutlierSampler):
    """A feature of the class with Gaussian noise of spread `s` added."""

    reads_windows = True

    def draw(
        self, classes: int, device: torch.device, generator: torch.Generator | None
    ) -> FeatureNoise:
        """Which feature, and the noise to add."""
        shape = classes, self.outliers_per_class
        return FeatureNoise(
            torch.rand(shape, device=device, generator=generator),
            torch.randn((*shape, self.feature_dim), device=device, generator=generator),
        )

    def place(
        self, noise: FeatureNoise, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Noisy features (C, t, D)."""
        own = _chosen(gaussians, classes).unsqueeze(1)
        return _features_at(gaussians, own, noise.which) + _spread(upper) * noise.normal


class Mixup(OutlierSampler):
    """`a h_i + (1 - a) h_j`: features of the class and of another, `a` uniform in [0, 1].

    A class that is alone is mixed with itself.
    """

    reads_windows = True

    def draw(self, classes: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers (4, C, t): the feature, the other class, its feature, the share."""
        return torch.rand((4, classes, self.outliers_per_class), device=device, generator=generator)

    def place(
        self, noise: Tensor, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """Mixed features (C, t, D)."""
        which, partner, which_other, share = noise.unbind()
        own = _chosen(gaussians, classes).unsqueeze(1)
        every = torch.arange(gaussians.num_classes, device=own.device)
        rank = ((gaussians.counts > 0) & (every != own)).cumsum(1)  # (C, K): among the others
        others = rank[:, -1:]
        wanted = _floor(partner, others) + 1
        other = torch.searchsorted(rank, wanted)  # the first class of that rank
        other = torch.where(others > 0, other, own)
        ends = (own, which), (other, which_other)
        one, two = (_features_at(gaussians, of, uniform) for of, uniform in ends)
        return torch.lerp(two, one, share.unsqueeze(2))


class NonParametric(OutlierSampler):
    """NPOS: around features on the boundary of their class, the farthest of some noisy copies.

    Far means the distance to the k-th nearest feature in the class's window. Of a share `boundary`
    of the features, those farthest from the others, one is chosen, noise of spread `s` is added
    `candidates` times, and the farthest of these is kept (Tao et al., section 3.1). Here features
    are not scaled to unit length, as the head does not read them so.

    Args:
        feature_dim: Feature width D.
        outliers_per_class: t of the paper.
        neighbour: k as a share of the window, the authors' 300 of 1000.
        boundary: Share of the features that are on the boundary.
        candidates: Noisy copies that one is chosen from.
    """

    reads_windows = True

    def __init__(
        self,
        feature_dim: int,
        outliers_per_class: int = 1,
        neighbour: float = 0.3,
        boundary: float = 0.2,
        candidates: int = 100,
    ) -> None:
        super().__init__(feature_dim, outliers_per_class)
        self.neighbour = neighbour
        self.boundary = boundary
        self.candidates = candidates

    def draw(
        self, classes: int, device: torch.device, generator: torch.Generator | None
    ) -> FeatureNoise:
        """Which boundary feature, and the noise of its copies."""
        shape = classes, self.outliers_per_class
        copies = *shape, self.candidates, self.feature_dim
        return FeatureNoise(
            torch.rand(shape, device=device, generator=generator),
            torch.randn(copies, device=device, generator=generator),
        )

    def place(
        self, noise: FeatureNoise, gaussians: ClassGaussians, upper: Tensor, classes: Tensor | None
    ) -> Tensor:
        """The farthest copies (C, t, D)."""
        rows = self._filled(gaussians, _chosen(gaussians, classes))
        on_boundary = max(1, round(self.boundary * gaussians.queue_size))
        boundary = self._distance(rows, rows).topk(on_boundary).indices
        anchor = boundary.gather(1, _floor(noise.which, on_boundary))
        anchors = rows.gather(1, anchor.unsqueeze(2).expand(-1, -1, self.feature_dim))
        copies = anchors.unsqueeze(2) + _spread(upper) * noise.normal
        distance = self._distance(copies.flatten(1, 2), rows).view(copies.shape[:3])
        farthest = distance.argmax(2)[..., None, None].expand(-1, -1, 1, self.feature_dim)
        return copies.gather(2, farthest).squeeze(2)

    def _filled(self, gaussians: ClassGaussians, chosen: Tensor) -> Tensor:
        """Windows (C, Q, D), a part-filled one repeated: the share of nearer features is kept."""
        slots = torch.arange(gaussians.queue_size, device=chosen.device)
        slots = slots % gaussians.counts[chosen].clamp(min=1).unsqueeze(1)
        return _windows(gaussians)[chosen.unsqueeze(1), slots]

    def _distance(self, points: Tensor, rows: Tensor) -> Tensor:
        """Distances (C, P) of points (C, P, D) to their k-th nearest of rows (C, Q, D)."""
        k = max(1, round(self.neighbour * rows.shape[1]))
        return torch.cdist(points, rows).kthvalue(k).values


def _chosen(gaussians: ClassGaussians, classes: Tensor | None) -> Tensor:
    """Indices of the classes (C,)."""
    every = torch.arange(gaussians.num_classes, device=gaussians.upper.device)
    return every if classes is None else classes


def _windows(gaussians: ClassGaussians) -> Tensor:
    """All windows (K, Q, D), float32; places that are free hold zeros."""
    rows = cast(WindowGaussians, gaussians).window[:-1]
    return rows.view(gaussians.num_classes, gaussians.queue_size, gaussians.feature_dim)


def _features_at(gaussians: ClassGaussians, classes: Tensor, uniform: Tensor) -> Tensor:
    """A feature (C, t, D) of each class (C, t) or (C, 1), chosen by a number in [0, 1) (C, t)."""
    slots = _floor(uniform, gaussians.counts[classes])
    return _windows(gaussians)[classes, slots]


def _floor(uniform: Tensor, count: Tensor | int) -> Tensor:
    """A whole number in [0, count) from a uniform one; 0 for a count of 0."""
    whole = (uniform * count).long()
    most = torch.as_tensor(count, device=whole.device) - 1
    return whole.minimum(most).clamp(min=0)


def _spread(upper: Tensor) -> Tensor:
    """`s`, the root mean variance of a feature within its class, scalar."""
    norm: Tensor = torch.linalg.vector_norm(upper)
    return norm.div(upper.shape[0] ** 0.5)


TAILS: dict[str, type[GaussianTail]] = {
    "gaussian": GaussianTail,
    "diagonal": DiagonalTail,
    "per-class": PerClassTail,
}
_OTHERS: dict[str, type[Noise | NoisyFeatures | Mixup | NonParametric]] = {
    "noise": Noise,
    "noisy-features": NoisyFeatures,
    "mixup": Mixup,
    "npos": NonParametric,
}
# Of what takes remembered features, not their moments alone.
FROM_FEATURES = frozenset(n for n, kind in {**TAILS, **_OTHERS}.items() if kind.reads_windows)
