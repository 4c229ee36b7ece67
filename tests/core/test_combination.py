"""Combinations of scores, chosen by outliers made of ID data."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from knownot.core.combination import TailLogP, choose_parts


def scores_of(shift: dict[str, float], n: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {part: torch.randn(n, generator=generator) + by for part, by in shift.items()}


def test_parts_that_cannot_tell_outliers_are_left_out() -> None:
    known = scores_of({"a": 0.0, "b": 0.0, "c": 0.0}, 1000, 0)
    outliers = [scores_of({"a": 3.0, "b": 0.0, "c": -1.0}, 500, seed) for seed in range(1, 6)]
    assert choose_parts(known, outliers, ["a", "b", "c"]) == ["a"]


def test_parts_that_each_see_something_stay_together() -> None:
    parts = ["a", "b", "c"]
    known = scores_of(dict.fromkeys(parts, 0.0), 1000, 0)
    outliers = [scores_of(dict.fromkeys(parts, 0.0) | {p: 4.0}, 500, 1) for p in parts]
    assert choose_parts(known, outliers, parts) == parts


def test_scores_that_float32_cannot_tell_apart_are_warned_of() -> None:
    scores = torch.rand(500, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TailLogP().fit(scores)
        TailLogP().fit((1000 * scores).round())
    with pytest.warns(UserWarning, match="float32 takes different ones for the same"):
        TailLogP().fit(scores + 1e6)


def test_an_infinite_score_costs_no_order() -> None:
    scores = torch.cat([torch.arange(100.0), torch.tensor([math.inf, -math.inf])])
    law = TailLogP().fit(scores)
    found = law(torch.tensor([-5.0, 50.0, 99.0, 150.0, 1000.0]))
    assert found.isfinite().all()
    assert (found[1:] > found[:-1]).all()


def test_a_gain_on_one_kind_alone_decides_nothing() -> None:
    known = scores_of({"a": 0.0, "b": 0.0}, 1000, 0)
    seen_by_a = scores_of({"a": 3.0, "b": 0.0}, 500, 1)
    seen_by_b = scores_of({"a": 0.0, "b": 2.5}, 500, 2)
    assert choose_parts(known, [seen_by_a], ["a", "b"]) == ["a", "b"]
    assert choose_parts(known, [seen_by_a, seen_by_b], ["a", "b"]) == ["a", "b"]
