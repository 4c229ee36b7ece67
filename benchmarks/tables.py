"""The scikit-learn estimator on tables and embeddings against scikit-learn's own outlier detectors.

    python -m benchmarks tables                   # some minutes on 2 cores

Tables that scikit-learn ships: every class in turn is the one that was never shown, the others are
known; 60 % of the known rows train, the rest and the unknown class test. Embeddings: 1280 features of
EfficientNet-Lite0 of photos of cats and dogs, against those of the OOD folders, where the photos are.
All get the same rows, standardised for the detectors of scikit-learn (of embeddings at length one), with
their default settings. Prints a Markdown table and writes `<output>/tables.json`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import OneClassSVM

from cats_dogs import default_data, machine
from knownot.core.metrics import auroc, fpr95
from knownot.data.image_folder import list_photos, read_labelled
from knownot.models.backbones import create_backbone
from knownot.models.classifier import UnknownAwareClassifier as PhotoClassifier
from knownot.sklearn import UnknownAwareClassifier
from knownot.training.feature_cache import default_cache, extract_features

Rows = np.ndarray
# What one split gives: rows and classes to train on, and to test on, and rows of nothing known.
Split = tuple[Rows, Rows, Rows, Rows, Rows]
SEEDS = (0, 1, 2)
TABLES = {"iris": load_iris, "wine": load_wine, "digits": load_digits}
FAR = ("blood_cells", "clothing", "fashion_mnist", "groceries", "houses", "people", "textures")


class Softmax:
    """The largest probability of a logistic regression: what a classifier by itself offers."""

    def __init__(self) -> None:
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))

    def fit(self, rows: Rows, labels: Rows) -> Softmax:
        self.model.fit(rows, labels)
        return self

    def score_samples(self, rows: Rows) -> Rows:
        return self.model.predict_proba(rows).max(1)


def detectors(seed: int, embeddings: bool) -> dict[str, Any]:
    """Every method by name, not fitted."""
    first = Normalizer() if embeddings else StandardScaler()

    def of_sklearn(detector: Any) -> Any:
        return make_pipeline(first, detector)

    return {
        "knownot, euclidean": UnknownAwareClassifier(random_state=seed),
        "knownot, cosine": UnknownAwareClassifier(random_state=seed, metric="cosine"),
        "knownot, VOS score": UnknownAwareClassifier(random_state=seed, ood_score="vos"),
        "knownot, energy, β = 0": UnknownAwareClassifier(
            random_state=seed, ood_score="energy", vos_weight=0.0
        ),
        "logistic regression, softmax": Softmax(),
        "LocalOutlierFactor": of_sklearn(LocalOutlierFactor(novelty=True)),
        "OneClassSVM": of_sklearn(OneClassSVM()),
        "IsolationForest": of_sklearn(IsolationForest(random_state=seed)),
        "EllipticEnvelope": of_sklearn(EllipticEnvelope(random_state=seed)),
    }


def table_splits(name: str, seed: int) -> Iterator[Split]:
    """Every class in turn unknown."""
    rows, labels = TABLES[name](return_X_y=True)
    for left_out in np.unique(labels):
        known = labels != left_out
        train, test, of_train, of_test = train_test_split(
            rows[known], labels[known], train_size=0.6, stratify=labels[known], random_state=seed
        )
        yield train, of_train, test, of_test, rows[~known]


def embedding_splits(data: Path) -> Callable[[int], Iterator[Split]]:
    """Photos of cats and dogs, and each OOD folder in turn."""
    backbone, preprocessing = create_backbone()
    model = PhotoClassifier(backbone, 1280, ["cat", "dog"], preprocessing)

    def features(paths: list[Path]) -> Rows:
        return extract_features(model, paths, default_cache()).rows.numpy()

    train, test = (read_labelled(data / "cats_dogs" / part) for part in ("train", "test"))
    of_train, of_test = (features(part.paths) for part in (train, test))
    strange = [features(list_photos(data / "ood" / name)) for name in (*FAR, "near_animals")]

    def splits(seed: int) -> Iterator[Split]:
        for rows in strange:
            yield of_train, np.array(train.labels), of_test, np.array(test.labels), rows

    return splits


def measure(detector: Any, split: Split) -> dict[str, float]:
    """Rates of one method on one split, fractions in [0, 1]."""
    train, of_train, test, of_test, strange = split
    detector.fit(train, of_train)
    known, unknown = (
        torch.from_numpy(-np.asarray(detector.score_samples(rows), np.float64))
        for rows in (test, strange)
    )
    found = {"fpr95": fpr95(known, unknown), "auroc": auroc(known, unknown)}
    if isinstance(detector, UnknownAwareClassifier):
        probabilities = detector.predict_proba(test)
        found["accuracy"] = float((detector.classes_[probabilities.argmax(1)] == of_test).mean())
        found["flagged"] = float(detector.is_unknown(test).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="folder of the photos")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"machine": machine(), "seeds": SEEDS, "rows": {}}
    print(f"{result['machine']}\n")
    sources = {name: lambda seed, name=name: table_splits(name, seed) for name in TABLES}
    if (options.data / "cats_dogs").is_dir():
        sources["cats and dogs"] = embedding_splits(options.data)
    for source, splits in sources.items():
        by_method: dict[str, list[dict[str, float]]] = {}
        for seed in SEEDS:
            rows: dict[str, list[dict[str, float]]] = {}
            for split in splits(seed):
                for name, detector in detectors(seed, source not in TABLES).items():
                    if name == "EllipticEnvelope" and split[0].shape[1] > 100:
                        continue  # it takes hours, and more rows than columns
                    rows.setdefault(name, []).append(measure(detector, split))
            for name, found in rows.items():
                means = {key: fmean(row[key] for row in found) for key in found[0]}
                by_method.setdefault(name, []).append(means)
        result["rows"][source] = by_method
        print(f"| {source} | FPR95, % | AUROC, % | accuracy, % | known called unknown, % |")
        print("|---|---|---|---|---|")
        for name, of_seeds in by_method.items():
            cells = [
                f"{100 * fmean(row[key] for row in of_seeds):.1f} ± "
                f"{100 * stdev(row[key] for row in of_seeds):.1f}"
                if key in of_seeds[0]
                else ""
                for key in ("fpr95", "auroc", "accuracy", "flagged")
            ]
            print(f"| {name} | {' | '.join(cells)} |")
        print(flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "tables.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
