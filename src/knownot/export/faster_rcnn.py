"""torchvision's Faster R-CNN for one photo, in operations that can be traced with free sizes.

torchvision's own code branches on how many boxes there are, which no tracer follows. Here every
step but those is a call of its modules; the parity gate holds the rest against the original.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions

_LEAST_PROPOSAL, _LEAST_BOX = 1e-3, 1e-2  # sides in pixels, torchvision's


class TraceableFasterRCNN(nn.Module):
    """What `FasterRCNNRegions.detect` finds in one photo.

    Args:
        regions: The detector, in evaluation mode, on the CPU; not changed.
    """

    def __init__(self, regions: FasterRCNNRegions) -> None:
        super().__init__()
        self.model: FasterRCNN = copy.deepcopy(regions.model)
        _fix_padding(self.model.backbone)
        # What the heads remember of a photo is written outside the graph.
        self.model.roi_heads.box_predictor._forward_hooks.clear()

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Boxes of a photo.

        Args:
            photo: RGB pixels (H, W, 3), uint8.

        Returns:
            Boxes (B, 4), corners in the photo's pixels; labels (B,) in [0, K), int64; scores (B,),
            descending; logits (B, C); features (B, D).
        """
        image, size = self._image(photo)
        maps = self.model.backbone(image)
        proposals = self._proposals(image, maps, size)
        pooled = self._pooled(maps, proposals)
        heads = self.model.roi_heads
        features = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(features)
        boxes, labels, scores, rows = self._boxes(logits, deltas, proposals, size)
        whole = torch.stack([_length(photo, 0), _length(photo, 1)]).float()
        ratio = (whole / size.float()).flip(0).repeat(2)
        return boxes * ratio, labels, scores, logits[rows], features[rows]

    def _image(self, photo: Tensor) -> tuple[Tensor, Tensor]:
        """The photo resized, normalised and padded (1, 3, H', W'), and its size (2,) in there."""
        transform = self.model.transform
        sides = torch.stack([_length(photo, 0), _length(photo, 1)])
        least, most = transform.min_size[-1], transform.max_size
        scale = torch.minimum(least / sides.amin(0).double(), most / sides.amax(0).double())
        size = (sides.double() * scale).floor().to(torch.int64)
        step = transform.size_divisible
        cells = (size + (step - 1)) // step
        v_h, v_w = cells[0].item(), cells[1].item()
        for v in (v_h, v_w):
            torch._check(v >= 1)
            torch._check(v <= -(-most // step))
        first_y, second_y, share_y = _neighbours(sides[0], size[0], v_h * step)
        first_x, second_x, share_x = _neighbours(sides[1], size[1], v_w * step)
        mean = torch.tensor(transform.image_mean)
        std = torch.tensor(transform.image_std)

        def part(ys: Tensor, xs: Tensor) -> Tensor:
            pixels = photo.index_select(0, ys).index_select(1, xs)
            return (pixels.float() / 255 - mean) / std

        y, x = share_y[:, None, None], share_x[None, :, None]
        resized = (1 - y) * ((1 - x) * part(first_y, first_x) + x * part(first_y, second_x)) + y * (
            (1 - x) * part(second_y, first_x) + x * part(second_y, second_x)
        )
        inside = (torch.arange(v_h * step) < size[0])[:, None, None] & (
            torch.arange(v_w * step) < size[1]
        )[None, :, None]
        return torch.where(inside, resized, 0.0).permute(2, 0, 1).unsqueeze(0), size

    def _proposals(self, image: Tensor, maps: dict[str, Tensor], size: Tensor) -> Tensor:
        """Region proposals (P, 4) in pixels of the resized photo."""
        rpn = self.model.rpn
        levels = list(maps.values())
        objectness, deltas = rpn.head(levels)
        anchors = _anchors(rpn.anchor_generator, image, levels)
        most = rpn.pre_nms_top_n()
        boxes, scores = [], []
        for level, (score, delta) in enumerate(zip(objectness, deltas, strict=True)):
            score = score.permute(0, 2, 3, 1).reshape(-1)
            per_cell = rpn.anchor_generator.num_anchors_per_location()[level]
            delta = delta.view(per_cell, 4, -1).permute(2, 0, 1).reshape(-1, 4)
            # Never fewer than torchvision may take: what is added has no area, and falls out below.
            padded = torch.cat([score, score.new_full((most,), -torch.inf)])
            best, index = padded.topk(most)
            index = index[best > -torch.inf]
            found = rpn.box_coder.decode_single(delta[index], anchors[level][index])
            found = clip(found, size)
            keep = (large(found, _LEAST_PROPOSAL)).nonzero().squeeze(1)
            found, probability = found[keep], score[index][keep].sigmoid()
            keep = nms(found, probability, rpn.nms_thresh)
            boxes.append(found[keep])
            scores.append(probability[keep])
        order = torch.cat(scores).argsort(descending=True)
        return torch.cat(boxes)[order[: rpn.post_nms_top_n()]]

    def _pooled(self, maps: dict[str, Tensor], proposals: Tensor) -> Tensor:
        """Pooled maps (P, C, S, S) of proposals (P, 4)."""
        pool = self.model.roi_heads.box_roi_pool
        used = [maps[name] for name in pool.featmap_names if name in maps]
        levels = pool.map_levels([proposals])
        rows = torch.cat([proposals.new_zeros(proposals.shape[0], 1), proposals], 1)
        parts, places = [], []
        for level, (values, scale) in enumerate(zip(used, pool.scales, strict=True)):
            place = (levels == level).nonzero().squeeze(1)
            places.append(place)
            parts.append(
                roi_align(
                    values,
                    rows[place],
                    pool.output_size,
                    spatial_scale=scale,
                    sampling_ratio=pool.sampling_ratio,
                )
            )
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _boxes(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        heads = self.model.roi_heads
        classes = logits.shape[1] - 1
        decoded = heads.box_coder.decode_single(deltas, proposals).view(-1, classes + 1, 4)
        boxes = clip(decoded[:, 1:].reshape(-1, 4), size)
        scores = logits.softmax(-1)[:, 1:].reshape(-1)
        keep = ((scores > heads.score_thresh) & large(boxes, _LEAST_BOX)).nonzero().squeeze(1)
        boxes, scores = boxes[keep], scores[keep]
        labels, rows = keep % classes, keep // classes
        # Boxes of different classes are moved apart, so that none suppresses another.
        apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).amax(0) + 1
        kept = nms(boxes + (labels + 1).to(boxes)[:, None] * apart, scores, heads.nms_thresh)
        kept = kept[: heads.detections_per_img]
        return boxes[kept], labels[kept], scores[kept], rows[kept]


def _length(values: Tensor, axis: int) -> Tensor:
    return torch.scalar_tensor(values.shape[axis], dtype=torch.int64)


def _neighbours(length: Tensor, size: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each place, the two nearest pixels and the share of the second."""
    scale = (length.float() / size.float()).double()
    # Rounded once, as a fused multiply-add does it.
    at = (scale * (torch.arange(places).double() + 0.5) - 0.5).float().clamp(min=0.0)
    first = torch.minimum(at.floor().to(torch.int64), length - 1)
    second = torch.minimum(first + 1, length - 1)
    return first, second, at - first.float()


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    limits = size.flip(0).repeat(2).to(boxes)
    return torch.minimum(boxes.clamp(min=0.0), limits)


def large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)


def _anchors(generator, image: Tensor, levels: list[Tensor]) -> list[Tensor]:
    strides = []
    grids = []
    for values in levels:
        grids.append(values.shape[-2:])
        strides.append([_length(image, a) // _length(values, a) for a in (2, 3)])
    return generator.grid_anchors(grids, strides)


class _Halving(nn.Module):
    """A strided convolution whose input's sides are multiples of its stride."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        sides = zip(
            convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
        )
        total = [max((k - 1) * d + 1 - s, 0) for k, s, d in sides]
        self.padding = [p for t in reversed(total) for p in (t // 2, t - t // 2)]

    def forward(self, maps: Tensor) -> Tensor:
        c = self.convolution
        return F.conv2d(
            F.pad(maps, self.padding), c.weight, c.bias, c.stride, 0, c.dilation, c.groups
        )


def _fix_padding(module: nn.Module) -> None:
    """TensorFlow's padding depends on the size, but not where that is a multiple of the stride."""
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, _Halving(child))
        else:
            _fix_padding(child)
