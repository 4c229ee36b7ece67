"""Photos that a detector was validated on, to compare its export on."""

from __future__ import annotations

from pathlib import Path

import yaml

from knownot.data.detection_folder import read_detection_splits
from knownot.errors import KnownotError

_MOST = 16


def validation_photos(model: Path) -> list[Path]:
    """Photos with objects, spread over the data that the model folder's record names.

    Args:
        model: Model folder of a detector.

    Returns:
        Up to 16 files; none if there is no record, or the data are no longer there.
    """
    try:
        record = yaml.safe_load((model / "training" / "config.yaml").read_text(encoding="utf-8"))
        data, share, seed = (record[name] for name in ("data", "val_fraction", "seed"))
        photos = read_detection_splits(data, share, seed).val
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, KnownotError):
        return []
    paths = [path for path, of in zip(photos.paths, photos.objects, strict=True) if len(of.boxes)]
    return paths[:: -(-len(paths) // _MOST) or 1]
