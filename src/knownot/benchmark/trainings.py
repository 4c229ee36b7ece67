"""Ways of training a model that are compared, by name; a benchmark's file may add its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from knownot.training.train import PeerLoss


def _pytorch_ood_vos(model: Any) -> Any:
    from knownot.benchmark.peer_loss import PytorchOodVos

    return PytorchOodVos(model)


@dataclass(frozen=True)
class Training:
    """One way of training.

    Attributes:
        about: What it is, in a few words, for reports.
        settings: What it changes of the benchmark's settings, as `knownot train` names them.
        peer: Another library's uncertainty loss in place of ours.
    """

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: PeerLoss | None = None


TRAININGS: dict[str, Training] = {
    "cross-entropy": Training("cross-entropy alone", {"vos_weight": 0.0}),
    "linear-probe": Training(
        "cross-entropy, the backbone's features straight into the last layer",
        {"vos_weight": 0.0, "bottleneck": 0},
    ),
    "vos": Training("VOS, monotone φ (the package's)"),
    "vos-t-1": Training("VOS, monotone φ, the paper's t = 1", {"outliers_per_class": 1}),
    "vos-free-phi": Training("VOS, the paper's free φ", {"phi": "free"}),
    "vos-pytorch-ood": Training(
        "VOS by pytorch-ood's loss, its t = 1", {"outliers_per_class": 1}, peer=_pytorch_ood_vos
    ),
    "vos-pytorch-ood-t-16": Training(
        "VOS by pytorch-ood's loss, t = 16", {"outliers_per_class": 16}, peer=_pytorch_ood_vos
    ),
}
