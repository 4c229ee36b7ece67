"""Two processes against one with the joint batch: moments, outliers, loss, gradients; sharded too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from knownot.core.ranks import gather_rows
from knownot.core.virtual_outlier_loss import VirtualOutlierLoss
from tests.processes import end_process

CLASSES, DIM, STEPS = 3, 4, 6
CLASSES_PER_STEP = {"window": 3, "streaming": 2}
# Rows of each rank in each step: uneven, a last batch without any, more than a window at once.
SIZES = [(6, 6), (5, 2), (0, 7), (30, 1), (0, 0), (2, 9)]


def batches(step: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels of both ranks; the second never has class 0, and labels may be unknown."""
    generator = torch.Generator().manual_seed(step)
    parts = []
    for rank, size in enumerate(SIZES[step]):
        labels = torch.randint(-1, CLASSES, (size,), generator=generator)
        if rank == 1:
            labels = labels.clamp(min=1)
        inputs = torch.randn(size, 5, generator=generator) + labels.unsqueeze(1)
        parts.append((inputs, labels))
    return parts


def build(gaussians: str) -> tuple[nn.Linear, nn.Linear, VirtualOutlierLoss]:
    torch.manual_seed(0)
    backbone, head = nn.Linear(5, DIM), nn.Linear(DIM, CLASSES)
    generator = torch.Generator().manual_seed(11)
    vos = VirtualOutlierLoss(
        head,
        CLASSES,
        DIM,
        queue_size=9,
        start_step=1,
        classes_per_step=CLASSES_PER_STEP[gaussians],
        gaussians=gaussians,
        generator=generator,
    )
    return backbone, head, vos


def run(parts_of: list[int], gaussians: str, shard: bool = False) -> dict[str, list[Tensor]]:
    """Losses, gradients and moments of all steps, with the batches of some ranks joined."""
    backbone, head, vos = build(gaussians)
    if shard:
        fully_shard(backbone, mesh=init_device_mesh("cpu", (2,)))
    modules = nn.ModuleList([backbone, head, vos])
    seen: dict[str, list[Tensor]] = {name: [] for name in ("loss", "grad", "means", "covariance")}
    for step in range(STEPS):
        parts = [batches(step)[i] for i in parts_of]
        inputs, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        modules.zero_grad()
        features = backbone(inputs)
        loss = vos(features, head(features), labels)
        (loss + 0 * features.sum() + 0 * head(features).sum()).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in modules.parameters()]
        seen["loss"].append(loss.detach())
        grads = [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]
        seen["grad"].append(torch.cat([g.flatten() for g in grads]))
        seen["means"].append(vos.gaussians.means.clone())
        seen["covariance"].append(vos.gaussians.covariance())
    seen["outliers"] = [vos.sample_outliers(torch.Generator().manual_seed(5))]
    return seen


class Whole(nn.Module):
    """A model whose `forward` gives features and logits, as `DistributedDataParallel` needs it."""

    def __init__(self, backbone: nn.Linear, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(inputs)
        return features, self.head(features)


def trained(parts_of: list[int], gaussians: str, parallel: bool) -> list[Tensor]:
    """Weights after some steps of a plain loop, model and loss each in `DistributedDataParallel`."""
    backbone, head, vos = build(gaussians)
    model: nn.Module = Whole(backbone, head)
    optimizer = torch.optim.SGD([*model.parameters(), *vos.parameters()], lr=5.0)
    uncertainty: nn.Module = vos
    if parallel:
        model = DistributedDataParallel(model)
        uncertainty = DistributedDataParallel(vos, broadcast_buffers=False)
    for step in range(STEPS):
        parts = [batches(step)[i] for i in parts_of]
        inputs, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        features, logits = model(inputs)
        loss = uncertainty(features, logits, labels) + 0 * logits.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach() for m in (backbone, head, vos) for p in m.parameters()]


def of_one_rank(rank: int, folder: Path, gaussians: str) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        _as_rank(rank, folder, gaussians)
    finally:
        dist.destroy_process_group()


def _as_rank(rank: int, folder: Path, gaussians: str) -> None:
    seen, sharded = run([rank], gaussians), run([rank], gaussians, shard=True)
    for value in (part for s in (seen, sharded) for part in s["loss"] + s["grad"]):
        dist.all_reduce(value)  # what DistributedDataParallel does with gradients
        value /= 2
    seen |= {f"sharded {name}": values for name, values in sharded.items()}
    seen["trained"] = trained([rank], gaussians, parallel=True)
    _, _, drawn = build(gaussians)
    drawn.generator = None  # the ranks have to agree on a seed
    torch.manual_seed(rank)
    drawn.steps = 7
    again = drawn._generator(2, torch.zeros(0))
    assert again is not None
    seen["agreed"] = [torch.rand(3, generator=again)]
    torch.save(seen, folder / f"rank{rank}.pt")


def of_the_second_rank(_: int, folder: Path, gaussians: str) -> None:
    of_one_rank(1, folder, gaussians)
    end_process()


@pytest.mark.parametrize("gaussians", ["window", "streaming"])
def test_two_ranks_are_as_one_process_with_the_joint_batch(gaussians: str, tmp_path: Path) -> None:
    # The first rank is this process, so that its coverage counts.
    second = torch.multiprocessing.spawn(
        of_the_second_rank, (tmp_path, gaussians), nprocs=1, join=False
    )
    of_one_rank(0, tmp_path, gaussians)
    assert second.join(60)
    one = run([0, 1], gaussians)
    one["trained"] = trained([0, 1], gaussians, parallel=False)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for seen in ranks:
        sharded = {f"sharded {name}": v for name, v in one.items() if name != "trained"}
        for name, expected in (one | sharded).items():
            for step, value in enumerate(expected):
                torch.testing.assert_close(
                    seen[name][step], value, rtol=1e-6, atol=1e-6, msg=f"{name} of step {step}"
                )
    for name in ("means", "covariance", "outliers", "agreed", "sharded outliers", "trained"):
        for first, second in zip(ranks[0][name], ranks[1][name], strict=True):
            assert torch.equal(first, second), name


def test_a_process_alone_keeps_its_rows() -> None:
    features, labels = torch.randn(3, 2, dtype=torch.float16), torch.tensor([1, 0, 5])
    rows, joint = gather_rows(features, labels)
    assert rows is features
    assert joint is labels
