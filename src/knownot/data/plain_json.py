"""JSON that every reader takes: numbers that are not finite become null."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_json(data: Any, *, indent: int | None = 2, ensure_ascii: bool = True) -> str:
    """`json.dumps` of plain data, with null for NaN and infinity.

    Names of files that are no text are written with escapes, which JSON reads back.
    """
    text = json.dumps(_finite(data), indent=indent, ensure_ascii=ensure_ascii)
    if ensure_ascii or not _SURROGATE.search(text):
        return text
    return to_json(data, indent=indent)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
