"""Small real models, built in a second or two; no mock."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from knownot.core.columns import joined
from knownot.models.backbones import create_backbone, feature_width
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.earlier_map import find_earlier_map
from knownot.models.preprocessing import Preprocessing
from knownot.models.torchvision_faster_rcnn import FasterRCNNRegions, FasterRCNNSettings
from knownot.models.unknown_aware import VosSettings

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40)}
UNKNOWN_COLOUR = (40, 40, 220)
SIZE = 32


def tiny_backbone(seed: int = 0) -> nn.Module:
    """Maps images (N, 3, S, S) to features (N, 8): a convolution and the mean colour."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def noisy(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """A photo-like square of one colour with noise."""
    random = np.random.default_rng(seed)
    pixels = random.normal(colour, 25, (SIZE, SIZE, 3)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def colour_folder(root: Path, count: int, start: int = 0) -> Path:
    """`root/red` and `root/green`, `count` PNG files each."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            noisy(colour, 10_000 * k + i).save(root / name / f"{i:04}.png")
    return root


def pixels(count: int, colour: tuple[int, int, int], start: int) -> Tensor:
    images = [np.array(noisy(colour, start + i)) for i in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def tiny_model(
    classwise: bool = False,
    seed: int = 0,
    architecture: str = "custom",
    earlier: bool = False,
    **vos,
) -> UnknownAwareClassifier:
    """A red/green classifier around a module of one's own, trained for some steps, calibrated.

    With the name of an architecture around that, with random weights: its folder loads by itself,
    and Mahalanobis may read an earlier map.
    """
    backbone, width = tiny_backbone(seed), 8
    if architecture != "custom":
        backbone, _ = create_backbone(architecture, "none", SIZE)
        width = feature_width(backbone, SIZE)
    model = UnknownAwareClassifier(
        backbone,
        width,
        list(COLOURS),
        Preprocessing(image_size=SIZE, crop=1.0),
        bottleneck=4,
        vos=VosSettings(queue_size=50, **vos),
        architecture=architecture,
        earlier_map=find_earlier_map(backbone, SIZE) if earlier else None,
    )
    assert (model.earlier_map is not None) is earlier
    images = torch.cat([pixels(60, c, 1000 * k) for k, c in enumerate(COLOURS.values())])
    labels = torch.arange(2).repeat_interleave(60)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        output = model(images)
        loss = nn.functional.cross_entropy(output.logits, labels)
        loss = loss + model.vos(output.features, output.logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model.fit_scores(model.scored_features(images), labels)
        held = torch.cat([pixels(60, c, 5000 + 1000 * k) for k, c in enumerate(COLOURS.values())])
        model.calibrate(model.scored_features(held), classwise)
    return model


def cifar_tar(path: Path, counts: dict[str, int]) -> None:
    """An archive `cifar10/SPLIT/CLASS/NNNN.jpg` of two colours."""
    with tarfile.open(path, "w:gz") as tar:
        for split, count in counts.items():
            for k, (name, colour) in enumerate(COLOURS.items()):
                for i in range(count):
                    content = io.BytesIO()
                    noisy(colour, 1000 * k + i + 500 * (split == "test")).save(content, "JPEG")
                    info = tarfile.TarInfo(f"cifar10/{split}/{name}/{i:04}.jpg")
                    info.size = content.tell()
                    content.seek(0)
                    tar.addfile(info, content)


def write_video(
    path: Path, images: Sequence[Image.Image], *, rate: int = 10, codec: str = "libx264"
) -> Path:
    """A video of pictures of one size; the index of an mp4 comes first, as in a download."""
    import av

    container = path.suffix.removeprefix(".").replace("mkv", "matroska")
    with av.open(str(path), "w", format=container, options={"movflags": "faststart"}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode(None))
    return path


def tiny_detector(architecture: str = "tf_mobilenetv3_small_minimal_100") -> UnknownAwareDetector:
    """A detector of three classes with random weights, calibrated on its own boxes of noise."""
    torch.manual_seed(0)
    settings = FasterRCNNSettings(
        architecture=architecture, image_size=64, feature_dim=16, proposals=40, detections=30
    )
    regions = FasterRCNNRegions(3, settings, weights="none")
    model = UnknownAwareDetector(regions, ["cup", "hat", "pen"]).eval()
    # Boxes that differ: of random weights all are alike.
    nn.init.normal_(regions.model.roi_heads.box_predictor.cls_score.weight, std=1.5)
    photos = torch.randint(0, 256, (40, 3, 80, 96), dtype=torch.uint8)
    # Boxes of one photo overlap: what is calibrated on is of other photos than what is fitted to.
    fitted, held_out = (joined(model(list(part))) for part in photos.chunk(2))
    model.fit_scores(fitted["scored_features"], fitted["labels"])
    model.calibrate(held_out)
    return model
