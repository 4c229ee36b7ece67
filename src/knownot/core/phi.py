"""phi: the learned map from negative energy to the logit of being in-distribution.

The score at test time assumes that lower energy means in-distribution. A phi that is free to turn
its slope around lets the uncertainty loss reward the opposite, so the default ones are increasing.

Reference: Du et al., "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022,
equation 6: a linear map in the authors' code, a 1-512-1 perceptron in the final paper.

All are computed element by element, and no matrix is multiplied: under autocast, and cast to 16 bits,
a phi then keeps the precision of the energies.
"""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PhiName = Literal["monotone", "monotone-mlp", "shift", "free", "free-mlp"]
_HIDDEN = 512
_SOFTPLUS_OF_THIS_IS_ONE = math.log(math.e - 1)


class MonotoneLinear(nn.Module):
    """`softplus(a) s + b`: increasing; starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.raw_slope = nn.Parameter(torch.tensor(_SOFTPLUS_OF_THIS_IS_ONE))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, negative_energy: Tensor) -> Tensor:
        """Map negative energies (N,) to logits (N,)."""
        return F.softplus(self.raw_slope) * negative_energy + self.bias


class MonotoneMLP(nn.Module):
    """Increasing perceptron 1-512-1 with ReLU, beside an increasing linear path.

    All weights are positive through softplus. Half of the hidden units are mirrored, `-relu(-x)`:
    positive combinations of ReLU alone could only bend upwards. The linear path keeps the slope
    away from zero where no unit is active.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = MonotoneLinear()
        self.raw_in = nn.Parameter(torch.full((_HIDDEN,), _SOFTPLUS_OF_THIS_IS_ONE))
        self.thresholds = nn.Parameter(torch.empty(_HIDDEN).uniform_(-10.0, 10.0))
        # softplus(-10) = 5e-5: the sum of all units starts as a small correction.
        self.raw_out = nn.Parameter(torch.full((_HIDDEN,), -10.0))

    def forward(self, negative_energy: Tensor) -> Tensor:
        """Map negative energies (N,) to logits (N,)."""
        hidden = F.softplus(self.raw_in) * negative_energy.unsqueeze(-1) - self.thresholds
        up, down = hidden[..., ::2], hidden[..., 1::2]
        hidden = torch.stack([F.relu(up), -F.relu(-down)], dim=-1).flatten(-2)
        bend: Tensor = (hidden * F.softplus(self.raw_out)).sum(-1)
        straight: Tensor = self.linear(negative_energy)
        return straight + bend


class Shift(nn.Module):
    """`s + b`: the slope stays 1, so that the loss cannot give up by flattening it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, negative_energy: Tensor) -> Tensor:
        """Map negative energies (N,) to logits (N,)."""
        return negative_energy + self.bias


class FreeLinear(nn.Module):
    """`a s + b` with `a` of either sign, as in the authors' code; for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, negative_energy: Tensor) -> Tensor:
        """Map negative energies (N,) to logits (N,)."""
        return self.net.weight[0, 0] * negative_energy + self.net.bias


class FreeMLP(nn.Module):
    """Perceptron 1-512-1 with ReLU and weights of either sign, as in the paper; for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, negative_energy: Tensor) -> Tensor:
        """Map negative energies (N,) to logits (N,)."""
        first, last = (cast(nn.Linear, self.net[i]) for i in (0, 2))
        hidden = F.relu(first.weight[:, 0] * negative_energy.unsqueeze(-1) + first.bias)
        return (hidden * last.weight[0]).sum(-1) + last.bias


def make_phi(name: PhiName) -> nn.Module:
    """Build phi by name: "monotone" (default), "monotone-mlp", "shift", "free" or "free-mlp".

    Raises:
        ValueError: If the name is unknown.
    """
    kinds = {
        "monotone": MonotoneLinear,
        "monotone-mlp": MonotoneMLP,
        "shift": Shift,
        "free": FreeLinear,
        "free-mlp": FreeMLP,
    }
    if name not in kinds:
        raise ValueError(f"phi: expected one of {', '.join(get_args(PhiName))}, got {name!r}")
    return kinds[name]()
