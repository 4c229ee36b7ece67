"""How the learning rates go during a training."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimizer: Optimizer, steps: int, warmup: float) -> OneCycleLR:
    """One cosine cycle of every group's learning rate, after a share of the steps of warm-up."""
    steps = max(2, steps)
    if warmup * steps == 1:  # a warm-up of a single step divides by zero in torch
        warmup *= 1.5
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=steps, pct_start=warmup)
