"""How fast the service is beside bare ONNX Runtime, in rounds in which the ways take turns."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from http_load import closed_loop, form, open_loop, post, whole
from knownot.data.cores import usable_cores
from knownot.data.photo import open_photo
from knownot.runtime import OnnxClassifier

_BATCHES = (1, 2, 4, 8)  # of the bare model
_FORM = 8  # photos in a request of several
_CONNECTIONS = 16


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
    one_round = SpeedRound(file, photos, url, process, seconds)
    measured = []
    for turn in range(rounds):
        measured.append(one_round())
        rates, latency = measured[-1]["rates"], measured[-1]["latency"]
        print(
            f"round {turn + 1}: p99 {latency['p99 at 70 %'] / latency['alone']:.1f} times alone,",
            {name: round(rate) for name, rate in rates.items()},
            flush=True,
        )

    def values(kind: str) -> dict[str, list[float]]:
        return {name: [found[kind][name] for found in measured] for name in measured[0][kind]}

    rates, latency, core_ms = values("rates"), values("latency"), values("core_ms")
    bare = [name for name in rates if name.startswith("bare")]
    best = [max(of_round) for of_round in zip(*(rates[name] for name in bare), strict=True)]
    ways = [name for name in rates if name not in bare]
    predict = rates[ways[0]]
    return {
        "rounds": rounds,
        "photos_per_second": {name: median(of_way) for name, of_way in rates.items()},
        "over_bare": {name: median_ratio(rates[name], best) for name in ways},
        "over_predict": {name: median_ratio(rates[name], predict) for name in ways[1:]},
        "core_ms_a_photo": {name: median(of_way) for name, of_way in core_ms.items()},
        "core_ms_bare_over_service": median_ratio(*core_ms.values()),
        "latency_ms": {name: 1000 * median(times) for name, times in latency.items()},
        # Of a machine that others slowed down between two measurements.
        "refused_at_70_percent": sum(found["refused"] for found in measured),
        "p99_over_alone": median_ratio(latency["p99 at 70 %"], latency["alone"]),
    }


def median_ratio(numbers: list[float], others: list[float]) -> float:
    """Median over rounds of one over the other."""
    return median(a / b for a, b in zip(numbers, others, strict=True))


class SpeedRound:
    """Each way measured once, one after the other; as for `speed`."""

    def __init__(
        self,
        file: Path,
        photos: list[Path],
        url: str,
        process: subprocess.Popen[bytes],
        seconds: float,
    ) -> None:
        self.photos, self.url, self.process, self.seconds = photos, url, process, seconds
        bytes_of = [path.read_bytes() for path in photos]
        self.singles = [post(data, "image/jpeg") for data in bytes_of]
        self.eights = [form(bytes_of[i : i + _FORM]) for i in range(0, len(bytes_of), _FORM)]
        self.cores = usable_cores()
        self.together = OnnxClassifier(file, threads=self.cores)
        self.alone = OnnxClassifier(file, threads=1)
        least = self.alone.least_side
        squares = [self.alone.prepare(open_photo(path, at_least=least)) for path in photos]
        self.squares = np.stack(squares)

    def __call__(self) -> dict[str, Any]:
        """Photos per second, milliseconds of a core, seconds of latency, and requests refused."""
        spent = core_seconds(self.process)
        one = asyncio.run(closed_loop(self.url, self.singles, _CONNECTIONS, self.seconds))
        served_ms = 1000 * (core_seconds(self.process) - spent) / whole(one)
        spent = time.process_time()
        done = sum(self._bare(self.alone, 2)(turn) for turn in range(32))
        bare_ms = 1000 * (time.process_time() - spent) / done
        several = asyncio.run(closed_loop(self.url, self.eights, 2 * self.cores, self.seconds))
        rates = {
            "bare, batches of 8 on all cores": self._rate(self._bare(self.together, 8), 1),
            **{
                f"bare, batches of {n}, one a core": self._rate(
                    self._bare(self.alone, n), self.cores
                )
                for n in _BATCHES
            },
            "`predict` on files": self._rate(self._predict, 1),
            "service, one a request": whole(one) / one.wall,
            "service, 8 a request": _FORM * whole(several) / several.wall,
        }
        alone = asyncio.run(closed_loop(self.url, self.singles, 1, self.seconds))
        wanted = 0.7 * rates["service, one a request"]
        busy = asyncio.run(open_loop(self.url, self.singles, wanted, 2 * self.seconds))
        return {
            "rates": rates,
            "core_ms": {"bare, batches of 2": bare_ms, "service, one a request": served_ms},
            "latency": {
                "alone": alone.quantile(0.5),
                "p50 at 70 %": busy.quantile(0.5),
                "p99 at 70 %": busy.quantile(0.99),
            },
            "refused": sum(busy.statuses.values()) - busy.statuses[200],
        }

    def _bare(self, model: OnnxClassifier, batch: int) -> Callable[[int], int]:
        def run(turn: int) -> int:
            start = turn * batch % len(self.squares)
            return len(model.answer_prepared(self.squares[start : start + batch])[0])

        return run

    def _predict(self, _: int) -> int:
        return len(self.together.predict(self.photos[:64]))

    def _rate(self, run: Callable[[int], int], threads: int) -> float:
        return rate_of(run, threads, self.seconds)


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


def core_seconds(process: subprocess.Popen[bytes]) -> float:
    """Time that all cores together have spent on the process."""
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
