"""Run one of the measurements in this folder: `python -m benchmarks NAME [options]`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob("[a-z]*.py") if "__main__" in p.read_text())


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"{__doc__}\n\nNAME is one of: {', '.join(NAMES)}; NAME --help tells more.")
    name = sys.argv.pop(1)
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
