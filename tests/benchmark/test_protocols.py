"""The protocols against the code of the projects that they are named after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from knownot.benchmark.protocols import PROTOCOLS, get_protocol
from knownot.errors import ConfigError


def arrays(seed: int, levels: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """500 ID and 90 OOD scores: the paper's protocol takes them all."""
    random = np.random.default_rng(seed)
    known, ood = random.normal(0, 1, 500), random.normal(1.2, 1.3, 90)
    if levels is not None:
        known, ood = (np.round(x * levels) for x in (known, ood))
    return torch.from_numpy(known), torch.from_numpy(ood)


def pytorch_ood(known: torch.Tensor, ood: torch.Tensor) -> dict[str, float]:
    from pytorch_ood.metrics import OODMetrics

    theirs = OODMetrics()
    theirs.update(known, torch.arange(len(known)))
    theirs.update(ood, torch.full((len(ood),), -1))
    return theirs.compute()


@pytest.mark.parametrize("levels", [None, 3], ids=["no ties", "many ties"])
@pytest.mark.parametrize("seed", range(5))
def test_both_conventions_are_pytorch_oods(seed: int, levels: int | None) -> None:
    known, ood = arrays(seed, levels)
    theirs = pytorch_ood(known, ood)
    openood = PROTOCOLS["openood"].measure(known, ood)
    assert openood["fpr95_ood_positive"] == pytest.approx(theirs["FPR95TPR"], abs=1e-9)
    assert openood["auroc"] == pytest.approx(theirs["AUROC"], abs=1e-9)
    assert openood["aupr_in"] == pytest.approx(theirs["AUPR-IN"], abs=1e-9)
    assert openood["aupr_out"] == pytest.approx(theirs["AUPR-OUT"], abs=1e-9)
    # ID positive: the sets exchanged and the scores turned around.
    turned = pytorch_ood(-ood, -known)
    paper = PROTOCOLS["paper"].measure(known, ood)
    assert paper["fpr95"] == pytest.approx(turned["FPR95TPR"], abs=1e-9)
    assert paper["auroc"] == pytest.approx(turned["AUROC"], abs=1e-9)


def openood_definition(known: torch.Tensor, ood: torch.Tensor) -> dict[str, float]:
    """What OpenOOD's evaluator computes, said anew: confidences, label -1 for OOD, scikit-learn."""
    confidence = -torch.cat([known, ood]).numpy()
    is_ood = np.r_[np.zeros(len(known), int), np.ones(len(ood), int)]
    fpr, tpr, _ = sk.roc_curve(is_ood, -confidence)
    precision_in, recall_in, _ = sk.precision_recall_curve(1 - is_ood, confidence)
    precision_out, recall_out, _ = sk.precision_recall_curve(is_ood, -confidence)
    return {
        "fpr95_ood_positive": fpr[np.argmax(tpr >= 0.95)],
        "auroc": sk.auc(fpr, tpr),
        "aupr_in": sk.auc(recall_in, precision_in),
        "aupr_out": sk.auc(recall_out, precision_out),
    }


@pytest.mark.parametrize("seed", range(5))
def test_openood_is_openoods_definition(seed: int) -> None:
    known, ood = arrays(seed)
    ours = PROTOCOLS["openood"].measure(known, ood)
    assert ours == pytest.approx(openood_definition(known, ood), abs=1e-9)


def vos_definition(known: torch.Tensor, ood: torch.Tensor) -> dict[str, float]:
    """The authors' measures: rank by the negative score, ID is 1; recall first at least 0.95."""
    values, is_id = -torch.cat([known, ood]).numpy(), np.r_[np.ones(len(known)), np.zeros(len(ood))]
    order = np.argsort(values, kind="mergesort")[::-1]
    values, ranked = values[order], is_id[order]
    last = np.r_[np.flatnonzero(np.diff(values)), len(values) - 1]  # of each run of equal scores
    true, false = np.cumsum(ranked)[last], np.cumsum(1 - ranked)[last]
    at = np.flatnonzero(true / true[-1] >= 0.95)[0]
    return {
        "fpr95": false[at] / (1 - is_id).sum(),
        "auroc": sk.roc_auc_score(is_id, -torch.cat([known, ood]).numpy()),
        "aupr_in": sk.average_precision_score(is_id, -torch.cat([known, ood]).numpy()),
    }


@pytest.mark.parametrize("levels", [None, 3], ids=["no ties", "many ties"])
@pytest.mark.parametrize("seed", range(5))
def test_paper_is_the_authors_definition(seed: int, levels: int | None) -> None:
    known, ood = arrays(seed, levels)
    ours = PROTOCOLS["paper"].measure(known, ood)
    assert ours == pytest.approx(vos_definition(known, ood), abs=1e-9)


def test_paper_averages_choices_of_a_fifth_of_the_id_images() -> None:
    random = torch.Generator().manual_seed(0)
    known, ood = (torch.randn(n, generator=random, dtype=torch.float64) for n in (100, 400))
    seen = []
    protocol = PROTOCOLS["paper"]
    counting = {"first": lambda a, b: seen.append((len(a), sorted(b.tolist()))) or 0.0}
    type(protocol)("", counting, False, protocol.share, protocol.repeats).measure(known, ood, "x")
    assert [(n, len(chosen)) for n, chosen in seen] == [(100, 20)] * 10
    assert len({tuple(chosen) for _, chosen in seen}) == 10
    # The same choices for every score, and near the value of all images.
    once, again = (protocol.measure(known, ood, "x") for _ in range(2))
    assert once == again
    assert once["fpr95"] == pytest.approx(vos_definition(known, ood)["fpr95"], abs=0.05)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ConfigError, match="protocol: expected paper or openood, got 'mine'"):
        get_protocol("mine")
