"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knownot.data.kept_files import read_tensors, write_tensors, write_whole
from knownot.errors import DataError


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
