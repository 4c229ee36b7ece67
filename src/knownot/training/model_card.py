"""The model folder's README: what the model is and what was measured, nothing else."""

from __future__ import annotations

from typing import Any

from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.training.config import DetectionConfig, TrainConfig


def model_card(model: UnknownAwareClassifier, config: TrainConfig, metrics: dict[str, Any]) -> str:
    """Markdown text of the model card."""
    per_class = "\n".join(
        f"| {name} | {accuracy:.1%} |"
        for name, accuracy in metrics["val_accuracy_per_class"].items()
    )
    return f"""---
library_name: knownot
pipeline_tag: image-classification
tags: [out-of-distribution-detection, virtual-outlier-synthesis]
---
# {", ".join(model.classes[:8])}{" …" if len(model.classes) > 8 else ""}, or unknown

An image classifier ({model.architecture}, {"frozen backbone" if config.finetune == "head" else "trained end to end"}) that answers
`unknown` for photos unlike those it was trained on. Trained with Virtual Outlier Synthesis by knownot.

| measured on {metrics["n_val"]} validation photos | |
|---|---|
| accuracy | {metrics["val_accuracy"]:.1%} |
{per_class}

Trained on {metrics["n_train"]} photos. A photo is called `unknown` when its p-value is below
{model.alpha:g}: about {model.alpha:.0%} of photos of the known classes are, too, if they resemble the
validation photos. These numbers say nothing about how many unknown photos are caught: measure
that on your own with `knownot evaluate`.

```python
import knownot

model = knownot.load("path/to/this/folder")
for answer in model.predict(["photo.jpg"]):
    print(answer.label, answer.ood_score, answer.p_value)
```
"""


def detector_card(
    model: UnknownAwareDetector, config: DetectionConfig, metrics: dict[str, Any]
) -> str:
    """Markdown text of a detector's model card."""
    per_class = "\n".join(
        f"| mAP, {name} | {value:.1%} |"
        for name, value in metrics["val_map_per_class"].items()
        if value is not None
    )
    return f"""---
library_name: knownot
pipeline_tag: object-detection
tags: [out-of-distribution-detection, virtual-outlier-synthesis]
---
# {", ".join(model.classes[:8])}{" …" if len(model.classes) > 8 else ""}, or unknown

An object detector (Faster R-CNN on {config.arch}, {config.size} pixels) that marks objects unlike those it was
trained on as `unknown`. Trained with Virtual Outlier Synthesis by knownot.

| measured on {metrics["n_val"]} validation photos | |
|---|---|
| mAP (IoU .5:.95) | {metrics["val_map"]:.1%} |
| mAP at IoU .5 | {metrics["val_map_50"]:.1%} |
{per_class}

Trained on {metrics["n_train"]} photos. Boxes scored above {metrics["box_threshold"]:.2f} count (best F1). One is called
`unknown` when its p-value among {metrics["calibration_boxes"]} boxes around known validation objects is below
{model.alpha:g}: about {model.alpha:.0%} of boxes around known objects are, too, if the photos resemble those. These numbers
say nothing about how many unknown objects are caught: measure that with `knownot evaluate`.

```python
import knownot

model = knownot.load("path/to/this/folder")
for photo in model.predict(["photo.jpg"]):
    for found in photo.boxes:
        print(found.box, found.label, found.ood_score, found.p_value)
```
"""
