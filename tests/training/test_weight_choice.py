"""`vos_weight: auto`: the rule, and the whole choice on small real files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file

from knownot.errors import ConfigError, DataError
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.config import make_config
from knownot.training.fit import Silent
from knownot.training.plan import Plan
from knownot.training.train import train
from knownot.training.weight_choice import WEIGHTS
from tests.helpers import tiny_backbone

PHOTOS = 1000  # one standard error: 0.3 points of an accuracy of 99 %, 1.6 of an FPR95 of 50 %


def chosen(**measured: tuple[float | list[float], float | list[float]]) -> str:
    columns = {
        name: {ACCURACY: _seeds(accuracy), ALTERED: _seeds(altered)}
        for name, (accuracy, altered) in measured.items()
    }
    return choose(columns, "paper", PHOTOS, PHOTOS)


def _seeds(values: float | list[float]) -> list[float]:
    return values if isinstance(values, list) else [values]


def test_the_rule_takes_what_tells_altered_photos_best_at_no_loss_of_accuracy() -> None:
    assert chosen(paper=(0.990, 0.50), a=(0.990, 0.40), b=(0.988, 0.35), c=(0.980, 0.10)) == "b"
    # Neither a gain within chance, nor a better weight that costs accuracy.
    assert chosen(paper=(0.990, 0.50), a=(0.990, 0.49)) == "paper"
    assert chosen(paper=(0.990, 0.50), a=(0.985, 0.10)) == "paper"
    # With several seeds their own spread says what chance is.
    assert chosen(paper=([0.99, 0.99], [0.50, 0.52]), a=([0.99, 0.99], [0.49, 0.51])) == "a"
    assert chosen(paper=([0.99, 0.99], [0.50, 0.52]), a=([0.99, 0.99], [0.53, 0.45])) == "paper"


def run(photos: Path, output: Path, reporter: Silent | None = None, **changes: Any) -> Any:
    flags = {"data": photos, "output": output, "image_size": 32, "bottleneck": 4, "epochs": 3}
    flags |= {"batch_size": 16, "lr": 0.01, "workers": 0, "queue_size": 20, "vos_weight": "auto"}
    return train(make_config(flags | changes), reporter, backbone=tiny_backbone())


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


class Told(Silent):
    """Counts trainings and plans, and presses Ctrl-C in one of them."""

    def __init__(self, interrupted: int | None = None) -> None:
        self.trainings, self.plans = 0, []  # type: ignore[var-annotated]
        self.interrupted = interrupted

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def callbacks(self, steps: str = "training steps") -> list[L.Callback]:
        self.trainings += 1
        press = self.trainings == self.interrupted

        class Press(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
                if press and trainer.current_epoch == 1:
                    raise KeyboardInterrupt

        return [Press()]


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_the_chosen_model_is_that_of_its_weight(photos: Path, tmp_path: Path, finetune) -> None:
    told = Told()
    result = run(photos, tmp_path / "auto", told, finetune=finetune)
    assert os.listdir(tmp_path) == ["auto"]
    assert told.trainings == len(WEIGHTS)
    (plan,) = told.plans
    assert "5 such trainings, with 0.1, 0.3, 1, 3 and 10" in plan.notes[0]
    training = tmp_path / "auto" / "training"
    assert json.loads((training / "metrics.json").read_text()) == result.metrics
    measured = {
        float(weight): {ACCURACY: [m["val_accuracy"]], ALTERED: [m["altered_fpr95"]]}
        for weight, m in result.metrics["vos_weight_candidates"].items()
    }
    assert tuple(measured) == WEIGHTS
    weight = choose(measured, 0.1, result.metrics["n_val"], result.metrics["n_altered"])
    settings = yaml.safe_load((training / "config.yaml").read_text())
    assert settings["vos_weight"] == result.metrics["vos_weight"] == weight
    assert settings["output"] == str(tmp_path / "auto")
    direct = run(photos, tmp_path / "direct", finetune=finetune, vos_weight=weight)
    assert same_weights(tmp_path / "auto", tmp_path / "direct")
    assert direct.metrics["altered_fpr95"] == measured[weight][ALTERED][0]


@pytest.mark.parametrize("interrupted", [1, 3])
def test_an_interrupted_choice_goes_on(photos: Path, tmp_path: Path, interrupted: int) -> None:
    whole = run(photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "broken", Told(interrupted))
    assert not (tmp_path / "broken").exists()
    with pytest.raises(ConfigError, match="--resume to go on"):
        run(photos, tmp_path / "broken")
    told = Told()
    resumed = run(photos, tmp_path / "broken", told, resume=True)
    assert told.trainings == len(WEIGHTS) - interrupted + 1  # none twice
    assert len(told.plans) == 1
    assert not (tmp_path / ".broken.run").exists()
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    compared = "vos_weight_candidates"
    assert resumed.metrics[compared] == whole.metrics[compared]


def test_an_interrupted_choice_goes_on_with_another_alpha(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "m", Told(3))
    result = run(photos, tmp_path / "m", resume=True, alpha=0.1)
    assert result.metrics["alpha"] == 0.1


def test_an_interrupted_choice_does_not_go_on_with_other_photos(
    photos: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "p"))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "m", Told(3))
    shutil.copytree(data / "train" / "red", data / "train" / "third")
    with pytest.raises(ConfigError, match="classes"):
        run(data, tmp_path / "m", resume=True)
    shutil.rmtree(data / "train" / "third")
    next((data / "train" / "red").iterdir()).unlink()
    with pytest.raises(ConfigError, match="not those that the run was begun with"):
        run(data, tmp_path / "m", resume=True)


def test_wrong_photos_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "m")
    assert not os.listdir(tmp_path)


def test_a_new_choice_does_not_take_what_an_interrupted_one_finished(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "m", Told(3), seed=1)
    told = Told()
    run(photos, tmp_path / "m", told, seed=2, overwrite=True)
    assert told.trainings == len(WEIGHTS)
    run(photos, tmp_path / "fresh", seed=2)
    assert same_weights(tmp_path / "m", tmp_path / "fresh")


def test_a_finished_model_is_not_replaced_unasked(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "m", vos_weight=0.1)
    told = Told()
    with pytest.raises(Exception, match="add --overwrite"):
        run(photos, tmp_path / "m", told)
    assert not told.trainings
    run(photos, tmp_path / "m", overwrite=True)
    assert os.listdir(tmp_path) == ["m"]


def test_what_auto_is_not_for_is_said(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one process"):
        run(photos, tmp_path / "m", devices=2)
    with pytest.raises(ConfigError, match="vos_weight: auto is for classifiers"):
        make_config({"data": photos, "task": "detect", "vos_weight": "auto"})
    for wrong in ("-1", "much", "nan", float("inf")):
        with pytest.raises(ConfigError, match="vos_weight: expected a number, 0 or more, or auto"):
            make_config({"data": photos, "vos_weight": wrong})
    assert make_config({"data": photos, "vos_weight": "0.3"}).vos_weight == 0.3
