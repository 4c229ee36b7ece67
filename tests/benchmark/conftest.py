"""Networks, their images, and their saved outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from knownot.benchmark.network_outputs import save_outputs
from tests.benchmark.networks import MEAN, STD, Sets, colours, normalised, trained
from tests.helpers import UNKNOWN_COLOUR, pixels


@pytest.fixture(scope="session")
def sets() -> Sets:
    blue, grey = (normalised(pixels(12, c, 0)) for c in (UNKNOWN_COLOUR, (120, 120, 120)))
    return {
        "train": colours(30, 0),
        "val": colours(30, 100),
        "test": colours(20, 200),
        "near/grey": [(grey, torch.full((12,), 7))],  # labels of an OOD set mean nothing
        "far/blue": [blue[:8], blue[8:]],
    }


@pytest.fixture(scope="session")
def networks() -> dict[int, nn.Module]:
    return {seed: trained(seed) for seed in (0, 1)}


@pytest.fixture(scope="session")
def saved(sets: Sets, networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "networks"
    for seed, network in networks.items():
        save_outputs(folder / "Tiny_1" / str(seed), network, sets, MEAN, STD)
    return folder
