"""Features kept on disk: what comes back is of these photos, this backbone and this way of reading."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from knownot.data.altered import alter
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.preprocessing import Preprocessing
from knownot.training.feature_cache import extract_features
from tests.helpers import COLOURS, UNKNOWN_COLOUR, colour_folder, noisy, tiny_model


def test_features_come_from_the_cache_and_changed_photos_do_not(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    paths = sorted(colour_folder(tmp_path / "photos", 150).rglob("*.png"))
    model, cache = tiny_model(), tmp_path / "cache"
    done: list[int] = []
    first = extract_features(model, paths, cache, done.append)
    assert sum(done) == 300
    pieces = sorted((cache / "features").iterdir())
    assert len(pieces) == 2
    # Mark the stored rows: what comes back shows where it came from.
    for piece in pieces:
        tensors = load_file(piece)
        save_file({**tensors, "rows": tensors["rows"] + 1}, piece)
    assert torch.equal(extract_features(model, paths, cache).rows, first.rows + 1)

    noisy(UNKNOWN_COLOUR, 1).save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    fresh = extract_features(model, paths, cache).rows
    assert torch.equal(fresh[1:256], first.rows[1:256])  # the changed photo's piece
    assert not torch.equal(fresh[0], first.rows[0])
    assert torch.equal(fresh[256:], first.rows[256:] + 1)  # the other one

    for piece in (cache / "features").iterdir():
        piece.write_bytes(b"damaged")
    assert torch.equal(extract_features(model, paths, cache).rows[1:], first.rows[1:])


def test_features_of_altered_photos_are_kept_apart(tmp_path: Path) -> None:
    paths = sorted(colour_folder(tmp_path / "photos", 3).rglob("*.png"))
    model, cache = tiny_model(), tmp_path / "cache"
    plain = extract_features(model, paths, cache).rows
    kinds = ("inverted", "jigsaw")
    for _ in range(2):  # the second time from the cache
        rows = extract_features(model, paths, cache, altered=kinds).rows
        assert rows.shape == (6, 2, model.backbone_dim)
        photos = torch.stack([model.preprocessing.read(path) for path in paths])
        with torch.no_grad():
            expected = [model.backbone_features(alter(name, photos, seed=0)) for name in kinds]
        torch.testing.assert_close(rows, torch.stack(expected, 1))
    assert torch.equal(extract_features(model, paths, cache).rows, plain)


def test_extraction_leaves_every_module_in_its_mode(tmp_path: Path) -> None:
    paths = sorted(colour_folder(tmp_path / "photos", 3).rglob("*.png"))
    model = tiny_model().train()
    next(model.backbone.children()).eval()  # as frozen norms are kept
    before = [module.training for module in model.modules()]
    extract_features(model, paths)
    assert [module.training for module in model.modules()] == before
    assert set(before) == {False, True}


def test_another_backbone_does_not_meet_old_features(tmp_path: Path) -> None:
    paths = sorted(colour_folder(tmp_path / "photos", 3).rglob("*.png"))
    one, other = (tiny_model(seed=seed) for seed in (0, 1))
    rows = [extract_features(m, paths, tmp_path / "cache").rows for m in (one, other)]
    expected = [extract_features(m, paths).rows for m in (one, other)]
    assert torch.equal(rows[0], expected[0])
    assert torch.equal(rows[1], expected[1])


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    paths = sorted(colour_folder(tmp_path / "photos", 3).rglob("*.png"))
    (tmp_path / "file").touch()
    assert extract_features(tiny_model(), paths, tmp_path / "file").rows.shape == (6, 8)


def test_changed_code_does_not_meet_old_features(tmp_path: Path) -> None:
    folder, cache = colour_folder(tmp_path / "p", 3), tmp_path / "cache"
    paths = sorted(folder.rglob("*.png"))
    model = tiny_model()
    before = extract_features(model, paths, cache).rows
    forward = model.backbone.forward
    model.backbone.forward = lambda images: 1.5 * forward(images)  # the same weights
    after = extract_features(model, paths, cache).rows
    assert not torch.allclose(before, after)
    assert torch.equal(after, extract_features(model, paths).rows)


class Pooled(nn.Module):
    """Means of maps over large photos: noise looks the same to it in any order of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 3, padding=1)
        self.order = [0, 1, 2]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images[:, self.order]).relu().mean((2, 3))


def test_channels_in_another_order_do_not_meet_old_features(tmp_path: Path) -> None:
    paths = sorted(colour_folder(tmp_path / "p", 3).rglob("*.png"))
    torch.manual_seed(0)
    backbone = Pooled()
    model = UnknownAwareClassifier(backbone, 8, list(COLOURS), Preprocessing(image_size=384))
    before = extract_features(model, paths, tmp_path / "cache").rows
    backbone.order = [2, 1, 0]
    after = extract_features(model, paths, tmp_path / "cache").rows
    assert not torch.allclose(before, after)
    assert torch.equal(after, extract_features(model, paths).rows)
