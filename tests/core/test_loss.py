"""The loss against a plain transcription of the equations; gradients; states; precision."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from knownot.core.energy import energy
from knownot.core.phi import PhiName
from knownot.core.streaming_gaussians import StreamingGaussians
from knownot.core.uncertainty_loss import uncertainty_loss
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from tests.core.losses import PHIS, batch, make, with_logits


@pytest.mark.parametrize("phi", PHIS)
def test_loss_is_the_transcription_of_the_equations(phi) -> None:
    head, vos = make(weight=0.7, outliers_per_class=2, phi=phi)
    features, labels = batch()
    vos.generator = torch.Generator().manual_seed(5)
    loss = vos(features, head(features), labels)

    outliers = vos.sample_outliers(torch.Generator().manual_seed(5))
    assert outliers.shape == (6, 4)
    with torch.no_grad():
        weights = [math.log1p(math.exp(raw)) for raw in vos.raw_energy_weights.tolist()]

        def logit(row: Tensor) -> float:
            f = (head.weight @ row + head.bias).tolist()
            e = -math.log(sum(w * math.exp(x) for w, x in zip(weights, f, strict=True)))
            return float(vos.phi(torch.tensor([-e])))

        terms = [math.log1p(math.exp(-logit(row))) for row in features]
        terms += [math.log1p(math.exp(logit(row))) for row in outliers]
    assert loss.item() == pytest.approx(0.7 * sum(terms) / len(terms), rel=1e-5)


def test_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    """Down to head and backbone, in float64, with the outliers of one seed."""
    torch.manual_seed(0)
    backbone = nn.Linear(5, 4).double()
    head = nn.Linear(4, 3).double()
    vos = VirtualOutlierLoss(head=head, num_classes=3, feature_dim=4, weight=1.0).double()
    inputs, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    vos.gaussians.update(backbone(inputs), labels)
    vos.eval()  # the Gaussians stay as they are

    def loss(*_: Tensor) -> Tensor:
        vos.generator = torch.Generator().manual_seed(1)
        features = backbone(inputs)
        return vos(features, head(features), labels)

    parameters = (*backbone.parameters(), *head.parameters(), *vos.parameters())
    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-6)


def test_gradient_reaches_head_backbone_weights_and_phi() -> None:
    backbone = nn.Linear(5, 4)
    head, vos = make()
    features = backbone(torch.randn(12, 5))
    vos(features, head(features), torch.arange(12) % 3).backward()
    for module in (backbone, head, vos):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_outliers_alone_move_the_head() -> None:
    head, vos = make()
    features, labels = batch()
    vos(features, head(features).detach(), labels).backward()
    assert head.weight.grad.abs().sum() > 0


def test_the_loss_does_not_own_the_head() -> None:
    head, vos = make()
    assert not {id(p) for p in vos.parameters()} & {id(p) for p in head.parameters()}
    assert sorted(n for n, _ in vos.named_parameters()) == [
        "phi.bias", "phi.raw_slope", "raw_energy_weights",
    ]  # fmt: skip
    torch.optim.SGD([{"params": head.parameters()}, {"params": vos.parameters()}], lr=0.1)


def test_nothing_happens_before_the_start_but_the_windows_fill() -> None:
    head, vos = make(start_step=3)
    for step in range(5):
        features, labels = batch()
        assert vos.started == (step >= 3)
        loss = vos(features, head(features), labels)
        assert (loss.item() > 0) == (step >= 3)
    assert vos.gaussians.counts.sum() == 150


def test_evaluation_mode_remembers_nothing() -> None:
    head, vos = make()
    vos.eval()
    features, labels = batch()
    assert vos(features, head(features), labels).item() == 0  # no class has been seen
    assert vos.gaussians.counts.sum() == 0
    assert vos.steps == 0


def test_a_class_takes_part_from_min_count_on() -> None:
    head, vos = make(min_count=4)
    features, labels = torch.randn(9, 4), torch.tensor([0] * 4 + [1] * 3 + [7, -1])
    assert vos(features, head(features), labels).item() > 0
    assert vos.ready().tolist() == [True, False, False]


def test_without_a_ready_class_the_loss_is_zero_and_has_a_gradient() -> None:
    head, vos = make()
    features = torch.randn(3, 4, requires_grad=True)
    loss = vos(features, head(features), torch.arange(3))  # one sample in each class
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().sum() == 0


def test_an_empty_batch_gives_a_finite_loss() -> None:
    head, vos = make()
    vos(*with_logits(head, *batch()))
    loss = vos(torch.empty(0, 4), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert loss.isfinite()


@given(seed=st.integers(0, 2**16))
def test_permuting_classes_changes_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    head, vos = make()
    with torch.no_grad():
        vos.raw_energy_weights.uniform_(-1, 2)
    order = torch.randperm(3)
    other_head, other = make()
    with torch.no_grad():
        other_head.weight[order], other_head.bias[order] = head.weight, head.bias
        other.raw_energy_weights[order] = vos.raw_energy_weights
    features, labels = batch()
    assert torch.allclose(
        vos.ood_score(head(features)), other.ood_score(other_head(features)), atol=1e-5
    )
    # The same draws around the same means: class k of one is class order[k] of the other.
    vos.gaussians.update(features, labels)
    other.gaussians.update(features, order[labels])
    one = vos.sample_outliers(torch.Generator().manual_seed(seed)) - vos.gaussians.means
    two = other.sample_outliers(torch.Generator().manual_seed(seed)) - other.gaussians.means
    assert torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("together", [1, 2, 3, 7])
def test_classes_in_turn_give_the_loss_of_all_on_average(together: int) -> None:
    """Each class's features are one point: outliers lie there, and no step changes the Gaussians."""
    torch.manual_seed(0)
    points, labels = torch.randn(7, 4).double(), torch.arange(6).repeat(5)  # class 6 never comes
    head, every = make(classes=7)
    in_turn = make(classes=7, classes_per_step=together)[1]
    in_turn._head = (head,)
    features = points[labels].float()
    logits = head(features)
    losses = [in_turn(features, logits, labels).item() for _ in range(7)]  # whole rounds
    assert sum(losses) / 7 == pytest.approx(every(features, logits, labels).item(), rel=1e-3)
    assert len({round(loss, 4) for loss in losses}) == (1 if together == 7 else 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    head, vos = make()
    head.to(dtype)
    features, labels = batch()
    logits = head(features.to(dtype))
    loss = vos(features.to(dtype), logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype in (torch.float32, torch.float64)
    assert vos.ood_score(logits).dtype in (torch.float32, torch.float64)
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e4, -1e4, 6e4])
def test_logits_of_ten_thousand_in_float16(size: float) -> None:
    _, vos = make()
    logits = torch.full((8, 3), size, dtype=torch.float16, requires_grad=True)
    score = vos.ood_score(logits)
    assert score.isfinite().all()
    assert score[0].item() == pytest.approx(-size, rel=1e-3)
    loss = vos(torch.randn(8, 4), logits, torch.arange(8) % 3)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_under_autocast_the_outliers_pass_the_head_too() -> None:
    head, vos = make()
    features, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = vos(features, head(features), labels)
    loss.backward()
    assert loss.isfinite()


def test_features_out_of_autocast_meet_a_head_outside() -> None:
    head, vos = make(start_step=1)
    features, labels = batch()
    for _ in range(2):  # the second step draws outliers
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(features)
        loss = vos(features.bfloat16(), logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert vos.eval()(features.bfloat16(), logits, labels).isfinite()


def test_duplicate_and_constant_features_are_survived() -> None:
    for value in (torch.zeros(30, 4), torch.ones(30, 4), torch.randn(1, 4).expand(30, 4)):
        head, vos = make()
        loss = vos(value, head(value), torch.arange(30) % 3)
        loss.backward()
        assert loss.isfinite()
        assert head.weight.grad.isfinite().all()


def test_fewer_samples_than_dimensions() -> None:
    head, vos = make(classes=2, dim=200, queue_size=10)
    features, labels = batch(20, 2, 200)
    assert vos(features, head(features), labels).isfinite()


@pytest.mark.parametrize("background", [0, 2, 3])
def test_background_column_takes_no_part(background: int) -> None:
    head = nn.Linear(4, 4)
    vos = VirtualOutlierLoss(head=head, num_classes=3, feature_dim=4, background_index=background)
    logits = torch.randn(5, 4)
    other = logits.clone()
    other[:, background] = 50
    assert torch.equal(vos.ood_score(logits), vos.ood_score(other))
    foreground = [c for c in range(4) if c != background]
    assert torch.allclose(vos.energy(logits), energy(logits[:, foreground]), atol=1e-5)


def test_radius_ratio_sets_where_outliers_lie() -> None:
    ratios = []
    for ratio in (None, 2.0):
        _, vos = make(classes=200, dim=8, radius_ratio=ratio)
        features = torch.randn(20_000, 8)
        vos.gaussians.update(features, torch.arange(20_000) % 200)
        means = vos.gaussians.means.float()
        outliers = vos.sample_outliers(torch.Generator().manual_seed(0)) - means
        ratios.append((outliers.norm(dim=1).median() / features.norm(dim=1).median()).item())
        assert ratios[-1] == pytest.approx(vos.radius_ratio, rel=0.05)
    assert ratios[1] == pytest.approx(2.0, rel=0.05)


def test_tail_probability_is_one_over_the_draws() -> None:
    assert make(tail_probability=1e-6)[1].radius_ratio == make(draws_per_class=1e6)[1].radius_ratio


@pytest.mark.parametrize("phi", get_args(PhiName))
def test_phi_keeps_the_precision_of_the_energies(phi: PhiName) -> None:
    _, vos = make(phi=phi)
    logits = torch.linspace(0, 1, 3000).view(1000, 3)
    plain = vos.ood_score(logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vos.ood_score(logits), plain)
    assert vos.ood_score(logits.double()).dtype == torch.float64
    for cast in (vos.bfloat16(), vos.half()):
        assert cast.ood_score(logits).dtype == torch.float32
        assert len(cast.ood_score(logits).unique()) > 900


def test_energy_weights_stay_positive_under_any_update() -> None:
    _, vos = make()
    with torch.no_grad():
        vos.raw_energy_weights.copy_(torch.tensor([-80.0, 0.0, 80.0]))
    assert (vos.energy_weights > 0).all()
    assert vos.ood_score(torch.randn(4, 3)).isfinite().all()


def test_score_starts_as_the_plain_energy() -> None:
    _, vos = make()
    logits = torch.randn(6, 3)
    assert torch.allclose(vos.ood_score(logits), energy(logits), atol=1e-5)


@given(n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_row_weights_are_repetitions(n: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, generator=generator), torch.randn(m, generator=generator)
    times = torch.randint(0, 4, (n,), generator=generator)
    phi, is_id = torch.cat([a, b]), torch.cat([torch.ones(n), torch.zeros(m)])
    times = torch.cat([times, torch.ones(m, dtype=torch.int64)])
    weighted = uncertainty_loss(phi, is_id, times.float())
    repeated = uncertainty_loss(phi.repeat_interleave(times), is_id.repeat_interleave(times))
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-5)


def test_wrong_arguments_are_named() -> None:
    wrong = {
        "weight": -1, "outliers_per_class": 0, "draws_per_class": 0,
        "start_step": 0.4, "background_index": -1, "min_count": 0, "tail_probability": 2.0,
        "gaussians": "queue", "phi": "linear",
        "shrinkage": "none", "queue_size": 0, "outliers": "nops", "radius_ratio": 0.0,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            make(**{name: value})
    for name in ("outliers_per_class", "classes_per_step", "min_count"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number, got 1.5"):
            make(**{name: 1.5})
    with pytest.raises(ValueError, match="weight"):
        make(weight=math.inf)
    with pytest.raises(ValueError, match="start_step: expected at least 0"):
        make(start_step=-1)
    for gaussians in ("window", "streaming"):
        with pytest.raises(ValueError, match="min_count: expected at most the 1 features"):
            make(queue_size=1, gaussians=gaussians)
    with pytest.raises(ValueError, match="head"):
        VirtualOutlierLoss(head=3, num_classes=2, feature_dim=2)
    _, vos = make()
    with pytest.raises(ValueError, match="expected 3 class columns"):
        vos.ood_score(torch.zeros(2, 5))


def test_gaussians_of_ones_own_are_used() -> None:
    own = StreamingGaussians(3, 4)
    assert make(gaussians=own)[1].gaussians is own
