"""The head by itself, on features of the backbone as it is, before the whole network is trained.

A head that knows nothing yet sends gradients through the network that change good features for no
reason. Reference: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.batches import FeatureRows
from knownot.training.config import TrainConfig
from knownot.training.schedule import one_cycle

_EPOCHS, _BATCH = 30, 128


def train_head(model: UnknownAwareClassifier, learned: FeatureRows, config: TrainConfig) -> None:
    """Train bottleneck and head by cross-entropy alone, as `--finetune head` trains them.

    Args:
        model: Its backbone stays as it is; VOS sees nothing of this.
        learned: Features of the training photos, in evaluation mode.
        config: Learning rate, weight decay and seed.
    """
    trained = [*model.neck.parameters(), *model.head.parameters()]
    optimizer = torch.optim.AdamW(trained, config.lr, weight_decay=config.weight_decay)
    rows, labels = learned.rows.to(model.device), learned.labels.to(model.device)
    order = torch.Generator().manual_seed(config.seed)
    # A batch norm in the neck has no use for a last batch of one.
    batches = max(1, round(len(rows) / _BATCH))
    schedule = one_cycle(optimizer, _EPOCHS * batches, warmup=0.0)
    model.neck.train()
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(rows), generator=order).tensor_split(batches):
            logits = model.classify(rows[batch]).logits
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
