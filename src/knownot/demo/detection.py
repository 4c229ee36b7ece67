"""The demo for detectors: rendered scenes, a plain detector, VOS added to it, unknown shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from knownot.data.kept_files import write_text
from knownot.demo.scenes import KNOWN_SHAPES, UNKNOWN_SHAPES, write_scenes
from knownot.errors import DataError
from knownot.evaluation.annotate import drawn
from knownot.evaluation.evaluate_detector import DetectionReport, evaluate_detector
from knownot.models.detector import UnknownAwareDetector
from knownot.models.model_folder import load
from knownot.training.config import DetectionConfig
from knownot.training.train_detector import train_detector

# What is compared: title, which training, which score.
ROWS = (
    ("plain, softmax (MSP)", "plain", "msp"),
    ("plain, energy", "plain", "energy"),
    ("VOS, energy", "vos", "vos"),
    ("plain, combined", "plain", "combined"),
    ("VOS, combined (default)", "vos", "combined"),
)
_SHOWN = 6
_SIDE = 480


def run_detection_demo(
    output: str | Path, *, seed: int = 0, progress: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Render scenes, train a detector, add VOS to it, and find the shapes it never saw.

    Args:
        output: Folder for scenes, detectors, reports, `detections-*.png` and `detection.json`.
        seed: Seed of scenes and training.
        progress: Told in a sentence what has been done.

    Returns:
        The contents of `detection.json`.

    Raises:
        DataError: If the folder cannot be written.
    """
    say = progress or (lambda text: None)
    started = time.monotonic()
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        scenes = write_scenes(output / "scenes", seed=seed)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror})") from None
    say(f"scenes of {', '.join(KNOWN_SHAPES)}; never shown: {', '.join(UNKNOWN_SHAPES)}")
    reports: dict[str, DetectionReport] = {}
    for name, folder in _train(scenes, output, seed, say).items():
        model = load(folder, device="auto")
        assert isinstance(model, UnknownAwareDetector)
        reports[name] = evaluate_detector(model, scenes, [scenes / "annotations" / "ood.json"])
        reports[name].save(output / f"report-{name}")
        _draw(model, reports[name], output / f"detections-{name}.png")
    results = {**_compare(reports), "seconds": time.monotonic() - started}
    write_text(output / "detection.json", json.dumps(results, indent=2) + "\n")
    return results


def _train(scenes: Path, output: Path, seed: int, say: Callable[[str], object]) -> dict[str, Path]:
    common: dict[str, Any] = {
        "data": scenes,
        "image_size": 160,
        "batch_size": 8,
        "seed": seed,
        "overwrite": True,
    }
    plain = DetectionConfig(output=output / "detector-plain", epochs=6, vos_weight=0.0, **common)
    plain_folder = train_detector(plain).folder
    say("trained a plain detector")
    vos = DetectionConfig(
        output=output / "detector-vos",
        epochs=2,
        start_from=plain_folder,
        lr=3e-4,
        backbone_lr=5e-5,
        **common,
    )
    metrics = train_detector(vos).metrics
    say(
        f"added VOS: mAP on validation scenes {100 * metrics['val_map_before']:.1f} before, "
        f"{100 * metrics['val_map_after']:.1f} after"
    )
    return {"plain": plain_folder, "vos": vos.output}


def _compare(reports: dict[str, DetectionReport]) -> dict[str, Any]:
    ood = {name: next(iter(r.summary["ood"].values())) for name, r in reports.items()}
    return {
        "map": {name: report.summary["map"] for name, report in reports.items()},
        "flagged_id": reports["vos"].summary["flagged_id"],
        "fpr95": {title: ood[name]["scores"][score]["fpr95"] for title, name, score in ROWS},
        "auroc": {title: ood[name]["scores"][score]["auroc"] for title, name, score in ROWS},
        "open_set": ood["vos"]["open_set"],
    }


def _draw(model: UnknownAwareDetector, report: DetectionReport, path: Path) -> None:
    """A sheet of OOD scenes, those with most boxes called unknown first."""
    ood = report.ood_sets[0]
    most = sorted(
        range(len(ood.paths)), key=lambda i: -int((ood.unknown[i] & ood.counted[i]).sum())
    )
    answers = model.predict([ood.paths[i] for i in most[:_SHOWN]])
    columns = _SHOWN // 2
    sheet = Image.new("RGB", (columns * _SIDE, 2 * _SIDE))
    for i, answer in enumerate(answers):
        picture = drawn(answer, model.classes).resize((_SIDE, _SIDE))
        sheet.paste(picture, (i % columns * _SIDE, i // columns * _SIDE))
    sheet.save(path)


def print_detection_demo(results: dict[str, Any]) -> None:
    """Print the comparison as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Unknown shapes among known ones", title_justify="left")
    for heading in ("training, score", "FPR95", "AUROC"):
        table.add_column(heading, justify="left" if heading.startswith("training") else "right")
    for title, fpr95 in results["fpr95"].items():
        auroc = results["auroc"][title]
        table.add_row(title, f"{100 * fpr95:.1f} %", f"{100 * auroc:.1f} %")
    console = Console()
    console.print(table)
    console.print(
        f"mAP {100 * results['map']['plain']:.1f} % plain, {100 * results['map']['vos']:.1f} % with "
        f"VOS; {100 * results['flagged_id']:.1f} % of boxes around known shapes called unknown; "
        f"{results['seconds']:.0f} s",
        soft_wrap=True,
    )
