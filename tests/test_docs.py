"""The documentation: the site builds strictly and is whole, its commands parse, its code runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from typer.testing import CliRunner

from knownot.cli.main import app
from tests.conftest import link_photos

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def commands(shell: str) -> Iterator[list[str]]:
    """Arguments of the `knownot` commands in a block of shell."""
    for line in shell.replace("\\\n", " ").splitlines():
        if line.startswith("knownot "):
            yield shlex.split(line, comments=True)[1:]


def run_commands(example: Example) -> None:
    for arguments in commands(example.parsed):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)


def run_page(name: str, *, shell: bool = False) -> dict:
    """Run a page's Python, and its commands too if wanted; what its variables are then."""
    parsers = [PythonCodeBlockParser(), SkipParser()]
    if shell:
        parsers.append(CodeBlockParser("bash", run_commands))
    document = Sybil(parsers).parse(DOCS / name)
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()
    return document.namespace


class Loaded(HTMLParser):
    """Addresses that a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        wanted = [given.get("src"), given.get("srcset"), given.get("poster")]
        if tag == "link" and given.get("rel") != "canonical":
            wanted.append(given.get("href"))
        self.addresses += [address for address in wanted if address]


def test_the_site_builds_strictly_and_fetches_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = Loaded()
    for page in tmp_path.rglob("*.html"):
        loaded.feed(page.read_text())
    for sheet in tmp_path.rglob("*.css"):
        loaded.addresses += re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")]+)", sheet.read_text())
    assert any(address.endswith("toy.png") for address in loaded.addresses)
    assert not [address for address in loaded.addresses if re.match(r"(https?:)?//", address)]
    reference = (tmp_path / "api" / "index.html").read_text()
    assert "Binary cross-entropy" not in reference  # internal names stay out
    for name in ("VirtualOutlierLoss", "ConformalCalibration", "OnnxClassifier", "fpr95"):
        assert re.search(rf'id="knownot\.[\w.]*{name}"', reference), name
    assert "../contributing/#real-photos" in (tmp_path / "results" / "index.html").read_text()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name
)
def test_documented_commands_have_valid_options(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for name, *arguments in commands(block):
            known[name].make_context(name, arguments)


def test_the_training_loops_run_and_tell_known_from_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = run_page("training_loop.md")
    for loop in ("plain", "lightning", "transformer"):
        accuracy, known, unseen = variables[loop]
        assert accuracy > 0.9, loop
        assert known < 0.12, loop
        assert unseen > 0.3, loop
    assert variables["loaded"].classes == list("01234567")


@pytest.mark.photos
def test_the_pages_about_photos_run(
    cats_dogs: Path, ood_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one folder, one after the other: the tutorial trains the model that the others load."""
    monkeypatch.chdir(tmp_path)
    for name in ("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog"):
        link_photos(cats_dogs / name, Path("photos", name), 20)
    for name in ("people", "textures"):
        link_photos(ood_photos / name, Path(name), 20)
    Path("new").mkdir()
    for name, source in (("a.jpg", "photos/test/cat"), ("b.jpg", "people")):
        shutil.copy(sorted(Path(source).iterdir())[0], name)
        shutil.copy(name, "new")
    run_page("cats_dogs.md", shell=True)
    assert {path.name for path in Path("seen").iterdir()} == {"a.jpg", "b.jpg"}
    assert Path("report/report.html").exists()
    scores = run_page("scores.md")
    assert len(scores["known"]) == 40
    for page in ("index.md", "ja/quickstart.md"):
        run_page(page)
