"""Globs name what Python's own name, but end where links lead back."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest

from knownot.data.file_globs import files_of

PATTERNS = """
    *.png */* a/*.png ** **/*.png a/** a/**/*.png **/b/* **/b/**/*.p?g */**/2.png **/**/*.txt
    **/[ab]/[0-9].png none/**/*.png ./a/**/*.png .h/**
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "top.png",
        "a/1.png",
        "a/b/2.png",
        "a/b/3.txt",
        "c[1]/b/4.png",
        ".h/5.png",
        "a/.6.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pattern", PATTERNS.split())
def test_the_files_are_those_of_python_s_glob(tree: Path, pattern: str) -> None:
    (tree / "elsewhere").unlink()
    for full in (pattern, os.path.join(glob.escape(str(tree)), pattern)):
        expected = {
            os.path.normpath(n) for n in glob.glob(full, recursive=True) if os.path.isfile(n)
        }
        found = list(map(os.path.normpath, files_of(full)))
        assert sorted(found) == sorted(expected)


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    (tree / "c[1]" / "up").symlink_to(tree)
    assert sorted(files_of("**/*.png")) == ["a/1.png", "a/b/2.png", "c[1]/b/4.png", "top.png"]
    assert list(files_of("elsewhere/**/*.png")) == ["elsewhere/2.png"]
