"""Checkpoint and logs of a run in progress, kept until its model folder is complete."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import yaml
from filelock import FileLock, Timeout

from knownot.errors import ConfigError, DataError
from knownot.models.hub import CONFIG
from knownot.training.config import Config

_EXAMPLES = "examples.txt"
# What concerns the scores and calibration of a network that is trained.
AFTER_TRAINING = {"alpha", "classwise", "knn_k"}
# Settings that may differ when an interrupted run goes on: they do not touch what is trained.
_FREE_ON_RESUME = {"device", "devices", "num_nodes", "workers", "resume", "overwrite"}
_FREE_ON_RESUME |= {"output"} | AFTER_TRAINING  # the run was found by its output


class RunFolder:
    """Checkpoint and logs of a run in progress, beside the model folder to be.

    Once it is open, and until the end of its `with` block, no other process opens it.

    Args:
        config: Settings of the training.

    Raises:
        ConfigError: If there is nothing to resume or the settings differ, or if there is an interrupted
            run and the settings do not say what is to become of it.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.output.parent / f".{config.output.name}.run"
        self.logs = self.root / "logs"
        self.checkpoints = self.root / "checkpoints"
        self.candidates = self.root / "candidates"
        self._lock = FileLock(self.root / "lock", blocking=False, thread_local=False)
        if config.resume and not self.root.is_dir():
            finished = (config.output / CONFIG).is_file()
            remedy = "it is finished" if finished else "leave --resume out to start one"
            raise ConfigError(f"resume: no interrupted run for {config.output}; {remedy}")
        if config.resume:
            self._check_same()
        elif self.begun and not config.overwrite:
            raise ConfigError(
                f"{config.output}: an interrupted run is kept; add --resume to go on with it, or "
                "--overwrite to start anew"
            )

    @property
    def begun(self) -> bool:
        """Whether there is work to go on with: an epoch, or a training of several."""
        return self.checkpoint() is not None or self.candidates.is_dir()

    def open(
        self, skipped: dict[Path, str], classes: Sequence[str] = (), examples: str = ""
    ) -> None:
        """Make the folder; what an earlier run left is removed unless this one resumes it.

        Args:
            skipped: Path and reason of every photo found unreadable, for the other processes.
            classes: Names of the classes, in order; a run that goes on must have the same.
            examples: A digest of what is learned from, which must be the same, too.

        Raises:
            ConfigError: If another process has it open, or classes or examples have changed.
            DataError: If it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if self.config.resume:
                self._check_classes(classes)
                self._check_examples(examples)
            else:
                self._clear()
            self.logs.mkdir(exist_ok=True)
            (self.root / "config.yaml").write_text(_absolute(self.config).to_yaml())
            (self.root / "skipped.json").write_text(json.dumps([*map(str, skipped)]))
            (self.root / "classes.json").write_text(json.dumps([*classes]))
            (self.root / _EXAMPLES).write_text(examples)
        except Timeout:
            raise ConfigError(
                f"{self.config.output}: another process is training it; wait for its end, or choose "
                "another output"
            ) from None
        except OSError as error:
            raise DataError(f"{self.root}: cannot be written ({error.strerror})") from None

    def skipped(self) -> dict[Path, str]:
        """What the first process found unreadable.

        Raises:
            ConfigError: If its folder is not to be seen from here.
        """
        try:
            paths = self._read("skipped.json")
        except OSError:
            raise ConfigError(
                f"{self.root}: is not to be seen from this machine; all need the photos and the "
                "model's folder under the same path"
            ) from None
        return {Path(path): "unreadable" for path in paths}

    def checkpoint(self) -> Path | None:
        """The last complete epoch, or None."""
        last = self.checkpoints / "last.ckpt"
        return last if last.is_file() else None

    def copy_logs(self, training: Path) -> None:
        """Put CSV and TensorBoard logs into the model folder."""
        for name in ("csv", "tensorboard"):
            if (self.logs / name).is_dir():
                shutil.copytree(self.logs / name, training / name)

    def remove(self) -> None:
        """The run is complete."""
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _clear(self) -> None:
        """Remove what an earlier run left, all but the lock."""
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "lock":
                path.unlink()

    def _check_classes(self, classes: Sequence[str]) -> None:
        """Refuse to go on with a network whose outputs would get other names."""
        known = (self.root / "classes.json").is_file()
        before = self._read("classes.json") if known else [*classes]
        if before != [*classes]:
            raise ConfigError(
                f"resume: the classes were {', '.join(before)} and are {', '.join(classes)}; name "
                "them as before, or use --overwrite in place of --resume to start anew"
            )

    def _check_examples(self, examples: str) -> None:
        """Refuse to go on with other examples: steps and learning rate are planned for so many."""
        kept = self.root / _EXAMPLES
        before = kept.read_text() if kept.is_file() else ""
        if before and before != examples:
            raise ConfigError(
                f"resume: the photos or annotations in {self.config.data} are not those that the run was "
                "begun with; put them back, or use --overwrite in place of --resume to start anew"
            )

    def _read(self, name: str) -> list[str]:
        """A list that `open` wrote."""
        try:
            read: list[str] = json.loads((self.root / name).read_text())
        except ValueError as error:
            raise self._damaged(name, error) from None
        return read

    def _damaged(self, name: str, why: object) -> ConfigError:
        return ConfigError(
            f"resume: {self.root / name} is damaged ({why}); use --overwrite in place of --resume to "
            "start anew"
        )

    def _check_same(self) -> None:
        try:
            saved = yaml.safe_load((self.root / "config.yaml").read_text())
            before = type(self.config)(**saved)
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise self._damaged("config.yaml", error) from None
        last = self.checkpoint()
        if last is not None and not zipfile.is_zipfile(last):  # its directory is at its end
            raise self._damaged("checkpoints/last.ckpt", "cut short")
        now, then = (_absolute(config).model_dump() for config in (self.config, before))
        changed = [
            f"{key} ({then[key]} -> {now[key]})"
            for key in now
            if now[key] != then[key] and key not in _FREE_ON_RESUME
        ]
        if changed:
            raise ConfigError(
                f"resume: settings differ from the interrupted run: {', '.join(changed)}; use the "
                "same ones, or --overwrite in place of --resume to start anew"
            )


def can_be_resumed(config: Config) -> bool:
    """Whether an interrupted training with these settings left what `resume` goes on with."""
    return RunFolder(config.model_copy(update={"resume": False, "overwrite": True})).begun


def _absolute(config: Config) -> Config:
    """The settings with whole paths: an interrupted run may be gone on with from another folder."""
    paths = {key: value.resolve() for key, value in config if isinstance(value, Path)}
    return config.model_copy(update=paths)
