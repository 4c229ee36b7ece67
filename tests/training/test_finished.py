"""`--finetune none`: a classifier of another loop keeps its answers and learns to say unknown."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from knownot.cli.main import app
from knownot.data.image_folder import read_labelled
from knownot.errors import ConfigError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.finished import split_head
from knownot.models.model_folder import load
from knownot.training.config import make_config
from knownot.training.fit import Silent
from knownot.training.train import train
from tests.helpers import COLOURS, UNKNOWN_COLOUR, noisy, tiny_backbone
from tests.pages import run_page

ARCH, SIZE = "resnet10t", 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(photos: list[Image.Image]) -> torch.Tensor:
    from torchvision.transforms.v2 import functional as v2

    pixels = [v2.resize(v2.pil_to_tensor(p), [SIZE, SIZE]).float() / 255 for p in photos]
    return v2.normalize(torch.stack(pixels), MEAN, STD)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained(ARCH)


def trained(arch: str, **options: int) -> nn.Module:
    """A timm classifier of red and green by a plain loop, nothing of knownot in it."""
    torch.manual_seed(0)
    whole = timm.create_model(arch, num_classes=2, **options)
    optimizer = torch.optim.AdamW(whole.parameters(), 1e-3)
    order = sorted(COLOURS)  # as ImageFolder numbers folders
    images = normalised([noisy(COLOURS[order[i % 2]], 50_000 + i) for i in range(64)])
    labels = torch.arange(64) % 2
    for _ in range(6):
        loss = F.cross_entropy(whole(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return whole.eval()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def finished(photos: Path, output: Path, **changes):
    return given(photos, output, **({"arch": ARCH} | changes))


def given(photos: Path, output: Path, **changes):
    """The same of a network of one's own."""
    flags = {"data": photos, "output": output, "finetune": "none", "image_size": SIZE, "crop": 1.0}
    return make_config(flags | {"mean": MEAN, "std": STD} | changes)


def test_a_finished_classifier_keeps_its_answers(
    photos: Path, weights: Path, network: nn.Module, tmp_path: Path
) -> None:
    result = train(finished(photos, tmp_path / "m", weights=str(weights)))
    assert result.metrics["val_accuracy"] > 0.95
    assert not result.metrics["vos_started"]
    model = load(tmp_path / "m")
    assert isinstance(model, UnknownAwareClassifier)
    assert model.combined is not None
    known = read_labelled(photos / "val", model.classes)
    answers = model.predict(known.paths)
    opened = [Image.open(path).convert("RGB") for path in known.paths]
    with torch.no_grad():
        own = network(normalised(opened))
    for answer, logits in zip(answers, own, strict=True):
        assert answer.nearest_class == model.classes[int(logits.argmax())]
        assert answer.confidence == pytest.approx(float(logits.softmax(0).max()), abs=1e-4)
        assert answer.scores["energy"] == pytest.approx(-float(logits.logsumexp(0)), abs=1e-3)
    assert sum(answer.is_unknown for answer in answers) <= 0.05 * len(answers)
    strange = model.predict([noisy(UNKNOWN_COLOUR, 9000 + i) for i in range(5)])
    assert all(answer.is_unknown for answer in strange)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "trained elsewhere" in card
    assert "Trained with" not in card
    assert "virtual-outlier-synthesis" not in card
    told = CliRunner().invoke(app, ["info", str(tmp_path / "m"), "--json"])
    assert json.loads(told.output)["trained with VOS"] is False
    # The recorded settings are settings: the same command once more.
    recorded = make_config({}, tmp_path / "m" / "training" / "config.yaml")
    assert recorded.weights == str(weights)
    assert json.loads((tmp_path / "m" / "training" / "skipped.json").read_text()) == {}


def test_a_finished_transformer_at_another_size(photos: Path, tmp_path: Path) -> None:
    own = trained("test_vit", img_size=SIZE)
    torch.save(own.state_dict(), tmp_path / "mine.pth")
    train(finished(photos, tmp_path / "m", arch="test_vit", weights=str(tmp_path / "mine.pth")))
    path = next((photos / "val" / "red").iterdir())
    with torch.no_grad(), Image.open(path) as photo:
        expected = own(normalised([photo.convert("RGB")])).softmax(1).max()
    (answer,) = load(tmp_path / "m").predict(path)
    assert answer.confidence == pytest.approx(float(expected), abs=1e-4)


def test_outputs_in_another_order_are_told_and_can_be_named(
    photos: Path, network: nn.Module, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    state |= {name: state[name].flip(0) for name in ("fc.weight", "fc.bias")}
    torch.save(state, tmp_path / "flipped.pth")
    config = finished(photos, tmp_path / "m", weights=str(tmp_path / "flipped.pth"))
    names = ",".join(sorted(COLOURS, reverse=True))
    with pytest.raises(ConfigError, match=f"--outputs '{names}'"):
        train(config)
    assert not (tmp_path / "m").exists()
    named = finished(photos, tmp_path / "m", weights=str(tmp_path / "flipped.pth"), outputs=names)
    assert train(named).metrics["val_accuracy"] > 0.95
    wrong = ",".join(sorted(COLOURS))
    with pytest.raises(ConfigError, match=f"--outputs '{names}'"):
        train(named.model_copy(update={"outputs": tuple(wrong.split(",")), "overwrite": True}))
    assert load(tmp_path / "m").predict(noisy(COLOURS["red"], 1))[0].nearest_class == "red"


def test_a_network_of_other_classes_is_refused(photos: Path, tmp_path: Path) -> None:
    for outputs in (1, 3):
        whole = nn.Sequential(tiny_backbone(), nn.Linear(8, outputs))
        with pytest.raises(ConfigError, match=f"{outputs} classes apart, the photos are of 2"):
            train(given(photos, tmp_path / "m"), backbone=whole)


def test_photos_that_it_was_trained_on_are_no_judge(photos: Path, tmp_path: Path) -> None:
    plans = []

    class Plans(Silent):
        def plan(self, plan) -> None:
            plans.append(plan)

    whole = nn.Sequential(tiny_backbone(), nn.Linear(8, 2)).eval()
    for number, data in enumerate((photos / "train", photos)):
        config = given(data, tmp_path / f"{number}")
        with suppress(ConfigError):  # an untrained network may seem to have its outputs turned
            train(config, Plans(), backbone=whole)
    told = ["photos that it never saw" in " ".join(plan.notes) for plan in plans]
    assert told == [True, False]
    assert plans[0].steps == 0
    assert plans[0].summary == "custom, nothing trained"


def test_names_with_commas_stand_in_quotes() -> None:
    config = make_config({"data": "p", "finetune": "none", "outputs": 'dog,"cat, tabby"'})
    assert config.outputs == ("dog", "cat, tabby")


def test_a_module_of_ones_own_is_a_finished_classifier_too(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(tiny_backbone(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(whole.parameters(), 0.02)
    order = sorted(COLOURS)
    images = normalised([noisy(COLOURS[order[i % 2]], 60_000 + i) for i in range(64)])
    for _ in range(30):
        loss = F.cross_entropy(whole(images), torch.arange(64) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    whole.eval()
    flags = {"data": photos, "output": tmp_path / "m", "finetune": "none", "image_size": SIZE}
    config = make_config(flags | {"crop": 1.0, "mean": MEAN, "std": STD})
    assert train(config, backbone=whole).metrics["val_accuracy"] > 0.95
    backbone, _ = split_head(whole, SIZE)
    answer = load(tmp_path / "m", backbone=backbone).predict(noisy(COLOURS["green"], 3))[0]
    assert answer.nearest_class == "green"


def test_the_page_runs_for_torchvision_and_hugging_face(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import resnet18
    from transformers import ViTConfig, ViTForImageClassification

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    torch.manual_seed(0)
    network = resnet18(num_classes=2).eval()
    page = run_page("finished.md", network=network, torch=torch)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        own = network(images)
        torch.testing.assert_close(page["head"](page["backbone"](images)), own)
        found = page["model"].head(page["model"].backbone(images))
    torch.testing.assert_close(found, own)
    answer = page["model"].predict(noisy(COLOURS["red"], 1))[0]
    assert 0 < answer.p_value <= 1

    config = ViTConfig(
        image_size=SIZE, patch_size=8, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, num_labels=2,
    )  # fmt: skip
    transformer = page["Logits"](ViTForImageClassification(config)).eval()
    backbone, head = split_head(transformer, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(head(backbone(images)), transformer(images))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 3}, "epochs"),
        ({"lr": 0.1, "bottleneck": 8}, "bottleneck, lr"),
        ({"vos_weight": 0.1}, "vos_weight"),
        ({"vos_weight": "auto"}, "vos_weight"),
        ({"devices": 2}, "devices"),
    ],
)
def test_settings_of_training_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}: does nothing with finetune none"):
        make_config({"data": "photos", "finetune": "none"} | changes)


def test_outputs_are_of_finished_classifiers() -> None:
    with pytest.raises(ConfigError, match="outputs: does nothing with finetune head"):
        make_config({"data": "photos", "outputs": "a,b"})


@pytest.mark.parametrize("changes", [{"mean": "1,2"}, {"std": "0,1,1"}, {"mean": "123,116,103"}])
def test_impossible_pixel_statistics_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        make_config({"data": "photos"} | changes)
