"""The Dockerfile where no container engine is: its build steps below a folder, then the service itself.

    python .ci/container.py model.onnx      # needs dockerfile-parse, and pip 25.1 or later beside python

The service is asked by the image's own health check. Started by root it runs as the image's user, who can
write nothing there, unless only root can reach this Python. Not checked: the base image and its Python.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]


def below(root: Path, text: str) -> str:
    """`text` with the paths that the image has of its own led to `root`."""
    return re.sub(r"(?<![\w.])(?=/(opt|dist|src|model)\b)", str(root), text)


def stages() -> list[list[tuple[str, str]]]:
    """Instruction and value, stage by stage."""
    found: list[list[tuple[str, str]]] = []
    for step in DockerfileParser(str(REPOSITORY / "Dockerfile")).structure:
        if step["instruction"] == "FROM":
            found.append([])
        elif found and step["instruction"] != "COMMENT":
            found[-1].append((step["instruction"], step["value"]))
    return found


def build(root: Path, steps: list[tuple[str, str]]) -> None:
    """The steps of the first stage."""
    here = root
    for instruction, value in steps:
        print(instruction, value)
        if instruction == "WORKDIR":
            here = Path(below(root, value))
            here.mkdir(parents=True)
        elif instruction == "COPY":
            *sources, target = shlex.split(value)
            for source in sources:
                if (REPOSITORY / source).is_dir():
                    shutil.copytree(REPOSITORY / source, here / target)
                else:
                    shutil.copy(REPOSITORY / source, here / target)
        elif instruction == "RUN":
            subprocess.run(["sh", "-ec", below(root, value)], cwd=here, check=True)
        else:
            sys.exit(f"{instruction}: a build step that this script does not know")


def user(name: str) -> dict:
    """Arguments of `Popen` for the image's user, as far as that can be."""
    hidden = [p for p in Path(sys.executable).resolve().parents if not p.stat().st_mode & 0o001]
    if os.geteuid() or hidden:
        print(
            "runs as the user of this script:", f"{hidden[0]} is closed" if hidden else "not root"
        )
        return {}
    number, group = map(int, name.split(":"))
    return {"user": number, "group": group, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    model = Path(sys.argv[1])
    first, last = stages()
    image = dict(last)
    source, target = re.fullmatch(r"--from=build (\S+) (\S+)", image["COPY"]).groups()
    assert source == target, "a virtual environment cannot move"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        build(root, first)
        (root / "model").mkdir()
        shutil.copy(model, root / "model" / "model.onnx")
        port = str(free_port())
        path = below(
            root, image["ENV"].split()[0].removeprefix("PATH=").replace("$PATH", "/usr/bin:/bin")
        )
        as_user = {"env": {"PATH": path}, "cwd": "/", **user(image["USER"])}
        command = json.loads(image["ENTRYPOINT"]) + json.loads(below(root, image["CMD"]))
        # `Popen` looks for programs with this process's PATH.
        command[0] = shutil.which(command[0], path=path)
        health = json.loads(image["HEALTHCHECK"].partition("CMD")[2])
        health = [part.replace(image["EXPOSE"], port) for part in health]
        health[0] = shutil.which(health[0], path=path)
        service = subprocess.Popen([*command, "--port", port], **as_user)
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(health, stderr=subprocess.DEVNULL, **as_user).returncode:
                assert service.poll() is None, "the service ended"
                assert time.monotonic() < deadline, "the health check never succeeded"
                time.sleep(0.5)
            photo = (REPOSITORY / "docs" / "images" / "toy.png").read_bytes()
            url = f"http://127.0.0.1:{port}"
            request = urllib.request.Request(f"{url}/predict", photo, {"content-type": "image/png"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                print(json.load(answer)["photos"][0])
            with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
                assert b"knownot_photos_total" in answer.read()
        finally:
            service.send_signal(signal.SIGTERM)
            ended = service.wait(60)
        assert ended == 0, ended
        size = sum(f.lstat().st_size for f in (root / "opt").rglob("*"))
        print(f"the environment of the image has {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
