"""`VirtualOutlierLoss`: the uncertainty loss of VOS as one module for any training loop.

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equations 1 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.core import chi_square
from knownot.core.energy import negative_weighted_energy
from knownot.core.gaussians import ClassGaussians, Shrinkage
from knownot.core.other_outliers import TAILS, OutlierName, make_sampler
from knownot.core.outliers import OutlierSampler
from knownot.core.phi import PhiName, make_phi
from knownot.core.ranks import gather_rows, shared_seed, world_size
from knownot.core.step_checks import (
    check_columns,
    check_parts,
    check_rows,
    refuse_batch_norm,
    warn_of_another_head,
)
from knownot.core.streaming_gaussians import StreamingGaussians
from knownot.core.uncertainty_loss import uncertainty_loss
from knownot.core.window_gaussians import WindowGaussians

# softplus of this is 1: the weighted energy starts as the plain one.
_INITIAL_RAW_WEIGHT = 0.5413248546129181
_QUEUE_SIZE, _DRAWS = 1000, 10_000.0
_GAUSSIANS: dict[str, type[WindowGaussians] | type[StreamingGaussians]] = {
    "window": WindowGaussians,
    "streaming": StreamingGaussians,
}


class VirtualOutlierLoss(nn.Module):
    """Uncertainty loss on the energy gap between features and virtual outliers.

    Call it beside the task loss in every training step. It remembers the features, draws virtual
    outliers from the tails of their class Gaussians, sends them through `head` and returns
    `weight` times the uncertainty loss; gradients reach the head through both terms and whatever
    made the features through the logits.

    Under `torch.distributed` the ranks exchange the features of each step, so that loss, gradients
    (averaged over the ranks, as `DistributedDataParallel` does) and Gaussians are those of one
    process with the joint batch. Every rank must then call the module in every training step.

    The module refers to `head` without owning it: `parameters()` are the energy weights and phi
    alone. Give them to an optimiser group of their own, without weight decay.

    Args:
        head: Last layer of the model, maps features (M, D) to logits (M, C).
        num_classes: Number of classes K.
        feature_dim: Feature width D.
        weight: beta of the paper, the factor before the loss.
        start_step: Training calls before the loss starts; until then it is exactly 0, while the
            windows already fill.
        queue_size: Window length Q per class.
        draws_per_class: n of the paper; 1/n is the probability of the tail.
        outliers_per_class: t of the paper.
        classes_per_step: Outliers are drawn around at most so many classes in a training step,
            which take turns and weigh as much as all: on average over a round the loss is that of
            all classes. For 1000 classes of width 2048 all would take longer than everything else.
        tail_probability: Sets the tail directly, instead of `draws_per_class`.
        radius_ratio: Stretches the radii so that the median outlier lies at this multiple of the
            median data radius; by default the exact law decides (`self.radius_ratio` tells). Like
            the tail, it is of Gaussian tails alone.
        phi: "monotone" (default), "monotone-mlp", "shift" (slope 1), or the paper's "free" and
            "free-mlp".
        gaussians: "window" (exact, the paper's), "streaming" (exponential forgetting, small), or
            an instance of `ClassGaussians`.
        shrinkage: "oas" or "fixed", see `ClassGaussians`.
        outliers: Where outliers come from: "gaussian", the paper's tails; another of `OutlierName`,
            for comparison; or an `OutlierSampler` of your own, whose number per class counts.
        min_count: Features a class must have shown before outliers are drawn around it; "streaming"
            ones count a little less the older they are. The shared covariance uses the features of
            all classes.
        background_index: Column of the logits that takes no part in the energy (a detector's
            background class), or None.
        generator: Source of randomness for the outliers, on the device of the features; several
            ranks need the same seed. By default torch's own, and for several ranks one that they
            agree on.

    Raises:
        ValueError: If an argument is out of range; the message names it.

    Example:
        >>> model, head = nn.Linear(5, 4), nn.Linear(4, 3)
        >>> vos = VirtualOutlierLoss(head=head, num_classes=3, feature_dim=4)
        >>> features = model(torch.randn(32, 5))
        >>> logits, labels = head(features), torch.arange(32) % 3
        >>> loss = F.cross_entropy(logits, labels) + vos(features, logits, labels)
        >>> loss.backward()
        >>> vos.ood_score(logits).shape
        torch.Size([32])
    """

    def __init__(
        self,
        head: Callable[[Tensor], Tensor],
        num_classes: int,
        feature_dim: int,
        *,
        weight: float = 0.1,
        start_step: int = 0,
        queue_size: int = _QUEUE_SIZE,
        draws_per_class: float = _DRAWS,
        outliers_per_class: int = 1,
        classes_per_step: int = 128,
        tail_probability: float | None = None,
        radius_ratio: float | None = None,
        phi: PhiName = "monotone",
        gaussians: Literal["window", "streaming"] | ClassGaussians = "window",
        shrinkage: Shrinkage = "oas",
        outliers: OutlierName | OutlierSampler = "gaussian",
        min_count: int = 2,
        background_index: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not callable(head):
            raise ValueError(f"head: expected a module or function, got {type(head).__name__}")
        refuse_batch_norm(head)
        if tail_probability is not None:
            if not 0 < tail_probability < 1:
                raise ValueError(
                    f"tail_probability: expected a fraction in (0, 1), got {tail_probability}"
                )
            draws_per_class = 1 / tail_probability
        elif not isinstance(outliers, str) and draws_per_class != _DRAWS:
            raise ValueError(
                "draws_per_class: would do nothing beside outliers of your own; set it there"
            )
        _check_number("weight", weight, 0)
        start_step = _check_whole("start_step", start_step, 0)
        outliers_per_class = _check_whole("outliers_per_class", outliers_per_class, 1)
        classes_per_step = _check_whole("classes_per_step", classes_per_step, 1)
        min_count = _check_whole("min_count", min_count, 1)
        _check_number("draws_per_class", draws_per_class, outliers_per_class)
        if isinstance(gaussians, str):
            if gaussians not in _GAUSSIANS:
                raise ValueError(f'gaussians: expected "window" or "streaming", got {gaussians!r}')
            gaussians = _GAUSSIANS[gaussians](num_classes, feature_dim, queue_size, shrinkage)
        elif queue_size != _QUEUE_SIZE or shrinkage != "oas":
            raise ValueError(
                "queue_size, shrinkage: would do nothing beside gaussians of your own; set them there"
            )
        if background_index is not None and not 0 <= background_index <= num_classes:
            raise ValueError(
                f"background_index: expected a column from 0 to {num_classes}, got {background_index}"
            )
        if min_count > gaussians.queue_size:
            raise ValueError(
                f"min_count: expected at most the {gaussians.queue_size} features that are "
                f"remembered of a class, got {min_count}: no class would ever be ready"
            )
        if radius_ratio is not None and not 0 < radius_ratio < math.inf:
            raise ValueError(f"radius_ratio: expected a positive number, got {radius_ratio}")
        if outliers not in TAILS:
            for name, given in (
                ("radius_ratio", radius_ratio),
                ("tail_probability", tail_probability),
            ):
                if given is not None:
                    raise ValueError(
                        f"{name}: {given} would do nothing; it is a setting of the outliers "
                        f"{', '.join(TAILS)}"
                    )
        if isinstance(outliers, str):
            exact_ratio = chi_square.radius_ratio(feature_dim, draws_per_class)
            radius_scale = 1.0 if radius_ratio is None else radius_ratio / exact_ratio
            outliers = make_sampler(
                outliers, feature_dim, outliers_per_class, float(draws_per_class), radius_scale
            )
        check_parts(gaussians, outliers, num_classes, feature_dim)
        self._head = (head,)  # in a tuple, so that nn.Module does not register it
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self.weight = weight
        self.start_step = start_step
        self.classes_per_step = min(classes_per_step, num_classes)
        self.min_count = min_count
        self.background_index = background_index
        self.generator = generator
        self.steps = 0
        self._shared_seed: int | None = None
        self._compiled_step: Callable[..., Tensor] | None = None
        self.gaussians: ClassGaussians = gaussians
        self.sampler = outliers
        self.phi = make_phi(phi)
        self.raw_energy_weights = nn.Parameter(torch.full((num_classes,), _INITIAL_RAW_WEIGHT))

    @property
    def radius_ratio(self) -> float | None:
        """Median radius of outliers over that of data; None of samplers that have no law of it."""
        return self.sampler.radius_ratio

    @property
    def energy_weights(self) -> Tensor:
        """Class weights `w_k > 0` of the weighted energy, shape (K,)."""
        return F.softplus(self.raw_energy_weights)

    @property
    def started(self) -> bool:
        """Whether the next training call may return a loss that is not 0."""
        return self.steps >= self.start_step

    def ready(self) -> Tensor:
        """Which classes have shown `min_count` features, shape (K,), bool."""
        return self.gaussians.counts >= self.min_count

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logits (N, K) of the classes alone, from logits (N, C): background left out.

        Raises:
            ValueError: If these are not K columns.
        """
        if self.background_index is not None:
            # Not by a list of columns: that would be copied to the device at every call.
            after = self.background_index + 1
            logits = torch.cat([logits[..., : after - 1], logits[..., after:]], -1)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"logits: expected {self.num_classes} class columns, got {logits.shape[-1]}"
            )
        return logits

    def energy(self, logits: Tensor) -> Tensor:
        """Weighted energy (N,) of logits (N, C), background left out; float32 or float64."""
        return -self._negative_energy(logits)

    def ood_score(self, logits: Tensor) -> Tensor:
        """`-phi(-E)`: logit of being out-of-distribution, shape (N,); larger means more so.

        `sigmoid(-ood_score)` is the paper's p(ID | x), equation 8.
        """
        score: Tensor = -self.phi(self._negative_energy(logits))
        return score

    def _negative_energy(self, logits: Tensor) -> Tensor:
        return negative_weighted_energy(self.class_logits(logits), self.energy_weights.log())

    @torch.no_grad()
    def sample_outliers(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw virtual outliers (K * t, D) from the Gaussians as they are, class by class."""
        upper = self.gaussians.cholesky().T.float()
        noise = self.sampler.draw(self.num_classes, upper.device, generator or self.generator)
        return self.sampler.place(noise, self.gaussians, upper, None).flatten(0, 1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the step, in place; takes the arguments of `torch.compile`.

        The step is then a third faster on a CPU. Until VOS starts nothing is compiled. A loss that
        is called within a compiled function is not compiled by that.
        """
        self._compiled_step = torch.compile(self._step, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy would run the compiled step of the original.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_compiled_step": None}

    # The counters are numbers of the host, each value of which would be compiled anew; ranks
    # exchange; generators draw. `_step` is what remains.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Remember the features and return `weight` times the uncertainty loss.

        Args:
            features: Penultimate features (N, D), any floating dtype.
            logits: Their logits (N, C), attached to the graph.
            labels: Class indices (N,), integers; rows outside [0, K) take no part.

        Returns:
            Scalar loss, float32 or float64; 0 before `start_step` and without a ready class. Of a
            batch without rows that take part it is the loss of the outliers alone. In evaluation
            mode nothing is remembered, and no step is too early.

        Raises:
            RuntimeError: If a CUDA graph is being captured where classes take turns, or within
                `nn.DataParallel`, whose copies forget what they saw.
        """
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel copies the loss for every step, and what the copies remember is "
                "lost; use DistributedDataParallel (torchrun), or one device"
            )
        columns = self.num_classes + (self.background_index is not None)
        check_rows(features, logits, labels, self.feature_dim, columns)
        labels = labels.long()
        if not self.training:
            outliers = self.sample_outliers().to(self._dtype_for_head(features))
            return self._loss(logits, labels, outliers)
        ranks = world_size()
        rows, joint_labels = gather_rows(features, labels)
        started = self.started
        captured = features.is_cuda and torch.cuda.is_current_stream_capturing()
        if not captured:
            self.count_step(len(joint_labels))
            if self.steps.bit_count() == 1:  # the first, second, fourth, eighth ... call
                rows_for_head = features.detach().to(self._dtype_for_head(features))
                if self.steps == 1:
                    check_columns(self._head[0], rows_for_head, columns)
                warn_of_another_head(self._head[0], rows_for_head, logits)
        elif self.classes_per_step < self.num_classes:
            raise RuntimeError(
                "a CUDA graph would draw around the same classes at every replay; build the loss "
                f"with classes_per_step={self.num_classes}"
            )
        if not started:
            self.gaussians.take_in(rows, joint_labels)
            return logits.new_zeros((), dtype=torch.float32)
        classes = self._classes_in_turn(features.device)
        generator = self._generator(ranks, features)
        noise = self.sampler.draw(self.classes_per_step, features.device, generator)
        refactor = captured or self.gaussians.factor_due()
        step = self._compiled_step or self._step
        dtype = self._dtype_for_head(features)
        return step(dtype, logits, labels, rows, joint_labels, classes, noise, refactor)

    def count_step(self, rows: int) -> None:
        """What a training step does on the host: count, and clear rounding from the moments at times.

        A call of the module does it by itself. A CUDA graph that captured one replays what happens
        on the device alone: call this after every replay. Capture after `start_step` (`started`
        tells), or once before and once after; a graph factors the covariance anew at every replay.

        Args:
            rows: Number of features in the step.
        """
        self.steps += 1
        self.gaussians.upkeep(rows)

    def _classes_in_turn(self, device: torch.device) -> Tensor | None:
        """The classes of this step, (classes_per_step,), int64; None for all."""
        if self.classes_per_step == self.num_classes:
            return None
        first = (self.steps - 1) * self.classes_per_step % self.num_classes
        return torch.arange(first, first + self.classes_per_step, device=device) % self.num_classes

    def _step(
        self,
        dtype: torch.dtype,
        logits: Tensor,
        labels: Tensor,
        rows: Tensor,
        joint_labels: Tensor,
        classes: Tensor | None,
        noise: Any,
        refactor: bool,
    ) -> Tensor:
        self.gaussians.take_in(rows, joint_labels)
        if refactor:
            self.gaussians.refactor()
        outliers = self.sampler.place(noise, self.gaussians, self.gaussians.upper, classes)
        outliers = outliers.flatten(0, 1).to(dtype)
        return self._loss(logits, labels, outliers, classes, joint_labels)

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        outliers: Tensor,
        classes: Tensor | None = None,
        joint_labels: Tensor | None = None,
    ) -> Tensor:
        ranks = 1 if joint_labels is None else world_size()
        phi = self.phi(self._negative_energy(torch.cat([logits, self._head[0](outliers)])))
        ready = self.ready()
        drawn = ready if classes is None else ready.index_select(0, classes)
        takes_part = torch.cat(
            [self._in_range(labels), drawn.repeat_interleave(self.sampler.outliers_per_class)]
        )
        weights = (takes_part & ready.any()).to(phi.dtype)
        is_id = torch.ones_like(weights)
        is_id[len(logits) :] = 0
        if ranks == 1 and classes is None:
            return self.weight * uncertainty_loss(phi, is_id, weights)
        # The mean over the ranks is that over the joint batch and the outliers, which all share;
        # the classes in turn stand for all.
        rows = self._in_range(labels if joint_labels is None else joint_labels).sum()
        total = rows + ready.sum() * self.sampler.outliers_per_class
        weights[len(logits) :] *= self.num_classes / (ranks * self.classes_per_step)
        return self.weight * ranks * uncertainty_loss(phi, is_id, weights, total)

    def _dtype_for_head(self, features: Tensor) -> torch.dtype:
        """What the head takes: features that come out of autocast may be of lower precision."""
        head = self._head[0]
        weight = next(head.parameters(), None) if isinstance(head, nn.Module) else None
        if weight is None or torch.is_autocast_enabled(features.device.type):
            return features.dtype
        return weight.dtype if weight.is_floating_point() else features.dtype

    def _in_range(self, labels: Tensor) -> Tensor:
        return labels == labels.clamp(0, self.num_classes - 1)

    def _generator(self, ranks: int, features: Tensor) -> torch.Generator | None:
        if self.generator is not None or ranks == 1:
            return self.generator
        if self._shared_seed is None:
            self._shared_seed = shared_seed(features.device)
        # Anew from the step, so that a resumed run draws what an uninterrupted one draws.
        return torch.Generator(features.device).manual_seed(self._shared_seed + self.steps)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


def _check_number(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _check_whole(name: str, value: float, least: int) -> int:
    _check_number(name, value, least)
    if not float(value).is_integer():
        raise ValueError(f"{name}: expected a whole number, got {value}")
    return int(value)
