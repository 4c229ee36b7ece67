"""Interrupted runs: resumed with the same result, refused with the reason, left alone by others."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from knownot.errors import ConfigError, DataError
from knownot.training.fit import Silent
from tests.training.small_training import run, weights


class Interrupt(Silent):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def callbacks(self) -> list[L.Callback]:
        epoch = self.epoch

        class Press(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
                if trainer.current_epoch == epoch and batch_idx == 2:
                    raise KeyboardInterrupt

        return [Press()]


@pytest.mark.parametrize(
    ("finetune", "workers", "workers_after"), [("head", 0, 0), ("all", 2, 2), ("all", 2, 0)]
)
@pytest.mark.parametrize("epoch", [0, 4])
def test_resuming_after_ctrl_c_gives_the_same_model(
    photos: Path, tmp_path: Path, finetune: str, workers: int, workers_after: int, epoch: int
) -> None:
    run(photos, tmp_path / "whole", finetune=finetune, workers=workers)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "broken", Interrupt(epoch), finetune=finetune, workers=workers)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "broken").exists()
    assert (tmp_path / ".broken.run" / "checkpoints" / "last.ckpt").exists() == (epoch > 0)
    run(photos, tmp_path / "broken", finetune=finetune, workers=workers_after, resume=True)
    assert not (tmp_path / ".broken.run").exists()
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_a_disk_that_fills_up_costs_no_finished_epoch(photos: Path, tmp_path: Path) -> None:
    last = tmp_path / ".broken.run" / "checkpoints" / "last.ckpt"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(Silent):
        """No file gets longer than half a checkpoint from the second epoch on."""

        def callbacks(self) -> list[L.Callback]:
            class Full(L.Callback):
                def on_train_epoch_start(self, trainer, module) -> None:
                    if trainer.current_epoch == 1:
                        self.whole = last.read_bytes()
                        limit = len(self.whole) // 2
                        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

            self.full = Full()
            return [self.full]

    run(photos, tmp_path / "whole", finetune="all")
    fill = Fill()
    try:
        with pytest.raises(DataError, match=r"last\.ckpt: cannot be written"):
            run(photos, tmp_path / "broken", fill, finetune="all")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert last.read_bytes() == fill.full.whole
    run(photos, tmp_path / "broken", finetune="all", resume=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_resume_refuses_other_settings_and_names_them(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no interrupted run"):
        run(photos, tmp_path / "m", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "m", Interrupt(2))
    with pytest.raises(ConfigError, match=r"lr \(0\.01 -> 0\.5\)"):
        run(photos, tmp_path / "m", resume=True, lr=0.5)
    run(photos, tmp_path / "m", resume=True, alpha=0.1)  # concerns what comes after training


@pytest.mark.parametrize("name", ["classes.json", "config.yaml", "checkpoints/last.ckpt"])
def test_resume_names_a_damaged_file_and_the_remedy(
    photos: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "m", Interrupt(4))
    damaged = tmp_path / ".m.run" / name
    damaged.write_bytes(damaged.read_bytes()[:9] + b"\n[")
    with pytest.raises(ConfigError, match=f"(?s){re.escape(name)} is damaged .*--overwrite"):
        run(photos, tmp_path / "m", resume=True)


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_resume_refuses_other_classes(photos: Path, tmp_path: Path, finetune: str) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "p"))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "m", Interrupt(4), finetune=finetune)
    for split in ("train", "val"):  # "green" was the first, this is the last
        (data / split / "green").rename(data / split / "verdant")
    with pytest.raises(ConfigError, match="classes were green, red and are red, verdant"):
        run(data, tmp_path / "m", finetune=finetune, resume=True)
    assert (tmp_path / ".m.run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_resume_refuses_other_photos(photos: Path, tmp_path: Path, finetune: str) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "p"))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "m", Interrupt(4), finetune=finetune)
    added = data / "train" / "red" / "added.png"
    shutil.copy2(next((data / "train" / "red").glob("*.png")), added)
    with pytest.raises(ConfigError, match=r"photos or annotations in .* are not those"):
        run(data, tmp_path / "m", finetune=finetune, resume=True)
    added.unlink()
    run(data, tmp_path / "m", finetune=finetune, resume=True)


def test_a_run_is_resumed_from_another_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    with pytest.raises(KeyboardInterrupt):
        run(Path(photos.name), Path(os.path.relpath(tmp_path / "m")), Interrupt(2))
    monkeypatch.chdir(tmp_path)
    run(photos, Path("m"), resume=True)
    assert (tmp_path / "m" / "config.json").is_file()


def test_a_finished_run_is_not_resumed(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "m")
    with pytest.raises(ConfigError, match="it is finished"):
        run(photos, tmp_path / "m", resume=True)


def test_a_new_run_neither_picks_up_nor_loses_an_interrupted_one(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "m", Interrupt(4), seed=1)
    with pytest.raises(ConfigError, match="--resume to go on"):
        run(photos, tmp_path / "m", seed=2)
    assert (tmp_path / ".m.run" / "checkpoints" / "last.ckpt").exists()
    run(photos, tmp_path / "m", seed=2, overwrite=True)
    run(photos, tmp_path / "fresh", seed=2)
    one, other = weights(tmp_path / "m"), weights(tmp_path / "fresh")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_training_that_goes_on_is_left_alone(photos: Path, tmp_path: Path, finetune: str) -> None:
    changes = {"finetune": finetune, "epochs": 1}

    class Second(Silent):
        """Another such training begins in the middle of this one."""

        def callbacks(self, steps: str = "") -> list[L.Callback]:
            for more in ({}, {"overwrite": True}):
                with pytest.raises(ConfigError, match=r"m: another process is training it"):
                    run(photos, tmp_path / "m", **changes, **more)
            return []

    for name, reporter in (("alone", None), ("m", Second())):
        run(photos, tmp_path / name, reporter, **changes)
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "m")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert {*os.listdir(tmp_path)} == {"alone", "m"}
