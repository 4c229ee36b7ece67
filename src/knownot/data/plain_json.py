"""JSON that every reader takes: numbers that are not finite become null."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_json(data: Any, **how: Any) -> str:
    """`json.dumps` of plain data, indented, with null for NaN and infinity.

    Names of files that are no text are written with escapes, which JSON reads back.
    """
    text = json.dumps(_finite(data), indent=2, **how)
    if how.get("ensure_ascii", True) or not _SURROGATE.search(text):
        return text
    return json.dumps(_finite(data), indent=2)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
