"""Photos altered until they show no class."""

from __future__ import annotations

import pytest
import torch

from knownot.data.altered import ALTERATIONS, alter


@pytest.fixture
def photos() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 3, 21, 34), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_photo_changes_and_stays_a_photo(name: str, photos: torch.Tensor) -> None:
    before = photos.clone()
    altered = alter(name, photos, seed=0)
    assert altered.shape == photos.shape
    assert altered.min() >= 0
    assert altered.max() <= 255
    for old, new in zip(photos, altered, strict=True):
        assert (old.float() - new).abs().mean() > 5
    assert torch.equal(photos, before)
    assert torch.equal(altered, alter(name, photos, seed=0))


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_photo_alone_changes_too(name: str, photos: torch.Tensor) -> None:
    assert (alter(name, photos[:1], seed=0) - photos[:1]).abs().mean() > 5


def test_mixed_photos_are_mixed_with_another(photos: torch.Tensor) -> None:
    for number in range(2, 6):
        x = photos[:number].float()
        partner = 2 * alter("arithmetic mean", photos[:number], seed=number) - x
        which = [[torch.equal(p, other) for other in x].index(True) for p in partner]
        assert sorted(which) == list(range(number))
        assert all(a != b for a, b in enumerate(which))


def test_jigsaw_moves_pixels_and_makes_none(photos: torch.Tensor) -> None:
    altered = alter("jigsaw", photos, seed=0)
    assert torch.equal(altered.flatten(1).sort().values, photos.float().flatten(1).sort().values)


def test_an_unknown_name_is_refused(photos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="jigsaw"):
        alter("blur", photos, seed=0)
