"""Scores of one's own: measured as the package's are, anew when their file changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from knownot.benchmark.config import BenchmarkConfig, load_config, shipped
from knownot.benchmark.results import read_rows
from knownot.benchmark.run import run_benchmark
from knownot.benchmark.workplace import Workplace
from knownot.data.kept_files import read_tensors
from knownot.errors import ConfigError
from tests.helpers import UNKNOWN_COLOUR, colour_folder, noisy
from tests.pages import DOCS, blocks

SETTINGS = """\
name: own
about: Red and green
known: colours
training:
  recipe: photos
  settings: {image_size: 32, epochs: 5, batch_size: 16, queue_size: 20, device: cpu}
own_scores: {own-energy: mine.py:energy, confidence: mine.py:confidence}
methods:
  cross-entropy: [energy, own-energy, confidence]
far: [blue]
seeds: [0]
replicates: 20
"""
CODE = """\
from helper import TEMPERATURE


def energy(fitted):
    assert len(fitted.train) == 60 and len(fitted.val) == 40
    return lambda arrays: -TEMPERATURE * (arrays.logits / TEMPERATURE).logsumexp(1)


def confidence(fitted):
    def scorer(arrays):
        return 1 - arrays.logits.softmax(1).amax(1).detach().numpy()
    return scorer
"""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    for split, count, start in (("train", 30, 0), ("val", 20, 100), ("test", 20, 200)):
        colour_folder(tmp_path / "data" / "colours" / split, count, start)
    (tmp_path / "data" / "ood" / "blue").mkdir(parents=True)
    for i in range(10):
        noisy(UNKNOWN_COLOUR, i).save(tmp_path / "data" / "ood" / "blue" / f"{i}.png")
    (tmp_path / "own.yaml").write_text(SETTINGS)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("TEMPERATURE = 1.0\n")
    return again(tmp_path)


def again(folder: Path) -> Workplace:
    config = load_config(str(folder / "own.yaml"))
    return Workplace(config, folder / "data", folder / "out", folder / "cache")


def values(place: Workplace, score: str) -> list[float]:
    rows = read_rows(place.output / "results.csv")
    return [r.value for r in rows if r.score == score]


def test_a_score_of_ones_own_is_measured_beside_the_others(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # files are found beside the settings
    result = run_benchmark(place)
    assert not result.failed
    assert values(place, "own-energy") == values(place, "energy") != []
    assert result.summary.line("cross-entropy", "confidence", "blue", "fpr95") is not None
    assert "own-energy" in result.report.read_text()
    own, ours = (
        read_tensors(place.scores_file("cross-entropy", 0, name))
        for name in ("own-energy", "energy")
    )
    assert own is not None
    assert ours is not None
    assert own["blue"].allclose(ours["blue"])

    # The same command measures nothing again; a changed file is another score.
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "scores").rglob("*.st")}
    run_benchmark(again(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    (tmp_path / "mine.py").write_text(CODE.replace("-TEMPERATURE", "TEMPERATURE"))
    changed = again(tmp_path)
    reversed_ = run_benchmark(changed).summary
    line = reversed_.line("cross-entropy", "own-energy", "blue", "auroc")
    before = result.summary.line("cross-entropy", "own-energy", "blue", "auroc")
    assert line is not None
    assert before is not None
    assert line.mean == pytest.approx(1 - before.mean, abs=1e-5)
    assert line.mean != pytest.approx(before.mean, abs=0.1)
    settings = place.output / "settings.yaml"
    assert load_config(str(settings)).own_scores == changed.config.own_scores


def test_a_score_changes_nothing_that_others_read_and_sees_no_label(
    place: Workplace, tmp_path: Path
) -> None:
    spoiling = """\
def energy(fitted):
    fitted.model.head.weight.data.zero_()
    fitted.train.logits.zero_()
    def scorer(arrays):
        assert (arrays.labels == -1).all()
        return arrays.logits.mul_(0).sum(1) + arrays.features.zero_().sum(1)
    return scorer


"""
    confidence = CODE[CODE.index("def confidence") :]
    (tmp_path / "mine.py").write_text(spoiling + confidence)
    text = SETTINGS.replace("[energy, own-energy,", "[own-energy, energy, msp, MSP,")
    (tmp_path / "own.yaml").write_text(text)
    result = run_benchmark(again(tmp_path))
    assert not result.failed
    assert set(values(place, "own-energy")) == {1.0, 0.5, *values(place, "own-energy")}
    assert values(place, "confidence") == values(place, "msp") == values(place, "MSP")
    assert values(place, "energy") != values(place, "own-energy")


def test_each_folder_has_its_own_helpers_and_a_changed_one_is_another_score(
    place: Workplace, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(CODE)
    (other / "helper.py").write_text("TEMPERATURE = -1.0\n")
    text = SETTINGS.replace("confidence: mine.py:confidence", "confidence: other/mine.py:energy")
    (tmp_path / "own.yaml").write_text(text)
    run_benchmark(again(tmp_path))
    here, there = values(place, "own-energy"), values(place, "confidence")
    assert here != there
    (tmp_path / "helper.py").write_text("TEMPERATURE = -1.0\n")
    (tmp_path / "out" / "results.csv").unlink()
    run_benchmark(again(tmp_path))
    assert values(place, "own-energy") == there == values(place, "confidence")


def test_the_example_of_the_page_runs(place: Workplace, tmp_path: Path) -> None:
    page = DOCS / "benchmark.md"
    (code,) = blocks(page, "python")
    (example,) = (yaml.safe_load(b) for b in blocks(page, "yaml") if "own_scores" in b)
    assert example.pop("like") in shipped()
    (tmp_path / "my_scores.py").write_text(code)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(yaml.safe_load(SETTINGS) | example))
    result = run_benchmark(again(tmp_path))
    assert not result.failed
    assert result.summary.line("vos", "feature-norm", "blue", "fpr95") is not None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def energy(fitted):\n    return lambda arrays: arrays.logits\n", "one number for each"),
        (
            "def energy(fitted):\n    raise ZeroDivisionError('no idea')\n",
            "ZeroDivisionError: no idea (line 2)",
        ),
        ("def energy(fitted):\n    raise SystemExit(3)\n", "SystemExit: 3 (line 2)"),
        (
            "def energy(fitted):\n    return lambda arrays: arrays.logits[:, 0] * float('nan')\n",
            "scores of known are NaN",
        ),
    ],
)
def test_one_that_fails_does_not_lose_the_others(
    place: Workplace, tmp_path: Path, code: str, reason: str
) -> None:
    confidence = CODE[CODE.index("def confidence") :]
    (tmp_path / "mine.py").write_text(f"{code}\n\n{confidence}")
    failed = run_benchmark(again(tmp_path)).failed
    assert list(failed) == ["cross-entropy, own-energy"]
    assert reason in failed["cross-entropy, own-energy"]
    assert values(place, "confidence")


def test_one_that_fails_with_some_seed_is_told_with_it(place: Workplace, tmp_path: Path) -> None:
    code = """from pathlib import Path
def energy(fitted):
    once = Path(__file__).with_name("once")
    if once.exists():
        raise ValueError("not again")
    once.touch()
    return lambda arrays: -arrays.logits.logsumexp(1)
"""
    (tmp_path / "mine.py").write_text(code + CODE[CODE.index("def confidence") :])
    (tmp_path / "own.yaml").write_text(SETTINGS.replace("seeds: [0]", "seeds: [0, 1]"))
    failed = run_benchmark(again(tmp_path)).failed
    assert list(failed) == ["cross-entropy, own-energy, seed 1"]
    assert "seed 1: ValueError: not again" in (place.output / "report.md").read_text()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent_module\n", "fails: ModuleNotFoundError"),
        ("energy = 3\ndef confidence(fitted): ...\n", "has no function energy"),
        ("def energy(", "fails: SyntaxError"),
        ("raise SystemExit(3)", r"fails: SystemExit: 3 \(line 1\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_trained(
    place: Workplace, tmp_path: Path, code: str, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ConfigError, match=rf"mine\.py {reason}"):
        run_benchmark(place)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"mine\.py cannot be read"):
        run_benchmark(place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"energy": "mine.py:f"}, "'energy' cannot name a score of your own"),
        ({"Mine": "mine.py:f"}, "'Mine' cannot name a score of your own"),
        ({"mine": "mine:f"}, "expected file.py:function"),
        ({"mine": "os.system"}, "expected file.py:function"),
        ({"mine": "mine.py:a b"}, "expected file.py:function"),
        ({"mine": 3}, "own_scores"),
        (["mine.py:f"], "own_scores"),
    ],
)
def test_wrong_entries_are_told(own: object, reason: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"like": "cats_dogs", "own_scores": own}))
    with pytest.raises(ConfigError, match=reason):
        load_config(str(tmp_path / "own.yaml"))


def test_a_score_that_nobody_named_is_told(place: Workplace) -> None:
    values = place.config.model_dump() | {"own_scores": {}}
    with pytest.raises(ValueError, match="'own-energy' is none of"):
        BenchmarkConfig(**values)
