"""Save a model as a folder and load it again; nothing in it is ever unpickled.

`config.json` (architecture, classes, preprocessing, settings, versions), `model.safetensors`
(weights, energy weights, phi, Gaussians, feature scores), `calibration.safetensors` (sorted ID
scores), `README.md` (model card), `training/` (configuration, metrics, skipped photos). With
`--keep-thumbnails` training adds `thumbnails/`, small copies of training photos: like `training/` they
are no part of the model that is loaded, so that no copy of it, on disk or on a hub, has them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from knownot.core.calibration import ConformalCalibration
from knownot.errors import ConfigError, DataError, ModelFileError
from knownot.models.classifier import UnknownAwareClassifier
from knownot.models.detector import UnknownAwareDetector
from knownot.models.earlier_map import check_earlier_map
from knownot.models.folder_config import FolderConfig, describe, parse_config
from knownot.models.hub import CALIBRATION, CARD, CONFIG, WEIGHTS, download, is_hub_id
from knownot.models.model_card import model_card
from knownot.models.unknown_aware import ScoreName, UnknownAwareModel

# 20,000 class names and a long card are below it; it bounds what a stranger's folder makes us read.
_MAX_TEXT = 16 * 2**20
_PROPOSALS = "proposals.objectness"
# Came later than the first folders, and matters only for training on.
_MAY_LACK = ("vos.gaussians.upper", "vos.gaussians._extra_state")


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
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    folder = Path(folder)
    config = describe(model)
    check_free(folder, overwrite)
    # By the names of the model itself, whatever a part of it is wrapped in for training. Layers that
    # share a tensor each get their own in the file.
    own: dict[str, Any] = get_model_state_dict(model)
    state = {name: t.detach().cpu().contiguous().clone() for name, t in own.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
        (temporary / CARD).write_text(model.card or model_card(model), "utf-8")
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
    """Raise `DataError` unless a model may be written to `folder`.

    A finished folder takes its place by renaming: that place must be one that can be replaced.
    """
    if folder.name in ("", ".."):
        raise DataError(f"{folder}: name the model's folder, such as -o {folder / 'model'}")
    if folder.is_symlink() and not folder.exists():
        raise DataError(f"{folder}: is a link to nothing; choose another name with -o")
    if folder.is_mount():
        raise DataError(
            f"{folder}: is a mounted folder and cannot be replaced; name one inside, such as "
            f"-o {folder / 'model'}"
        )
    if folder.is_file():
        raise DataError(f"{folder}: is a file; choose another name with -o")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise DataError(
            f"{folder}: exists; choose another name with -o, or add --overwrite (in Python overwrite=True)"
        )
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder}: is no model folder and is not overwritten; choose another name")


def move(folder: Path, to: Path, overwrite: bool = False) -> None:
    """Give a finished model folder another name on the same disk, all of it or nothing.

    Raises:
        DataError: If that name is taken and is not to be replaced, or cannot be written.
    """
    check_free(to, overwrite)
    try:
        _replace(folder, to)
    except OSError as error:
        raise DataError(f"{to}: cannot be written ({error.strerror})") from None


def load(
    folder: str | Path,
    *,
    backbone: nn.Module | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> UnknownAwareClassifier | UnknownAwareDetector:
    """Load a model folder, or a repository of the Hugging Face hub by its id `owner/name`.

    Args:
        folder: Model folder or hub id.
        backbone: The backbone, for a model that was built around a module of your own.
        device: Where the model is put, or "auto" for the best device there is.
        revision: Branch, tag or commit of a repository on the hub.

    Raises:
        ModelFileError: If the folder is missing, incomplete, damaged or not to be trusted.
    """
    from safetensors.torch import load_file

    folder = _local(folder, revision)
    config = _read_config(folder)
    try:
        _check_shapes(folder / WEIGHTS, config, backbone)
        model = config.build(backbone)
    except (ConfigError, ModelFileError) as error:
        raise ModelFileError(f"{folder}: {error}") from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelFileError(
            f"{folder}: no model can be built as {CONFIG} says ({_in_short(error)})"
        ) from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
        calibration = load_file(folder / CALIBRATION)
    except Exception as error:
        raise ModelFileError(
            f"{folder}: weights are damaged or do not fit ({_in_short(error)})"
        ) from None
    try:
        model.calibrations = _calibrations(calibration, config.classwise)
        if isinstance(model, UnknownAwareDetector) and _PROPOSALS in calibration:
            model.proposal_calibration = ConformalCalibration(calibration[_PROPOSALS])
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{folder / CALIBRATION}: is damaged ({error})") from None
    if config.default_score not in model.calibrations:
        raise ModelFileError(f"{folder / CALIBRATION}: no scores of {config.default_score!r}")
    model.card = _read_card(folder)
    return model.to(choose_device(device)).to(memory_format=torch.channels_last).eval()


def _in_short(error: Exception) -> str:
    """The first lines of an error's text, of which torch's begins with a heading."""
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or repr(error)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device: {name!r} cannot be used here ({reason}); expected auto, cpu, cuda or mps"
            ) from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _local(folder: str | Path, revision: str | None) -> Path:
    path = Path(folder)
    if path.is_file():
        raise ModelFileError(f"{folder}: is a file; expected the folder of a model")
    if path.exists():
        return path
    if is_hub_id(str(folder)):
        return download(str(folder), revision)
    raise ModelFileError(f"{folder}: no such model folder or file")


def _read_config(folder: Path) -> FolderConfig:
    for name in (CONFIG, WEIGHTS, CALIBRATION):
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder}: is no model folder ({name} is missing)")
    try:
        return parse_config(_read_text(folder / CONFIG))
    except ValueError as error:
        problem = str(error).splitlines()
        raise ModelFileError(f"{folder / CONFIG}: {' '.join(problem[:3])}") from None


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise ValueError(f"is larger than {_MAX_TEXT // 2**20} MiB")
    return data.decode()


def _read_card(folder: Path) -> str | None:
    try:
        return _read_text(folder / CARD)
    except (OSError, ValueError):  # it is for people; a model works without
        return None


def _check_shapes(weights: Path, config: FolderConfig, backbone: nn.Module | None) -> None:
    """Hold the sizes that the configuration asks for against the file's, before memory is taken."""
    from safetensors import safe_open

    with torch.device("meta"):  # shapes without memory
        model = config.build(backbone)
        if backbone is None:
            _check_map(model)
    if backbone is not None:  # real, whatever the rest is
        _check_map(model)
    expected = model.state_dict()
    try:
        with safe_open(weights, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelFileError(f"{WEIGHTS} is not a readable weights file ({error})") from None
    for name, tensor in expected.items():
        if name not in found and name.startswith(_MAY_LACK):
            continue
        if name not in found:
            raise ModelFileError(f"{WEIGHTS} lacks {name}, which {CONFIG} asks for")
        if found[name] != list(tensor.shape):
            raise ModelFileError(
                f"{name} in {WEIGHTS} has shape {found[name]}, {CONFIG} says {list(tensor.shape)}"
            )


def _check_map(model: UnknownAwareModel) -> None:
    if isinstance(model, UnknownAwareClassifier) and model.earlier_map:
        check_earlier_map(model.backbone, model.preprocessing.image_size, model.earlier_map)


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
    if strange := set(names) - set(get_args(ScoreName)):
        raise ValueError(f"unknown scores {sorted(strange)}")
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
