"""Scores that are compared, by name: every detector of pytorch-ood that works here, and ours.

A score is fitted to ID data and then gives one `ood_score` per row, larger for more
out-of-distribution. Every setting is the library's own default or the paper's: OOD data tunes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from knownot.benchmark.arrays import Arrays, Fitted
from knownot.errors import MissingExtraError

Scorer = Callable[[Arrays], Tensor]
Score = Callable[[Fitted], Scorer]
Part = Literal["train", "val"]

_CHUNK = 1000  # rows scored together: some detectors compare each with all training rows
_LARGE = 10**8  # numbers, or products of a row


class NotAvailableError(Exception):
    """A score cannot be computed from what the benchmark keeps; the text says why."""


def _detectors() -> Any:
    try:
        import pytorch_ood.detector
    except ImportError:
        raise MissingExtraError(
            "pytorch-ood", "baselines", "comparing with other detectors"
        ) from None
    return pytorch_ood.detector


def _split(rows: Tensor, size: int = _CHUNK) -> tuple[Tensor, ...]:
    return torch.split(rows, size)


def _in_chunks(predict: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    with torch.no_grad():
        scores = [torch.as_tensor(predict(chunk)).detach().flatten() for chunk in _split(rows)]
    return torch.cat(scores)


def _on_logits(name: str, fit_on: Part = "train") -> Score:
    def fit(fitted: Fitted) -> Scorer:
        detector = getattr(_detectors(), name)(None)
        part: Arrays = getattr(fitted, fit_on)
        detector.fit_logits(part.logits, part.labels)
        return lambda arrays: _in_chunks(detector.predict_logits, arrays.logits)

    return fit


def _on_features(make: Callable[[Any, nn.Linear], Any]) -> Score:
    """Detectors of penultimate features; `make` gets the library's module and the head."""

    def fit(fitted: Fitted) -> Scorer:
        detector = make(_detectors(), fitted.model.head)
        detector.fit_features(fitted.train.features, fitted.train.labels)
        return lambda arrays: _in_chunks(detector.predict_features, arrays.features)

    return fit


def _on_pooled_maps(make: Callable[[Any, nn.Module], Any]) -> Score:
    """Detectors of feature maps, on pooled features as maps of one pixel."""

    def fit(fitted: Fitted) -> Scorer:
        detector = make(_detectors(), nn.Sequential(nn.Flatten(), fitted.model.head))
        train = fitted.train
        if detector.requires_fit:
            detector.fit_feature_maps(train.features[:, :, None, None], train.labels)
        return lambda arrays: _in_chunks(
            detector.predict_feature_maps, arrays.features[:, :, None, None]
        )

    return fit


def _vim_width(head: nn.Linear) -> int:
    # The paper's rule: 1000 of more than 1500, 512 of more than 768, else half.
    width = head.in_features
    return 1000 if width >= 1500 else 512 if width >= 768 else width // 2


def _distances(name: str, factor: float) -> Score:
    """Mahalanobis distances; of each class the detector takes `factor` times the squared one."""

    def fit(fitted: Fitted) -> Scorer:
        detector = getattr(_detectors(), name)(None)
        detector.fit_features(fitted.train.features, fitted.train.labels)
        classes, width = detector.mu.shape
        # It takes a product of (N, D) and (D, D) for each class: days of many.
        if classes * width**2 > _LARGE:
            detector._calc_gaussian_scores = lambda rows: (
                factor * squared_distances(rows, detector.mu, detector.precision)
            )
        return lambda arrays: _in_chunks(detector.predict_features, arrays.features)

    return fit


def squared_distances(rows: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """`(x - mu_k)^T P (x - mu_k)` (N, K) of rows (N, D), means (K, D), a precision P (D, D)."""
    origin, exact = means.double().mean(0), precision.double()
    from_origin, to_means = rows.double() - origin, means.double() - origin
    of_rows = (from_origin @ exact * from_origin).sum(1, keepdim=True)
    by_precision = to_means @ (exact + exact.T)  # an inverse of float32 is not quite symmetric
    of_means = (to_means @ exact * to_means).sum(1)
    return (of_rows + of_means - from_origin @ by_precision.T).to(rows.dtype)


def _gmm(fitted: Fitted) -> Scorer:
    classes, width = fitted.model.head.weight.shape
    if classes * width**2 > 10 * _LARGE:
        size = 4e-9 * classes * width**2
        raise NotAvailableError(f"needs a covariance of each class, {size:.0f} GB")
    return _on_features(lambda d, head: d.GMM(None))(fitted)


def _grad_norm(fitted: Fitted) -> Scorer:
    # The paper takes the last layer alone, so the features are all that its gradient needs.
    head = fitted.model.head
    detector = _detectors().GradNorm(head)
    rows = max(1, min(_CHUNK, _LARGE // head.weight.numel()))  # a gradient each
    return lambda arrays: torch.cat(
        [detector.predict(chunk).detach() for chunk in _split(arrays.features, rows)]
    )


def _odin(fitted: Fitted) -> Scorer:
    model = fitted.model

    def scorer(arrays: Arrays) -> Tensor:
        if arrays.pixels is None:
            raise NotAvailableError(
                "needs the gradient with respect to the pixels; this benchmark keeps the features "
                "of photos alone"
            )
        network = nn.Sequential(model.backbone, model.neck, model.head).to(model.device)
        detector = _detectors().ODIN(network, norm_std=list(model.preprocessing.std))
        scores = []
        for chunk in _split(arrays.pixels(), 250):
            normal = (chunk.to(model.device).float() - model.mean) / model.std
            scores.append(detector.predict(normal).detach().cpu())
        return torch.cat(scores)

    return scorer


def _ours(name: str) -> Score:
    def fit(fitted: Fitted) -> Scorer:
        model = fitted.model

        @torch.no_grad()
        def scorer(arrays: Arrays) -> Tensor:
            if not arrays.scores:  # one pass gives them all
                chunks = zip(_split(arrays.logits), _split(arrays.scored_features), strict=True)
                found = [model.row_scores(*chunk) for chunk in chunks]
                arrays.scores.update({n: torch.cat([part[n] for part in found]) for n in found[0]})
            return arrays.scores[name]

        return scorer

    return fit


POSTHOC: dict[str, Score] = {
    "MSP": _on_logits("MaxSoftmax"),
    "MaxLogit": _on_logits("MaxLogit"),
    "Energy": _on_logits("EnergyBased"),
    "Entropy": _on_logits("Entropy"),
    "GEN": _on_logits("GEN"),
    "KL-matching": _on_logits("KLMatching", fit_on="val"),
    "Temperature": _on_logits("TemperatureScaling", fit_on="val"),
    "OpenMax": _on_logits("OpenMax"),
    "Mahalanobis": _distances("Mahalanobis", factor=-0.5),
    "Relative Mahalanobis": _distances("RMD", factor=1.0),
    "kNN": _on_features(lambda d, head: d.KNN(None)),
    "GMM": _gmm,
    "ViM": _on_features(lambda d, head: d.ViM(None, _vim_width(head), head.weight, head.bias)),
    "DICE": _on_features(lambda d, head: d.DICE(None, head.weight, head.bias, p=0.9)),
    "SHE": _on_features(lambda d, head: d.SHE(None, head)),
    "fDBD": _on_features(lambda d, head: d.fDBD(None, head)),
    "NCI": _on_features(lambda d, head: d.NCI(None, head)),
    "NNGuide": _on_features(lambda d, head: d.NNGuide(None, head)),
    "pNML": _on_features(lambda d, head: d.PNML(None, head)),
    "LTS": _on_features(lambda d, head: d.LTS(None, head)),
    "ReAct": _on_pooled_maps(lambda d, head: d.ReAct(None, head)),
    "VRA": _on_pooled_maps(lambda d, head: d.VRA(None, head)),
    "ASH-S": _on_pooled_maps(lambda d, head: d.ASH(None, head, variant="ash-s")),
    "ASH-B": _on_pooled_maps(lambda d, head: d.ASH(None, head, variant="ash-b")),
    "ASH-P": _on_pooled_maps(lambda d, head: d.ASH(None, head, variant="ash-p")),
    "SCALE": _on_pooled_maps(lambda d, head: d.SCALE(None, head)),
    "GradNorm": _grad_norm,
    "ODIN": _odin,
}

OURS: dict[str, Score] = {
    name: _ours(name) for name in ("energy", "vos", "msp", "mahalanobis", "knn", "combined")
}

SCORES: dict[str, Score] = POSTHOC | OURS
# What a benchmark's file may write in place of single names.
GROUPS: dict[str, list[str]] = {"posthoc": list(POSTHOC), "ours": list(OURS)}

# Detectors of pytorch-ood that are not here, and why.
LEFT_OUT: dict[str, str] = {
    "MahalanobisODIN": "needs the gradient with respect to the pixels of every image, for a distance",
    "Gram": "needs the activations of several layers",
    "MultiMahalanobis": "needs the activations of several layers",
    "NACUE": "needs the activations and gradients of several layers",
    "RankFeat": "needs feature maps before pooling; pooled, they have rank one",
    "MCD": "needs many passes through a network with dropout",
    "MCM": "needs the text side of a vision-language model",
    "GradUncertainty": "needs the gradient of the whole network for every image",
    "WeightedEBO": "is the weighted energy of VOS, which `vos` contains",
}
