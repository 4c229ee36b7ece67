"""Bytes that the ranks of a training exchange for the loss, counted, beside the formula.

    python -m benchmarks ranks
    python -m benchmarks ranks --ranks 4

Each rank receives the features and labels of the others, `(R - 1) * (B * (D + 1) * 4 + 8)` bytes a
step: R ranks, at most B rows each, width D. The processes talk through gloo on this machine (Linux);
counted is what crosses its loopback interface, packet headers and acknowledgements included, less what
crosses it in as long a pause. Prints a Markdown table and writes `<output>/ranks.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from cats_dogs import machine
from knownot.core.ranks import gather_rows

SIZES = ((128, 128), (64, 512), (32, 2048), (256, 2048))
STEPS = 50


def loopback_bytes() -> int:
    """Received by the loopback interface since the machine started."""
    (line,) = [row for row in Path("/proc/net/dev").read_text().splitlines() if " lo:" in f" {row}"]
    return int(line.split(":")[1].split()[0])


def of_rank(rank: int, ranks: int, scratch: str) -> None:
    store = dist.FileStore(f"{scratch}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    found = []
    for rows, width in SIZES:
        features, labels = torch.randn(rows, width), torch.arange(rows)
        gather_rows(features, labels)
        dist.barrier()
        before, started = loopback_bytes(), time.perf_counter()
        for _ in range(STEPS):
            gather_rows(features, labels)
        dist.barrier()
        seconds, sent = time.perf_counter() - started, loopback_bytes() - before
        before = loopback_bytes()
        time.sleep(seconds)
        sent -= loopback_bytes() - before
        dist.barrier()
        found.append(
            {"rows": rows, "width": width, "ms": 1e3 * seconds / STEPS}
            | {"formula": (ranks - 1) * (rows * (width + 1) * 4 + 8)}
            | {"counted": sent / STEPS / ranks}
        )
    if rank == 0:
        Path(scratch, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(of_rank, (options.ranks, scratch), nprocs=options.ranks)
        found = json.loads(Path(scratch, "found.json").read_text())
    result = {"machine": machine(), "ranks": options.ranks, "steps": STEPS, "rows": found}
    (options.output / "ranks.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.ranks} ranks; bytes that each receives in a step\n")
    print("| B, D | formula | counted | counted / formula | ms |\n|---|---|---|---|---|")
    for row in found:
        ratio = row["counted"] / row["formula"]
        print(
            f"| {row['rows']}, {row['width']} | {row['formula']:,} | {row['counted']:,.0f} | "
            f"{ratio:.3f} | {row['ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
