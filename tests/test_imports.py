"""What an import pulls in: layers point inward, and nothing heavy comes before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import knownot

PACKAGE = Path(knownot.__file__).parent
# A layer may import itself and those before it.
LAYERS = ["errors", "core", "interrupt", "data", "models", "runtime", "evaluation", "training"]
LAYERS += ["export", "sklearn", "scale", "benchmark", "demo", "serve", "cli", "__main__"]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import knownot", "import knownot.cli.main"])
def test_the_package_and_its_help_load_nothing_heavy(statement: str) -> None:
    heavy = {"torch", "numpy", "lightning", "timm", "torchvision", "sklearn", "PIL", "pydantic"}
    assert not loaded_after(statement) & heavy


def test_the_runtime_knows_no_torch() -> None:
    heavy = {"torch", "torchvision", "timm", "lightning", "sklearn", "scipy", "pydantic", "onnx"}
    assert not loaded_after("import knownot.runtime, onnxruntime") & heavy


def test_the_service_and_its_model_know_no_torch() -> None:
    heavy = {"torch", "torchvision", "timm", "lightning", "sklearn", "onnx"}
    assert not loaded_after("import knownot.serve.server, onnxruntime") & heavy


def test_the_workers_of_a_job_know_no_torch() -> None:
    heavy = {"torch", "torchvision", "timm", "lightning", "sklearn", "onnx"}
    assert not loaded_after("import knownot.scale.score, knownot.scale.worker") & heavy


def test_the_core_knows_torch_alone() -> None:
    modules = [p.stem for p in (PACKAGE / "core").glob("[a-z]*.py")]
    loaded = loaded_after("\n".join(f"import knownot.core.{name}" for name in modules))
    unwanted = {"timm", "torchvision", "lightning", "sklearn", "scipy", "PIL", "pydantic"}
    assert not loaded & unwanted


def test_dependencies_point_inward() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        allowed = LAYERS[: LAYERS.index(layer) + 1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("knownot."):
                imported = node.module.split(".")[1]
                if imported not in allowed:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {node.module}")
    assert not wrong


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    for name in knownot.__all__:
        assert getattr(knownot, name) is not None
        assert name in dir(knownot)
    with pytest.raises(AttributeError, match="has no attribute 'VOS'"):
        knownot.VOS  # noqa: B018


def test_missing_extra_names_the_command() -> None:
    from knownot.errors import KnownotError, MissingExtraError

    error = MissingExtraError("pytorch-ood", "baselines", "the comparison")
    assert isinstance(error, KnownotError)
    assert "pip install 'knownot[baselines]'" in str(error)
