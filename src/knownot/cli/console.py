"""Where the commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knownot.core.alpha import least_calibration
from knownot.data.plain_json import to_json
from knownot.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

_NO_UNKNOWN = 1e-6  # whoever asks for fewer wants none


def stdout() -> Console:
    """Console for results."""
    from rich.console import Console

    return Console()


def stderr() -> Console:
    """Console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True)


def plain(text: object) -> str:
    """A name, or what holds one, as it is: brackets in it are no markup."""
    from rich.markup import escape

    return escape(str(text))


def report_folder(output: Path | None, model: Path, kind: str) -> Path:
    """Where a report goes, by default beside the model.

    Raises:
        DataError: Now, not after the measurement, if it cannot lie there.
    """
    folder = output or model.parent / f"{model.resolve().name}-{kind}"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; give the name of a folder")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return folder
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); choose another place with -o"
        ) from None


def note_if_nothing_is_unknown(calibrated_on: int | None, alpha: float) -> None:
    """Say so where no p-value among so many calibration scores can be below alpha."""
    # A wrong alpha is told where it is used; one so small asks for no unknown.
    if calibrated_on is None or not _NO_UNKNOWN < alpha < 1:
        return
    least = least_calibration(alpha)
    if calibrated_on < least:
        stderr().print(
            f"[yellow]note[/] nothing can be called unknown: alpha {alpha:g} takes calibration on {least} "
            f"or more, the model has {calibrated_on}; train with more validation photos, or raise --alpha",
            soft_wrap=True,
        )


def print_json(data: Any) -> None:
    """One JSON object to standard output; numbers that do not exist become null."""
    print(to_json(data, ensure_ascii=False))


@contextmanager
def photo_progress(
    quiet: bool = False,
) -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """Progress bars with time left, one for each set of photos or video, on standard error."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr(),
        disable=quiet,
        # It would take results that go to a file to standard error, too.
        redirect_stdout=sys.stdout.isatty(),
    )

    def begin(name: str, total: int | None) -> Callable[[int], None]:
        progress.start()  # not before: a process that has no bar to draw leaves the screen alone
        task = progress.add_task(name, total=total)
        return lambda done: progress.advance(task, done)

    try:
        yield begin
    finally:
        if progress.live.is_started:
            progress.stop()


def percent(share: float, digits: int = 1) -> str:
    """A fraction as per cent."""
    return f"{100 * share:.{digits}f} %"
