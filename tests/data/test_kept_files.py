"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knownot.data.kept_files import read_tensors, write_tensors, write_text, write_whole
from knownot.errors import DataError

try:
    import resource
except ImportError:  # Windows
    resource = None


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "below" / "kept.txt"
    write_whole(path, lambda file: file.write_text("old"))

    def interrupted(file: Path) -> None:
        file.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_written_the_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"kept\.txt: cannot be written"):
        write_whole(tmp_path / "file" / "kept.txt", lambda file: file.write_text("x"))


@pytest.mark.skipif(resource is None, reason="this system sets no limit on the size of files")
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.st"
    write_tensors(path, {"rows": torch.zeros(2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"kept\.st: cannot be written"):
            write_tensors(path, {"rows": torch.zeros(100_000)})
        with pytest.raises(DataError, match=r"kept\.txt: cannot be written"):
            write_text(tmp_path / "kept.txt", "a" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.st"]
    assert len(read_tensors(path)["rows"]) == 2


def test_text_may_hold_names_that_are_no_text(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "bear-\udcff.jpg ö")
    assert (tmp_path / "t").read_bytes() == b"bear-\xff.jpg \xc3\xb6"


def test_tensors_come_back_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "kept.st"
    assert read_tensors(path) is None
    rows = torch.randn(3, 4).T  # not contiguous
    write_tensors(path, {"rows": rows})
    kept = read_tensors(path)
    assert kept is not None
    assert torch.equal(kept["rows"], rows)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_tensors(path) is None
