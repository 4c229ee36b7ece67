"""The model folder's README: what the model is and what was measured, nothing else."""

from __future__ import annotations

from typing import Any

from knownot.models.classifier import UnknownAwareClassifier
from knownot.training.config import TrainConfig


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
