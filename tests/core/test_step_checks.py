"""Mistakes of training loops, told at the first call or once they show."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from knownot.core.outliers import GaussianTail
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from knownot.core.window_gaussians import WindowGaussians
from tests.core.losses import batch, make


@pytest.mark.parametrize(
    ("features", "logits", "labels", "message"),
    [
        ((6, 5), (6, 3), torch.arange(6) % 3, r"features: expected shape \(N, 4\), got \(6, 5\)"),
        ((6, 4), (6, 2), torch.arange(6) % 3, r"logits: expected shape \(6, 3\)"),
        ((6, 4), (5, 3), torch.arange(6) % 3, "a row for each row of features"),
        ((6, 4), (6, 3), torch.eye(3)[torch.arange(6) % 3], r"labels: .* got \(6, 3\)"),
        ((6, 4), (6, 3), torch.zeros(6), "integers, .* got .* torch.float32"),
    ],
)
@pytest.mark.parametrize("start_step", [0, 100])
def test_what_does_not_belong_together_is_refused_at_once(
    features: tuple[int, int],
    logits: tuple[int, int],
    labels: Tensor,
    message: str,
    start_step: int,
) -> None:
    _, vos = make(start_step=start_step)
    with pytest.raises(ValueError, match=message):
        vos(torch.randn(features), torch.randn(logits), labels)
    assert vos.steps == 0


def test_another_head_than_the_model_s_is_told() -> None:
    head, vos = make()
    features, labels = batch()
    masked = head(features).masked_fill(torch.tensor([False, True, False]), -torch.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vos(features, head(features).bfloat16(), labels)
        vos(features, masked, labels)
    replaced = nn.Linear(4, 3)
    vos(features, replaced(features), labels)  # the third call, which is not looked at
    with pytest.warns(UserWarning, match="not what `head` makes of the features"):
        vos(features, replaced(features), labels)


def test_a_head_of_other_columns_is_refused_at_the_first_call() -> None:
    features, labels = batch()
    vos = VirtualOutlierLoss(nn.Linear(4, 5), 3, 4, start_step=1000)
    with pytest.raises(
        ValueError, match="head: makes 5 columns of the features, the logits have 3"
    ):
        vos(features, torch.randn(30, 3), labels)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Sequential(nn.Dropout(), nn.Linear(4, 5)), "head: makes 5 columns of the features"),
        (nn.Sequential(nn.Linear(5, 3)), r"head: takes no row of 4 features \("),
        (lambda rows: rows.sum(), r"head: makes \(\), no columns"),
    ],
)
def test_any_head_that_does_not_fit_is_refused_at_the_first_call(head, message: str) -> None:
    features, labels = batch()
    vos = VirtualOutlierLoss(head, 3, 4, start_step=1000)
    with pytest.raises(ValueError, match=message):
        vos(features, torch.randn(30, 3), labels)


def test_a_look_at_the_head_draws_no_random_number() -> None:
    features, labels = batch()
    vos = VirtualOutlierLoss(nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), 3, 4, start_step=1000)
    before = torch.random.get_rng_state()
    vos(features, torch.randn(30, 3, generator=torch.Generator()), labels)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gaussians": WindowGaussians(7, 4)}, "gaussians: expected those of 3 classes, 4 wide"),
        ({"gaussians": WindowGaussians(3, 5)}, "gaussians: .* got 3 and 5"),
        (
            {"gaussians": WindowGaussians(3, 4), "queue_size": 3},
            "queue_size, shrinkage: would do no",
        ),
        ({"outliers": GaussianTail(5)}, "outliers: expected a sampler of 4 features, got one of 5"),
        ({"outliers": GaussianTail(4), "draws_per_class": 50}, "draws_per_class: would do nothing"),
        ({"radius_ratio": math.inf}, "radius_ratio: expected a positive number"),
    ],
)
def test_parts_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16, torch.int32])
def test_labels_of_any_integers_are_taken(dtype: torch.dtype) -> None:
    losses = []
    for kind in (torch.int64, dtype):
        torch.manual_seed(0)
        head, vos = make(classes=300, dim=4)
        features, labels = batch(400, classes=100)
        for _ in range(3):
            losses.append(vos(features, head(features), labels.to(kind)))
    torch.testing.assert_close(losses[:3], losses[3:])
    with pytest.raises(ValueError, match="labels: expected a tensor, got ndarray"):
        vos(features, head(features), labels.numpy())


def test_a_layer_put_around_the_head_later_is_told_once_it_differs() -> None:
    head, vos = make()
    low_rank = nn.Linear(4, 3, bias=False)
    features, labels = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(15):
            vos(features, head(features) + 0 * low_rank(features), labels)
    with pytest.warns(UserWarning, match="Give it the layer that the model uses now"):
        vos(features, head(features) + low_rank(features), labels)


def test_a_head_with_a_batch_norm_is_refused() -> None:
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="head: holds a batch norm"):
        VirtualOutlierLoss(head=head, num_classes=3, feature_dim=4)
