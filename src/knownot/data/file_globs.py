"""Files that a glob names, each once, whatever links lead back."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from knownot.data.image_folder import walk_files


def files_of(pattern: str) -> Iterator[str]:
    """Files that a glob (`*`, `?`, `[a-z]`, `**`) names, in no order; hidden ones below `**` left out.

    Raises:
        DataError: If a folder below `**` may not be read.
    """
    # `glob` by itself would go round links without an end.
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        yield from filter(os.path.isfile, glob.iglob(pattern))
        return
    first = parts.index("**")
    base = os.sep.join(parts[:first])
    for root in filter(os.path.isdir, glob.iglob(base or os.sep) if first else [os.curdir]):
        for name in walk_files(Path(root)):
            below = os.path.relpath(name, root).split(os.sep)
            if (
                not below[-1].startswith(".")
                and _matches(below, parts[first:])
                and os.path.isfile(name)
            ):
                yield os.path.normpath(name)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return patterns[1:] in ([], [""]) or any(
            _matches(names[skipped:], patterns[1:]) for skipped in range(len(names))
        )
    return bool(names) and fnmatch(names[0], patterns[0]) and _matches(names[1:], patterns[1:])
