"""Sessions of ONNX Runtime for one graph: on all cores, and on one core for batches side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Lock
from typing import Any

from numpy.typing import NDArray

_WEIGHTS_ELSEWHERE = "session.model_external_initializers_file_folder_path"
Feeds = dict[str, NDArray[Any]]


class Sessions:
    """Makes the session on one core when it is first asked for, since it holds the weights again.

    Args:
        data: The graph.
        cores: Cores that a batch alone uses.

    Raises:
        Exception: What ONNX Runtime raises if it cannot load the graph; its errors share no base.
    """

    def __init__(self, data: bytes, cores: int) -> None:
        self._lock = Lock()
        self._all = _session(data, cores)
        self._data: bytes | None = None if cores == 1 else data
        self._one: Any = self._all if cores == 1 else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(output.name for output in self._all.get_outputs())

    def run(self, feeds: Feeds) -> Sequence[NDArray[Any]]:
        """The outputs, computed on all cores."""
        found: Sequence[NDArray[Any]] = self._all.run(None, feeds)
        return found

    def run_on_one_core(self, feeds: Feeds) -> Sequence[NDArray[Any]]:
        """The outputs, computed by the calling thread."""
        with self._lock:
            if self._one is None and self._data is not None:
                self._one = _session(self._data, 1)
            self._data = None
        found: Sequence[NDArray[Any]] = self._one.run(None, feeds)
        return found


def _session(data: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, too
    # A file is whole. A stranger's could otherwise name files below the current folder as its weights,
    # and show them in its scores.
    options.add_session_config_entry(_WEIGHTS_ELSEWHERE, os.path.join(os.devnull, "none"))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
