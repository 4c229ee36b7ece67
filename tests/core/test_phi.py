"""Maps from negative energy: those that cannot turn around, and those that can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from knownot.core.phi import FreeLinear, MonotoneLinear, make_phi

MONOTONE = ("monotone", "monotone-mlp", "shift")


@pytest.mark.parametrize("phi", MONOTONE)
@given(
    seed=st.integers(0, 2**16),
    low=st.floats(-100, 100),
    gap=st.floats(0.01, 50),
)
def test_monotone_phi_increases_whatever_its_parameters(phi, seed, low, gap) -> None:
    torch.manual_seed(seed)
    module = make_phi(phi).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 5)
        a, b = module(torch.tensor([low, low + gap], dtype=torch.float64))
    assert a < b


@pytest.mark.parametrize("phi", MONOTONE)
def test_monotone_phi_starts_near_the_identity(phi) -> None:
    x = torch.linspace(-20, 20, 9)
    assert torch.allclose(make_phi(phi)(x), x, atol=1.5)


def test_free_phi_may_turn_around_and_the_monotone_one_may_not() -> None:
    x = torch.linspace(-3, 3, 50)
    target = -2 * x  # rewards the reverse direction
    slopes = []
    for module in (FreeLinear(), MonotoneLinear()):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            F.mse_loss(module(x), target).backward()
            optimizer.step()
        slopes.append((module(x)[-1] - module(x)[0]).item())
    assert slopes[0] < 0 < slopes[1]
