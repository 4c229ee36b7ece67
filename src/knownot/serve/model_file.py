"""The model to serve: an exported file, or a model folder that is exported first."""

from __future__ import annotations

from pathlib import Path

from knownot.data.thumbnails import FOLDER, Thumbnails
from knownot.errors import ModelFileError
from knownot.runtime import OnnxClassifier, OnnxDetector, open_onnx
from knownot.runtime.exported_file import exported_file
from knownot.serve.logs import log


def load_model(model: str | Path) -> OnnxClassifier | OnnxDetector:
    """An exported file, or a model folder by way of the export and its comparison.

    Args:
        model: File of `knownot export`, or whatever `knownot.load` takes.

    Raises:
        KnownotError: If it is missing, damaged, or not exported with the same answers.
    """
    with exported_file(model, "serving", lambda: log("exporting", model=str(model))) as file:
        # One core for each batch, and as many batches at the same time: threads that share a batch
        # wait for each other, and longest where a core is busy with decoding.
        return open_onnx(file, threads=1)


def open_thumbnails(
    model: str | Path, exported: OnnxClassifier | OnnxDetector, given: Path | None = None
) -> Thumbnails | None:
    """The thumbnails of the photos that a classifier was trained on, if its owner kept them.

    Args:
        model: What `exported` was loaded from; a model folder may hold them.
        exported: The exported file.
        given: Where they are, if not there.

    Raises:
        ModelFileError: If they are damaged, or not those of this model.
    """
    folder = given or Path(model, FOLDER)
    if given is None and (isinstance(exported, OnnxDetector) or not folder.is_dir()):
        return None
    if isinstance(exported, OnnxDetector) or not exported.metadata.bank_rows:
        raise ModelFileError(
            f"{model}: does not find the nearest training photos; export anew the model folder that "
            f"holds {folder}"
        )
    thumbnails = Thumbnails(folder, len(exported.classes))
    if len(thumbnails.labels) != exported.metadata.bank_rows:
        raise ModelFileError(
            f"{folder}: is of another model, with {len(thumbnails.labels)} training photos, not "
            f"{exported.metadata.bank_rows}; give the one of the same training"
        )
    return thumbnails
