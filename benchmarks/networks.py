"""Every score on networks that knownot did not train: `knownot benchmark --networks`, from photos to report.

    python -m benchmarks networks                   # 3 seeds, some 8 min of a core each

The networks are those of `finished`: a timm EfficientNet-Lite0 with ImageNet's weights, trained on photos of
cats and dogs by a plain PyTorch loop. Writes their outputs to `<work>/networks`, the benchmark's results to
`<work>/benchmark`, its summary to `<output>/networks.csv`, numbers of each seed with the versions that made
them to `<output>/networks_seeds.csv.gz`; prints the report.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from cats_dogs import APART, NEAR, default_data
from finished import SIZE, plainly_trained
from knownot.benchmark.config import make_config
from knownot.benchmark.network_outputs import save_outputs
from knownot.benchmark.network_recipe import networks_config
from knownot.benchmark.run import run_benchmark
from knownot.benchmark.workplace import Workplace
from knownot.data.image_folder import list_photos

MEAN = STD = (0.5, 0.5, 0.5)
READ = transforms.Compose(
    [
        transforms.Resize(round(SIZE / 0.875), transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


class Photos(Dataset):  # type: ignore[type-arg]
    """The photos of a folder, without labels."""

    def __init__(self, folder: Path) -> None:
        self.paths = list_photos(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as photo:
            pixels: torch.Tensor = READ(photo.convert("RGB"))
        return pixels


def main() -> None:
    options = _options()
    networks = options.work / "networks"
    known = {
        part: DataLoader(ImageFolder(str(options.data / "cats_dogs" / part), READ), 50)
        for part in ("train", "val", "test")
    }
    others = {
        f"{'near' if folder.name in (NEAR, APART) else 'far'}/{folder.name}": DataLoader(
            Photos(folder), 50
        )
        for folder in sorted((options.data / "ood").iterdir())
        if folder.is_dir()
    }
    for seed in options.seeds:
        folder = networks / "plain-loop" / str(seed)
        if not (folder / "altered" / "inverted.safetensors").is_file():  # the last one
            torch.manual_seed(seed)
            network = plainly_trained(options.data / "cats_dogs" / "train")
            save_outputs(folder, network, {**known, **others}, MEAN, STD)
    config = make_config(networks_config(networks), str(networks), {"apart": [APART]})
    result = run_benchmark(Workplace(config, networks, options.work / "benchmark"))
    shutil.copyfile(options.work / "benchmark" / "summary.csv", options.output / "networks.csv")
    with gzip.open(options.output / "networks_seeds.csv.gz", "wb") as packed:
        packed.write((options.work / "benchmark" / "results.csv").read_bytes())
    print((result.report.parent / "report.md").read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("benchmark-networks"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
