"""The head by itself, on features that do not change.

Before a whole network is trained: a head that knows nothing yet sends gradients through the network
that change good features for no reason. And where there is nothing but features. Reference: Kumar et
al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.batches import FeatureRows
from knownot.training.config import TrainConfig
from knownot.training.schedule import one_cycle

_EPOCHS, _BATCH = 30, 128


def train_head(
    model: UnknownAwareClassifier,
    learned: FeatureRows,
    config: TrainConfig,
    epochs: int = _EPOCHS,
    with_vos: bool = False,
) -> None:
    """Train bottleneck and head by cross-entropy, as `--finetune head` trains them.

    Args:
        model: Its backbone stays as it is.
        learned: Features of the training examples, in evaluation mode.
        config: Learning rate, weight decay and seed, and with VOS when it starts.
        epochs: How often all features are seen.
        with_vos: Whether the virtual outlier loss is trained with; else it sees nothing of this.
    """
    trained = [*model.neck.parameters(), *model.head.parameters()]
    groups: list[dict[str, Any]] = [{"params": trained, "weight_decay": config.weight_decay}]
    if with_vos:
        groups.append({"params": [*model.vos.parameters()], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, config.lr)
    rows, labels = learned.rows.to(model.device), learned.labels.to(model.device)
    order = torch.Generator().manual_seed(config.seed)
    # A batch norm in the neck has no use for a last batch of one.
    batches = max(1, round(len(rows) / _BATCH))
    steps = epochs * batches
    schedule = one_cycle(optimizer, steps, warmup=0.0)
    model.neck.train()
    if with_vos:
        model.vos.train()
        model.vos.start_step = config.start_step(steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows), generator=order).tensor_split(batches):
            output = model.classify(rows[batch])
            loss = F.cross_entropy(output.logits, labels[batch])
            if with_vos:
                loss = loss + model.vos(output.features, output.logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
