"""A tiny real DETR of transformers with random weights, and scenes for it; no network."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection

from knownot.models.detector import UnknownAwareDetector
from knownot.models.hf_detr import DetrRegions, DetrSettings
from knownot.models.regions import Targets
from knownot.models.unknown_aware import VosSettings

CLASSES = ["red", "green"]
QUERIES = 7
DIM = 16


def tiny_detr(seed: int = 0, **config) -> DetrForObjectDetection:
    """Two layers on a small timm backbone, random weights; no network."""
    torch.manual_seed(seed)
    sizes = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    layers = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    settings = {"backbone": "test_resnet", "num_labels": 2, "num_queries": QUERIES, "d_model": DIM}
    model = DetrForObjectDetection(
        DetrConfig(**({**settings, **sizes, **layers, **heads, "dropout": 0.0} | config))
    )
    # transformers draws every weight at 0.02: queries and photos give all but the same features,
    # and tests could not tell them apart. This is how the paper's code starts.
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.nn.init.normal_(model.model.query_position_embeddings.weight)
    return model


def tiny_regions(seed: int = 0, score_threshold: float = 0.05, detections: int = 100, **config):
    settings = DetrSettings(
        image_size=64, max_size=106, score_threshold=score_threshold, detections=detections
    )
    return DetrRegions(tiny_detr(seed, **config), settings)


def tiny_detector(seed: int = 0, **config) -> UnknownAwareDetector:
    vos = VosSettings(queue_size=20, draws_per_class=100.0)
    return UnknownAwareDetector(tiny_regions(seed, **config), CLASSES, vos=vos)


ODD_SIZES = [(1, 1), (3, 3), (200, 8000), (8000, 1), (1, 8000), (37, 5), (64, 64)]


def assert_odd_sizes_are_taken(detector: UnknownAwareDetector, together: bool) -> None:
    """Boxes in order on photos of odd sizes, and finite losses."""
    images = [torch.rand(3, *size) for size in ODD_SIZES]
    found = detector(images) if together else [detector([image])[0] for image in images]
    for (height, width), detections in zip(ODD_SIZES, found, strict=True):
        boxes = detections["boxes"]
        assert len(boxes) > 0
        assert torch.isfinite(detections["features"]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    targets = [
        {"boxes": torch.tensor([[0.0, 0.0, w, h]]), "labels": torch.tensor([1])}
        for h, w in ODD_SIZES
    ]
    losses = detector.losses(images, targets)
    assert all(torch.isfinite(value) for value in losses.values())


def scene(seed: int, height: int = 64, width: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """A grey noisy photo with a red square on the left and a green one on the right."""
    random = torch.Generator().manual_seed(seed)
    image = (0.5 + 0.05 * torch.randn(3, height, width, generator=random)).clamp(0, 1)
    side = min(height, width // 2) // 2
    tops = torch.randint(0, height - side, (2,), generator=random).tolist()
    boxes = []
    for label, top in enumerate(tops):
        left = 2 + label * width // 2
        image[:, top : top + side, left : left + side] = 0.1
        image[label, top : top + side, left : left + side] = 0.9
        boxes.append([left, top, left + side, top + side])
    return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([0, 1])}


def scenes(count: int, **size) -> tuple[list[Tensor], Targets]:
    images, targets = zip(*(scene(seed, **size) for seed in range(count)), strict=True)
    return list(images), list(targets)


def calibrated_detector() -> UnknownAwareDetector:
    """One that predicts."""
    return calibrated(tiny_detector(), 0.05)


def calibrated(detector: UnknownAwareDetector, box_threshold: float) -> UnknownAwareDetector:
    """Fitted to some scenes and calibrated on others."""
    with torch.no_grad():
        _, matched = detector.regions.losses(*scenes(12))
    detector.fit_scores(matched.features, matched.labels, k=3)
    held = detector([scene(seed)[0] for seed in range(100, 112)])
    names = ("boxes", "labels", "logits", "scored_features")
    detector.calibrate({name: torch.cat([d[name] for d in held]) for name in names})
    detector.box_threshold = box_threshold
    return detector
