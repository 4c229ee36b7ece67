"""JSON that every reader takes: numbers that are not finite become null."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(data: Any, **how: Any) -> str:
    """`json.dumps` of plain data, indented, with null for NaN and infinity."""
    return json.dumps(_finite(data), indent=2, **how)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
