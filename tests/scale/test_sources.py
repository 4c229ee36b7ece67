"""Which photos a job has."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from knownot.errors import DataError, ScoringError
from knownot.scale.sources import list_photos, open_listed
from tests.helpers import COLOURS, colour_folder

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'knownot[ray]'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`[a]/red/0000.png` and so on; and what is no photo."""
    root = colour_folder(tmp_path / "[a]", 2)
    (root / "red" / "notes.txt").write_text("no photo")
    (root / "red" / ".hidden.png").write_bytes(b"")
    return root


def test_folders_files_and_globs_name_photos_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = [f"{colour}/000{i}.png" for colour in sorted(COLOURS) for i in range(2)]
    assert list_photos("**/*.png") == list_photos("*/*") == names
    assert list_photos(str(folder)) == [f"{folder}/{name}" for name in names]
    assert list_photos("red/notes.txt") == ["red/notes.txt"]  # asked for by name
    with pytest.raises(DataError, match=r"blue/\*: no such file or folder, and no photo matches"):
        list_photos("blue/*")
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no photo"):
        list_photos("empty")


def test_links_that_lead_back_and_folders_like_photos_give_no_photo(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    (folder / "dir.jpg").mkdir()
    found = list_photos(str(folder))
    assert len(found) == 4
    assert not any("again" in name for name in found)
    assert not any(name.endswith("dir.jpg") for name in list_photos(f"{folder.parent}/*/*/*"))


def test_a_folder_of_a_store_is_taken_by_its_name_and_hidden_files_are_left(folder: Path) -> None:
    content = (folder / "red" / "0000.png").read_bytes()
    store = fsspec.filesystem("memory")
    for name in ("a.png", "in/b.png", ".thumbs/a.png", "in/.c.png"):
        store.pipe(f"/odd [1]/.own/{name}", content)
    expected = ["memory:///odd [1]/.own/a.png", "memory:///odd [1]/.own/in/b.png"]
    assert list_photos("memory://odd [1]/.own") == expected
    store.pipe("/plain/.thumbs/a.png", content)
    store.pipe("/plain/b.png", content)
    assert list_photos("memory://plain/**/*.png") == ["memory:///plain/b.png"]


def test_a_store_has_the_same_photos(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        store.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    found = list_photos("memory://bucket/**/*.png")
    assert found == list_photos("memory://bucket")
    assert found == [
        f"memory:///bucket/{Path(p).relative_to(folder)}" for p in list_photos(str(folder))
    ]
    local = folder / "green" / "0000.png"
    assert open_listed(found[0], "/", 16).tobytes() == open_listed(str(local), "/", 16).tobytes()
    with pytest.raises(DataError, match=r"memory://bucket/none.png: no such file"):
        open_listed("memory://bucket/none.png", "/", 16)
    with pytest.raises(ScoringError, match=r"nostore://bucket: cannot be listed \(Protocol not kn"):
        list_photos("nostore://bucket")


def test_a_photo_of_a_store_is_taken_whatever_its_name(folder: Path) -> None:
    content = (folder / "red" / "0000.png").read_bytes()
    store = fsspec.filesystem("memory")
    for name in ("photo", "photo[1].png", "photo1.png", ".own/p1.png"):
        store.pipe(f"/names/{name}", content)
    assert list_photos("memory://names/photo") == ["memory:///names/photo"]
    assert list_photos("memory://names/photo[1].png") == ["memory:///names/photo[1].png"]
    assert list_photos("memory://names/.own/p?.png") == ["memory:///names/.own/p1.png"]


def test_links_that_lead_back_end_globs_too(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / "red" / name).symlink_to(folder)
    assert len(list_photos(f"{glob.escape(str(folder))}/**/*.png")) == 4
