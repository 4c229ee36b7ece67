"""What the image, compose.yaml and prometheus.yml agree about; .ci/container.py runs the image."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import yaml

from knownot.serve.server import KEY_VARIABLE

ROOT = Path(__file__).parents[1]


def test_the_image_asks_for_the_versions_that_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {*project["project"]["dependencies"]}
    asked.update(project["project"]["optional-dependencies"]["serve"])
    group = set(project["dependency-groups"]["serve-onnx"])
    assert group <= asked
    assert set(project["project"]["optional-dependencies"]["serve"]) <= group
    assert not any(requirement.startswith("torch") for requirement in group)


def test_compose_publishes_to_this_machine_only_and_prometheus_finds_the_service() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["ports"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["read_only"], name
    dockerfile = (ROOT / "Dockerfile").read_text()
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    (model,) = json.loads(re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)[0])
    assert services["knownot"]["ports"][0].endswith(f":{port}")
    assert services["knownot"]["volumes"][0].endswith(f":{model}:ro")
    assert services["knownot"]["environment"] == [KEY_VARIABLE]
    (job,) = yaml.safe_load((ROOT / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"knownot:{port}"]}]
