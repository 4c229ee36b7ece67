"""The service: throughput over bare ONNX Runtime, latency, malformed requests, overload.

    python -m benchmarks serving                        # about 5 min on 2 idle cores
    python -m benchmarks serving --only overload --overload 600 --model model.onnx    # ten minutes of it

`knownot serve` runs in a process of its own; this one sends the load and runs the bare model, so that
both share the same cores. Rounds take turns, so that a busy machine slows both: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import knownot
from export import default_data, sample
from http_load import Client, Outcome, closed_loop, open_loop, post, whole
from knownot.cli.allocator import keep_freed_memory
from knownot.data.cores import usable_cores
from knownot.export.export import export_model
from knownot.training.config import make_config
from knownot.training.train import train
from malformed_requests import wrong_request
from serving_speed import speed

_CONNECTIONS = 16


def main() -> None:
    options = _options()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        file = _model(options, Path(scratch))
        photos = sample(options.data, 256)
        singles = [post(path.read_bytes(), "image/jpeg") for path in photos]
        measured: dict[str, Any] = {}
        with service(file, Path(scratch, "log.jsonl")) as (url, process):
            if "speed" in options.only:
                measured["speed"] = speed(
                    file, photos, url, process, options.rounds, options.seconds
                )
            if "malformed" in options.only:
                measured["malformed"] = malformed(url, process, options.malformed, singles[0])
            if "overload" in options.only:
                measured["overload"] = overload(url, process, singles, options.overload)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
        **{p: version(p) for p in ("knownot", "onnxruntime", "uvicorn", "fastapi")},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "serving.json"
    result = json.loads(kept.read_text()) if kept.is_file() else {}
    result |= {name: {"machine": machine} | found for name, found in measured.items()}
    kept.write_text(json.dumps(result, indent=1) + "\n")
    _print(machine, measured)


def malformed(
    url: str, process: subprocess.Popen[bytes], number: int, good: bytes
) -> dict[str, Any]:
    """Answers to requests that are wrong in many ways, and the memory that stays."""
    statuses: Counter[int] = Counter()
    rng = random.Random(0)
    memory = []
    began = time.perf_counter()
    for _ in range(2):  # what grows for ever grows in the second half, too
        requests = [wrong_request(rng) for _ in range(number // 2)]

        async def send(requests: list[tuple[bytes, bool]]) -> None:
            async def some(part: list[tuple[bytes, bool]]) -> None:
                client = Client(url)
                for request, torn in part:
                    if torn:  # the rest never comes
                        await client.send_and_leave(request)
                        statuses[-1] += 1
                        continue
                    status, _ = await client.send(request)
                    statuses[status] += 1
                client.close()

            await asyncio.gather(*(some(requests[i::_CONNECTIONS]) for i in range(_CONNECTIONS)))

        asyncio.run(send(requests))
        memory.append(resident(process))
    after = asyncio.run(closed_loop(url, [good], 1, 1))
    return {
        "requests": number,
        "seconds": time.perf_counter() - began,
        "statuses": {str(k): v for k, v in sorted(statuses.items())},
        "mebibytes_at_half_and_end": memory,
        "photos_answered_after": whole(after),
    }


def overload(
    url: str, process: subprocess.Popen[bytes], requests: list[bytes], seconds: float
) -> dict[str, Any]:
    """Three times what it can do, then as before.

    Lost is what the client sent and got no HTTP answer for, or a 5xx but 503; and what the service
    says that it answered and the client never got.
    """
    warm = asyncio.run(closed_loop(url, requests, _CONNECTIONS, 10))
    usual = whole(warm) / warm.wall
    before = asyncio.run(closed_loop(url, requests, 1, 5))
    memory, answered = resident(process), _answered(url)
    outcome, during = asyncio.run(_watched(url, process, requests, 3 * usual, seconds))
    answered = _answered(url) - answered
    after = asyncio.run(closed_loop(url, requests, 1, 5))
    again = asyncio.run(closed_loop(url, requests, _CONNECTIONS, 10))
    statuses = outcome.statuses
    sent, refused = sum(statuses.values()), statuses[429] + statuses[503]
    left = resident(process)
    whole(after)
    return {
        "seconds": outcome.wall,
        "sent": sent,
        "refused_429": statuses[429],
        "refused_503": statuses[503],
        "accepted": sent - refused,
        "answered": statuses[200],
        "answered_by_the_service": answered,
        "lost": max(sent - refused, answered) - statuses[200],
        "sent_per_second": sent / outcome.wall,
        "answered_per_second": statuses[200] / outcome.wall,
        "answered_per_second_before_and_after": [usual, whole(again) / again.wall],
        "latency_ms_of_the_answered": {
            "p50": 1000 * outcome.quantile(0.5),
            "p99": 1000 * outcome.quantile(0.99),
        },
        "alone_ms_before_and_after": [1000 * o.quantile(0.5) for o in (before, after)],
        "mebibytes_before_peak_and_after": [memory, max(during), left],
        "mebibytes_each_tenth": during[:: max(1, len(during) // 10)],
        "memory_after_over_before": left / memory,
    }


async def _watched(
    url: str, process: subprocess.Popen[bytes], requests: list[bytes], rate: float, seconds: float
) -> tuple[Outcome, list[float]]:
    """The outcome of a load, and the memory of the service each second of it."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(resident(process))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    outcome = await open_loop(url, requests, rate, seconds)
    watching.cancel()
    return outcome, memory


def _answered(url: str) -> int:
    """Photos that the service counts as answered."""
    request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
    _, text = asyncio.run(Client(url).send(request))
    lines = (line for line in text.decode().splitlines() if line.startswith("knownot_photos_total"))
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if "error" not in line))


def resident(process: subprocess.Popen[bytes]) -> float:
    """MiB of memory that the process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def service(file: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`knownot serve` on a free port; its address and process."""
    command = [sys.executable, "-m", "knownot", "serve", str(file), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        while '"serving"' not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        line = next(line for line in log.read_text().splitlines() if '"serving"' in line)
        yield json.loads(line)["address"], process
    finally:
        process.terminate()
        process.wait()


def _model(options: argparse.Namespace, scratch: Path) -> Path:
    if options.model is not None and options.model.is_file():
        return Path(options.model)
    folder = options.model or scratch / "model"
    if options.model is None:
        settings = {"data": options.data / "cats_dogs", "output": folder, "finetune": "head"}
        train(make_config(settings | {"device": "cpu"}))
    export_model(knownot.load(folder), scratch / "model.onnx")
    return scratch / "model.onnx"


def _print(machine: dict[str, Any], measured: dict[str, Any]) -> None:
    print(f"{machine}\n\n| | |\n|---|---|")
    if "speed" in measured:
        _print_speed(measured["speed"])
    if "malformed" in measured:
        wrong = measured["malformed"]
        number = f"{wrong['requests']} malformed requests (-1: cut off, 0: no answer)"
        print(f"| {number} | {wrong['statuses']} |")
        print(
            f"| memory at half of them and at the end, MiB | {wrong['mebibytes_at_half_and_end']} |"
        )
    for name, value in measured.get("overload", {}).items():
        print(f"| overload, {name.replace('_', ' ')} | {value} |")


def _print_speed(speed: dict[str, Any]) -> None:
    for name, rate in speed["photos_per_second"].items():
        print(f"| photos per second, {name} | {rate:.0f} |")
    for name, ratio in speed["over_bare"].items():
        print(f"| {name}, over bare ONNX Runtime | {ratio:.2f} |")
    one_run = speed["photos_per_second"]["bare, batches of 8 on all cores"]
    for name in speed["over_predict"]:
        ratio = speed["photos_per_second"][name] / one_run
        print(f"| {name}, over batches of 8 on all cores | {ratio:.2f} |")
    for name, ratio in speed["over_predict"].items():
        print(f"| {name}, over `predict` | {ratio:.2f} |")
    for name, spent in speed["core_ms_a_photo"].items():
        print(f"| core time a photo, {name} | {spent:.1f} ms |")
    print(f"| core time, bare over service | {speed['core_ms_bare_over_service']:.2f} |")
    for name, latency in speed["latency_ms"].items():
        print(f"| latency, {name} | {latency:.1f} ms |")
    print(f"| p99 at 70 % load over alone | {speed['p99_over_alone']:.1f} |")
    print(f"| refused at 70 % load | {speed['refused_at_70_percent']} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--model", type=Path, help="model folder or .onnx, instead of training one")
    parts = ("speed", "malformed", "overload")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement in a round")
    parser.add_argument("--malformed", type=int, default=10_000, help="malformed requests")
    parser.add_argument("--overload", type=float, default=30, help="seconds of overload")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
