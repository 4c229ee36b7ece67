"""Save a model as a folder and load it again; nothing in it is ever unpickled.

`config.json` (architecture, classes, preprocessing, settings, versions), `model.safetensors`
(weights, energy weights, phi, Gaussians, feature scores), `calibration.safetensors` (sorted ID
scores), `README.md` (model card), `training/` (configuration, metrics, skipped photos).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from knownot.core.calibration import ConformalCalibration
from knownot.errors import DataError, ModelFileError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.folder_config import FolderConfig, describe, parse_config
from knownot.models.unknown_aware import UnknownAwareModel

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CALIBRATION = "calibration.safetensors"
_PROPOSALS = "proposals.objectness"


def save(
    model: UnknownAwareModel,
    folder: str | Path,
    *,
    overwrite: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a calibrated model to `folder`, all of it or nothing.

    Args:
        model: Calibrated model.
        folder: Where to; written under a temporary name beside it and renamed.
        overwrite: Replace a folder that exists.
        extra: Called with the temporary folder to add files before the renaming.

    Raises:
        DataError: If the folder exists and is not to be replaced, or cannot be written.
        ModelFileError: If the model is not calibrated.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    config = describe(model)
    check_free(folder, overwrite)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
        save_file(state, temporary / WEIGHTS)
        save_file(_calibration_tensors(model), temporary / CALIBRATION)
        for name in (WEIGHTS, CALIBRATION):  # safetensors writes files that only the owner reads
            shutil.copymode(temporary / CONFIG, temporary / name)
        if extra is not None:
            extra(temporary)
        temporary.chmod(0o755)
        _replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(
                f"{folder}: cannot be written ({error.strerror}); free some space or choose "
                "another place with -o"
            ) from None
        if type(error).__name__ == "SafetensorError":
            raise DataError(f"{folder}: cannot be written ({error}); is the disk full?") from None
        raise
    return folder


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise `DataError` unless a model may be written to `folder`."""
    if folder.is_file():
        raise DataError(f"{folder}: is a file; choose another name with -o")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise DataError(f"{folder}: exists; choose another name with -o, or add --overwrite")
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder}: is no model folder and is not overwritten; choose another name")


def load(
    folder: str | Path, *, backbone: nn.Module | None = None, device: str = "cpu"
) -> UnknownAwareClassifier | UnknownAwareDetector:
    """Load a model folder, or a repository of the Hugging Face hub by its id `owner/name`.

    Args:
        folder: Model folder or hub id.
        backbone: The backbone, for a model that was built around a module of your own.
        device: Where the model is put, or "auto" for the best device there is.

    Raises:
        ModelFileError: If the folder is missing, incomplete, damaged or not to be trusted.
    """
    from safetensors.torch import load_file

    folder = _local(folder)
    config = _read_config(folder)
    _check_shapes(folder / WEIGHTS, config)
    try:
        model = config.build(backbone)
    except ModelFileError as error:
        raise ModelFileError(f"{folder}: {error}") from None
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
        calibration = load_file(folder / CALIBRATION)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelFileError(
            f"{folder}: weights are damaged or do not fit ({first_line})"
        ) from None
    try:
        model.calibrations = _calibrations(calibration, config.classwise)
        if isinstance(model, UnknownAwareDetector) and _PROPOSALS in calibration:
            model.proposal_calibration = ConformalCalibration(calibration[_PROPOSALS])
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{folder / CALIBRATION}: is damaged ({error})") from None
    if config.default_score not in model.calibrations:
        raise ModelFileError(f"{folder / CALIBRATION}: no scores of {config.default_score!r}")
    return model.to(choose_device(device)).to(memory_format=torch.channels_last).eval()


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _local(folder: str | Path) -> Path:
    path = Path(folder)
    if path.exists():
        return path
    name = str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, allow_patterns=[CONFIG, "*.safetensors"]))
        except Exception as error:
            raise ModelFileError(
                f"{name}: no such folder here, and not found on the hub ({type(error).__name__})"
            ) from None
    raise ModelFileError(f"{folder}: no such model folder")


def _read_config(folder: Path) -> FolderConfig:
    for name in (CONFIG, WEIGHTS, CALIBRATION):
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder}: is no model folder ({name} is missing)")
    try:
        return parse_config((folder / CONFIG).read_text())
    except ValueError as error:
        problem = str(error).splitlines()
        raise ModelFileError(f"{folder / CONFIG}: {' '.join(problem[:3])}") from None


def _check_shapes(weights: Path, config: FolderConfig) -> None:
    """Hold the sizes in the configuration against the file's, before any memory is taken."""
    from safetensors import safe_open

    expected = config.shapes()
    try:
        with safe_open(weights, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in expected}
    except Exception as error:
        raise ModelFileError(f"{weights}: not a readable weights file ({error})") from None
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelFileError(
                f"{weights}: {name} has shape {found[name]}, {CONFIG} says {shape}"
            )


def _calibration_tensors(model: UnknownAwareModel) -> dict[str, Tensor]:
    tensors = {}
    for name, calibration in model.calibrations.items():
        tensors[f"{name}.scores"] = calibration.scores.contiguous()
        if calibration.groups is not None:
            tensors[f"{name}.groups"] = calibration.groups.contiguous()
    if isinstance(model, UnknownAwareDetector) and model.proposal_calibration is not None:
        tensors[_PROPOSALS] = model.proposal_calibration.scores.contiguous()
    return tensors


def _calibrations(tensors: dict[str, Tensor], classwise: bool) -> dict[str, ConformalCalibration]:
    names = [key.removesuffix(".scores") for key in tensors if key.endswith(".scores")]
    return {
        name: ConformalCalibration(
            tensors[f"{name}.scores"], tensors[f"{name}.groups"] if classwise else None
        )
        for name in names
    }


def _replace(temporary: Path, folder: Path) -> None:
    """Rename a finished folder into place; an old one is moved away first and removed last."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / "model")
    try:
        temporary.rename(folder)
    except OSError:
        (old / "model").rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
