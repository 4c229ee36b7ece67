"""Parts of torchvision's detectors that also tell what their answers came from.

torchvision's own code samples proposals, computes losses and post-processes boxes; here it is only
asked which features and logits it used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image

from knownot.models.pooled_maps import by_image, pooled_maps
from knownot.models.regions import Detections, Targets


class RememberingRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's `RoIHeads`, which also tells what features and logits its boxes came from."""

    @classmethod
    def of(cls, heads: RoIHeads) -> RememberingRoIHeads:
        """The same heads, with the same modules and settings."""
        new = cls.__new__(cls)
        new.__dict__ = heads.__dict__.copy()
        new.reads_maps = False
        new.replace_predictor(heads.box_predictor)
        return new

    def replace_predictor(self, predictor: nn.Module) -> None:
        """Take this last layer, whose inputs and outputs are remembered."""
        predictor.register_forward_hook(self._remember_rows)
        self.box_predictor = predictor

    def _remember_rows(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        self._features, self._logits = inputs[0], output[0]

    def read_maps(self, body: nn.Module, levels: list[int], strides: list[int]) -> None:
        """Give detections what these maps of the backbone's body show in their boxes.

        Args:
            body: Gives several maps, as a list or by name.
            levels: Which of them, by place.
            strides: Pixels between neighbouring cells, of each.
        """
        self.reads_maps = True
        self._levels, self._strides = levels, strides
        body.register_forward_hook(self._remember_maps)

    def _remember_maps(self, module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        if not self.training:
            maps = in_order(output)
            self._maps = [maps[level] for level in self._levels]

    def seen_in(self, boxes: list[Tensor]) -> list[Tensor]:
        """Pooled maps (B, S) of each photo's boxes (B, 4), in the resized photo; then forgotten."""
        seen = pooled_maps(self._maps, boxes, self._strides)
        del self._maps
        return list(by_image(seen, boxes))

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        """torchvision's sample, its labels remembered."""
        sample = super().select_training_samples(proposals, targets)
        self._labels = torch.cat(sample[2])
        return sample

    def take_sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, D), logits (N, K + 1), labels (N,), 0 for background; then forgotten."""
        sample = self._features, self._logits, self._labels
        del self._features, self._logits, self._labels  # they hold the graph
        return sample

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """torchvision's boxes, scores and labels; the row that each came from is remembered.

        It does not say which, but score and box are copies of the row's: the row is found by
        equality, of the score alone where that tells. Rows that share both are equal in all that
        is read of them.
        """
        kept: tuple[list[Tensor], list[Tensor], list[Tensor]] = super().postprocess_detections(
            class_logits, box_regression, proposals, image_shapes
        )
        counts = [len(p) for p in proposals]
        probabilities = torch.split(class_logits.softmax(-1), counts)
        self._rows: list[Tensor] = []
        first = 0
        for i, (boxes, scores, labels) in enumerate(zip(*kept, strict=True)):
            same = probabilities[i].T[labels] == scores.unsqueeze(1)  # (B, N)
            places = same.nonzero()
            rows = places[:, 1]
            if len(places) > len(labels):  # some score is that of several rows
                decoded = self.box_coder.decode(box_regression, proposals).split(counts)[i]
                candidates = clip_boxes_to_image(decoded, image_shapes[i])[:, labels]  # (N, B, 4)
                same &= (candidates == boxes).all(-1).T
                rows = same.byte().argmax(1)
            self._rows.append(first + rows)
            first += counts[i]
        return kept

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """torchvision's result; in evaluation each detection gets its `logits` and `features`.

        With `read_maps`, `scored_features` too.
        """
        found, losses = super().forward(features, proposals, image_shapes, targets)
        if not self.training:
            for detections, rows in zip(found, self._rows, strict=True):
                detections["logits"] = self._logits[rows]
                detections["features"] = self._features[rows]
            del self._features, self._logits, self._rows
            if self.reads_maps:
                seen = self.seen_in([detections["boxes"] for detections in found])
                for detections, rows_seen in zip(found, seen, strict=True):
                    detections["scored_features"] = rows_seen
        return found, losses


class RememberingProposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's `RegionProposalNetwork`, which also tells how sure it is of its proposals."""

    @classmethod
    def of(cls, network: RegionProposalNetwork) -> RememberingProposals:
        """The same network, with the same modules and settings."""
        new = cls.__new__(cls)
        new.__dict__ = network.__dict__.copy()
        return new

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's choice; in evaluation it is remembered."""
        kept: tuple[list[Tensor], list[Tensor]] = super().filter_proposals(
            proposals, objectness, image_shapes, num_anchors_per_level
        )
        if not self.training:
            self._kept = (*kept, image_shapes)
        return kept

    def take_proposals(self) -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
        """For each photo boxes (P, 4), objectness (P,) and the size they refer to; then forgotten."""
        kept = list(zip(*self._kept, strict=True))
        del self._kept
        return kept


def in_order(maps: Any) -> list[Tensor]:
    """A body's maps: timm gives a list, torchvision a dictionary; a plain network gives one."""
    if isinstance(maps, Tensor):
        return [maps]
    return list(maps.values()) if isinstance(maps, dict) else list(maps)
