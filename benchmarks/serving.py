"""The service: throughput over bare ONNX Runtime, latency, malformed requests, overload.

    python -m benchmarks serving                        # about 5 min on 2 idle cores
    python -m benchmarks serving --only overload --overload 600 --model model.onnx    # ten minutes of it

`knownot serve` runs in a process of its own; this one sends the load and runs the bare model, so that
both share the same cores. Rounds take turns, so that a busy machine slows both: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

import knownot
from export import default_data, sample
from http_load import Client, Outcome, closed_loop, form, open_loop, post
from knownot.cli.allocator import keep_freed_memory
from knownot.data.cores import usable_cores
from knownot.data.photo import open_photo
from knownot.export.export import export_model
from knownot.runtime import OnnxClassifier
from knownot.training.config import make_config
from knownot.training.train import train

_BATCHES = (1, 2, 4, 8)  # of the bare model
_FORM = 8  # photos in a request of several
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


def speed(
    file: Path,
    photos: list[Path],
    url: str,
    process: subprocess.Popen[bytes],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Photos per second of each way, and latency alone and at 70 % of the service's throughput.

    And the time on a core that a photo takes, the client's not counted: what others do on the machine
    at the same time changes it little.
    """
    bytes_of = [path.read_bytes() for path in photos]
    singles = [post(data, "image/jpeg") for data in bytes_of]
    eights = [form(bytes_of[i : i + _FORM]) for i in range(0, len(bytes_of), _FORM)]
    cores = usable_cores()
    together, alone = OnnxClassifier(file, threads=cores), OnnxClassifier(file, threads=1)
    squares = np.stack([alone.prepare(open_photo(p, at_least=alone.least_side)) for p in photos])

    def bare(model: OnnxClassifier, batch: int) -> Callable[[int], int]:
        def run(turn: int) -> int:
            start = turn * batch % len(squares)
            return len(model.answer_prepared(squares[start : start + batch])[0])

        return run

    found: dict[str, list[float]] = {}
    latency: dict[str, list[float]] = {"alone": [], "p50 at 70 %": [], "p99 at 70 %": []}
    core_ms: dict[str, list[float]] = {"bare, batches of 2": [], "service, one a request": []}
    refused = 0  # of a machine that others slowed down between two measurements
    for turn in range(rounds):
        spent = core_seconds(process)
        one = asyncio.run(closed_loop(url, singles, _CONNECTIONS, seconds))
        spent = core_seconds(process) - spent
        core_ms["service, one a request"].append(1000 * spent / _whole(one))
        spent = time.process_time()
        done = sum(bare(alone, 2)(turn) for turn in range(32))
        core_ms["bare, batches of 2"].append(1000 * (time.process_time() - spent) / done)
        several = asyncio.run(closed_loop(url, eights, 2 * cores, seconds))
        rates = {
            "bare, batches of 8 on all cores": rate_of(bare(together, 8), 1, seconds),
            **{
                f"bare, batches of {n}, one a core": rate_of(bare(alone, n), cores, seconds)
                for n in _BATCHES
            },
            "`predict` on files": rate_of(lambda _: len(together.predict(photos[:64])), 1, seconds),
            "service, one a request": _whole(one) / one.wall,
            "service, 8 a request": _FORM * _whole(several) / several.wall,
        }
        for name, rate in rates.items():
            found.setdefault(name, []).append(rate)
        latency["alone"].append(asyncio.run(closed_loop(url, singles, 1, seconds)).quantile(0.5))
        wanted = 0.7 * rates["service, one a request"]
        busy = asyncio.run(open_loop(url, singles, wanted, 2 * seconds))
        refused += sum(busy.statuses.values()) - busy.statuses[200]
        latency["p50 at 70 %"].append(busy.quantile(0.5))
        latency["p99 at 70 %"].append(busy.quantile(0.99))
        ratio = latency["p99 at 70 %"][-1] / latency["alone"][-1]
        print(
            f"round {turn + 1}: p99 {ratio:.1f} times alone,",
            {name: round(rate) for name, rate in rates.items()},
            flush=True,
        )
    bare_names = [name for name in found if name.startswith("bare")]
    best = [max(rates) for rates in zip(*(found[name] for name in bare_names), strict=True)]
    others = [name for name in found if name not in bare_names]
    return {
        "rounds": rounds,
        "photos_per_second": {name: median(values) for name, values in found.items()},
        "over_bare": {
            name: median(a / b for a, b in zip(found[name], best, strict=True)) for name in others
        },
        "over_predict": {
            name: median(
                a / b for a, b in zip(found[name], found["`predict` on files"], strict=True)
            )
            for name in others[1:]
        },
        "core_ms_a_photo": {name: median(values) for name, values in core_ms.items()},
        "core_ms_bare_over_service": median(a / b for a, b in zip(*core_ms.values(), strict=True)),
        "latency_ms": {name: 1000 * median(values) for name, values in latency.items()},
        "refused_at_70_percent": refused,
        "p99_over_alone": median(
            a / b for a, b in zip(latency["p99 at 70 %"], latency["alone"], strict=True)
        ),
    }


def rate_of(run: Callable[[int], int], threads: int, seconds: float) -> float:
    """Photos per second of `run` in some threads; it returns how many it did."""
    done = [0] * threads
    began = time.perf_counter()

    def repeat(thread: int) -> None:
        turn = thread
        while time.perf_counter() < began + seconds:
            done[thread] += run(turn)
            turn += threads

    workers = [threading.Thread(target=repeat, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began)


def malformed(
    url: str, process: subprocess.Popen[bytes], number: int, good: bytes
) -> dict[str, Any]:
    """Answers to requests that are wrong in many ways, and the memory that stays."""
    statuses: Counter[int] = Counter()
    rng = random.Random(0)
    memory = []
    began = time.perf_counter()
    for _ in range(2):  # what grows for ever grows in the second half, too
        requests = [_wrong(rng) for _ in range(number // 2)]

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
        "photos_answered_after": _whole(after),
    }


def overload(
    url: str, process: subprocess.Popen[bytes], requests: list[bytes], seconds: float
) -> dict[str, Any]:
    """Three times what it can do, then as before.

    Lost is what the client sent and got no HTTP answer for, or a 5xx but 503; and what the service
    says that it answered and the client never got.
    """
    warm = asyncio.run(closed_loop(url, requests, _CONNECTIONS, 10))
    usual = _whole(warm) / warm.wall
    before = asyncio.run(closed_loop(url, requests, 1, 5))
    memory, answered = resident(process), _answered(url)
    outcome, during = asyncio.run(_watched(url, process, requests, 3 * usual, seconds))
    answered = _answered(url) - answered
    after = asyncio.run(closed_loop(url, requests, 1, 5))
    again = asyncio.run(closed_loop(url, requests, _CONNECTIONS, 10))
    statuses = outcome.statuses
    sent, refused = sum(statuses.values()), statuses[429] + statuses[503]
    left = resident(process)
    _whole(after)
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
        "answered_per_second_before_and_after": [usual, _whole(again) / again.wall],
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


def _whole(outcome: Outcome) -> int:
    """Number of answers; every request must have got one."""
    if set(outcome.statuses) != {200}:
        raise SystemExit(f"expected answers only, got {dict(outcome.statuses)}")
    return outcome.statuses[200]


def _wrong(rng: random.Random) -> tuple[bytes, bool]:
    """A request that is wrong in some way, and whether it ends before it is whole."""
    photo = _photo(rng)
    torn = rng.random() < 0.05
    kind = rng.randrange(6)
    if kind == 0:
        request = post(photo, rng.choice(["image/png", "image/jpeg", "application/octet-stream"]))
    elif kind == 1:
        request = post(photo, rng.choice(["text/plain", "application/json", "", "multipart/mixed"]))
    elif kind == 2:
        request = post(
            photo, "image/png", "/predict?" + rng.choice(["alpha=7", "score=x", "alpha="])
        )
    elif kind == 3:
        request = form([photo] * rng.choice([1, 2, 40]))
    else:
        request = _mutated(form([photo, photo]), rng)
    return (request[: len(request) * 2 // 3] if torn else request), torn


def _photo(rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(3000))
    if kind == 1:  # a header that lies
        sides = struct.pack(">II", rng.randrange(1, 2**31), rng.randrange(1, 2**31))
        return _png(sides, zlib.compress(b"\0" * 10_000))
    if kind == 2:  # many pixels in few bytes
        return _png(struct.pack(">II", 20_000, 20_000), zlib.compress(b"\0" * 1_000_000))
    file = io.BytesIO()
    Image.effect_noise((rng.randrange(1, 200), 80), 50).save(
        file, rng.choice(["JPEG", "PNG", "GIF"])
    )
    data = file.getvalue()
    if kind == 3:
        return data[: rng.randrange(len(data))]
    return _mutated(data, rng)


def _png(sides: bytes, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", sides + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, none added: a request keeps the length that its header says."""
    changed = bytearray(data)
    start = data.find(b"\r\n\r\n") + 4 if data.startswith(b"POST") else 0
    for _ in range(rng.randrange(1, 12)):
        changed[rng.randrange(start, len(changed))] = rng.randrange(256)
    return bytes(changed)


def core_seconds(process: subprocess.Popen[bytes]) -> float:
    """Time that all cores together have spent on the process."""
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


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
