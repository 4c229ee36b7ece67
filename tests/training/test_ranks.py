"""Two processes as one: by `--devices`, by torchrun, stopped and resumed, failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn

from knownot.data.detection_folder import read_detection_splits
from knownot.demo.scenes import write_scenes
from knownot.errors import ConfigError, TrainingError
from knownot.evaluation.box_metrics import mean_average_precision
from knownot.evaluation.detect_set import as_boxes
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_folder import load
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.training.batches import EpochShuffle, RankBatches, joint_batches
from knownot.training.config import DetectionConfig, TrainConfig, make_config
from knownot.training.detection_batches import PlainScenes
from knownot.training.detection_module import DetectionTraining
from knownot.training.fit import Silent, fit
from knownot.training.ranks import check_same_steps, check_shares, find_ranks
from knownot.training.run_folder import RunFolder
from knownot.training.train import train
from tests.helpers import colour_folder
from tests.processes import end_process

# Normalised by group: statistics of batches are those of each process's own photos.
ARCH = {"arch": "test_efficientnet_gn", "weights": "none", "image_size": 32, "workers": 0}
ARCH |= {"batch_size": 16, "queue_size": 20, "device": "cpu", "finetune": "all", "head_first": True}

GIVEN = {"arch": TrainConfig.model_fields["arch"].default}  # of a network that is given


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """85 readable ones in batches of 16: of the last, two for one process and three for the other."""
    root = tmp_path_factory.mktemp("photos")
    colour_folder(root / "train", 43)
    next((root / "train" / "red").iterdir()).write_text("no photo")
    colour_folder(root / "val", 25, start=100)
    return root


def settings(photos: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(data=photos, output=output, **(ARCH | changes))


def command(photos: Path, output: Path, *more: object) -> list[str]:
    named = {"--" + k.replace("_", "-"): v for k, v in ARCH.items()}
    flags = [part for k, v in named.items() for part in ([k] if v is True else [k, v])]
    return ["-m", "knownot", *map(str, ["train", photos, "-o", output, *flags, *more])]


def same_model(one: Path, other: Path, **how: Any) -> None:
    """Weights, windows and their moments, calibration; 1e-4 because Adam divides by roundings."""
    states = [load(folder, **how).state_dict() for folder in (one, other)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-4, msg=name)


def logged(folder: Path, name: str) -> list[float]:
    header, *rows = (folder / "training" / "csv" / "metrics.csv").read_text().splitlines()
    return [float(row.split(",")[header.split(",").index(name)]) for row in rows]


def test_two_processes_stop_together_and_train_what_one_trains(
    photos: Path, tmp_path: Path
) -> None:
    """Begun with `--devices`, stopped by Ctrl-C, ended under torchrun."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    train(settings(photos, whole, epochs=8))
    run = command(photos, shared, "--epochs", 8, "--json")
    process = subprocess.Popen(
        [sys.executable, *run, "--devices", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / ".shared.run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)  # until no process holds the pipes any longer
    assert process.returncode == 130, said
    assert said.split().count("--resume") == 1
    assert "Traceback" not in said

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *run, "--resume"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_train"] == 85  # once: one process prints
    assert "devices: 2" in (shared / "training" / "config.yaml").read_text()
    same_model(whole, shared)
    for name in ("loss", "vos_loss", "accuracy"):
        log = logged(shared, name)  # of the epochs after Ctrl-C
        assert log == pytest.approx(logged(whole, name)[-len(log) :], rel=1e-3), name
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "shared"}


def backbone() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, stride=4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def of_head(photos: Path, root: Path, output: str) -> TrainConfig:
    changes = {"finetune": "head", "standardise": False, "bottleneck": 0, "epochs": 3}
    return settings(photos, root / output, **changes, **GIVEN)


def train_scenes(root: Path) -> DetectionTraining:
    """A detector after some steps; of five validation photos one process has two."""
    config = DetectionConfig(
        data=root / "scenes", output=root / "d", image_size=64, epochs=2, batch_size=6, workers=0,
        device="cpu", lr=3e-3, vos_start=0.3,
    )  # fmt: skip
    ranks = find_ranks(config)
    config = ranks.settled(config)
    ranks.wait()
    splits = read_detection_splits(config.data)
    torch.manual_seed(0)
    regions = FasterRCNNRegions(len(splits.train.classes), FasterRCNNSettings(image_size=64))
    model = UnknownAwareDetector(regions, splits.train.classes)
    module = DetectionTraining(model, splits, config)
    run = RunFolder(config)
    if ranks.first:
        run.open({})
    fit(module, config, run, [], ranks)
    return module


class Break(Silent):
    """Damages a photo once the first process has read all."""

    def __init__(self, photo: Path) -> None:
        self.photo = photo

    def plan(self, plan: Any) -> None:
        self.photo.write_text("broken")


def train_with_broken_photo(root: Path) -> None:
    """The second process alone meets the photo."""
    config = settings(root / "broken", root / "b", epochs=1, devices=2, num_nodes=1, **GIVEN)
    files = sorted((root / "broken" / "train").rglob("*.png"))
    (index, _) = next(iter(RankBatches(EpochShuffle(len(files), 0), config, 1)))[0]
    train(config, Break(files[index]), backbone())


def environment(rank: int, ports: list[int], job: int) -> dict[str, str]:
    """What torchrun says to a process, without a store of its own."""
    said = {"TORCHELASTIC_RUN_ID": "t", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return said | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[job]),
    }  # fmt: skip


def as_rank(rank: int, photos: Path, root: Path, ports: list[int]) -> None:
    """What each of two processes does; the second ends with every training, and goes on to the next."""
    jobs = [
        lambda: train(of_head(photos, root, "m"), None, backbone(), root / "cache"),
        lambda: check_scenes(root, train_scenes(root)),
    ]
    for number, job in enumerate(jobs):
        os.environ.update(environment(rank, ports, number))
        with suppress(SystemExit) if rank == 1 else nullcontext():
            job()
    os.environ.update(environment(rank, ports, 2))
    with pytest.raises(TrainingError, match=["another process", "when training started"][rank]):
        train_with_broken_photo(root)
    end_process()


def check_scenes(root: Path, module: DetectionTraining) -> None:
    assert module.model.vos.steps == 6
    log = (root / ".d.run" / "logs" / "csv" / "metrics.csv").read_text().splitlines()
    column = log[0].split(",").index("val_map_50")
    told = [float(value) for row in log[1:] if (value := row.split(",")[column])]
    module.model.eval()
    images = [PlainScenes(module.splits.val)[i][0] for i in range(5)]
    boxes = [as_boxes(found) for found in module.model(images)]
    measured = mean_average_precision(boxes, [*module.splits.val.objects], module.model.classes)
    assert len(told) == 2
    assert told[-1] == pytest.approx(measured["map_50"], abs=1e-6)  # of the photos of both


def test_head_detector_and_failure_of_two_processes(photos: Path, tmp_path: Path) -> None:
    train(of_head(photos, tmp_path, "whole"), None, backbone(), tmp_path / "cache")
    write_scenes(tmp_path / "scenes", train=17, val=5, test=0, ood=0, side=64)
    colour_folder(tmp_path / "broken" / "train", 20)
    colour_folder(tmp_path / "broken" / "val", 25, start=100)
    ports = [find_free_network_port() for _ in range(3)]
    torch.multiprocessing.spawn(as_rank, (photos, tmp_path, ports), nprocs=2)
    same_model(tmp_path / "whole", tmp_path / "m", backbone=backbone())
    skipped = json.loads((tmp_path / "m" / "training" / "skipped.json").read_text())
    assert len(skipped) == 1


@pytest.mark.parametrize("size", [16, 80, 83, 84, 85, 95, 9])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_stretches_of_all_ranks_are_the_batches_of_one(size: int, ranks: int) -> None:
    config = settings(Path("p"), Path("m"), devices=ranks)
    shuffles = [RankBatches(EpochShuffle(size, 3), config, rank) for rank in range(ranks)]
    steps = [*zip(*shuffles, strict=True)]
    assert len(steps) == len(shuffles[0])
    assert [sum(map(len, parts)) for parts in steps] == joint_batches(size, config)
    assert all(len(part) >= 2 for parts in steps for part in parts)
    order = [drawn for parts in steps for part in parts for drawn in part]
    assert order == [*EpochShuffle(size, 3)][: len(order)]
    assert size - len(order) < 2 * ranks


def test_processes_that_cannot_be_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"devices: 99 .* cores; use at most --devices"):
        train(settings(photos, tmp_path / "m", devices=99))
    with pytest.raises(ConfigError, match="cuda:1 is one, and several processes are to train"):
        train(settings(photos, tmp_path / "m", devices=2, device="cuda:1"))
    with pytest.raises(ConfigError, match=r"batch_size: 3 .* use --batch-size 4"):
        check_shares(settings(photos, tmp_path / "m", devices=2, batch_size=3), 85)
    with pytest.raises(ConfigError, match="devices: 3 photos are too few"):
        check_shares(settings(photos, tmp_path / "m", devices=2), 3)
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT, NODE_RANK"):
        train(settings(photos, tmp_path / "m", num_nodes=2))
    for name, value in environment(0, [0], 0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="devices: torchrun says 2, not 4"):
        train(settings(photos, tmp_path / "m", devices=4))
    nothing = make_config({"data": photos, "output": tmp_path / "m", "finetune": "none"})
    with pytest.raises(ConfigError, match=r"nothing is trained .* start one process"):
        train(nothing, backbone=backbone())
    assert not (tmp_path / "m").exists()


class CtrlC(Silent):
    """In the second epoch."""

    def callbacks(self) -> list[L.Callback]:
        class Press(L.Callback):
            def on_train_epoch_start(self, trainer, module) -> None:
                if trainer.current_epoch == 1:
                    raise KeyboardInterrupt

        return [Press()]


def test_a_resumed_run_with_other_steps_is_refused(tmp_path: Path) -> None:
    colour_folder(tmp_path / "train", 16)
    colour_folder(tmp_path / "val", 25, start=100)
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path, tmp_path / "m", epochs=2, **GIVEN), CtrlC(), backbone())
    # Other photos are refused before; other processes may leave out another last batch.
    last = torch.load(tmp_path / ".m.run" / "checkpoints" / "last.ckpt", weights_only=False)
    check_same_steps(last, 4)
    with pytest.raises(TrainingError, match="was to take 4 steps, this one 6"):
        check_same_steps(last, 6)
