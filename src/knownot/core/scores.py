"""Scores of one forward pass: one `ood_score` per row, larger meaning more out-of-distribution.

`energy` and the weighted energy live in `core.energy`; `VirtualOutlierLoss.ood_score` is the score
that VOS trains.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from knownot.core.energy import at_least_float32
from knownot.core.energy import energy as energy
from knownot.core.fixed_dtype import FixedDtypeModule
from knownot.core.gaussians import shrunk, upper_factor

_ROWS = 4096  # that are in float64 at once


def max_softmax(logits: Tensor, background_index: int | None = None) -> Tensor:
    """`1 - max_k softmax(f)_k` (N,), in [0, 1], of logits (N, C).

    The maximum runs over all columns but a detector's background, if there is one.

    Reference: Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.
    """
    # The sum of the others, not one minus the largest: it keeps its digits near certainty.
    probabilities = at_least_float32(logits).softmax(dim=-1)
    known = probabilities.clone()
    if background_index is not None:
        known[..., background_index] = 0
    best = known.argmax(dim=-1, keepdim=True)
    return probabilities.scatter(-1, best, 0).sum(-1)


def mahalanobis(features: Tensor, white_means: Tensor, whitening: Tensor) -> Tensor:
    """Squared Mahalanobis distance (N,) to the nearest class mean.

    Args:
        features: Rows (N, D).
        white_means: Class means, whitened (K, D).
        whitening: `L^{-T}` (D, D) for a shared covariance `L L^T`: rows times it are whitened.

    Reference: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples
    and Adversarial Attacks", NeurIPS 2018.
    """
    white = features @ whitening
    nearest = white_means[(white @ white_means.T - white_means.square().sum(-1) / 2).argmax(-1)]
    # Products say which mean is nearest; how far it is, the difference, without their cancellation.
    return (white - nearest).square().sum(-1)


def knn(features: Tensor, bank: Tensor, k: int) -> Tensor:
    """Cosine distance (N,), in [0, 2], to the k-th nearest row of `bank`.

    Args:
        features: Rows (N, D) of unit length.
        bank: Training rows (M, D) of unit length.
        k: Which neighbour, from 1; the farthest if the bank is smaller.

    Reference: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    """
    if k < 1 or len(bank) == 0:
        raise ValueError(
            f"knn: expected k of at least 1 and a non-empty bank, got {k}, {len(bank)}"
        )
    similarity = features @ bank.T
    neighbour = bank[similarity.topk(min(k, len(bank)), dim=-1).indices[..., -1]]
    # |a - b|² / 2 is 1 - a·b for rows of unit length, without its cancellation near 0.
    return (features - neighbour).square().sum(-1) / 2


class FeatureScores(FixedDtypeModule):
    """Mahalanobis and nearest-neighbour scores against the training features of a backbone.

    Features are scaled to unit length first, for both scores: for the Mahalanobis distance this
    removes the spread of feature norms that a Gaussian cannot describe. It may read what an earlier
    layer saw as well, in the last columns of a row, at a unit length of their own. All of it stays in
    float32 when a model is cast: distances of half precision would hardly tell rows apart.

    Args:
        num_classes: Number of classes K.
        feature_dim: Width D of a row.
        bank_size: Number of rows M that the bank keeps.
        k: Neighbour of the `knn` score.
        earlier_dim: How many of the columns, the last ones, are an earlier layer's.

    Attributes:
        bank_rows: Which of the training rows the bank holds (M,), int64, ascending; known to the
            process that fitted it.

    Reference: Mueller, Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization",
    ICML 2025; Sun et al., ICML 2022.
    """

    means: Tensor
    whitening: Tensor
    white_means: Tensor
    bank: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        bank_size: int,
        k: int = 10,
        earlier_dim: int = 0,
    ) -> None:
        super().__init__()
        self.k = k
        self.earlier_dim = earlier_dim
        self.bank_rows: Tensor | None = None
        self.register_fixed("means", torch.zeros(num_classes, feature_dim))
        self.register_fixed("whitening", torch.eye(feature_dim))
        # Follows from the two; of many classes it would take as long as the distances of a batch.
        self.register_fixed("white_means", torch.zeros(num_classes, feature_dim), persistent=False)
        self.register_load_state_dict_post_hook(_whiten_means)  # type: ignore[no-untyped-call]
        self.register_fixed("bank", torch.zeros(bank_size, feature_dim - earlier_dim))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        k: int = 10,
        max_bank: int = 20_000,
        generator: torch.Generator | None = None,
        earlier_dim: int = 0,
    ) -> FeatureScores:
        """Fit on training rows (N, D), the last `earlier_dim` columns an earlier layer's, labels (N,).

        Beyond `max_bank` rows a random subset serves as the bank. Rows that hold a number that is not
        finite, or whose label is outside [0, K), take no part.

        Raises:
            ValueError: If no row is left.
        """
        labels = labels.long()
        if len(labels) and int(labels.max()) >= num_classes:
            warnings.warn(
                f"labels: expected classes from 0 to {num_classes - 1}, got {int(labels.max())} as well; "
                "rows of such take no part",
                UserWarning,
                stacklevel=2,
            )
        usable = _usable(features, labels, num_classes)
        if not len(usable):
            raise ValueError("features: no row of finite numbers with a label of a class")
        chosen = torch.randperm(len(usable), generator=generator)[:max_bank].sort().values
        keep = usable[chosen]
        fitted = cls(num_classes, features.shape[1], len(keep), k, earlier_dim)
        last, unit = fitted._unit(features)
        rows, classes = (
            (unit, labels) if len(usable) == len(unit) else (unit[usable], labels[usable])
        )
        means, factor = _class_means_and_factor(rows, classes, num_classes)
        fitted.means.copy_(means)
        eye = torch.eye(features.shape[1], dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        fitted.whitening.copy_(inverse.T)
        _whiten_means(fitted)
        fitted.bank.copy_(last[keep])
        fitted.bank_rows = keep
        return fitted

    def nearest(self, features: Tensor, count: int) -> Tensor:
        """Rows of the bank nearest to rows (N, D), the nearest first.

        Returns:
            Their indices (N, n), int64; n is `count`, or the size of a smaller bank.
        """
        with _in_full_precision(features):
            last, _ = self._unit(features)
            # As many as `knn` looks for: a graph that holds both then searches once.
            found = (last @ self.bank.T).topk(min(max(count, self.k), len(self.bank)), dim=-1)
        return found.indices[..., :count]

    def forward(
        self, features: Tensor, names: Collection[str | None] | None = None
    ) -> dict[str, Tensor]:
        """Scores `{"mahalanobis": (N,), "knn": (N,)}` of rows (N, D); those of `names`, both by default."""
        with _in_full_precision(features):
            last, both = self._unit(features)
            scores: dict[str, Callable[[], Tensor]] = {
                "mahalanobis": lambda: mahalanobis(both, self.white_means, self.whitening),
                "knn": lambda: knn(last, self.bank, self.k),
            }
            return {
                name: score() for name, score in scores.items() if names is None or name in names
            }

    def _unit(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's columns at length one, and with the earlier layer's at length one behind.

        Raises:
            ValueError: If the rows are of another width.
        """
        if features.shape[-1] != self.means.shape[1]:
            raise ValueError(
                f"features: expected rows of {self.means.shape[1]} numbers, the last "
                f"{self.earlier_dim} of them an earlier layer's, got {features.shape[-1]}"
            )
        rows = at_least_float32(features).to(self.bank.dtype)
        last = F.normalize(rows[..., : self.bank.shape[1]], dim=-1)
        if not self.earlier_dim:
            return last, last
        return last, torch.cat([last, F.normalize(rows[..., -self.earlier_dim :], dim=-1)], dim=-1)


@torch.no_grad()
def _whiten_means(scores: FeatureScores, _: object = None) -> None:
    with _in_full_precision(scores.means):
        scores.white_means = scores.means @ scores.whitening


def _in_full_precision(rows: Tensor) -> AbstractContextManager[object]:
    """No autocast within, if there is one: products would lose the digits that distances need."""
    kind = rows.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _usable(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Indices (n,), ascending, of rows that are finite and of a class."""
    finite = torch.cat([rows.isfinite().all(1) for rows in torch.split(features, _ROWS)])
    return torch.where(finite & (labels >= 0) & (labels < num_classes))[0]


def _class_means_and_factor(
    rows: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Class means (K, D) of rows (N, D), lower factor (D, D) of their covariance; float64.

    What `WindowGaussians` makes of windows that hold all rows, without the windows: of classes of
    different sizes they would take many times the memory of the rows.
    """
    width = rows.shape[1]
    parts = list(zip(torch.split(rows, _ROWS), torch.split(labels, _ROWS), strict=True))
    sums = torch.zeros(num_classes, width, dtype=torch.float64)
    for of_part, classes in parts:
        sums.index_add_(0, classes, of_part.double())
    counts = torch.bincount(labels, minlength=num_classes)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    # A class without a row has no mean, and is nearest to nothing: it stands where another does.
    means[counts == 0] = means[counts.argmax()].clone()
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for of_part, classes in parts:
        deviations = of_part.double() - means[classes]
        scatter.addmm_(deviations.T, deviations)
    count = torch.tensor(float(len(rows)), dtype=torch.float64)
    return means, upper_factor(shrunk(scatter, count, count)).T
