"""On a GPU: a step waits for nothing, and what a CUDA graph replays is the eager step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.core.chi_square import ChiSquareTail
from knownot.core.outliers import TailNoise, draw_tail_noise, place_outliers
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss

K, D, BATCH = 10, 16, 32
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Training:
    """A head and its loss, past the start, with batches around class means."""

    def __init__(self, kind: str = "window", device: str = "cuda", **options) -> None:
        torch.manual_seed(0)
        self.device = device
        self.head = nn.Linear(D, K).to(device)
        self.vos = VirtualOutlierLoss(
            self.head, num_classes=K, feature_dim=D, queue_size=20, gaussians=kind, **options
        ).to(device)
        self.means = 3 * torch.randn(K, D, device=device)
        self.step(*self.batch(400))
        self.step(*self.batch())

    def batch(self, size: int = BATCH) -> tuple[Tensor, Tensor]:
        labels = torch.randint(K, (size,), device=self.device)
        return self.means[labels] + torch.randn(size, D, device=self.device), labels

    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        self.head.zero_grad()
        self.vos.zero_grad()
        logits = self.head(features)
        loss = F.cross_entropy(logits, labels) + self.vos(features, logits, labels)
        loss.backward()
        return loss.detach()

    def capture(self, features: Tensor, labels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(features, labels)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            loss = self.step(features, labels)
        return graph, loss


@needs_gpu
@pytest.mark.parametrize("start_step", [0, 10**6])
@pytest.mark.parametrize("kind", ["window", "streaming"])
def test_a_step_does_not_wait_for_the_gpu(kind, start_step):
    training = Training(kind, start_step=start_step)
    features, labels = training.batch()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [training.step(features, labels) for _ in range(3)]
        with pytest.raises(RuntimeError, match="synchroniz"):
            losses[0].item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@needs_gpu
@pytest.mark.parametrize("kind", ["window", "streaming"])
def test_replays_leave_the_moments_of_eager_steps(kind):
    training = Training(kind)
    features, labels = training.batch()
    graph, loss = training.capture(features, labels)
    eager = copy.deepcopy(training.vos.gaussians)
    steps, losses = training.vos.steps, set()
    for _ in range(20):
        for held, new in zip((features, labels), training.batch(), strict=True):
            held.copy_(new)
        graph.replay()
        training.vos.count_step(BATCH)
        losses.add(loss.item())
        eager.update(features, labels)
    eager.refactor()
    assert training.vos.steps == steps + 20
    assert len(losses) == 20
    expected = dict(eager.named_buffers())
    for name, buffer in training.vos.gaussians.named_buffers():
        torch.testing.assert_close(
            buffer, expected[name], msg=lambda text, name=name: f"{name}: {text}"
        )


@needs_gpu
def test_every_replay_draws_other_outliers():
    training = Training()
    features, labels = training.batch()
    graph, loss = training.capture(features, labels)
    losses = set()
    for _ in range(5):
        graph.replay()
        losses.add(loss.item())
    assert len(losses) == 5


@needs_gpu
@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("dim", [16, 200])
def test_outliers_lie_where_a_cpu_places_them(dim, t):
    tail = ChiSquareTail(dim)
    noise = draw_tail_noise(K, t, tail)
    means, upper = torch.randn(K, dim), torch.randn(dim, dim).triu()
    expected = place_outliers(noise, means, upper, tail)
    noise = TailNoise(*(numbers.cuda() for numbers in noise))
    placed = place_outliers(noise, means.cuda(), upper.cuda(), tail.cuda())
    torch.testing.assert_close(placed.cpu(), expected, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_classes_that_take_turns_cannot_be_captured():
    training = Training(classes_per_step=4)
    with pytest.raises(RuntimeError, match="classes_per_step=10"):
        training.capture(*training.batch())


def test_a_replay_counts_as_a_step_does():
    training, other = (Training(device="cpu", start_step=5) for _ in range(2))
    for _ in range(3):
        training.step(*training.batch())
        other.vos.count_step(BATCH)
    assert other.vos.steps == training.vos.steps == 5
    assert other.vos.started
    for name in ("_rows", "_updates"):
        assert getattr(other.vos.gaussians, name) == getattr(training.vos.gaussians, name)
