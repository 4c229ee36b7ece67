"""The recipe for small images: augmentation, the paper's network, a run that goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from knownot.benchmark.config import BenchmarkConfig, SmallImageTraining, load_config
from knownot.benchmark.small_image_run import (
    SmallImageRun,
    _has_bfloat16,
    crop_and_mirror,
    steps_per_epoch,
    wide_resnet,
)
from knownot.benchmark.small_images import SmallImageRecipe
from knownot.benchmark.workplace import Workplace
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.errors import ConfigError, TrainingError
from tests.helpers import COLOURS, cifar_tar, pixels, tiny_model


def test_each_image_is_moved_and_mirrored_by_itself() -> None:
    """Every result is one of the 9 x 9 x 2 that a loop makes, and not all are the same one."""
    images = torch.randint(1, 255, (40, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    moved = crop_and_mirror(images)
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    found = set()
    for before, after in zip(images, moved, strict=True):
        padded = nn.functional.pad(before, (4, 4, 4, 4))
        for top in range(9):
            for left in range(9):
                square = padded[:, top : top + 8, left : left + 8]
                for flip, candidate in ((False, square), (True, square.flip(2))):
                    if torch.equal(candidate, after):
                        found.add((top, left, flip))
                        break
    assert len(found) > 20
    assert {flip for *_, flip in found} == {False, True}


def test_the_papers_network_is_the_one_that_the_default_recipe_builds() -> None:
    settings = SmallImageTraining()
    network = wide_resnet(settings.depth, settings.width, settings.dropout)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.24e6, rel=0.01)
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 37
    )
    with torch.no_grad():
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("training", ["cross-entropy", "vos", "vos-free-phi", "vos-pytorch-ood"])
def test_the_papers_recipe_takes_steps(tmp_path: Path, training: str) -> None:
    config = load_config("cifar10_wrn40")
    cifar_tar(tmp_path / "cifar10.tar.gz", {"train": 8, "test": 2})
    shorter = config.training.model_copy(update={"batch_size": 8, "val_images": 4, "device": "cpu"})
    config = config.model_copy(update={"training": shorter})
    recipe = SmallImageRecipe(Workplace(config, tmp_path, tmp_path / "out"))
    model = recipe._build(training)
    assert model.vos.gaussians.means.shape == (2, 128)
    assert model.vos_settings.queue_size == 1000
    peer = None
    if training == "vos-pytorch-ood":
        from knownot.benchmark.peer_loss import PytorchOodVos

        peer = PytorchOodVos(model)
    known = recipe._known_pixels("train"), recipe._known_labels("train")
    run = SmallImageRun(model, peer or model.vos, shorter, *known, seed=0)
    before = model.head.weight.detach().clone()
    run.train_epoch(0, steps=2)
    assert not torch.equal(model.head.weight, before)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1, rel=1e-3)
    assert [g["weight_decay"] for g in run.optimizer.param_groups] == [5e-4, 0.0]


def colour_run(seed: int = 0, beginning=None, vos=None, **changes) -> SmallImageRun:
    settings = SmallImageTraining(epochs=3, batch_size=16, lr=0.01, **changes)
    images = torch.cat([pixels(30, c, 1000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(30)
    model = tiny_model(seed=seed)
    if vos:
        torch.manual_seed(7)
        model.vos = VirtualOutlierLoss(model.head, 2, 4, queue_size=50, **vos)
    model.vos.start_step = 5  # in the second epoch
    return SmallImageRun(model, model.vos, settings, images, labels, seed, beginning)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = colour_run()
    whole.train(tmp_path / "whole.ckpt")

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        colour_run().train(tmp_path / "parts.ckpt", stop)
    resumed = colour_run()
    done = []
    resumed.train(tmp_path / "parts.ckpt", done.append)
    assert done == [1, 1, 1]  # one epoch was there, two were left
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    "later", [{"phi": "free-mlp"}, {"weight": 0.0}, {"outliers": "npos", "outliers_per_class": 3}]
)
def test_a_run_from_anothers_beginning_ends_like_one_of_its_own(tmp_path: Path, later) -> None:
    alone = colour_run(vos=later)
    alone.train(tmp_path / "alone.ckpt")
    shared = tmp_path / "beginning.ckpt"
    colour_run(beginning=shared, vos={"weight": 0.3}).train(tmp_path / "first.ckpt")
    done: list[int] = []
    second = colour_run(beginning=shared, vos=later)
    second.train(tmp_path / "second.ckpt", done.append)
    assert done == [1, 1, 1]  # the first epoch was there
    for name, value in alone.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def test_trainings_share_a_beginning_only_if_they_begin_alike(tmp_path: Path) -> None:
    recipe = SmallImageRecipe(Workplace(load_config("ablations_cifar10_small"), tmp_path, tmp_path))
    begins = {name: recipe._shared_beginning(name, 0) for name in recipe.place.config.methods}
    alike = {name for name, file in begins.items() if file == begins["vos"]}
    assert {"cross-entropy", "phi-free-mlp", "beta-1", "from-npos", "ratio-2"} < alike
    apart = {"queue-50", "streaming", "start-0.2", "bottleneck-16", "bottleneck-16-linear"}
    assert not alike & apart
    assert begins["bottleneck-16"] == begins["bottleneck-16-ce"]
    assert recipe._shared_beginning("vos", 1) != begins["vos"]


def test_a_setting_that_the_recipe_has_itself_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config("ablations_cifar10_small").model_dump()
    config["methods"]["mine"] = {"about": "a", "settings": {"epochs": 3}, "scores": ["vos"]}
    place = Workplace(BenchmarkConfig(**config), tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"methods\.mine: epochs cannot differ"):
        SmallImageRecipe(place).check()


def test_bfloat16_keeps_head_and_loss_in_float32(tmp_path: Path) -> None:
    run = colour_run(precision="bf16-mixed")
    output = run._forward(run.pixels[:8])
    assert output.backbone_features.dtype == output.logits.dtype == torch.float32
    exact = run.model(run.pixels[:8]).logits
    torch.testing.assert_close(output.logits, exact, atol=0.2, rtol=0.1)
    # A processor without bfloat16, where it would take twenty times as long, computes in float32.
    assert torch.equal(output.logits, exact) != _has_bfloat16(run.model.device)
    run.train(tmp_path / "a.ckpt")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run = colour_run()
    with torch.no_grad():
        run.model.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite in epoch 1"):
        run.train(tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


@pytest.mark.parametrize(("images", "steps"), [(16, 2), (17, 2), (18, 3), (7, 1)])
def test_a_last_batch_of_one_image_is_left_out(images: int, steps: int) -> None:
    assert steps_per_epoch(images, SmallImageTraining(batch_size=8)) == steps


def test_validation_images_are_never_trained_on(tmp_path: Path) -> None:
    cifar_tar(tmp_path / "cifar10.tar.gz", {"train": 20, "test": 5})
    config = BenchmarkConfig(
        name="a",
        about="a",
        known="cifar10",
        training=SmallImageTraining(val_images=10, train_images=25),
        methods={"vos": ["vos"]},
        far=["uniform_noise"],
    )
    recipe = SmallImageRecipe(Workplace(config, tmp_path, tmp_path / "out"))
    parts = {part: recipe._known_pixels(part).flatten(1) for part in ("train", "val", "test")}
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 25, "val": 10, "test": 10}
    rows = torch.cat(list(parts.values()))
    assert len(torch.unique(rows, dim=0)) == 45
