"""The loss in files, copies and averages: what it needs to go on is there."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.core.window_gaussians import WindowGaussians
from tests.core.losses import PHIS, batch, make, with_logits


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("gaussians", ["window", "streaming"])
def test_state_dict_round_trip_continues_the_same_run(phi, gaussians: str) -> None:
    torch.manual_seed(0)
    head, vos = make(start_step=2, phi=phi, gaussians=gaussians, queue_size=5)
    for _ in range(4):
        vos(*with_logits(head, *batch()))
    other = make(start_step=2, phi=phi, gaussians=gaussians, queue_size=5)[1]
    other._head = (head,)
    other.load_state_dict(copy.deepcopy(vos.state_dict()))
    features, labels = batch()
    losses = []
    for module in (vos, other):
        module.generator = torch.Generator().manual_seed(9)
        losses.append(module(features, head(features), labels).item())
    assert other.steps == vos.steps == 5
    assert losses[0] == losses[1] > 0


def test_a_resumed_run_keeps_the_age_of_the_factor() -> None:
    torch.manual_seed(0)
    options = {"classes_per_step": 2}
    head, vos = make(gaussians=WindowGaussians(3, 4, 100, factor_lag=0.3), **options)
    for _ in range(8):
        vos(*with_logits(head, *batch()))
    other = make(gaussians=WindowGaussians(3, 4, 100, factor_lag=0.3), **options)[1]
    other._head = (head,)
    other.load_state_dict(copy.deepcopy(vos.state_dict()))
    factors = []
    for step in range(5):
        features, labels = batch()
        losses = []
        for module in (vos, other):
            module.generator = torch.Generator().manual_seed(step)
            losses.append(module(features, head(features), labels).item())
        assert losses[0] == losses[1] > 0
        assert torch.equal(vos.gaussians.upper, other.gaussians.upper)
        factors.append(vos.gaussians.upper.clone())
    assert 1 < len({tuple(f.flatten().tolist()) for f in factors}) < 5  # some new, some kept


def test_a_state_from_before_the_factor_was_kept_is_read() -> None:
    torch.manual_seed(0)
    head, vos = make()
    vos(*with_logits(head, *batch()))
    state = copy.deepcopy(vos.state_dict())
    del state["gaussians.upper"], state["gaussians._extra_state"]
    other = make()[1]
    other._head = (head,)
    other.load_state_dict(state)
    losses = []
    features, labels = batch()
    for module in (vos, other):
        module.generator = torch.Generator().manual_seed(9)
        losses.append(module(features, head(features), labels).item())
    assert losses[0] == losses[1] > 0


def test_a_move_that_fails_leaves_the_loss_as_it_was() -> None:
    vos = VirtualOutlierLoss(head=torch.nn.Linear(4, 3), num_classes=3, feature_dim=4)
    before = {
        name: value.clone() for name, value in vos.state_dict().items() if torch.is_tensor(value)
    }

    def fails(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        vos._apply(fails)
    after = vos.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert vos.gaussians.means.dtype == torch.float64


def test_copies_of_data_parallel_are_refused() -> None:
    vos = VirtualOutlierLoss(head=torch.nn.Linear(4, 3), num_classes=3, feature_dim=4)
    copy = vos._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        copy(torch.randn(6, 4), torch.randn(6, 3), torch.arange(6) % 3)


def test_a_model_that_transformers_reads_from_a_file_draws_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "small"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.head, self.vos = make(phi="monotone-mlp")
            self.post_init()

    model = Model(Config())
    features, labels = batch()
    model.train()
    model.vos(features, model.head(features), labels)
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    drawn = [m.vos.sample_outliers(torch.Generator().manual_seed(1)) for m in (model, again)]
    assert torch.equal(*drawn)
    assert torch.equal(*(m.vos.ood_score(torch.eye(3)) for m in (model, again)))


@pytest.mark.parametrize(("averaged", "kept"), [("torch", True), ("timm", True), ("v2", False)])
def test_averages_of_parameters_alone_leave_the_moments_whole(averaged: str, kept: bool) -> None:
    """As docs/training_loop.md says, of the ways that torch and timm have to average weights."""
    from timm.utils import ModelEmaV2, ModelEmaV3
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = nn.ModuleDict({"head": nn.Linear(8, 3)})
    model["vos"] = VirtualOutlierLoss(model["head"], 3, 8, queue_size=20)
    average = {
        "torch": lambda: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        "timm": lambda: ModelEmaV3(model, 0.9, exclude_buffers=True),
        "v2": lambda: ModelEmaV2(model, 0.9),
    }[averaged]()
    step = average.update_parameters if averaged == "torch" else average.update
    for _ in range(5):
        features, labels = torch.randn(30, 8), torch.arange(30) % 3
        model["vos"](features, model["head"](features), labels)
        step(model)
    own, copied = model["vos"].gaussians, average.module["vos"].gaussians
    same = [torch.equal(a, b) for a, b in zip(own.buffers(), copied.buffers(), strict=True)]
    assert all(same) == kept
