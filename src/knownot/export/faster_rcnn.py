"""torchvision's Faster R-CNN for one photo, in operations that can be traced with free sizes.

torchvision's own code branches on how many boxes there are, which no tracer follows. Its modules are
called for every step but those; the comparison of the export holds the whole against the original.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import nms, roi_align

from knownot.models.faster_rcnn import AdaptedFasterRCNN

_LEAST_PROPOSAL, _LEAST_BOX = 1e-3, 1e-2  # sides in pixels, as torchvision has them


class TraceableFasterRCNN(nn.Module):
    """What `AdaptedFasterRCNN.detect` finds in one photo.

    Args:
        regions: The detector, on the CPU; it is changed so that it serves nothing else.
    """

    def __init__(self, regions: AdaptedFasterRCNN) -> None:
        super().__init__()
        self.model: FasterRCNN = regions.model.eval()
        _fix_padding(self.model.backbone)
        # What the heads remember of a photo would be written outside the graph.
        self.model.roi_heads.box_predictor._forward_hooks.clear()

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Boxes of a photo.

        Args:
            photo: RGB pixels (H, W, 3), uint8.

        Returns:
            Boxes (B, 4), corners in the photo's pixels; labels (B,), int64 in [0, K); scores (B,),
            descending; logits (B, C); what the feature scores read (B, S).
        """
        sides = torch.stack([_length(photo, 0), _length(photo, 1)])
        image, size = self._resized(photo, sides)
        maps = self.model.backbone(image)
        if isinstance(maps, Tensor):
            maps = {"0": maps}  # as torchvision names a single one
        proposals = self._proposals(image, maps, size)
        features = self.model.roi_heads.box_head(self._pooled(maps, proposals))
        logits, deltas = self.model.roi_heads.box_predictor(features)
        boxes, labels, scores, rows = self._boxes(logits, deltas, proposals, size)
        ratio = (sides.float() / size.float()).flip(0).repeat(2)
        heads = self.model.roi_heads
        seen = heads.seen_in([boxes])[0] if heads.reads_maps else features.index_select(0, rows)
        return boxes * ratio, labels, scores, logits.index_select(0, rows), seen

    def _resized(self, photo: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """The photo resized, normalised, padded with zeros (1, 3, H', W'), and its size (2,) there."""
        transform = self.model.transform
        least, most, step = transform.min_size[-1], transform.max_size, transform.size_divisible
        # A number divided by a tensor would be multiplied by a reciprocal, and rounded twice.
        limits = torch.tensor([least, most], dtype=torch.float64)
        scale = (limits / torch.stack([sides.amin(0), sides.amax(0)])).amin(0)
        size = (sides * scale).floor().to(torch.int64)
        cells = (size + (step - 1)) // step
        rows, columns = cells[0].item(), cells[1].item()
        for number in (rows, columns):
            # In multiples of the coarsest stride: no map below needs rounding of its size.
            torch._check(number >= 1)
            torch._check(number <= -(-most // step))
        height, width = rows * step, columns * step
        above, below, y = _neighbours(sides[0], size[0], height)
        left, right, x = _neighbours(sides[1], size[1], width)
        mean, std = torch.tensor(transform.image_mean), torch.tensor(transform.image_std)

        def pixels(rows: Tensor, columns: Tensor) -> Tensor:
            part = photo.index_select(0, rows).index_select(1, columns)
            return (part.float() / 255 - mean) / std

        y, x = y[:, None, None], x[None, :, None]
        upper = (1 - x) * pixels(above, left) + x * pixels(above, right)
        lower = (1 - x) * pixels(below, left) + x * pixels(below, right)
        within = (torch.arange(height) < size[0])[:, None] & (torch.arange(width) < size[1])
        image = torch.where(within[:, :, None], (1 - y) * upper + y * lower, 0.0)
        return image.permute(2, 0, 1).unsqueeze(0), size

    def _proposals(self, image: Tensor, maps: dict[str, Tensor], size: Tensor) -> Tensor:
        """Region proposals (P, 4) in pixels of the resized photo."""
        network = self.model.rpn
        levels = list(maps.values())
        grids = [values.shape[-2:] for values in levels]
        strides = [[_length(image, a) // _length(values, a) for a in (2, 3)] for values in levels]
        anchors = network.anchor_generator.grid_anchors(grids, strides)
        most = network.pre_nms_top_n()
        heads = zip(*network.head(levels), anchors, strict=True)
        best = zip(*(_best(most, *of_level) for of_level in heads), strict=True)
        logits, deltas, places = (torch.cat(parts) for parts in best)
        boxes = _clipped(network.box_coder.decode_single(deltas, places), size)
        scores = logits.sigmoid()
        valid = (logits > -torch.inf) & _large(boxes, _LEAST_PROPOSAL)
        valid = valid & (scores >= network.score_thresh)
        # What is not valid comes last and so suppresses nothing that is; it is left out at the end.
        scores = torch.where(valid, scores, -1.0)
        by_level = [slice(first, first + most) for first in range(0, most * len(levels), most)]
        kept = torch.cat(
            [one.start + nms(boxes[one], scores[one], network.nms_thresh) for one in by_level]
        )
        boxes, scores = boxes.index_select(0, kept), scores.index_select(0, kept)
        order = scores.argsort(descending=True)[: network.post_nms_top_n()]
        order = order.index_select(0, (scores.index_select(0, order) >= 0).nonzero().squeeze(1))
        return boxes.index_select(0, order)

    def _pooled(self, maps: dict[str, Tensor], proposals: Tensor) -> Tensor:
        """Pooled maps (P, C, S, S) of proposals (P, 4)."""
        pool = self.model.roi_heads.box_roi_pool
        used = [values for name, values in maps.items() if name in pool.featmap_names]
        rois = torch.cat([proposals.new_zeros(proposals.shape[0], 1), proposals], dim=1)
        align = {"output_size": pool.output_size, "sampling_ratio": pool.sampling_ratio}
        if len(used) == 1:
            whole: Tensor = roi_align(used[0], rois, spatial_scale=pool.scales[0], **align)
            return whole
        levels = pool.map_levels([proposals])
        places = [(levels == level).nonzero().squeeze(1) for level in range(len(used))]
        parts = [
            roi_align(values, rois.index_select(0, place), spatial_scale=scale, **align)
            for values, place, scale in zip(used, places, pool.scales, strict=True)
        ]
        return torch.cat(parts).index_select(0, torch.cat(places).argsort())

    def _boxes(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (B, 4) in pixels of the resized photo, labels, scores, and their rows in `logits`."""
        heads = self.model.roi_heads
        classes = logits.shape[1] - 1
        decoded = heads.box_coder.decode_single(deltas, proposals).view(-1, classes + 1, 4)
        boxes = _clipped(decoded[:, 1:].reshape(-1, 4), size)
        scores = logits.softmax(-1)[:, 1:].reshape(-1)
        kept = ((scores > heads.score_thresh) & _large(boxes, _LEAST_BOX)).nonzero().squeeze(1)
        boxes, scores = boxes.index_select(0, kept), scores.index_select(0, kept)
        labels, rows = kept % classes, kept // classes
        # Boxes of different classes are moved apart, so that none suppresses one of another class.
        apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).amax(0) + 1
        kept = nms(boxes + ((labels + 1) * apart).unsqueeze(1), scores, heads.nms_thresh)
        kept = kept[: heads.detections_per_img]
        found = (column.index_select(0, kept) for column in (boxes, labels, scores, rows))
        boxes, labels, scores, rows = found
        return boxes, labels, scores, rows


class _Halving(nn.Module):
    """A strided convolution of maps whose sides are multiples of the stride."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        axes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
        total = [max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in axes]
        self.padding = [side for pad in reversed(total) for side in (pad // 2, pad - pad // 2)]

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) to maps (N, C', H / stride, W / stride)."""
        of = self.convolution
        padded = F.pad(maps, self.padding)
        return F.conv2d(padded, of.weight, of.bias, of.stride, 0, of.dilation, of.groups)


def _fix_padding(module: nn.Module) -> None:
    """TensorFlow's padding depends on the size, but not where that is a multiple of the stride."""
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _Halving(child))
        else:
            _fix_padding(child)


def _best(
    most: int, objectness: Tensor, deltas: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a map's anchors the likeliest: logits (most,), -inf where it has fewer, deltas, anchors."""
    logits = objectness.permute(0, 2, 3, 1).reshape(-1)
    deltas = deltas.view(objectness.shape[1], 4, -1).permute(2, 0, 1).reshape(-1, 4)
    # A small map has fewer than the most that are taken: the number must not depend on that.
    best, index = torch.cat([logits, logits.new_full((most,), -torch.inf)]).topk(most)
    index = torch.minimum(index, _length(logits, 0) - 1)
    return best, deltas.index_select(0, index), anchors.index_select(0, index)


def _length(values: Tensor, axis: int) -> Tensor:
    return torch.scalar_tensor(values.shape[axis], dtype=torch.int64)


def _neighbours(length: Tensor, size: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each place (S,) in a line resized from `length` to `size`, two pixels, share of the second.

    As `torch.nn.functional.interpolate` has it: float32, rounded once after multiply and add.
    """
    scale = (length.float() / size.float()).double()
    at = (scale * (torch.arange(places).double() + 0.5) - 0.5).float().clamp(min=0.0)
    first = torch.minimum(at.floor().to(torch.int64), length - 1)
    return first, torch.minimum(first + 1, length - 1), at - first.float()


def _clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (B, 4) cut at the border of a photo of `size` (2,), height first."""
    return torch.minimum(boxes.clamp(min=0.0), size.flip(0).repeat(2).to(boxes))


def _large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)
