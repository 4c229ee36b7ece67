"""Weights of somebody's network: tensors by name in a .safetensors or .pth file, never anything else."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from knownot.errors import ConfigError, ModelFileError

# What training loops call the weights in a checkpoint, and those averaged over steps.
_KEYS = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
_COUNTERS = "num_batches_tracked"  # of batch norms: they answer as well without


def read_weights(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The tensors of a file by name.

    Args:
        path: The file; a checkpoint with the weights inside is one too.
        names: What a network calls its tensors. What a wrapper or a Lightning module puts before the names
            of all (`module.`, `model.`) is taken off.

    Raises:
        ConfigError: If there is no such file.
        ModelFileError: If it holds no tensors by name, other things than tensors, or those of several
            networks.
    """
    state = _read(path)
    nested = [key for key in _KEYS if isinstance(state.get(key), dict)]
    averaged = [key for key in _AVERAGED if key in state]
    if averaged and (nested or len(averaged) > 1):
        raise ModelFileError(
            f"{path}: holds several networks, {', '.join(nested + averaged)}; save the one that you mean: "
            f"torch.save(torch.load(path)[{averaged[0]!r}], 'mine.pth')"
        )
    for key in nested + averaged:
        if isinstance(state[key], dict):
            state = state[key]
            break
    state = {str(k): v for k, v in state.items()}
    first = next(iter(names), "")
    prefixes = [name.removesuffix(first) for name in state if f".{name}".endswith(f".{first}")]
    # A name may end so elsewhere too; a whole network has most of its names behind one prefix.
    prefixes = [p for p in prefixes if sum(f"{p}{n}" in state for n in names) > len(names) / 2]
    if len(prefixes) > 1 and "" not in prefixes:
        raise ModelFileError(
            f"{path}: holds several networks, {', '.join(prefixes)}; save the state_dict of the one that "
            "you mean"
        )
    prefix = prefixes[0] if prefixes and "" not in prefixes else ""
    # What stands beside the network may have names that it uses itself.
    inside = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in inside.items()}


def load_weights(network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Give a network all its tensors from those of a file; what else is there is left alone.

    Raises:
        ModelFileError: If one is missing, of another shape, or not finite.
    """
    own = network.state_dict()
    fitting = {
        k: v for k, v in state.items() if k in own and getattr(v, "shape", None) == own[k].shape
    }
    missing = [k for k in own if k not in fitting and not k.endswith(_COUNTERS)]
    if missing:
        raise ModelFileError(
            f"{path}: does not fit this architecture; {len(missing)} of {len(own)} tensors are "
            f"missing or of another shape, first {missing[0]}"
        )
    broken = [k for k, v in fitting.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ModelFileError(
            f"{path}: {broken[0]} holds numbers that are not finite; the training that wrote it went wrong"
        )
    network.load_state_dict(fitting, strict=False)


def _read(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise ConfigError(
            f'weights: {path} is no file; expected "auto", "pypi", "hub", "none" or one'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{path}: not a readable weights file; if it holds more than tensors, which are all that is "
            "read, save them alone: torch.save(network.state_dict(), 'mine.pth')"
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise ModelFileError(
            f"{path}: not a readable weights file, or a damaged one ({reason})"
        ) from None
    if not isinstance(state, dict):
        raise ModelFileError(
            f"{path}: expected tensors by name, a state_dict, got a {type(state).__name__}"
        )
    return state
