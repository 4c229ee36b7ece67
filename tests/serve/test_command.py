"""`knownot serve` as a process: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from knownot.data.cores import usable_cores
from knownot.data.inbox import kept_facts
from knownot.data.photo import open_photo
from knownot.errors import ConfigError, ExportError
from knownot.runtime.onnx_file import sealed, unsealed
from knownot.serve.limits import Limits
from knownot.serve.model_file import load_model
from knownot.serve.server import api_key, is_loopback, listen
from tests.cli.conftest import Run, knownot_command  # noqa: F401
from tests.helpers import COLOURS, UNKNOWN_COLOUR, colour_folder, noisy
from tests.pages import run_page
from tests.serve.conftest import RED, encoded


class Process:
    """A service in a process of its own; its log is read while it runs."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stderr=file, env=os.environ | environment)

    def events(self) -> list[dict]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, event: str) -> dict:
        """The first such event."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for item in self.events():
                if item["event"] == event:
                    return item
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())


@contextmanager
def process(model: Path, tmp_path: Path, *options: str, **environment: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "knownot", "serve", str(model), "--port", "0", *options]
    service = Process(command, tmp_path / "log.jsonl", environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


def status_under(url: str, name: str) -> int:
    """What is answered to who reaches the service by this name."""
    return httpx.get(f"{url}/model", headers={"host": name}, timeout=60).status_code


def test_sigterm_under_load_finishes_what_was_accepted(exported_file: Path, tmp_path: Path) -> None:
    statuses: list[int] = []
    refused = threading.Event()
    with process(exported_file, tmp_path) as service:
        url = service.wait_for("serving")["address"]
        port = int(url.rpartition(":")[2])
        httpx.get(f"{url}/healthz", timeout=60)
        assert status_under(url, "elsewhere.example") == 403

        def load() -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                while True:
                    try:
                        headers = {"content-type": "image/png"}
                        answer = client.post("/predict", content=RED, headers=headers)
                    except httpx.TransportError:
                        refused.set()
                        return
                    statuses.append(answer.status_code)

        threads = [threading.Thread(target=load) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as half:
            half.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: " + str(len(RED)).encode() + b"\r\n\r\n" + RED[:100]
            )
            for thread in threads:
                thread.start()
            while len(statuses) < 20:
                time.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
            assert service.process.poll() is None  # it waits for the upload in progress
            half.sendall(RED[100:])
            answer = b""
            while part := half.recv(10_000):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label":"red"' in answer
        assert service.process.wait(60) == 0
        assert refused.is_set()
        assert set(statuses) == {200}
        log = service.events()
    assert [item["event"] for item in log][-1] == "stopped"
    told = [item for item in log if item["event"] == "request" and item["route"] == "/predict"]
    # Every request that was taken in got its answer.
    assert len(told) == len(statuses) + 1
    assert {item["status"] for item in told} == {200}
    assert all(item["photos"] == 1 for item in told)
    assert "127.0.0.1" not in json.dumps(told)


def test_killed_under_load_the_inbox_is_whole_and_the_next_service_goes_on(
    exported_file: Path, tmp_path: Path
) -> None:
    inbox, most = tmp_path / "unknown", 5
    options = ("--keep-unknown", str(inbox), "--keep-most", str(most))
    model = exported_file.read_bytes()
    photos = iter([encoded(noisy(UNKNOWN_COLOUR, i)) for i in range(400)])
    seen: set[Path] = set()

    def load(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client, suppress(httpx.TransportError):
            for photo in photos:
                client.post("/predict", content=photo, headers={"content-type": "image/png"})

    with process(exported_file, tmp_path, *options) as service:
        url = service.wait_for("serving")["address"]
        threads = [threading.Thread(target=load, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(seen) < 3 * most:  # by then old ones have gone
            assert service.process.poll() is None
            seen.update(inbox.glob("*.jpg"))
        service.process.kill()
        for thread in threads:
            thread.join()
        left = next(photos)  # it was killed before the photos were out
    assert exported_file.read_bytes() == model
    kept = set(inbox.glob("*.jpg"))
    # Each thread that keeps photos makes room when it has kept its own.
    assert 0 < len(kept) <= most + usable_cores()
    for path in kept:
        open_photo(path)
        assert kept_facts(path)["nearest_class"] in COLOURS
    with process(exported_file, tmp_path, *options) as service:
        url = service.wait_for("serving")["address"]
        sent = {"content": left, "headers": {"content-type": "image/png"}, "timeout": 60}
        answer = httpx.post(f"{url}/predict", **sent)
        assert answer.json()["photos"][0]["label"] == "unknown"
        now = set(inbox.glob("*.jpg"))
        assert len(now) <= most
        assert len(now - kept) == 1


def test_open_to_others_without_a_key_it_warns_and_ctrl_c_ends_it(
    exported_file: Path, tmp_path: Path
) -> None:
    options = ("--host", "0.0.0.0", "--root-path", "/p", "--allow-host", "photos.example")
    with process(exported_file, tmp_path, *options) as service:
        port = service.wait_for("serving")["address"].rpartition(":")[2]
        for name, status in (("photos.example", 200), ("elsewhere.example", 403)):
            assert status_under(f"http://127.0.0.1:{port}", name) == status
        document = httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=60).json()
        assert document["servers"] == [{"url": "/p"}]
        (warning,) = (item for item in service.events() if item["level"] == "warning")
        assert "KNOWNOT_API_KEY" in warning["event"]
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(60) == 130
        assert "stopped" in service.log.read_text()


def test_errors_name_the_remedy(
    knownot_command: Run,  # noqa: F811
    exported_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "no such file" in knownot_command("serve", tmp_path / "no.onnx", "--port", 0).err
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = knownot_command("serve", exported_file, "--port", port)
        assert result.code == 1
        assert "choose another --port" in " ".join(result.err.split())
    for host in ("a..b", "h" * 70):
        result = knownot_command("serve", exported_file, "--host", host)
        assert (result.code, "cannot listen there" in " ".join(result.err.split())) == (1, True)
    graph, description = unsealed(exported_file)
    other = tmp_path / "other.onnx"
    other.write_bytes(sealed(graph, json.dumps(json.loads(description) | {"image_size": 16})))
    result = knownot_command("serve", other, "--port", 0)
    assert result.code == 1
    assert "cannot answer for a photo" in " ".join(result.err.split())
    result = knownot_command("serve", exported_file, "--max-photos", 99)
    assert "queue: 64 photos cannot hold" in " ".join(result.err.split())
    monkeypatch.setenv("KNOWNOT_API_KEY", " ")
    assert "is set but empty" in knownot_command("serve", exported_file).err


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a stranger was run')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="is no model folder"):
        load_model(tmp_path)


def test_a_folder_that_is_no_model_says_so_from_the_other_process(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"^{tmp_path}: is no model folder"):
        load_model(tmp_path)


def test_sigterm_during_the_export_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with process(tmp_path, tmp_path, TMPDIR=str(scratch)) as service:
        service.wait_for("exporting")
        while not list(scratch.iterdir()):
            assert service.process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # Python has made the folder, and may be about to note that it has to go
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 128 + signal.SIGTERM
        assert list(scratch.iterdir()) == []


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOWNOT_API_KEY", raising=False)
    assert api_key() is None
    monkeypatch.setenv("KNOWNOT_API_KEY", "secret")
    assert api_key() == "secret"
    monkeypatch.setenv("KNOWNOT_API_KEY", "")
    with pytest.raises(ConfigError, match="unset it"):
        api_key()
    monkeypatch.setenv("KNOWNOT_API_KEY", "secret\r")
    with pytest.raises(ConfigError, match="white space"):
        api_key()
    for key in ("clé", "鍵", "a\tb"):
        monkeypatch.setenv("KNOWNOT_API_KEY", key)
        with pytest.raises(ConfigError, match="signs of ASCII"):
            api_key()


def test_loopback_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3")] == [
        True
    ] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        False
    ] * 4


def test_limits_above_zero() -> None:
    with pytest.raises(ConfigError, match="seconds: expected more than 0"):
        Limits(seconds=0)
    with pytest.raises(ConfigError, match="uploads_bytes"):
        Limits(uploads_bytes=10)


def test_usable_cores_are_at_most_those_of_the_machine() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_the_pages_about_exports_run(
    exported_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service, requests by curl and httpx; unknown photos in groups, one of which is named."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported_file, "model.onnx")
    colour_folder(Path("new"), 3)
    for name, colour in (("a.jpg", COLOURS["red"]), ("b.jpg", UNKNOWN_COLOUR)):
        noisy(colour, 1).save(name)
    Path("unknown").mkdir()
    for kind, colour in enumerate([UNKNOWN_COLOUR, (240, 240, 240), (5, 5, 5), (230, 200, 20)]):
        for seed in range(4):
            noisy(colour, seed).save(f"unknown/{kind}{seed}.jpg")
    for page in ("export.md", "serving.md"):
        run_page(page)
    assert len(list(Path("new_set/bear").iterdir())) >= 3
