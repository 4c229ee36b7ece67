"""The model folder's README: what the model is and what was measured, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.unknown_aware import UnknownAwareModel

_TAGS = ["out-of-distribution-detection", "open-set-recognition", "virtual-outlier-synthesis"]


def model_card(model: UnknownAwareModel, metrics: Mapping[str, Any] | None = None) -> str:
    """Markdown text of the card of a calibrated model, with the header that the hub reads.

    Args:
        model: The model.
        metrics: The numbers of `training/metrics.json`; without them the card says that none
            were recorded.
    """
    metrics = metrics or {}
    title = f"{', '.join(model.classes[:8])}{' …' if len(model.classes) > 8 else ''}, or unknown"
    parts = [f"# {_one_line(title)}", _what(model, metrics), *_data(model, metrics)]
    parts += [_measured(model, metrics), _calibration(model), _limits(model), _use(model)]
    return f"---\n{_header(model, metrics)}\n---\n" + "\n\n".join(parts) + "\n"


def _header(model: UnknownAwareModel, metrics: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    classifier = model.task == "classify"
    task = "image-classification" if classifier else "object-detection"
    measured = {"accuracy": "val_accuracy"} if classifier else {"map": "val_map"}
    results = [
        EvalResult(
            task_type=task,
            dataset_type="images",
            dataset_name=f"{metrics['n_val']} validation photos",
            metric_type=name,
            metric_value=metrics[key],
        )
        for name, key in measured.items()
        if metrics.get(key) is not None
    ]
    return ModelCardData(
        library_name="knownot",
        pipeline_tag=task,
        tags=_TAGS if model.with_vos else _TAGS[:-1],
        model_name="knownot" if results else None,
        eval_results=results or None,
    ).to_yaml()


def _what(model: UnknownAwareModel, metrics: Mapping[str, Any]) -> str:
    if isinstance(model, UnknownAwareClassifier):
        trained = {
            "head": ", frozen backbone",
            "all": ", trained end to end",
            "none": ", trained elsewhere",
        }
        kind = f"An image classifier ({model.architecture}{trained.get(metrics.get('finetune', ''), '')})"
        return f"{kind} that answers `unknown` for photos unlike those it was trained on. {_by(model, metrics)}"
    regions = getattr(model, "regions", None)
    kind = f" ({regions.architecture}, {regions.image_size} pixels)" if regions else ""
    return (
        f"An object detector{kind} that marks objects unlike those it was trained on as `unknown`. "
        f"{_by(model, metrics)}"
    )


def _by(model: UnknownAwareModel, metrics: Mapping[str, Any]) -> str:
    if metrics.get("finetune") == "none":
        return "Its scores and\nthreshold are by knownot; its weights are as they were."
    if not model.with_vos:
        return "Trained without\nVirtual Outlier Synthesis by knownot."
    return "Trained with Virtual\nOutlier Synthesis by knownot."


def _data(model: UnknownAwareModel, metrics: Mapping[str, Any]) -> list[str]:
    unit = "photos" if model.task == "classify" else "objects"
    train, val = metrics.get("n_train_per_class", {}), metrics.get("n_val_per_class", {})
    rows = [
        f"| {_cell(name)} | {train.get(name, '')} | {val.get(name, '')} |" for name in model.classes
    ]
    counts = "How many photos it was trained on was not recorded."
    if "n_train" in metrics:
        counts = (
            f"{metrics['n_train']} photos, measured and calibrated on {metrics['n_val']} others."
        )
        elsewhere = metrics.get("finetune") == "none"
        counts = f"{'Scores fitted on' if elsewhere else 'Trained on'} {counts}"
        if elsewhere:
            counts += " What the network itself was trained on is not recorded here."
    table = f"| class | training {unit} | validation {unit} |\n|---|---|---|\n" + "\n".join(rows)
    return ["## Data and classes", counts, table]


def _measured(model: UnknownAwareModel, metrics: Mapping[str, Any]) -> str:
    if "n_val" not in metrics:
        return "## Measured\n\nNothing was recorded."
    rows = _classifier_rows(metrics) if model.task == "classify" else _detector_rows(metrics)
    head = f"| on {metrics['n_val']} validation photos | | 95 % interval |\n|---|---|---|\n"
    return "## Measured\n\n" + head + "\n".join(rows)


def _classifier_rows(metrics: Mapping[str, Any]) -> list[str]:
    intervals = metrics.get("val_accuracy_interval_per_class", {})
    rows = [_row("accuracy", metrics["val_accuracy"], metrics.get("val_accuracy_interval"))]
    return rows + [
        _row(f"accuracy, {_cell(name)}", value, intervals.get(name))
        for name, value in metrics["val_accuracy_per_class"].items()
    ]


def _detector_rows(metrics: Mapping[str, Any]) -> list[str]:
    rows = [
        _row("mAP (IoU .5:.95)", metrics["val_map"]),
        _row("mAP at IoU .5", metrics["val_map_50"]),
        _row(
            f"known objects found (IoU .5, boxes scored above {metrics['box_threshold']:.2f})",
            metrics.get("val_found"),
            metrics.get("val_found_interval"),
        ),
    ]
    rows += [_row(f"mAP, {_cell(k)}", v) for k, v in metrics["val_map_per_class"].items()]
    return [row for row in rows if row]


def _row(name: str, value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return ""
    between = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
    return f"| {name} | {value:.1%} | {between} |"


def _calibration(model: UnknownAwareModel) -> str:
    n = len(model.calibration(model.default_score))
    unit, known = ("photo", "photos of the known classes")
    if model.task == "detect":
        unit, known = ("box", "boxes around known objects")
    spread = math.sqrt(model.alpha * (1 - model.alpha) / n)
    by = ", by predicted class where there are enough," if model.classwise else ""
    return (
        "## Calibration\n\n"
        f"A {unit} is called `unknown` when the p-value of its score `{model.default_score}` among {n} validation\n"
        f"{unit}{'es' if unit == 'box' else 's'}{by} is below {model.alpha:g}. About {model.alpha:.0%} of {known} are, too, if they resemble the\n"
        f"validation photos; {n} of them leave a standard deviation of {spread:.1%}."
    )


def _limits(model: UnknownAwareModel) -> str:
    what = "photos" if model.task == "classify" else "objects"
    return (
        "## Limits\n\n"
        f"- These numbers say nothing about how many unknown {what} are caught: measure that on {what} of your\n"
        "  own with `knownot evaluate --ood`. What looks like a known class is caught least.\n"
        "- Another camera, place or season is called `unknown` more often than promised.\n"
        "- `unknown` means unlike the training photos. It is no safety guarantee."
    )


def _use(model: UnknownAwareModel) -> str:
    answers = (
        """\
for answer in model.predict(["photo.jpg"]):
    print(answer.label, answer.ood_score, answer.p_value)"""
        if model.task == "classify"
        else """\
for photo in model.predict(["photo.jpg"]):
    for found in photo.boxes:
        print(found.box, found.label, found.ood_score, found.p_value)"""
    )
    return f"""## Use

```python
import knownot

model = knownot.load("path/to/this/folder")  # or "owner/name" on the Hugging Face hub
{answers}
```"""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(name: str) -> str:
    """A class name inside a table."""
    return _one_line(name).replace("|", "\\|")
