"""pytorch-ood's VOS loss, called as ours is, so that both train in the same loop."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knownot.errors import MissingExtraError
from knownot.models.classifier import UnknownAwareClassifier


class PytorchOodVos(nn.Module):
    """The uncertainty loss of `VirtualOutlierSynthesizingRegLoss`, times its weight.

    It starts with the step at which ours would, and with ours' weight, window and draws; then its
    queues have to fill first. Its φ and energy weights are parameters of this module; the head,
    which the library's criterion owns, stays the model's.

    Args:
        model: The classifier that is trained; its `vos` has the settings.

    Raises:
        MissingExtraError: If pytorch-ood is not installed.
    """

    steps: Tensor

    def __init__(self, model: UnknownAwareClassifier) -> None:
        super().__init__()
        try:
            from pytorch_ood.loss import VirtualOutlierSynthesizingRegLoss
        except ImportError:
            raise MissingExtraError("pytorch-ood", "baselines", "its VOS loss") from None
        settings = model.vos_settings
        self.phi = nn.Linear(1, 2)
        self.energy_weights = nn.Linear(model.vos.num_classes, 1)
        nn.init.uniform_(self.energy_weights.weight)  # as its documentation asks
        criterion = VirtualOutlierSynthesizingRegLoss(
            logistic_regression=self.phi,
            weights_energy=self.energy_weights,
            fc=model.head,
            alpha=settings.weight,
            sample_number=settings.queue_size,
            select=settings.outliers_per_class,
            sample_from=int(settings.draws_per_class),
        )
        self._criterion = (criterion,)  # in a tuple: its head must not become a parameter here
        self.start_step = model.vos.start_step
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Features (N, D), logits (N, K), labels (N,) to a scalar; 0 before `start_step`."""
        self.steps += 1
        if self.steps <= self.start_step:
            return logits.new_zeros(())
        criterion = self._criterion[0].to(features.device)
        # Its loss is the sum of both; what calls this adds cross-entropy itself.
        total: Tensor = criterion(logits, features, labels)
        return total - F.cross_entropy(logits, labels)

    def get_extra_state(self) -> dict[str, Any]:
        """The queues, which the library leaves out of a checkpoint: a resumed run needs them full."""
        criterion = self._criterion[0]
        filled = list(criterion.number_dict.values())
        return {"queues": criterion.data_dict, "filled": filled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The queues of a checkpoint."""
        criterion = self._criterion[0]
        criterion.data_dict = state["queues"].to(criterion.data_dict.device)
        criterion.number_dict = dict(enumerate(state["filled"]))
