"""Photos a second from files to answers over those of the bare model on tensors in memory.

    python -m benchmarks input_pipeline                    # about 15 min on 2 idle cores
    python -m benchmarks input_pipeline --parts decode predict --rounds 5

Four parts, each with its two sides in turns, in one run, on all cores that torch uses:
decode      one photo to a square of 224 pixels, by the ways there are, on one core
predict     `predict` of a model folder (eager PyTorch) and of its export (ONNX Runtime)
features    what `train --finetune head` computes, without its cache
train       `train --finetune all --image-size 160`: steps on photos read by 0, 1 and 2 processes
quality     what decoding large JPEGs at a fraction of their size does to the answers

The photos are those of cats and dogs (longest side 192 pixels) and the same kind of photos enlarged to
500, 1500 and 4000 pixels, with noise as a camera has it, so that the files are as large as those of
cameras. The bare model runs as the faster of two ways: all cores on one batch, or one batch on each core.
Beside the ratio of wall-clock times stands that of processor seconds, which other programs on the
machine disturb less. Prints Markdown tables and writes `<output>/input_pipeline.json`. OpenCV, simplejpeg
are compared where they are installed. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import knownot
from knownot.cli.allocator import keep_freed_memory
from knownot.data.image_folder import list_photos, read_labelled
from knownot.data.photo import open_photo
from knownot.data.square import centre_square, least_side
from knownot.export.export import export_model
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.cpu_workers import cpu_workers
from knownot.runtime import OnnxClassifier
from knownot.training.batches import AugmentedPhotos, training_batches
from knownot.training.build import build_classifier
from knownot.training.classification_module import ClassificationTraining
from knownot.training.config import TrainConfig, make_config
from knownot.training.feature_cache import extract_features
from knownot.training.train import train

PARTS = ("decode", "predict", "features", "train", "quality")
SIZE, CROP = 224, 0.875
LEAST = least_side(SIZE, CROP)
# Longest side, standard deviation of the noise, JPEG quality, and how many photos of that size.
ENLARGED = {
    "500 px": (500, 2.0, 90, 160),
    "1500 px": (1500, 3.0, 90, 96),
    "4000 px": (4000, 4.0, 90, 32),
}
Work = Callable[[], Any]


def main() -> None:
    options = _options()
    keep_freed_memory()
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
    print(f"{result['machine']}\n")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for part in options.parts:
            result[part] = getattr(bench, part)()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "input_pipeline.json"
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(earlier | result, indent=1) + "\n")


class Bench:
    """The photos, the model, and the parts of the measurement."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.rounds, self.data, self.scratch = options.rounds, options.data, scratch
        self.kinds = options.kinds
        folder = options.model or scratch / "model"
        if {"predict", "features", "quality"} & set(options.parts):
            if options.model is None:
                settings = {"data": self.data / "cats_dogs", "output": folder, "device": "cpu"}
                train(make_config(settings))
            self.model: UnknownAwareClassifier = knownot.load(folder, device="cpu")
        if "predict" in options.parts:
            export_model(self.model, scratch / "model.onnx")
        known = list_photos(self.data / "cats_dogs" / "test")
        self.photos = {"192 px": spread(known, options.photos)}
        for name, (side, noise, quality, count) in ENLARGED.items():
            if name in self.kinds:
                chosen = spread(known, min(count, options.photos))
                self.photos[name] = enlarged(chosen, scratch / name, side, noise, quality)
        self.photos = {name: self.photos[name] for name in self.kinds}

    def decode(self) -> dict[str, Any]:
        """Milliseconds of processor time to decode a photo and resize it, on one core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ways = decoders()
        rows = {}
        for kind, paths in self.photos.items():
            paths = paths[:8] if kind == "4000 px" else paths[:24]
            found = turns({n: partial_over(way, paths) for n, way in ways.items()}, self.rounds)
            rows[kind] = {
                name: {"ms": 1000 * median(c for _, c in times) / len(paths)}
                for name, times in found.items()
            }
            rows[kind]["kB"] = fmean(path.stat().st_size for path in paths) / 1000
        torch.set_num_threads(threads)
        print("| processor ms a photo, one core | " + " | ".join(rows) + " |")
        print("|---|" + "---|" * len(rows))
        for name in ways:
            print(f"| {name} | " + " | ".join(f"{r[name]['ms']:.2f}" for r in rows.values()) + " |")
        print("| kB of a file | " + " | ".join(f"{r['kB']:.0f}" for r in rows.values()) + " |\n")
        return rows

    def predict(self) -> dict[str, Any]:
        """`predict` on files, beside its own model on squares in memory."""
        exported = OnnxClassifier(self.scratch / "model.onnx", threads=torch.get_num_threads())
        alone = OnnxClassifier(self.scratch / "model.onnx", threads=1)
        rows = {}
        print("| `predict` on files | photos/s | of the bare model | in processor time |")
        print("|---|---|---|---|")
        for kind, paths in self.photos.items():
            squares = [self.model.preprocessing.read(path) for path in paths]
            batches = [torch.stack(part) for part in chunks(squares, self.model.batch_size)]
            arrays = [batch.permute(0, 2, 3, 1).contiguous().numpy() for batch in batches]
            works: dict[str, Work] = {
                "eager": lambda paths=paths: self.model.predict(paths),
                "eager bare": lambda batches=batches: self._answers(batches),
                "eager bare, side by side": lambda batches=batches: self._side_by_side(batches),
                "ONNX Runtime": lambda paths=paths: exported.predict(paths),
                "ONNX Runtime bare": lambda arrays=arrays: [
                    exported.answer_prepared(a) for a in arrays
                ],
                "ONNX Runtime bare, side by side": lambda arrays=arrays: in_threads(
                    alone.answer_prepared, arrays
                ),
            }
            times = turns(works, self.rounds)
            rows[kind] = {
                name: ratio(times, name, f"{name} bare", len(paths))
                for name in ("eager", "ONNX Runtime")
            }
            gain = [
                (a[0] / b[0], a[1] / b[1])
                for a, b in zip(times["eager"], times["ONNX Runtime"], strict=True)
            ]
            rows[kind]["ort_over_eager"] = median(w for w, _ in gain)
            rows[kind]["ort_over_eager_cpu"] = median(c for _, c in gain)
            for name in ("eager", "ONNX Runtime"):
                print(f"| {name}, {kind} {line(rows[kind][name])}")
            print(
                f"| ONNX Runtime over eager, {kind} | | {rows[kind]['ort_over_eager']:.2f} "
                f"| {rows[kind]['ort_over_eager_cpu']:.2f} |"
            )
        print()
        return rows

    def features(self) -> dict[str, Any]:
        """What `train --finetune head` computes the first time."""
        rows = {}
        print(
            "| features for `--finetune head` | photos/s | of the bare model | in processor time |"
        )
        print("|---|---|---|---|")
        for kind, paths in self.photos.items():
            squares = [self.model.preprocessing.read(path) for path in paths]
            batches = [torch.stack(part) for part in chunks(squares, self.model.batch_size)]
            times = turns(
                {
                    "files": lambda paths=paths: extract_features(self.model, paths),
                    "bare": lambda batches=batches: [self._rows(b) for b in batches],
                    "bare, side by side": lambda batches=batches: self._rows_side_by_side(batches),
                },
                self.rounds,
            )
            rows[kind] = ratio(times, "files", "bare", len(paths))
            print(f"| {kind} {line(rows[kind])}")
        print()
        return rows

    def train(self) -> dict[str, Any]:
        """Steps of fine-tuning, on batches in memory and on batches read from files."""
        data = self.data / "cats_dogs"
        rows: dict[str, Any] = {}
        config = TrainConfig(data=data, output=self.scratch / "m", finetune="all", image_size=160)
        photos = read_labelled(data / "train")
        model = build_classifier(config, photos.classes).train()
        dataset = AugmentedPhotos(photos, model.preprocessing)
        module = ClassificationTraining(model, dataset, config)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
        memory = next(iter(training_batches(dataset, config, 0, rank=0)))

        def step(batch: Any) -> None:
            images, labels = batch
            output = model(images)
            loss = F.cross_entropy(output.logits, labels)
            loss = loss + model.vos(output.features, output.logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        loaders = {
            workers: iter(
                training_batches(dataset, config.model_copy(update={"workers": workers}), 0, rank=0)
            )
            for workers in (0, 1, 2)
        }
        works: dict[str, Work] = {"bare": lambda: step(memory)}
        for workers, batches in loaders.items():
            works[f"{workers} processes"] = lambda batches=batches: step(next(batches))
        times = turns(works, self.rounds)
        print("| `--finetune all --image-size 160` | photos/s | of the bare step |\n|---|---|---|")
        for name in list(works)[1:]:
            pairs = zip(times["bare"], times[name], strict=True)
            share = median(bare[0] / whole[0] for bare, whole in pairs)
            rate = config.n_batch / median(t for t, _ in times[name])
            rows[name] = {"photos_per_second": rate, "ratio": share}
            print(f"| {name} | {rate:.1f} | {share:.3f} |")
        print()
        return rows

    def quality(self) -> dict[str, Any]:
        """Answers for enlarged photos, decoded whole and at fractions."""
        known = read_labelled(self.data / "cats_dogs" / "test", self.model.classes)
        places = spread(range(len(known)), 120)
        paths = [known.paths[i] for i in places]
        large = enlarged(paths, self.scratch / "quality", *ENLARGED["1500 px"][:3])
        answers = {}
        for name, least in (("whole", None), ("draft", LEAST), ("draft, twice", 2 * LEAST)):
            images = [open_photo(path, at_least=least) for path in large]
            answers[name] = self.model.predict(images)
        rows = {}
        print("| 120 photos at 1500 px | accuracy | flagged | labels changed | mean score change |")
        print("|---|---|---|---|---|")
        for name, found in answers.items():
            pairs = list(zip(found, answers["whole"], strict=True))
            right = [
                a.nearest_class == known.classes[known.labels[i]]
                for a, i in zip(found, places, strict=True)
            ]
            rows[name] = {
                "accuracy": fmean(right),
                "flagged": fmean(a.is_unknown for a in found),
                "labels_changed": sum(a.label != b.label for a, b in pairs),
                "mean_score_change": fmean(abs(a.ood_score - b.ood_score) for a, b in pairs),
                "mean_score": fmean(a.ood_score for a in found),
            }
            row = rows[name]
            print(
                f"| {name} | {row['accuracy']:.3f} | {row['flagged']:.3f} | {row['labels_changed']} "
                f"| {row['mean_score_change']:.3f} of {row['mean_score']:.2f} |"
            )
        print()
        return rows

    def _answers(self, batches: Sequence[Tensor]) -> None:
        for batch in batches:
            self.model._answer(batch, self.model.alpha, self.model.default_score)

    def _side_by_side(self, batches: Sequence[Tensor]) -> None:
        self._spread(batches, lambda batch: self._answers([batch]))

    def _rows_side_by_side(self, batches: Sequence[Tensor]) -> None:
        self._spread(batches, self._rows)

    def _spread(self, batches: Sequence[Tensor], compute: Callable[[Tensor], Any]) -> None:
        with cpu_workers(self.model.device, len(batches), 1) as workers:
            for _ in workers.spread((([], batch) for batch in batches), compute):
                pass

    @torch.no_grad()
    def _rows(self, batch: Tensor) -> Tensor:
        return self.model.backbone_features(batch)


def decoders() -> dict[str, Callable[[Path], Any]]:
    """Ways from a file to a square, by name."""

    def pillow(path: Path, least: int | None) -> Any:
        return centre_square(open_photo(path, at_least=least), SIZE, CROP)

    def torchvision(path: Path) -> Any:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2 import InterpolationMode, functional

        pixels = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
        side = int(min(pixels.shape[1:]) * CROP)
        pixels = functional.center_crop(pixels, [side, side])
        return functional.resize(pixels, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)

    def simplejpeg(path: Path) -> Any:
        import simplejpeg

        data = path.read_bytes()
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        share = min(1.0, LEAST / min(height, width))
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=int(height * share),
            min_width=int(width * share),
            min_factor=1,
        )
        return centre_square(Image.fromarray(pixels), SIZE, CROP)

    def opencv(path: Path) -> Any:
        import cv2

        cv2.setNumThreads(1)
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        height, width = pixels.shape[:2]
        side = int(min(height, width) * CROP)
        top, left = (height - side) // 2, (width - side) // 2
        square = pixels[top : top + side, left : left + side]
        return cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    ways: dict[str, Callable[[Path], Any]] = {
        "Pillow, whole": lambda path: pillow(path, None),
        "Pillow, draft (knownot)": lambda path: pillow(path, LEAST),
        "Pillow, draft at twice the size": lambda path: pillow(path, 2 * LEAST),
        "torchvision.io": torchvision,
    }
    if find_spec("simplejpeg"):
        ways["simplejpeg, scaled by eighths"] = simplejpeg
    if find_spec("cv2"):
        ways["OpenCV, INTER_AREA"] = opencv
    return ways


def enlarged(
    paths: Sequence[Path], folder: Path, side: int, noise: float, quality: int
) -> list[Path]:
    """The photos at a longest side, with noise, as baseline JPEGs in a folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    written = []
    for number, path in enumerate(paths):
        image = open_photo(path)
        share = side / max(image.size)
        size = round(image.width * share), round(image.height * share)
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, noise, (*pixels.shape[:2], 1)).astype(np.float32)
        file = folder / f"{number:04}.jpg"
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, quality=quality)
        written.append(file)
    return written


def turns(works: dict[str, Work], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and processor seconds of each work; they take turns, after a round to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            wall, processor = time.perf_counter(), time.process_time()
            work()
            if turn:
                seconds = time.perf_counter() - wall, time.process_time() - processor
                times[name].append(seconds)
    return times


def ratio(
    times: dict[str, list[tuple[float, float]]], name: str, bare: str, photos: int
) -> dict[str, Any]:
    """Throughput of `name` over that of the faster bare way, round by round."""
    ways = [bare, f"{bare}, side by side"]
    best = min(ways, key=lambda way: median(wall for wall, _ in times[way]))
    cheapest = min(ways, key=lambda way: median(cpu for _, cpu in times[way]))
    pairs = list(zip(times[name], times[best], times[cheapest], strict=True))
    return {
        "photos_per_second": photos / median(wall for wall, _ in times[name]),
        "bare_photos_per_second": {w: photos / median(t for t, _ in times[w]) for w in ways},
        "ratio": median(b[0] / whole[0] for whole, b, _ in pairs),
        "ratio_processor": median(c[1] / whole[1] for whole, _, c in pairs),
        "processor_ms": 1000 * median(cpu for _, cpu in times[name]) / photos,
        "bare_processor_ms": {
            way: 1000 * median(cpu for _, cpu in times[way]) / photos for way in ways
        },
    }


def line(row: dict[str, Any]) -> str:
    """The cells of a row that `ratio` made."""
    return f"| {row['photos_per_second']:.1f} | {row['ratio']:.3f} | {row['ratio_processor']:.3f} |"


def partial_over(way: Callable[[Path], Any], paths: Sequence[Path]) -> Work:
    """A work that takes every path by this way."""
    return lambda: [way(path) for path in paths]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """The work on every item, as many at once as torch uses cores."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, items))


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in parts of a size; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def spread(items: Sequence[Any], number: int) -> list[Any]:
    """`number` of the items, evenly from first to last."""
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    found = {}
    for name in ("knownot", "torch", "torchvision", "onnxruntime", "pillow", "simplejpeg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **found,
    }


def default_data() -> Path:
    """Where the photos are: `KNOWNOT_DATA`, or beside the checkout."""
    return Path(os.environ.get("KNOWNOT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["192 px", *ENLARGED]
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--model", type=Path, help="model folder, instead of training one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="sizes of photos")
    parser.add_argument("--photos", type=int, default=160, help="photos of a round, at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.rounds < 2 or options.photos < 8:
        parser.error("expected at least 8 photos and 2 rounds")
    return options


if __name__ == "__main__":
    main()
