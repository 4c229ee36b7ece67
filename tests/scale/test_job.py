"""The folder of a job, without Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knownot.errors import ScoringError

NAMES = [f"{i}.jpg" for i in range(7)]


def rows_of(names: list[str]) -> pa.Table:
    from knownot.scale.job import ROWS

    rows = [
        {"path": name, "label": "cat", "ood_score": 0.5, "p_value": 0.25, "is_unknown": False}
        for name in names
    ]
    rows[0] = {"path": names[0], "error": "damaged"}
    return pa.Table.from_pylist(rows, ROWS)


def open_job(output: Path, names: list[str] = NAMES):
    from knownot.scale.job import JobDescription, opened

    def describe(checksum: str, number: int) -> JobDescription:
        return JobDescription("model", checksum, number, "combined", 0.05, 3)

    return opened(output, iter(names), describe, 3)


def test_parts_in_any_order_become_one_file_in_that_of_the_list(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    with open_job(output) as job:
        assert [job.size(number) for number in range(len(job))] == [3, 3, 1]
        for number in (2, 0):
            job.write(number, rows_of(NAMES[3 * number :][:3]))
        assert job.missing() == [1]
        job.write(0, rows_of(NAMES[:3]))  # a second time, as by a worker that was taken for dead
        with pytest.raises(ScoringError, match="not those of its photos"):
            job.write(1, rows_of(NAMES[:3]))
    (tmp_path / "scores.parquet.parts" / "00000002.parquet").write_bytes(b"")  # a power cut
    with open_job(output) as job:
        assert job.missing() == [1, 2]
        for number in (1, 2):
            job.write(number, rows_of(NAMES[3 * number :][:3]))
        counts = job.join(lambda done: None)
    assert (counts.photos, counts.unknown, counts.errors) == (7, 0, 3)
    assert pq.read_table(output)["path"].to_pylist() == NAMES
    assert list(tmp_path.iterdir()) == [output]
    with open_job(output) as done:
        assert done == counts


def test_the_same_words_in_another_folder_are_other_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.parquet"
    with open_job(output):
        pass
    with open_job(output):
        pass
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScoringError, match=r"another job \(other photos\)"), open_job(output):
        pass


def test_two_processes_do_not_meet(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    with open_job(output), pytest.raises(ScoringError, match="another process"), open_job(output):
        pass
    with open_job(output) as job:
        assert job.missing() == [0, 1, 2]
