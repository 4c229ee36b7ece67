"""Energies against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knownot.core.energy import energy, negative_weighted_energy


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6),
    shift=st.floats(-50, 50, width=32),
)
def test_energy_is_the_formula_and_shifts_with_the_logits(logits, shift) -> None:
    f = torch.tensor([logits], dtype=torch.float64)
    expected = -math.log(sum(math.exp(x) for x in f[0].tolist()))
    assert energy(f).item() == pytest.approx(expected, abs=1e-9)
    assert energy(f + shift).item() == pytest.approx(expected - shift, abs=1e-9)
    negative = negative_weighted_energy(f, torch.zeros(f.shape[1]))
    assert negative.item() == pytest.approx(-expected, abs=1e-6)


def test_energy_with_temperature() -> None:
    f = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    expected = -2 * math.log(sum(math.exp(x / 2) for x in (1, 2, 3)))
    assert energy(f, temperature=2).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="temperature"):
        energy(f, 0)
