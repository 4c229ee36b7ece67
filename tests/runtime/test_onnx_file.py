"""Files that are not ours, or not as they were written, are refused with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knownot.errors import ModelFileError
from knownot.runtime import OnnxClassifier
from knownot.runtime.metadata import ExportMetadata
from knownot.runtime.onnx_file import sealed, unsealed
from knownot.runtime.sessions import Sessions
from tests.helpers import COLOURS, colour_folder


def test_the_onnx_package_reads_the_description(exported_file: Path) -> None:
    model = onnx.load(exported_file)
    onnx.checker.check_model(model)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["knownot"])["classes"] == list(COLOURS)
    assert len(props["knownot.sha256"]) == 64


@given(model=st.binary(max_size=300), text=st.text(max_size=300))
def test_what_is_sealed_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, model: bytes, text: str
) -> None:
    path = tmp_path_factory.mktemp("seal") / "a.onnx"
    path.write_bytes(sealed(model, text))
    data, description = unsealed(path)
    assert description == text
    assert data.startswith(model)


def test_damage_anywhere_is_noticed(exported_file: Path, tmp_path: Path) -> None:
    whole = exported_file.read_bytes()
    broken = tmp_path / "broken.onnx"
    for place in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        data = bytearray(whole)
        data[place] ^= 1
        broken.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"broken\.onnx: "):
            OnnxClassifier(broken)
    for length in (0, 1, 90, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="is no model that knownot exported"):
            OnnxClassifier(broken)


def test_files_of_others_are_refused(exported_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK")
    with pytest.raises(ModelFileError, match=r"which PyTorch alone runs; make an \.onnx file"):
        OnnxClassifier(tmp_path / "model.pt2")
    with pytest.raises(ModelFileError, match=r"gone\.onnx: no such file"):
        OnnxClassifier(tmp_path / "gone.onnx")
    with pytest.raises(ModelFileError, match="cannot be read"):
        OnnxClassifier(tmp_path)
    plain = onnx.load(exported_file)
    del plain.metadata_props[:]
    other = tmp_path / "other.onnx"
    onnx.save(plain, other)
    with pytest.raises(ModelFileError, match="is no model that knownot exported"):
        OnnxClassifier(other)
    _, description = unsealed(exported_file)
    for model, text, reason in (
        (b"", description, "ONNX Runtime cannot load"),
        (b"\x99" * 50, description, "ONNX Runtime cannot load"),
        (b"", "{", "its description is damaged"),
        (b"", description.replace('"alpha": 0.05', '"alpha": 7'), "its description is damaged"),
        (b"", description.replace('"classify"', '"segment"'), "'segment' model.*export it anew"),
    ):
        other.write_bytes(sealed(model, text))
        with pytest.raises(ModelFileError, match=reason):
            OnnxClassifier(other)


def test_another_graph_under_our_description_is_refused(
    exported_file: Path, tmp_path: Path
) -> None:
    _, description = unsealed(exported_file)
    x = onnx.helper.make_tensor_value_info("photos", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["photos"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    (tmp_path / "a.onnx").write_bytes(sealed(model.SerializeToString(), description))
    with pytest.raises(ModelFileError, match="has outputs y"):
        OnnxClassifier(tmp_path / "a.onnx")


def test_a_file_whose_weights_lie_elsewhere_is_refused(exported_file: Path, tmp_path: Path) -> None:
    """Weights that an ONNX file refers to could be any file of the reader's."""
    data, description = unsealed(exported_file)
    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 4096)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    onnx.external_data_helper.set_external_data(weight, os.path.relpath(secret))
    weight.ClearField("raw_data")
    path = tmp_path / "outside.onnx"
    path.write_bytes(sealed(model.SerializeToString(), description))
    with pytest.raises(ModelFileError, match="ONNX Runtime cannot load it"):
        OnnxClassifier(path)


def test_metadata_are_read_as_they_were_written(exported_file: Path) -> None:
    metadata = OnnxClassifier(exported_file).metadata
    assert ExportMetadata.from_json(metadata.to_json()) == metadata


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "onnx", "safetensors"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
sys.argv[0] = "knownot"
from knownot.cli.main import main
main()
"""


def test_the_command_predicts_without_torch(exported_file: Path, tmp_path: Path) -> None:
    colour_folder(tmp_path / "photos", 3)
    command = [
        sys.executable,
        "-c",
        BLOCKED,
        "predict",
        exported_file,
        tmp_path / "photos",
        "--json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["nearest_class"] for row in rows] == ["green"] * 3 + ["red"] * 3


def test_weights_outside_of_the_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a stranger's model could show a file of the current folder in its scores."""
    (tmp_path / "secret").write_bytes(b"TOPKEY42")
    monkeypatch.chdir(tmp_path)
    outside = onnx.TensorProto(
        name="w",
        data_type=onnx.TensorProto.UINT8,
        dims=[8],
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [8])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [8])]
    node = onnx.helper.make_node("Max", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, [outside])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    with pytest.raises(Exception, match="secret"):
        Sessions(model.SerializeToString(), 1)
