"""The processes that train together: which one this is, and when it may begin.

Lightning's launcher runs the command again for each other process when `fit` begins; torchrun starts
all at once. Either way the first process alone prepares, reports and writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist

from knownot.data.cores import usable_cores
from knownot.errors import ConfigError, TrainingError
from knownot.models.model_folder import choose_device
from knownot.training.config import CommonConfig

_Config = TypeVar("_Config", bound=CommonConfig)
# Until the first process has read a large set of photos.
_PATIENCE = timedelta(days=7)
# Far apart, so that the ranks' own draws (dropout) differ in every epoch of every seed.
_RANK_STRIDE = 15_485_863


@dataclass(frozen=True)
class Ranks:
    """The processes that train together.

    Attributes:
        devices: Processes on each machine.
        num_nodes: Machines.
        rank: Which process this is, from 0.
        local_rank: The same among those of this machine.
        launched: Whether torchrun, or somebody on each machine, has started them.
    """

    devices: int = 1
    num_nodes: int = 1
    rank: int = 0
    local_rank: int = 0
    launched: bool = False

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.devices * self.num_nodes > 1

    @property
    def first(self) -> bool:
        """Whether this process alone prepares, reports and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This process's device.

        Raises:
            ConfigError: If the machine has too few for all.
        """
        if self.several and ":" in name:
            raise ConfigError(
                f"device: {name} is one, and several processes are to train; say which they may use by "
                "CUDA_VISIBLE_DEVICES, and leave the number out"
            )
        device = choose_device(name)
        if not self.several:
            return device
        there = {"cuda": torch.cuda.device_count(), "cpu": usable_cores()}.get(device.type, 1)
        if self.devices > there:
            kind = {"cuda": "GPUs", "cpu": "cores"}.get(
                device.type, f"device of type {device.type}"
            )
            raise ConfigError(
                f"devices: {self.devices} processes, but this machine has {there} {kind}; use at "
                f"most --devices {there}"
            )
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def settled(self, config: _Config) -> _Config:
        """The settings with the processes that there are."""
        if not self.several:
            return config
        return config.model_copy(update={"devices": self.devices, "num_nodes": self.num_nodes})

    def let_begin(self) -> None:
        """The first process has prepared: tell those that `wait`."""
        if self.several and self.launched and self.first:
            # Kept for as long as the process lives: Lightning's process group joins this store.
            _kept.append(self._store())
            _kept[-1].set(_prepared(), "yes")

    def wait(self) -> None:
        """Wait until the first process has prepared, if this is another one."""
        if self.several and self.launched and not self.first:
            store = self._store()
            while not store.check([_prepared()]):  # unlike `store.wait`, Ctrl-C ends it
                time.sleep(0.1)

    def _store(self) -> Any:
        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=self.first and not agents,
            timeout=_PATIENCE,
            wait_for_workers=False,
            multi_tenant=True,
        )


_kept: list[Any] = []


def _prepared() -> str:
    return f"knownot/prepared/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def find_ranks(config: CommonConfig) -> Ranks:
    """The processes that torchrun started, or that the settings ask for.

    Raises:
        ConfigError: If settings and torchrun differ, or machines have not been told of each other.
    """
    said = os.environ
    if dist.is_available() and dist.is_torchelastic_launched():
        devices = int(said["LOCAL_WORLD_SIZE"])
        nodes = int(said["WORLD_SIZE"]) // devices
        for key, asked, there in (
            ("devices", config.devices, devices),
            ("num_nodes", config.num_nodes, nodes),
        ):
            if asked not in (None, there):
                raise ConfigError(f"{key}: torchrun says {there}, not {asked}; leave it out")
        return Ranks(devices, nodes, int(said["RANK"]), int(said["LOCAL_RANK"]), launched=True)
    devices, nodes = config.devices or 1, config.num_nodes or 1
    if devices * nodes == 1:
        return Ranks()
    missing = [v for v in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if v not in said]
    if nodes > 1 and missing:
        raise ConfigError(
            f"num_nodes: {', '.join(missing)} must be set in the environment of each machine, or use "
            f"torchrun --nnodes {nodes} --nproc-per-node {devices}"
        )
    local_rank = int(said.get("LOCAL_RANK", 0))
    rank = int(said.get("NODE_RANK", 0)) * devices + local_rank
    return Ranks(devices, nodes, rank, local_rank, launched=nodes > 1)


def check_shares(config: CommonConfig, photos: int) -> None:
    """Check that a step has two photos at least for each process.

    Raises:
        ConfigError: If not; `batch_size` counts the photos of all processes together.
    """
    least = 2 * config.ranks
    if config.ranks > 1 and config.n_batch < least:
        raise ConfigError(
            f"batch_size: {config.n_batch} photos are too few for {config.ranks} processes, which "
            f"share them; use --batch-size {least} or more"
        )
    if config.ranks > 1 and photos < least:
        raise ConfigError(f"devices: {photos} photos are too few for {config.ranks} processes")


def check_same_steps(checkpoint: dict[str, Any], steps: int) -> None:
    """Check that a checkpoint belongs to a training of so many steps.

    Raises:
        TrainingError: If not: another number of processes leaves out another last batch.
    """
    before = checkpoint["lr_schedulers"][0]["total_steps"]
    if before != max(2, steps):
        raise TrainingError(
            f"resume: the interrupted run was to take {before} steps, this one {steps}; use the same "
            "--devices, or start anew with --overwrite"
        )


def seed_epoch(module: L.LightningModule, seed: int) -> torch.Generator | None:
    """Make all randomness of an epoch follow from seed, epoch and rank: a resumed run repeats it.

    Returns:
        The source of virtual outliers, the same on all ranks, whatever else a rank draws; None, the
        process's own, for one alone.
    """
    seed = seed * 1_000_003 + module.current_epoch
    torch.manual_seed(seed + _RANK_STRIDE * module.global_rank)
    if module.trainer.world_size == 1:
        return None
    return torch.Generator(module.device).manual_seed(seed)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Undo what Lightning's launcher changes in this process: environment, number of threads."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
