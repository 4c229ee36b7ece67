"""A scikit-learn classifier that answers "unknown".

Rows of numbers go the way of a frozen backbone's features: a hidden layer and a linear head are trained
with the virtual outlier loss, distances to the training rows are read beside it, and held-out rows
calibrate the answer. As scikit-learn has it, `score_samples` is larger for what is *more* like the
training rows; everywhere else in knownot `ood_score` is larger for what is less like them.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from knownot.core.alpha import least_calibration
from knownot.core.calibration import flagged
from knownot.core.columns import joined
from knownot.models.classifier import UnknownAwareClassifier as Network
from knownot.models.model_folder import choose_device
from knownot.models.prediction import UNKNOWN
from knownot.models.unknown_aware import ScoreName
from knownot.sklearn.folds import folds
from knownot.training.batches import FeatureRows
from knownot.training.config import TrainConfig
from knownot.training.head_first import train_head

_LEAST_STEPS = 500
_FEW = 500  # rows, below which none is spared for calibration
_FEW_DIFFERENT = 4  # rows, below which those of one fold tell nothing of another's
_ROWS = 1024  # that are scored together: each is compared with all that kNN remembers
# Standardised rows of D numbers have length sqrt(D); see `_rows`.
_HEIGHT = 3.0
_FARTHEST = 1e15  # that a number of a row is seen: its square is a float32


class _Answers(NamedTuple):
    nearest: NDArray[np.int64]  # index of the most likely class (N,)
    ood_score: NDArray[np.float64]  # (N,)
    p_values: NDArray[np.float64]  # (N,)
    probabilities: NDArray[np.float64]  # (N, K)


class UnknownAwareClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of rows of numbers that answers "unknown" to rows unlike those it was fitted to.

    Args:
        alpha: Share of rows of the known classes that may be called unknown, in [0, 1); 0 for never.
        unknown_label: What `predict` answers for them. "auto": "unknown" where classes are text, else
            -1, or one less than the smallest class where -1 is one.
        metric: "euclidean" for tables: columns are standardised first, and a row far out is far from
            all, whatever its direction. "cosine" for embeddings of a network whose length says
            little: rows are scaled to length one.
        hidden: Width of the hidden layer, in which virtual outliers are drawn; 0 for none.
        vos_weight: beta of the paper, the factor before the virtual outlier loss.
        epochs: How often all rows are seen; None for 30, or as often as makes 500 steps.
        cv: Folds of the calibration: the rows of each are scored by a model of the others. 0 sets rows
            aside instead, which trains once. None is 5 for fewer than 500 rows, else 0.
        validation_fraction: Share of the rows, of every class, that is set aside with `cv` 0.
        ood_score: Score that decides: "combined", "vos", "energy", "msp", "mahalanobis" or "knn"; see
            docs/scores.md.
        n_neighbors: Neighbour of the "knn" score.
        device: "auto", "cpu", "cuda" or "mps".
        random_state: Seed, generator, or None for another fit every time.

    Attributes:
        classes_: The known classes (K,), sorted.
        n_features_in_: Number of columns.
        model_: The `knownot.UnknownAwareClassifier` that answers; its classes are called "0", "1", ...

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = UnknownAwareClassifier(random_state=0).fit(X, y)
        >>> model.predict([[5.1, 3.5, 1.4, 0.2], [50.0, 3.5, 14.0, 20.0]]).tolist()
        [0, -1]
    """

    def __init__(
        self,
        *,
        alpha: float = 0.05,
        unknown_label: Any = "auto",
        metric: Literal["euclidean", "cosine"] = "euclidean",
        hidden: int = 64,
        vos_weight: float = 0.1,
        epochs: int | None = None,
        cv: int | None = None,
        validation_fraction: float = 0.2,
        ood_score: ScoreName = "combined",
        n_neighbors: int = 10,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.unknown_label = unknown_label
        self.metric = metric
        self.hidden = hidden
        self.vos_weight = vos_weight
        self.epochs = epochs
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.ood_score = ood_score
        self.n_neighbors = n_neighbors
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train, and calibrate on rows set aside.

        Args:
            X: Rows (N, D), finite.
            y: Class of each (N,): text or whole numbers.

        Raises:
            ValueError: If rows are not finite, there is one class only, or a parameter is wrong.
        """
        given: NDArray[np.float64]
        given, known = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(known)
        self.classes_, of_rows = np.unique(known, return_inverse=True)
        self._check()
        self._warn_of_repeated_rows(given)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.centre_ = given.mean(0)
        spread = given.std(0)
        # What is the same in all rows has a spread too, of rounding.
        rounding = len(given) * np.finfo(np.float64).eps * np.abs(self.centre_)
        self.scale_ = np.where(spread > rounding, spread, 1.0)
        rows, labels = self._rows(given), torch.from_numpy(of_rows)
        held_out: list[dict[str, Tensor]] = []
        cv = (5 if len(rows) < _FEW else 0) if self.cv is None else self.cv
        for kept, held in folds(of_rows, cv, self.validation_fraction, seed):
            model = self._trained(rows[kept], labels[kept], seed)
            if held:
                held_out.append(_scores(model, rows[held]))
        if cv:
            model = self._trained(rows, labels, seed)
        self._warn_of_too_few(sum(len(scores["energy"]) for scores in held_out))
        model.calibrate_scores(joined(held_out or [_scores(model, rows)]))
        self.model_ = model
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class of each row (N,), or the label of unknown ones; see `unknown_label`."""
        answers = self._answers(X)
        labels: NDArray[Any] = self.classes_[answers.nearest]
        if self.alpha:
            unknown = self._unknown_label()
            if labels.dtype.kind in "biu" and isinstance(unknown, Integral):
                # -1 would be 255 among labels of one byte without a sign.
                wide = np.result_type(labels.dtype, np.min_scalar_type(int(unknown)))
                labels = labels.astype(wide)
            elif (labels.dtype.kind in "US") != isinstance(unknown, str):
                labels = labels.astype(object)  # text and numbers, which NumPy would not mix
            labels = np.where(self._flagged(answers.p_values), unknown, labels)
        return labels

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Softmax probabilities (N, K), *given that a row is of one of the classes*."""
        return self._answers(X).probabilities

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """How much rows are like those of the known classes (N,): larger is more."""
        return -self._answers(X).ood_score

    def p_values(self, X: ArrayLike) -> NDArray[np.float64]:
        """Share of held-out rows of the known classes at least as strange as each row (N,), in (0, 1]."""
        return self._answers(X).p_values

    def is_unknown(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Whether the p-value of each row is below `alpha` (N,)."""
        return self._flagged(self._answers(X).p_values)

    @property
    def offset_(self) -> float:
        """Rows whose `score_samples` is below it are unknown."""
        check_is_fitted(self)
        return -self.model_.threshold(self.alpha, self.ood_score) if self.alpha else -math.inf

    def _check(self) -> None:
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: expected two classes or more, got one class: {self.classes_[0]!r}"
            )
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric: expected euclidean or cosine, got {self.metric!r}")
        if self.ood_score not in get_args(ScoreName):
            raise ValueError(
                f"ood_score: expected one of {', '.join(get_args(ScoreName))}, got {self.ood_score!r}"
            )
        for name, value, least in (
            ("hidden", self.hidden, 0),
            ("epochs", self.epochs, 1),
            ("n_neighbors", self.n_neighbors, 1),
        ):
            if value is not None and not (isinstance(value, Integral) and value >= least):
                raise ValueError(
                    f"{name}: expected a whole number of at least {least}, got {value!r}"
                )
        for name, number in (
            ("vos_weight", self.vos_weight),
            ("alpha", self.alpha),
            ("validation_fraction", self.validation_fraction),
        ):
            if not isinstance(number, Real):
                raise ValueError(f"{name}: expected a number, got {number!r}")
        if not 0 <= self.vos_weight < math.inf:
            raise ValueError(f"vos_weight: expected a number of at least 0, got {self.vos_weight}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha: expected a fraction in [0, 1), got {self.alpha}")
        if self.cv is not None and not (
            isinstance(self.cv, Integral) and self.cv >= 0 and self.cv != 1
        ):
            raise ValueError(f"cv: expected 0, two folds or more, or None, got {self.cv!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: expected a fraction in (0, 1), got {self.validation_fraction}"
            )
        if self.alpha and self._unknown_label() in self.classes_.tolist():
            raise ValueError(
                f"unknown_label: {self._unknown_label()!r} is one of the classes; choose another"
            )

    def _unknown_label(self) -> Any:
        if self.unknown_label != "auto":
            return self.unknown_label
        if self.classes_.dtype.kind not in "biuf":
            return UNKNOWN
        return -1 if -1 not in self.classes_ else self.classes_.min().item() - 1

    def _trained(self, rows: Tensor, labels: Tensor, seed: int) -> Network:
        """A model of these rows, not calibrated; what is not said is as `knownot train` has it."""
        config = TrainConfig(data=Path(), seed=seed, vos_weight=self.vos_weight)
        epochs = self.epochs or max(30, math.ceil(_LEAST_STEPS / max(1, round(len(rows) / 128))))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Network(
                nn.Identity(),
                rows.shape[1],
                [str(k) for k in range(len(self.classes_))],
                bottleneck=self.hidden or None,
                vos=config.vos_settings(len(self.classes_), self.hidden or rows.shape[1]),
            ).to(choose_device(self.device))
            train_head(model, FeatureRows(rows, labels), config, epochs, with_vos=True)
        model.eval()
        model.fit_scores(rows, labels, self.n_neighbors)
        return model

    def _warn_of_too_few(self, held: int) -> None:
        if self.alpha and held < least_calibration(self.alpha):
            warnings.warn(
                f"nothing can be called unknown: alpha {self.alpha:g} takes at least "
                f"{least_calibration(self.alpha)} rows set aside for calibration, there are {held}; "
                "add rows, or raise alpha or validation_fraction",
                UserWarning,
                stacklevel=3,
            )

    @staticmethod
    def _warn_of_repeated_rows(given: NDArray[np.float64]) -> None:
        """Say so where the rows of a fold are those of every other: which score is large is chance."""
        different = len(np.unique(given[:1000], axis=0))
        if different < _FEW_DIFFERENT and len(given) > 1000:
            different = len(np.unique(given, axis=0))
        if different < min(_FEW_DIFFERENT, len(given)):
            warnings.warn(
                f"X: only {different} different rows among {len(given)}; rows that were fitted may be called "
                "unknown",
                UserWarning,
                stacklevel=3,
            )

    def _rows(self, given: NDArray[np.float64]) -> Tensor:
        """What the model reads: its scores look at directions alone.

        A column that is the same for all turns lengths into directions as well: rows (D + 1) stand on a
        plane above the origin, and those further out are seen at a lower angle.
        """
        if self.metric == "cosine":
            return torch.from_numpy(given.clip(-_FARTHEST, _FARTHEST)).float()
        standard = ((given - self.centre_) / self.scale_).clip(-_FARTHEST, _FARTHEST)
        height = np.full((len(given), 1), _HEIGHT * given.shape[1] ** 0.5)
        return torch.from_numpy(np.hstack([standard, height])).float()

    @torch.no_grad()
    def _answers(self, X: ArrayLike) -> _Answers:
        check_is_fitted(self)
        given: NDArray[np.float64] = validate_data(self, X, dtype=np.float64, reset=False)
        parts: list[tuple[Tensor, ...]] = []
        for rows in torch.split(self._rows(given), _ROWS):
            output = self.model_.classify(rows.to(self.model_.device))
            scores = self.model_.scores(output)
            p_values = self.model_.p_values(output, scores, self.ood_score)
            probabilities = output.logits.double().softmax(1)
            index = output.logits.argmax(1)
            parts.append((index, scores[self.ood_score].double(), p_values, probabilities))
        return _Answers(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))

    def _flagged(self, p_values: NDArray[np.float64]) -> NDArray[np.bool_]:
        called: NDArray[np.bool_] = flagged(torch.from_numpy(p_values), self.alpha).numpy()
        return called


@torch.no_grad()
def _scores(model: Network, rows: Tensor) -> dict[str, Tensor]:
    output = model.classify(rows.to(model.device))
    return model.scores_to_calibrate(output.logits, output.scored_features)
