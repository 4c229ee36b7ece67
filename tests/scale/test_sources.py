"""Which photos a job has, and in which order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from knownot.cli.photo_arguments import expand
from knownot.errors import DataError, ScoringError
from knownot.scale.sources import list_photos, listed_in, open_listed


@pytest.mark.parametrize(
    "pattern",
    ["", "*/*", "**/*.png", "**", "red/**/*.png", "*/deeper/0[13579].png", "gr*/**/0?.png", "r*/*"],
)
def test_photos_are_those_of_predict_in_its_order(photos: Path, pattern: str) -> None:
    shutil.copytree(photos / "red", photos / ".hidden")
    source = f"{photos}/{pattern}"
    found = list(list_photos([source]))
    assert found == [str(path) for path in expand([source])]
    assert found


def test_relative_paths_stay_as_they_are_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for sources in (["./red//deeper"], ["*/*.png"], ["red/00.png", "blue/"]):
        assert list(list_photos(sources)) == [str(path) for path in expand(sources)]


def test_uris_name_the_same_photos(photos: Path) -> None:
    local = list(list_photos([f"{photos}/**/*.png"]))
    remote = list(list_photos([f"file://{photos}/**/*.png"]))
    assert remote == [f"file://{path}" for path in local]
    a, b = (open_listed(name, "/", 16) for name in (local[0], remote[0]))
    assert a.tobytes() == b.tobytes()


def test_stores_that_arrow_does_not_know_are_read_by_fsspec(photos: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for path in sorted((photos / "red").glob("*.png")):
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    found = list(list_photos(["memory://bucket/*.png"]))
    assert found == [f"memory://bucket/{name}.png" for name in ("00", "02", "04", "06", "08")]
    assert open_listed(found[0], "/", 16).size == (32, 32)
    with pytest.raises(DataError, match=r"memory://bucket/none.png: no such file"):
        open_listed("memory://bucket/none.png", "/", 16)


@pytest.mark.parametrize("source", ["nowhere/", "*.jpg", "a/[b", "file:///nowhere/**/*.png"])
def test_a_source_of_nothing_is_named(source: str) -> None:
    with pytest.raises(DataError, match="no such file or folder, and no photo matches it") as error:
        list(list_photos([source]))
    assert str(error.value).startswith(source)


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises((DataError, ScoringError), match=r"nostore://bucket/: cannot be opened"):
        list(list_photos(["nostore://bucket/photos"]))


def test_a_list_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("b.jpg\n\n a.jpg\r\ns3://bucket/c d.jpg", encoding="utf-8")
    assert list(listed_in(file)) == ["b.jpg", " a.jpg", "s3://bucket/c d.jpg"]
    for content, reason in ((b"\n", "lists no photo"), (b"\xff\xfe", "not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=reason):
            list(listed_in(file))
    with pytest.raises(DataError, match="No such file"):
        list(listed_in(tmp_path / "none.txt"))
