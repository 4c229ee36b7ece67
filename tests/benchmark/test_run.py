"""The whole of a benchmark on small real files: numbers, reports, and what is not done twice."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from knownot.benchmark import scores
from knownot.benchmark.config import BenchmarkConfig, OwnTraining
from knownot.benchmark.image_sets import ood_images
from knownot.benchmark.protocols import PROTOCOLS
from knownot.benchmark.report import Table, main_tables
from knownot.benchmark.results import read_rows
from knownot.benchmark.run import run_benchmark
from knownot.benchmark.workplace import Workplace
from knownot.data.kept_files import read_tensors
from knownot.errors import ConfigError, DataError, KnownotError
from knownot.models.model_folder import load
from tests.helpers import UNKNOWN_COLOUR, cifar_tar, colour_folder, noisy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split, count, start in (("train", 30, 0), ("val", 40, 100), ("test", 20, 200)):
        colour_folder(root / "colours" / split, count, start)
    for name, colour in (("blue", UNKNOWN_COLOUR), ("yellow", (200, 200, 40))):
        (root / "ood" / name).mkdir(parents=True)
        for i in range(12):
            noisy(colour, i).save(root / "ood" / name / f"{i:02}.png")
    (root / "ood" / "yellow" / "damaged.png").write_bytes(b"no picture")
    cifar_tar(root / "cifar10.tar.gz", {"train": 60, "test": 20})
    return root


def photo_config(**changes) -> BenchmarkConfig:
    settings = {"image_size": 32, "epochs": 10, "batch_size": 16, "queue_size": 20}
    settings |= {"draws_per_class": 500}
    values = {
        "name": "colours",
        "about": "Red and green",
        "known": "colours",
        "training": {"recipe": "photos", "settings": settings | {"device": "cpu"}},
        "methods": {
            "cross-entropy": ["MSP", "energy", "ODIN"],
            "vos": ["energy", "combined"],
            "vos-pytorch-ood": ["energy"],
            "mixed": {
                "about": "Mixup, β = 1",
                "settings": {"outliers": "mixup", "vos_weight": 1.0},
                "scores": ["energy"],
            },
        },
        "near": ["yellow", "uniform_noise"],
        "far": ["blue"],
        "apart": ["uniform_noise"],
        "seeds": [0, 1],
        "max_images": 20,
        "replicates": 50,
    }
    return BenchmarkConfig(**values | changes)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(
        photo_config(), data, tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("features")
    )
    result = run_benchmark(place)
    assert set(result.failed) == {"cross-entropy, ODIN"}
    return place


def times(folder: Path) -> dict[str, int]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


def test_every_number_has_one_row(finished: Workplace) -> None:
    rows = read_rows(finished.output / "results.csv")
    of_methods = {(r.training, r.score, r.seed, r.set, r.metric) for r in rows}
    assert len(of_methods) == len(rows)
    # Four trainings' accuracy and six scores with three metrics on three sets, two seeds.
    assert len(rows) == 2 * (4 + 6 * 3 * 3)
    assert {r.n_ood for r in rows if r.set == "yellow"} == {12}  # the damaged one is left out
    assert {(r.group, r.averaged) for r in rows if r.set == "uniform_noise"} == {("near", False)}
    assert all("knownot" in r.versions and "torch" in r.versions for r in rows)
    accuracy = [r.value for r in rows if r.metric == "accuracy"]
    assert min(accuracy) > 0.9


def test_a_number_is_the_protocols_of_the_scores_kept(finished: Workplace) -> None:
    kept = read_tensors(finished.scores_file("vos", 1, "combined"))
    assert kept is not None
    expected = PROTOCOLS["paper"].measure(kept["known"], kept["blue"], "blue")
    rows = read_rows(finished.output / "results.csv")
    found = {
        r.metric: r.value
        for r in rows
        if (r.training, r.score, r.seed, r.set) == ("vos", "combined", 1, "blue")
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_means_leave_out_what_is_apart(finished: Workplace) -> None:
    with (finished.output / "summary.csv").open() as file:
        lines = {
            line["set"]: line
            for line in csv.DictReader(file)
            if (line["training"], line["score"], line["metric"]) == ("vos", "combined", "fpr95")
        }
    assert set(lines) == {"yellow", "uniform_noise", "blue", "mean", "near", "far"}
    mean = {name: float(line["mean"]) for name, line in lines.items()}
    assert mean["near"] == mean["yellow"]
    assert mean["mean"] == pytest.approx((mean["yellow"] + mean["blue"]) / 2)
    for line in lines.values():
        assert float(line["low"]) <= float(line["high"])
        assert line["seeds"] == "2"


def test_the_reports_say_what_was_done(finished: Workplace) -> None:
    text = (finished.output / "report.md").read_text()
    assert "**combined (ours)**" in text
    assert "| Mixup, β = 1 |" in text
    assert "needs the gradient with respect to the pixels" in text
    assert "seeds 0, 1" in text
    assert "in no mean: uniform_noise" in text
    page = (finished.output / "report.html").read_text()
    assert page.count("<table>") == 4
    for heading in ("AUROC, near", "AUROC, far", "AUPR in, mean"):
        assert f"| {heading} |" in text
    assert "data:image/png;base64," in page


def test_a_second_run_measures_nothing_again(finished: Workplace) -> None:
    before = times(finished.output)
    results = (finished.output / "results.csv").read_text()
    run_benchmark(finished)
    after = times(finished.output)
    assert {n: t for n, t in after.items() if "/" in n} == {
        n: t for n, t in before.items() if "/" in n
    }
    assert (finished.output / "results.csv").read_text() == results


def test_another_score_and_another_protocol_train_nothing(finished: Workplace) -> None:
    models = times(finished.output / "models")
    methods = {**finished.config.methods, "vos": ["energy", "combined", "kNN"]}
    more = Workplace(
        finished.config.model_copy(update={"methods": methods}),
        finished.data,
        finished.output,
        finished.cache,
    )
    before = len(read_rows(finished.output / "results.csv"))
    assert run_benchmark(more).summary.line("vos", "kNN", "mean", "fpr95") is not None
    assert len(read_rows(finished.output / "results.csv")) == before + 2 * 3 * 3
    before = times(finished.output)
    result = run_benchmark(more, "openood")
    assert result.summary.line("vos", "kNN", "mean", "fpr95_ood_positive") is not None
    reports = {"report.md", "report.html", "summary.csv"}  # those of the paper's protocol stay
    assert {name: times(finished.output)[name] for name in reports} == {
        name: before[name] for name in reports
    }
    assert result.report.name == "report-openood.html"
    assert "FPR95, OOD positive" in (finished.output / "report-openood.md").read_text()
    assert "fpr95_ood_positive" in (finished.output / "summary-openood.csv").read_text()
    assert times(finished.output / "models") == models


def test_sets_that_are_added_moved_or_cut_are_in_the_report(
    finished: Workplace, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished.output, tmp_path / "out"))
    models = times(output / "models")
    changes = {"near": ["uniform_noise"], "far": ["blue", "gaussian_noise", "yellow"]}
    config = finished.config.model_copy(update=changes)
    place = Workplace(config, finished.data, output, finished.cache)
    summary = run_benchmark(place).summary
    for name in config.sets:
        assert summary.line("vos", "energy", name, "fpr95") is not None
    values = [summary.line("vos", "energy", name, "auroc").mean for name in config.far]
    for group in ("far", "mean"):  # uniform noise, now alone, is apart
        assert summary.line("vos", "energy", group, "auroc").mean == pytest.approx(sum(values) / 3)
    assert summary.line("vos", "energy", "near", "auroc") is None
    for most, counted in ((5, {5}), (20, {12, 20})):
        place = Workplace(
            config.model_copy(update={"max_images": most}), finished.data, output, finished.cache
        )
        again = run_benchmark(place).summary
        rows = [row for row in read_rows(output / "results.csv") if row.protocol == "paper"]
        assert {row.n_ood for row in rows if row.score in ("energy", "combined")} == counted
    assert again.line("vos", "energy", "blue", "auroc") == summary.line(
        "vos", "energy", "blue", "auroc"
    )
    assert times(output / "models") == models


def test_numbers_of_other_images_or_of_two_runs_are_not_mixed(
    finished: Workplace, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(finished.data, tmp_path / "data"))
    place = Workplace(finished.config, moved, finished.output, finished.cache)
    with pytest.raises(
        ConfigError, match=r"holds numbers of the images in .*choose another folder"
    ):
        run_benchmark(place)
    with (
        FileLock(finished.output / "lock"),
        pytest.raises(ConfigError, match="another benchmark is writing there"),
    ):
        run_benchmark(finished)


def test_numbers_of_photos_that_changed_are_not_mixed(finished: Workplace, tmp_path: Path) -> None:
    data, output = (
        Path(shutil.copytree(folder, tmp_path / name))
        for folder, name in ((finished.data, "data"), (finished.output, "out"))
    )
    (output / "data.txt").write_text(
        f"{data}\n"
    )  # as a run of before photos were looked at left it
    place = Workplace(finished.config, data, output, finished.cache)
    rows = (output / "results.csv").read_bytes()
    run_benchmark(place)
    next((data / "ood" / "blue").iterdir()).unlink()
    with pytest.raises(ConfigError, match="blue: the photos have changed"):
        run_benchmark(place)
    assert (output / "results.csv").read_bytes() == rows


@pytest.mark.parametrize("key", ["seed", "output"])
def test_settings_that_the_benchmark_makes_are_refused(
    finished: Workplace, tmp_path: Path, key: str
) -> None:
    own = OwnTraining(about="own", settings={key: 1}, scores=["energy"])
    config = finished.config.model_copy(update={"methods": {"own": own}})
    place = Workplace(config, finished.data, tmp_path / "out", finished.cache)
    with pytest.raises(ConfigError, match=f"own: {key} is the benchmark's own"):
        run_benchmark(place)


def test_a_bar_in_a_name_is_no_column() -> None:
    table = Table("t", ["training", "cats|dogs"], [["β | γ", "1"]], [0])
    _, _, headings, _, row = table.markdown().splitlines()
    assert headings == r"| training | cats\|dogs |"
    assert row == r"| **β \| γ** | **1** |"


def test_a_set_is_looked_for_among_the_data_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blue").mkdir()
    noisy(UNKNOWN_COLOUR, 0).save(tmp_path / "blue" / "other.png")
    monkeypatch.chdir(tmp_path)
    assert len(ood_images("blue", data, 100)) == 12
    assert len(ood_images(str(tmp_path / "blue"), data, 100)) == 1


def test_ctrl_c_loses_no_finished_score(data: Path, tmp_path: Path, monkeypatch) -> None:
    """The third score is interrupted: the second run computes from it on."""
    config = photo_config(methods={"vos": ["energy", "msp", "vos"]}, seeds=[0])
    place = Workplace(config, data, tmp_path / "out", tmp_path / "features")
    asked = []

    def interrupted(fitted):
        asked.append("vos")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return scores.OURS["vos"](fitted)

    monkeypatch.setitem(scores.SCORES, "vos", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(place)
    before = times(place.output / "models") | times(place.output / "scores")
    assert len([name for name in before if name.endswith(".st")]) == 2
    run_benchmark(place)
    after = times(place.output / "models") | times(place.output / "scores")
    assert {name: after[name] for name in before} == before
    assert len(read_rows(place.output / "results.csv")) == 1 + 3 * 3 * 3


def test_small_images_run_from_archive_to_report(data: Path, tmp_path: Path) -> None:
    training = {"recipe": "small_images", "depth": 10, "width": 1, "dropout": 0.0, "epochs": 4}
    training |= {"batch_size": 16, "val_images": 30, "device": "cpu"}
    config = photo_config(
        known="cifar10",
        training=training,
        methods={"cross-entropy": ["ODIN", "energy"], "vos": ["combined"]},
        near=["yellow"],
        far=["uniform_noise"],
        apart=[],
        seeds=[0],
    )
    place = Workplace(config, data, tmp_path / "out")
    result = run_benchmark(place)
    assert not result.failed
    accuracy = result.summary.line("vos", "", "known", "accuracy")
    assert accuracy is not None
    assert accuracy.mean > 0.9
    kept = read_tensors(place.scores_file("cross-entropy", 0, "ODIN"))
    assert kept is not None
    assert {name: len(values) for name, values in kept.items()} == {
        "known": 40, "yellow": 12, "uniform_noise": 20,
    }  # fmt: skip
    # A model that is loaded gives what the trained one gave.
    place.scores_file("vos", 0, "combined").unlink()
    (place.output / "results.csv").unlink()
    for file in (place.output / "arrays").rglob("*.st"):
        file.unlink()
    again = run_benchmark(place).summary
    line = result.summary.line("vos", "combined", "mean", "fpr95")
    assert again.line("vos", "combined", "mean", "fpr95") == line
    assert torch.is_tensor(kept["known"])


def test_a_training_of_ones_own_is_trained_with_its_settings(finished: Workplace) -> None:
    settings = load(finished.model_folder("mixed", 0)).vos_settings
    assert (settings.outliers, settings.weight) == ("mixup", 1.0)
    assert load(finished.model_folder("vos", 0)).vos_settings.outliers == "gaussian"


def test_own_tables_compare_what_they_list(finished: Workplace) -> None:
    trainings = ["vos", "mixed"]
    tables = {"Where outliers come from": trainings}
    summary = run_benchmark(finished).summary
    config = finished.config.model_copy(update={"tables": tables})
    (table,) = main_tables(config, "paper", summary)
    assert table.headings[:2] == ["training", "accuracy"]
    assert "energy (ours), near" in table.headings
    assert [row[0] for row in table.rows] == [config.training_of(t).about for t in trainings]
    cell = table.rows[1][table.headings.index("energy (ours), far")]
    line = summary.line("mixed", "energy", "far", "fpr95")
    assert line is not None
    assert line.std is not None
    assert cell == f"{100 * line.mean:.1f} ± {100 * line.std:.1f}"
    assert table.chosen == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "methods": {
                    "mine": {"about": "x", "settings": {"vos_wieght": 1}, "scores": ["ours"]}
                }
            },
            "did you mean vos_weight",
        ),
        ({"known": "nowhere"}, "nowhere: no such folder"),
        ({"far": ["nothing"]}, "holds no set 'nothing'"),
    ],
)
def test_wrong_paths_are_told_before_anything_is_trained(
    data: Path, tmp_path: Path, changes, message: str
) -> None:
    place = Workplace(photo_config(**changes), data, tmp_path / "out")
    with pytest.raises(KnownotError, match=message):
        run_benchmark(place)
    assert not (tmp_path / "out" / "models").exists()


def test_a_foreign_results_file_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"results\.csv: is no results file"):
        run_benchmark(Workplace(photo_config(), data, tmp_path))
    assert (tmp_path / "results.csv").read_text() == "a,b\n1,2\n"
