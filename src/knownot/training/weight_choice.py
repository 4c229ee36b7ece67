"""`vos_weight: auto`: a training with each of some weights beta, of which ID photos choose one.

How much energy gains by VOS depends on the weight more than on anything else, and the best weight on
the data. `altered_rule` chooses it; no OOD photo takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from knownot.data.image_folder import names_digest, read_splits
from knownot.data.kept_files import write_text
from knownot.data.plain_json import to_json
from knownot.errors import ConfigError
from knownot.models.hub import CONFIG
from knownot.models.model_folder import check_free, move
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.config import TrainConfig, make_config
from knownot.training.fit import Reporter
from knownot.training.plan import Plan
from knownot.training.ranks import Ranks
from knownot.training.result import METRICS, SETTINGS, TRAINING, TrainResult
from knownot.training.run_folder import AFTER_TRAINING, RunFolder

PAPER = 0.1
WEIGHTS = (PAPER, 0.3, 1.0, 3.0, 10.0)


def train_with_chosen_weight(
    config: TrainConfig,
    ranks: Ranks,
    reporter: Reporter,
    train: Callable[[TrainConfig, Reporter], TrainResult],
) -> TrainResult:
    """Train with each of `WEIGHTS`; the model that the rule takes becomes the result.

    Candidates are kept in the folder of the run until then, so that an interrupted choice goes on.

    Args:
        config: Settings with the weight "auto".
        ranks: The processes of this training.
        reporter: Told about the plan once, and about every training.
        train: Trains with settings of one weight.

    Raises:
        ConfigError: If several processes are to share the training.
    """
    if ranks.several:
        raise ConfigError(
            "vos_weight: auto trains in one process; leave --devices and --num-nodes out, or give "
            "a number"
        )
    with RunFolder(config) as run:
        check_free(config.output, config.overwrite)
        # What they learn from must be the same for all, however often the choice is interrupted.
        photos = read_splits(config.data, config.val_fraction, config.seed).train
        examples = photos.classes, names_digest(photos.paths, config.data)
        results: dict[float, TrainResult] = {}
        first = True  # of those that are not finished
        for weight in WEIGHTS:
            one = _one(config, weight, run.candidates / f"{weight:g}")
            finished = _finished(one) if config.resume else None
            if finished is None:
                begin = partial(run.open, {}, *examples) if first else None
                finished = train(one, _Teller(reporter, config, weight, begin))
                first = False
            results[weight] = finished
        chosen = _choose(results)
        result = results[chosen]
        metrics = result.metrics | {
            "seconds": sum(of_one.metrics["seconds"] for of_one in results.values()),
            "vos_weight": chosen,
            "vos_weight_candidates": {
                f"{weight:g}": {k: of_one.metrics[k] for k in ("val_accuracy", "altered_fpr95")}
                for weight, of_one in results.items()
            },
        }
        training = result.folder / TRAINING
        final = config.model_copy(update={"vos_weight": chosen, "resume": False})
        write_text(training / SETTINGS, final.to_yaml())
        write_text(training / METRICS, to_json(metrics) + "\n")
        move(result.folder, config.output, config.overwrite)
        run.remove()
        return TrainResult(config.output, metrics, result.skipped)


def _one(config: TrainConfig, weight: float, output: Path) -> TrainConfig:
    """Settings of the training of one weight, going on where it was interrupted."""
    one = config.model_copy(
        update={"vos_weight": weight, "output": output, "resume": False, "overwrite": True}
    )
    return one.model_copy(update={"resume": config.resume and RunFolder(one).begun})


def _finished(one: TrainConfig) -> TrainResult | None:
    """What an interrupted choice had finished, unless it goes on with settings that are free then."""
    if not (one.output / CONFIG).is_file():
        return None
    before = make_config({}, one.output / TRAINING / SETTINGS)
    same = all(getattr(before, name) == getattr(one, name) for name in AFTER_TRAINING)
    return TrainResult.read(one.output) if same else None


def _choose(results: dict[float, TrainResult]) -> float:
    measured = {}
    for weight, result in results.items():
        altered = result.metrics["altered_fpr95"]
        if altered is None:  # no photo to alter could be read
            return PAPER
        measured[weight] = {ACCURACY: [result.metrics["val_accuracy"]], ALTERED: [altered]}
    metrics = results[PAPER].metrics
    return choose(measured, PAPER, metrics["n_val"], metrics["n_altered"])


class _Teller:
    """Tells the caller's reporter of one of several trainings; of the first, once it may `begin`."""

    def __init__(
        self,
        reporter: Reporter,
        config: TrainConfig,
        weight: float,
        begin: Callable[[], None] | None,
    ) -> None:
        self.reporter, self.weight, self.begin = reporter, weight, begin
        # What all have in common is computed once where the backbone is frozen.
        self.tells_stages = begin is not None or config.finetune == "all"

    def plan(self, plan: Plan) -> None:
        """The plan that all trainings share: settings and photos are looked at, nothing is written."""
        if self.begin is not None:
            *first, last = (f"{weight:g}" for weight in WEIGHTS)
            note = (
                f"vos_weight auto: {len(WEIGHTS)} such trainings, with {', '.join(first)} and "
                f"{last}; altered validation photos choose among them"
            )
            self.reporter.plan(replace(plan, notes=[note, *plan.notes]))
            self.begin()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of this training begins."""
        if not self.tells_stages:
            return lambda done: None
        return self.reporter.stage(name, total)

    def callbacks(self, steps: str = "training steps") -> list[Callback]:
        """The caller's."""
        return self.reporter.callbacks(f"{steps}, weight {self.weight:g}")
