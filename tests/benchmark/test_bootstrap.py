"""Bootstrap values against the metric of every drawn set, and what an interval must hold."""

from __future__ import annotations

import pytest
import torch

from knownot.benchmark.bootstrap import Bootstrap, interval
from knownot.core import metrics


@pytest.mark.parametrize("ood_positive", [False, True])
def test_each_value_is_the_metric_of_a_drawn_set(ood_positive: bool) -> None:
    random = torch.Generator().manual_seed(1)
    known = torch.randn(60, generator=random).mul(2).round()  # with ties
    ood = {name: torch.randn(n, generator=random) + 1 for name, n in (("a", 40), ("b", 25))}
    bootstrap = Bootstrap(30, ood_positive)
    values = bootstrap.fpr95(known, ood)
    metric = metrics.fpr95_ood_positive if ood_positive else metrics.fpr95
    drawn_id = known[bootstrap._draws(60, "the ID set")]
    for name, scores in ood.items():
        drawn = scores[bootstrap._draws(len(scores), name)]
        expected = [metric(a, b) for a, b in zip(drawn_id, drawn, strict=True)]
        assert values[name].tolist() == pytest.approx(expected)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """100 samples from one law; the true rate is known: 95 % of the intervals should hold it."""
    random = torch.Generator().manual_seed(2)
    normal = torch.distributions.Normal(0.0, 1.0)
    truth = float(normal.cdf(normal.icdf(torch.tensor(0.95)) - 2.0))
    held = 0
    for _ in range(100):
        known, ood = torch.randn(300, generator=random), torch.randn(150, generator=random) + 2
        low, high = interval(Bootstrap(200, False).fpr95(known, {"a": ood})["a"])
        held += low <= truth <= high
    assert 85 <= held <= 100
