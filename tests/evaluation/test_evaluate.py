"""Numbers, files and bad input of an evaluation, on a small real model."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from knownot.errors import ConfigError, DataError
from knownot.evaluation.evaluate import Report, evaluate, score_photos
from knownot.evaluation.figures import roc_curves
from knownot.evaluation.html import thumbnail
from knownot.evaluation.measures import binomial_interval
from knownot.evaluation.report import set_names
from knownot.models.classifier import UnknownAwareClassifier
from tests.helpers import COLOURS, UNKNOWN_COLOUR, colour_folder, noisy, tiny_model

METRICS = {"fpr95", "fpr95_ood_positive", "auroc", "aupr_in", "aupr_out"}


@pytest.fixture(scope="module")
def model() -> UnknownAwareClassifier:
    return tiny_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`id` with two classes, `ood/blue` unlike them, `ood/again/blue` of the same name."""
    root = tmp_path_factory.mktemp("photos")
    colour_folder(root / "id", 30, start=200)
    for name, count in (("ood/blue", 20), ("ood/again/blue", 10)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noisy(UNKNOWN_COLOUR, i).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def report(model: UnknownAwareClassifier, photos: Path) -> Report:
    return evaluate(model, photos / "id", [photos / "ood" / "blue"])


def test_the_summary_has_the_promised_keys(report: Report, model: UnknownAwareClassifier) -> None:
    summary = report.summary
    assert summary["task"] == "classify"
    assert summary["n_id"] == 60
    assert summary["score"] == "combined"
    assert summary["alpha"] == 0.05
    assert summary["id_acc"] > 0.95
    blue = summary["ood"]["blue"]
    assert set(blue) == {"n", "flagged", "oscr", "scores", *METRICS}
    assert set(blue["scores"]) == {"msp", "energy", "vos", "mahalanobis", "knn", "combined"}
    assert blue["n"] == 20
    for values in blue["scores"].values():
        assert set(values) == METRICS
        assert all(0 <= value <= 1 for value in values.values())
    assert {key: blue[key] for key in METRICS} == blue["scores"]["combined"]


def test_a_colour_never_seen_is_told_apart(report: Report) -> None:
    blue = report.summary["ood"]["blue"]
    assert blue["auroc"] > 0.95
    assert blue["flagged"] > 0.9


def test_numbers_are_those_of_the_scores_behind_them(report: Report) -> None:
    known, (blue,) = report.id_set, report.ood_sets
    flagged = (known.p_values < report.summary["alpha"]).double().mean()
    assert report.summary["flagged_id"] == pytest.approx(float(flagged))
    truth = [0] * len(known.paths) + [1] * len(blue.paths)
    for name, values in report.summary["ood"]["blue"]["scores"].items():
        both = torch.cat([known.scores[name], blue.scores[name]])
        assert values["auroc"] == pytest.approx(roc_auc_score(truth, both))


def test_evaluation_and_prediction_agree(
    report: Report, model: UnknownAwareClassifier, photos: Path
) -> None:
    paths = report.ood_sets[0].paths
    answers = model.predict(paths)
    assert [a.p_value for a in answers] == pytest.approx(report.ood_sets[0].p_values.tolist())
    assert [a.ood_score for a in answers] == pytest.approx(
        report.ood_sets[0].scores["combined"].tolist(), rel=1e-4
    )


def test_another_score_and_alpha_may_decide(model: UnknownAwareClassifier, photos: Path) -> None:
    ood = [photos / "ood" / "blue"]
    report = evaluate(model, photos / "id", ood, score="energy", alpha=0.2)
    assert report.summary["score"] == "energy"
    assert report.summary["threshold"] == pytest.approx(model.threshold(0.2, "energy"))
    assert (
        report.summary["ood"]["blue"]["auroc"]
        == report.summary["ood"]["blue"]["scores"]["energy"]["auroc"]
    )


@pytest.mark.parametrize("wrong", [{"score": "entropy"}, {"alpha": 0.0}, {"alpha": 1.5}])
def test_wrong_choices_are_named(model: UnknownAwareClassifier, photos: Path, wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        evaluate(model, photos / "id", [], **wrong)


def test_two_folders_of_one_name_are_both_reported(
    model: UnknownAwareClassifier, photos: Path
) -> None:
    folders = [photos / "ood" / "blue", photos / "ood" / "again" / "blue"]
    summary = evaluate(model, photos / "id", folders).summary
    assert {name: s["n"] for name, s in summary["ood"].items()} == {
        str(folders[0]): 20,
        str(folders[1]): 10,
    }


def test_without_ood_folders_only_known_photos_are_measured(
    model: UnknownAwareClassifier, photos: Path, tmp_path: Path
) -> None:
    report = evaluate(model, photos / "id")
    assert report.summary["ood"] == {}
    assert "mean_fpr95" not in report.summary
    assert report.save(tmp_path / "report").is_file()


def test_bad_photos_are_listed_and_left_out(
    model: UnknownAwareClassifier, photos: Path, tmp_path: Path
) -> None:
    colour_folder(tmp_path / "id", 5)
    (tmp_path / "id" / "red" / "broken.jpg").write_bytes(b"not a photo")
    (tmp_path / "ood").mkdir()
    (tmp_path / "ood" / "empty.png").touch()
    noisy(UNKNOWN_COLOUR, 1).save(tmp_path / "ood" / "blue.png")
    report = evaluate(model, tmp_path / "id", [tmp_path / "ood"])
    assert report.summary["n_id"] == 10
    assert report.summary["ood"]["ood"]["n"] == 1
    assert {Path(path).name for path in report.summary["skipped"]} == {"broken.jpg", "empty.png"}
    assert "broken.jpg" in report.save(tmp_path / "report").read_text()


def test_missing_empty_and_unreadable_folders_are_named(
    model: UnknownAwareClassifier, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        evaluate(model, tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        evaluate(model, photos / "id", [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        evaluate(model, photos / "id", [tmp_path / "empty"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("text")
    with pytest.raises(DataError, match=r"'bad'.*none of its 1 photos can be read.*a\.jpg"):
        evaluate(model, photos / "id", [tmp_path / "bad"])


def test_a_wrong_ood_folder_is_told_before_any_photo_is_read(
    model: UnknownAwareClassifier, photos: Path, tmp_path: Path
) -> None:
    begun: list[str] = []

    def progress(name: str, total: int):
        begun.append(name)
        return lambda done: None

    with pytest.raises(DataError):
        evaluate(model, photos / "id", [tmp_path / "nowhere"], progress=progress)
    assert begun == []


def test_progress_counts_every_photo(model: UnknownAwareClassifier, tmp_path: Path) -> None:
    colour_folder(tmp_path, 10)
    (tmp_path / "red" / "bad.png").touch()
    done: list[int] = []
    paths = sorted(tmp_path.rglob("*.png"))
    score_photos(model, "x", paths, score="vos", progress=lambda name, total: done.append)
    assert sum(done) == len(paths) == 21


def test_the_report_is_two_files_that_need_no_others(report: Report, tmp_path: Path) -> None:
    page = report.save(tmp_path / "new" / "report").read_text()
    folder = tmp_path / "new" / "report"
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "report.html"}
    assert json.loads((folder / "metrics.json").read_text()) == report.summary
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", page).replace("http-equiv", "")


def test_a_thumbnail_holds_pixels_and_nothing_else(tmp_path: Path) -> None:
    photo = noisy(UNKNOWN_COLOUR, 0).resize((300, 200))
    photo.save(tmp_path / "c.jpg", comment=b"taken by Jane")
    assert b"Jane" in (tmp_path / "c.jpg").read_bytes()
    picture = base64.b64decode(thumbnail(tmp_path / "c.jpg").split(",")[1])
    assert b"Jane" not in picture
    assert max(Image.open(io.BytesIO(picture)).size) == 160


def test_mistakes_are_shown_most_confident_first(
    model: UnknownAwareClassifier, tmp_path: Path
) -> None:
    """Red photos in the folder of green ones are wrong; known photos as OOD are accepted."""
    colour_folder(tmp_path / "id", 6)
    for i in range(3):
        noisy(COLOURS["red"], 70 + i).save(tmp_path / "id" / "green" / f"wrong-{i}.png")
    (tmp_path / "same").mkdir()
    for i in range(4):
        noisy(COLOURS["red"], 90 + i).save(tmp_path / "same" / f"accepted-{i}.png")
    report = evaluate(model, tmp_path / "id", [tmp_path / "same"])
    page = report.save(tmp_path / "report").read_text()
    assert "wrong class" in page
    assert "same: accepted as known" in page
    shown = re.findall(r"accepted-\d", page)
    scores = report.ood_sets[0].scores["combined"]
    order = [report.ood_sets[0].paths[i].stem for i in scores.argsort().tolist()]
    accepted = report.ood_sets[0].p_values >= 0.05
    expected = [name for name in order if accepted[int(name[-1])]]
    assert list(dict.fromkeys(shown)) == expected


def test_names_are_escaped_in_the_page(model: UnknownAwareClassifier, tmp_path: Path) -> None:
    colour_folder(tmp_path / "id", 3)
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    noisy(COLOURS["red"], 3).save(folder / "<img onerror=x>.png")
    page = evaluate(model, tmp_path / "id", [folder]).save(tmp_path / "report").read_text()
    assert "<script>" not in page
    assert "<img onerror" not in page


def test_a_report_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        report.save(tmp_path / "file")


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 50), (20, 20)])
def test_the_interval_is_clopper_pearson(successes: int, trials: int) -> None:
    low, high = binomial_interval(successes, trials)
    expected_low = beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    expected_high = (
        beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    )
    assert low == pytest.approx(expected_low)
    assert high == pytest.approx(expected_high)


def test_a_set_is_not_called_as_the_known_photos_are() -> None:
    assert set_names(["a/ID", "b/x", "c/x"]) == {
        "ID/": Path("a/ID"), "b/x": Path("b/x"), "c/x": Path("c/x"),
    }  # fmt: skip
    assert [*set_names(["ID", "other/ID"])] == ["ID/", "other/ID"]


def test_every_set_has_a_line_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(
        Axes, "legend", lambda self, **_: shown.extend(self.get_legend_handles_labels()[1])
    )
    known, *sets = (
        SimpleNamespace(name=name, scores={"energy": torch.randn(9)}) for name in ("ID", "_a", "$b")
    )
    roc_curves(known, sets, "energy")
    assert [label.strip() for label in shown] == ["_a", r"\$b"]
