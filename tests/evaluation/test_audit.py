"""Photos in the wrong set: listed first, left out by a person, measured with and without."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from knownot.errors import DataError
from knownot.evaluation.audit import audit
from knownot.evaluation.decisions import read_decisions
from knownot.evaluation.evaluate import evaluate
from knownot.models.classifier import UnknownAwareClassifier
from tests.helpers import COLOURS, UNKNOWN_COLOUR, colour_folder, noisy, tiny_model


class Sets(NamedTuple):
    """Folders, and the photos in them that do not belong there."""

    id: Path
    ood: Path
    known: set[Path]
    unknown: set[Path]


@pytest.fixture(scope="module")
def model() -> UnknownAwareClassifier:
    return tiny_model()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Twenty blue photos and three red ones as OOD; a blue one among the forty green and red ones."""
    root = tmp_path_factory.mktemp("sets")
    known = {root / "ood" / f"red-{i}.png" for i in range(3)}
    unknown = {colour_folder(root / "id", 20, start=300) / "green" / "blue, or so.png"}
    (root / "ood").mkdir()
    for i in range(20):
        noisy(UNKNOWN_COLOUR, i).save(root / "ood" / f"blue-{i}.png")
    for i, path in enumerate(sorted(known)):
        noisy(COLOURS["red"], 700 + i).save(path)
    noisy(UNKNOWN_COLOUR, 99).save(*unknown)
    (root / "ood" / "torn.png").write_text("torn")
    return Sets(root / "id", root / "ood", known, unknown)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def leave_out(file: Path, paths: set[Path], target: Path, delimiter: str = ",") -> Path:
    """The file as a person's spreadsheet writes it, these photos with n."""
    rows = rows_of(file)
    with target.open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "keep": "N " if Path(row["path"]) in paths else "y"})
    return target


def test_what_does_not_belong_comes_first_and_is_left_out(
    model: UnknownAwareClassifier, sets: Sets, tmp_path: Path
) -> None:
    found = audit(model, sets.id, [sets.ood], top=5)
    page = found.save(tmp_path / "audit")
    listed = rows_of(page.with_suffix(".csv"))
    assert [row["set"] for row in listed] == ["ID"] * 5 + ["ood"] * 5
    assert [row["rank"] for row in listed] == list("12345") * 2
    assert {Path(row["path"]) for row in listed[:1]} == sets.unknown
    assert {Path(row["path"]) for row in listed[5:8]} == sets.known
    assert {row["looks_like"] for row in listed[5:8]} == {"red"}
    assert {row["keep"] for row in listed} == {""}
    assert [Path(path).name for path in found.summary["skipped"]] == ["torn.png"]
    assert found.summary["ood"]["ood"]["all"] == found.summary["ood"]["ood"]["kept"]

    decisions = tmp_path / "filled.csv"
    leave_out(page.with_suffix(".csv"), sets.known | sets.unknown, decisions, delimiter=";")
    after = audit(model, sets.id, [sets.ood], top=1, decisions=decisions).summary
    # Measured as if the photos had never been there.
    clean_id, clean_ood = tmp_path / "id", tmp_path / "ood"
    for source, target in ((sets.id, clean_id), (sets.ood, clean_ood)):
        shutil.copytree(source, target)
        for path in sets.known | sets.unknown:
            if path.is_relative_to(source):
                (target / path.relative_to(source)).unlink()
    clean = evaluate(model, clean_id, [clean_ood]).summary
    row = after["ood"]["ood"]
    assert row["kept"] == pytest.approx(clean["ood"]["ood"]["scores"]["combined"])
    assert after["id"]["accuracy"]["kept"] == clean["id_acc"]
    assert row["all"] == found.summary["ood"]["ood"]["all"]
    assert row["all"]["fpr95"] > row["kept"]["fpr95"]
    assert (row["n"], row["left_out"], after["id"]["left_out"]) == (23, 3, 1)
    # Beyond the first are listed those that were left out.
    assert {Path(r["path"]) for r in after["listed"]} == sets.known | sets.unknown


def test_decisions_of_a_person_are_not_overwritten(
    model: UnknownAwareClassifier, sets: Sets, tmp_path: Path
) -> None:
    found = audit(model, sets.id, [sets.ood])
    file = found.save(tmp_path).with_suffix(".csv")
    found.save(tmp_path)  # nobody has decided anything
    filled = leave_out(file, sets.known, file).read_bytes()
    with pytest.raises(DataError, match="holds decisions already"):
        found.save(tmp_path)
    audit(model, sets.id, [sets.ood], decisions=file).save(tmp_path)
    assert file.read_bytes() == filled
    assert json.loads((tmp_path / "audit.json").read_text())["ood"]["ood"]["left_out"] == 3


def test_wrong_decisions_are_named(
    model: UnknownAwareClassifier, sets: Sets, tmp_path: Path
) -> None:
    file = tmp_path / "audit.csv"
    for text, match in (
        ("path,keep\na.jpg,maybe\n", "line 2: keep is 'maybe'"),
        ("a,b\n", "no columns path and keep"),
        ("keep,path\nn\n", "line 2: no path"),
        ('path,keep\n"a.jpg,y\n' + "x" * 200_000, "line 1: field larger than"),
        ("path,keep\na\0.jpg,y\n", "line 2: .*null byte"),
        ("path,keep\na.jpg,y\na.jpg,n\n", r"line 3: keep is 'n', and was the opposite .*a\.jpg"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=match):
            read_decisions(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_decisions(tmp_path / "nothing.csv")
    for cells in ("n,", ",n", "n,n"):  # of a photo that two sets list
        file.write_text("path,keep\n" + "".join(f"a.jpg,{cell}\n" for cell in cells.split(",")))
        assert [*read_decisions(file).values()] == [False]
    file.write_text("path,keep\nelsewhere.jpg,n\n")
    with pytest.raises(DataError, match="none of the 1 photos with keep n is in these folders"):
        audit(model, sets.id, [sets.ood], decisions=file)
    file.write_text("path,keep\n" + "".join(f'"{p}",n\n' for p in sets.id.rglob("*.png")))
    with pytest.raises(DataError, match="leaves no ID photo"):
        audit(model, sets.id, [sets.ood], decisions=file)


def test_the_page_needs_nothing_else_and_its_download_is_read(
    model: UnknownAwareClassifier, sets: Sets, tmp_path: Path
) -> None:
    page = audit(model, sets.id, [sets.ood], top=4).save(tmp_path)
    text = page.read_text()
    assert text.count("data:image/jpeg") == 8
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text)
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a browser: chromium or google-chrome")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = started.new_page()
        opened.goto(page.as_uri())
        for path in sets.known | sets.unknown:
            opened.locator("figure", has_text=path.name).locator("label").click()
        assert "4 of 8" in opened.locator("#count").inner_text()
        with opened.expect_download() as download:
            opened.get_by_role("button", name="Download decisions").click()
        download.value.save_as(tmp_path / "downloaded.csv")
        started.close()
    decided = read_decisions(tmp_path / "downloaded.csv")
    assert {path for path, keep in decided.items() if keep is False} == sets.known | sets.unknown
    assert len(decided) == 8
