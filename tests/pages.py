"""The blocks of the documentation, run as a reader would."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.testing import CliRunner

from knownot.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# What no test of a page runs, as "page: command", and why.
LEFT_OUT = {
    r": pip install|: python3 -m venv": "a network; .ci/run installs the package anew",
    r"README.md: pytest": "the tests themselves; .ci/run runs them so",
    r": docker|: KNOWNOT_MODEL=": "an engine; tests/test_container.py, .ci/container.py",
    r": python (-m )?benchmarks|: knownot benchmark": "minutes to days; tests/benchmark",
    r": knownot demo": "a minute, with boxes several; tests/test_demo.py, tests/test_scenes.py",
    r": knownot train .*--finetune all|: torchrun": "minutes, several devices; tests/training",
    r": knownot train .*--finetune none": "weights of one's own; tests/training/test_finished*.py",
    r": knownot train coco/": "minutes; tests/cli/test_detector_commands.py",
    r": knownot score": "Ray's start takes ten seconds; tests/scale",
    r"(README|cats_dogs)\.md: knownot (export model/|predict model\.onnx)": (
        "the gate refuses a model of forty photos, docs/export.md; that page runs the rest"
    ),
    r"(export|serving)\.md: knownot (export|serve model/|train)": (
        "half a minute; tests/cli/test_commands.py, tests/export"
    ),
}


def commands(shell: str) -> Iterator[str]:
    """The commands of a block of shell, each on a line of its own."""
    lines = shell.replace("\\\n", " ").splitlines()
    yield from (line for line in lines if line.strip() and not line.startswith("#"))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def left_out(page: Path, command: str) -> list[str]:
    """The entries of `LEFT_OUT` that are about a command."""
    return [entry for entry in LEFT_OUT if re.search(entry, f"{page.name}: {command}")]


class Shell:
    """Runs a page's commands one after another; a service until the next one, or the end."""

    def __init__(self, page: Path, port: int, done: set[tuple[str, ...]]) -> None:
        self.page, self.port, self.done = page, port, done
        self.service: subprocess.Popen | None = None

    def __call__(self, example: Example) -> None:
        for command in commands(example.parsed):
            words = tuple(shlex.split(command, comments=True))
            if words not in self.done and not left_out(self.page, command):
                self.run(*words)
                self.done.add(words)

    def run(self, program: str, *arguments: str) -> None:
        if program == "curl":
            done = subprocess.run([program, "-sSf", *arguments], capture_output=True, text=True)
            assert done.returncode == 0, (arguments, done.stderr)
            assert all(photo["label"] for photo in json.loads(done.stdout)["photos"])
            return
        assert program == "knownot", f"{self.page.name}: {program} is neither run nor left out"
        if arguments[0] == "serve":
            self.serve(arguments)
            return
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)

    def serve(self, arguments: tuple[str, ...]) -> None:
        self.stop()
        command = [sys.executable, "-m", "knownot", *arguments, "--port", str(self.port)]
        self.service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.service.stderr is not None
        log = []
        for line in self.service.stderr:
            log.append(line)
            if '"serving"' in line:
                return
        raise AssertionError((arguments, log))

    def stop(self) -> None:
        if self.service is not None:
            self.service.send_signal(signal.SIGTERM)
            _, log = self.service.communicate(timeout=60)
            assert self.service.returncode == 0, log
            self.service = None


def run_page(name: str, /, done: set[tuple[str, ...]] | None = None, **variables: Any) -> dict:
    """Run a page's Python and commands in the working folder; what its variables are then.

    Commands that are in `done` are not run again; those that were run are added.
    """
    page = ROOT / name if name == "README.md" else DOCS / name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copy = Path("page.md")
    copy.write_text(page.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    shell = Shell(page, port, set() if done is None else done)
    document = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", shell)]).parse(copy)
    copy.unlink()
    document.namespace.update(variables)
    try:
        for example in document.examples():
            example.evaluate()
        shell.stop()
    finally:
        if shell.service is not None:
            shell.service.kill()
            shell.service.wait()
    return document.namespace
