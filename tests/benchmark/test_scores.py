"""Every score on a real small model: finite, row by row, and right about what is far away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from knownot.benchmark import scores
from knownot.benchmark.arrays import Arrays, Fitted, from_scored_features
from knownot.benchmark.scores import LEFT_OUT, OURS, POSTHOC, SCORES, NotAvailableError
from knownot.core import metrics
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.preprocessing import Preprocessing
from tests.helpers import COLOURS, SIZE, pixels, tiny_backbone

# These say "far" of anything that is not near training features. The others rest on confidence,
# which may well be high far away.
KNOW_DISTANCE = {"Mahalanobis", "kNN", "GMM", "pNML", "mahalanobis", "knn", "combined"}


def plain_model() -> UnknownAwareClassifier:
    """Red and green, the features straight into the head, which alone is trained."""
    preprocessing = Preprocessing(image_size=SIZE, crop=1.0)
    model = UnknownAwareClassifier(
        tiny_backbone(), 8, list(COLOURS), preprocessing, bottleneck=None, standardise=False
    ).eval()
    train, val = colours(model, 0), colours(model, 10_000)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.05)
    for _ in range(100):
        loss = nn.functional.cross_entropy(model.head(train.features), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.fit_scores(train.scored_features, train.labels)
    model.calibrate(val.scored_features)
    return model


def colours(model, start: int, count: int = 60) -> Arrays:
    images = torch.cat([pixels(count, c, start + 1000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(count)
    with torch.no_grad():
        rows = model.scored_features(images)
    return from_scored_features(model, rows, labels, lambda: images)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    model = plain_model()
    return Fitted(model, colours(model, 0), colours(model, 20_000))


@pytest.fixture(scope="module")
def known_arrays(fitted: Fitted) -> Arrays:
    return colours(fitted.model, 40_000, 30)


@pytest.fixture(scope="module")
def ood_arrays(fitted: Fitted) -> Arrays:
    images = pixels(40, (40, 40, 220), 60_000)
    with torch.no_grad():
        return from_scored_features(
            fitted.model, fitted.model.scored_features(images), None, lambda: images
        )


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_one_finite_number_a_row_and_repeats(
    name: str, fitted: Fitted, known_arrays: Arrays, ood_arrays: Arrays
) -> None:
    torch.manual_seed(0)
    scorer = SCORES[name](fitted)
    known, ood = scorer(known_arrays), scorer(ood_arrays)
    assert known.shape == (60,)
    assert ood.shape == (40,)
    assert torch.isfinite(known).all()
    assert torch.isfinite(ood).all()
    torch.testing.assert_close(scorer(known_arrays), known)
    if name in KNOW_DISTANCE:
        assert metrics.auroc(known, ood) > 0.9


@pytest.mark.parametrize(("ours", "theirs"), [("energy", "Energy"), ("msp", "MSP"), ("knn", "kNN")])
def test_scores_that_both_have_agree(
    ours: str, theirs: str, fitted: Fitted, known_arrays: Arrays, ood_arrays: Arrays
) -> None:
    for arrays in (known_arrays, ood_arrays):
        a, b = OURS[ours](fitted)(arrays), POSTHOC[theirs](fitted)(arrays)
        if ours == "knn":  # other features, other k, half the square: the ranks are much alike
            ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
            assert torch.corrcoef(ranks)[0, 1] > 0.5
        else:
            # Theirs are negated confidences: equal up to a constant.
            torch.testing.assert_close(a - a[0], b - b[0], atol=1e-4, rtol=1e-4)


def test_every_detector_of_pytorch_ood_is_here_or_said_to_be_left_out() -> None:
    import pytorch_ood.detector as library
    from pytorch_ood.api import Detector

    theirs = {n for n in library.__all__ if isinstance(getattr(library, n), type)}
    theirs = {n for n in theirs if issubclass(getattr(library, n), Detector)}
    ours = {
        "MSP": "MaxSoftmax", "Energy": "EnergyBased", "KL-matching": "KLMatching",
        "Temperature": "TemperatureScaling", "Relative Mahalanobis": "RMD", "kNN": "KNN",
        "pNML": "PNML", "ASH-S": "ASH", "ASH-B": "ASH", "ASH-P": "ASH",
    }  # fmt: skip
    here = {ours.get(name, name) for name in POSTHOC}
    assert here | set(LEFT_OUT) == theirs
    assert not here & set(LEFT_OUT)


def test_odin_says_what_it_lacks(fitted: Fitted, known_arrays: Arrays) -> None:
    without = Arrays(
        known_arrays.logits,
        known_arrays.features,
        known_arrays.scored_features,
        known_arrays.labels,
    )
    with pytest.raises(NotAvailableError, match="gradient with respect to the pixels"):
        SCORES["ODIN"](fitted)(without)


@pytest.mark.parametrize("name", ["Mahalanobis", "Relative Mahalanobis"])
def test_distances_of_many_classes_are_the_librarys(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of ImageNet's size the library's own way, class by class, takes days."""
    model = plain_model()
    fitted = Fitted(model, colours(model, 0), colours(model, 10_000))
    test = colours(model, 20_000)
    expected = POSTHOC[name](fitted)(test)
    monkeypatch.setattr(scores, "_LARGE", 0)
    assert torch.allclose(POSTHOC[name](fitted)(test), expected, rtol=1e-3, atol=1e-4)


def test_what_needs_more_memory_than_there_is_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model()
    fitted = Fitted(model, colours(model, 0), colours(model, 10_000))
    assert POSTHOC["GMM"](fitted) is not None
    monkeypatch.setattr(scores, "_LARGE", 10)
    with pytest.raises(NotAvailableError, match="a covariance of each class"):
        POSTHOC["GMM"](fitted)
    test = colours(model, 20_000)
    in_small_parts = POSTHOC["GradNorm"](fitted)(test)
    monkeypatch.undo()
    assert torch.allclose(in_small_parts, POSTHOC["GradNorm"](fitted)(test), rtol=1e-4)
