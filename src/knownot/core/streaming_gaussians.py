"""Gaussians that forget exponentially, without a window: for many wide classes."""

from __future__ import annotations

import torch
from torch import Tensor

from knownot.core.gaussians import ClassGaussians, Shrinkage, add_squares


class StreamingGaussians(ClassGaussians):
    """Gaussians with exponential forgetting: `K * D + D²` numbers instead of `K * Q * D`.

    A feature weighs `(1 - 1/queue_size)^a` in its class mean after `a` newer features of the class,
    and `(1 - 1/(K * queue_size))^a` in the covariance after `a` newer features of any class, so
    that the memory is as long as that of a window of `queue_size` per class. Deviations enter the
    covariance around the class mean of their time, by a pairwise (Chan) update that keeps it
    positive semi-definite whatever the order of arrival.

    Args:
        num_classes: Number of classes K.
        feature_dim: Feature width D.
        queue_size: Effective number of features remembered per class.
        shrinkage: See `ClassGaussians`.
        factor_lag: See `ClassGaussians`.
    """

    weights: Tensor
    centres: Tensor
    scatter: Tensor
    scatter_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        queue_size: int = 1000,
        shrinkage: Shrinkage = "oas",
        factor_lag: float = 0.02,
    ) -> None:
        super().__init__(num_classes, feature_dim, queue_size, shrinkage, factor_lag)
        k, d, f64 = num_classes, feature_dim, torch.float64
        self.register_fixed("weights", torch.zeros(k, dtype=f64))
        self.register_fixed("centres", torch.zeros(k, d, dtype=f64))
        self.register_fixed("scatter", torch.zeros(d, d, dtype=f64))
        self.register_fixed("scatter_weight", torch.zeros((), dtype=f64))

    @property
    def counts(self) -> Tensor:
        return self.weights

    @property
    def means(self) -> Tensor:
        return self.centres

    def deviations(self) -> tuple[Tensor, Tensor]:
        return self.scatter.clone(), self.scatter_weight

    @torch.no_grad()
    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """As in `ClassGaussians`."""
        rows = features.detach().to(self.centres.dtype)
        group = self._class_or_ignored(rows, labels, rows.dtype)
        usable = group < self.num_classes
        weight = usable.to(rows.dtype)
        rows = torch.where(usable.unsqueeze(1), rows, 0)
        label = torch.where(usable, group, 0)

        # What belongs to a class stands in the place of its last row in the batch, and is gathered
        # from there by all: the cost depends on the batch, not on the number of classes.
        arrival = torch.arange(len(group), device=group.device)
        last = group.new_zeros(self.num_classes + 1).scatter_reduce_(0, group, arrival, "amax")
        place = last[group]
        number = torch.zeros_like(weight).index_add_(0, place, weight)[place]
        total = torch.zeros_like(rows).index_add_(0, place, rows)[place]

        batch_mean = total / number.clamp(min=1).unsqueeze(1)
        old_weight = self.weights[label]
        old = old_weight * (1 - 1 / self.queue_size) ** number
        new = old + number
        move = batch_mean - self.centres[label]
        # Rows around their batch mean, shifted so that one product also holds the between-means
        # term n b / (n + b) (m_b - m)(m_b - m)^T: within a class the rows sum to zero.
        spread = (old / new.clamp(min=1e-12)).sqrt().unsqueeze(1) * move
        deviations = (rows - batch_mean + spread) * weight.unsqueeze(1)

        usable_rows = weight.sum()
        keep = (1 - 1 / (self.queue_size * self.num_classes)) ** usable_rows
        self.scatter.mul_(keep)
        add_squares(self.scatter, deviations)
        self.scatter_weight.mul_(keep).add_(usable_rows)
        once = weight * (place == arrival)
        share = once * number / new.clamp(min=1e-12)
        self.centres.index_add_(0, label, move * share.unsqueeze(1))
        self.weights.index_add_(0, label, once * (new - old_weight))
