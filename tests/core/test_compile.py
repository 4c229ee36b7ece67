"""The compiled step: one graph, the numbers of the eager step, nothing compiled twice."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from knownot.core.phi import PhiName
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(**options) -> VirtualOutlierLoss:
    torch.manual_seed(0)
    vos = VirtualOutlierLoss(
        nn.Linear(4, 3), num_classes=3, feature_dim=4, queue_size=20, start_step=2, **options
    )
    vos.generator = torch.Generator().manual_seed(1)
    return vos


def train(vos: VirtualOutlierLoss, sizes: list[int]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of some steps, and what they left: gradients and state."""
    torch.manual_seed(sum(sizes))
    losses = []
    for size in sizes:
        labels = torch.arange(size) % 4  # class 3 does not exist
        features = torch.randn(size, 4) + labels.unsqueeze(1)
        loss = vos(features, vos._head[0](features), labels)
        if loss.requires_grad:
            loss.backward()
        losses.append(loss.item())
    left = {f"gradient of {n}": p.grad for n, p in vos.named_parameters()}
    left["gradient of head"] = vos._head[0].weight.grad
    return losses, left | vos.state_dict()


@pytest.mark.parametrize("phi", ["monotone", "monotone-mlp", "free-mlp"])
@pytest.mark.parametrize("gaussians", ["window", "streaming"])
def test_the_compiled_step_is_one_graph_and_equals_the_eager_one(
    phi: PhiName, gaussians: str
) -> None:
    eager, compiled = (make(phi=phi, gaussians=gaussians) for _ in range(2))
    compiled.compile(backend="aot_eager", fullgraph=True)  # raises at a break
    for sizes in ([16] * 3, [16] * 6):  # windows overflow: 36 rows of each class, 20 places
        losses, left = train(eager, sizes)
        # The step counters change, nothing is compiled anew.
        stance = "default" if len(sizes) == 3 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            compiled_losses, compiled_left = train(compiled, sizes)
        assert compiled_losses == pytest.approx(losses, rel=1e-5)
        assert left.keys() == compiled_left.keys()
        for name, value in left.items():
            assert torch.allclose(compiled_left[name], value, rtol=1e-5, atol=1e-6), name
    assert losses[0] > 0


def test_batches_of_other_sizes_are_compiled_once_more() -> None:
    eager, compiled = make(), make()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for sizes, stance in (([16, 16, 16, 7], "default"), ([9, 12, 5, 16], "fail_on_recompile")):
        losses = train(eager, sizes)[0]
        with torch.compiler.set_stance(stance):
            assert train(compiled, sizes)[0] == pytest.approx(losses, rel=1e-5)


def test_a_loss_inside_a_compiled_function_works_and_is_compiled_once() -> None:
    eager, within = make(), make()

    @torch.compile(backend="aot_eager")
    def loss(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * within(features * 1, logits * 1, labels)

    labels = torch.arange(16) % 3
    for step in range(8):
        features = torch.randn(16, 4)
        logits = eager._head[0](features)
        with torch.compiler.set_stance("default" if step < 4 else "fail_on_recompile"):
            found = loss(features, logits, labels).item()
        assert found == pytest.approx(2 * eager(features, logits, labels).item(), rel=1e-5)


def test_a_copy_of_a_compiled_loss_has_a_step_of_its_own() -> None:
    vos = make()
    vos.compile(backend="aot_eager")
    other = copy.deepcopy(vos)
    train(other, [16] * 4)
    assert other.gaussians.counts.sum() > 0
    assert vos.gaussians.counts.sum() == 0


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_generated_code_gives_the_same_losses() -> None:
    eager, compiled = make(), make()
    compiled.compile(fullgraph=True)
    losses, left = train(eager, [16] * 6)
    compiled_losses, compiled_left = train(compiled, [16] * 6)
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    for name, value in left.items():
        assert torch.allclose(compiled_left[name], value, rtol=1e-5, atol=1e-6), name
