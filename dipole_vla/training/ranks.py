"""Which rank this process is: what its trainer says. Variables tell of ranks that may be somebody else's.

A pod or a job's step sets RANK, LOCAL_RANK or SLURM_PROCID for whatever runs there, be it one run of four processes or
four runs of one. Only the trainer knows: with `devices` times `num_nodes` of one it is rank 0 of one, whatever the
environment says; with more, as many ranks must have been started.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities import rank_zero_only

from dipole_vla.progress import console
from navsim_adapter.foundation.errors import InputError


class OneProcess(LightningEnvironment):
    """The cluster environment of a run of one process."""

    creates_processes_externally = True  # there are none to create
    main_address = "127.0.0.1"

    @property
    def main_port(self) -> int:
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def processes(accelerator: Any, devices: Any, num_nodes: int) -> int:
    """How many processes a trainer of these three keys has. Raises what Lightning has against them."""
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    probe = L.Trainer(accelerator=accelerator, devices=devices, num_nodes=num_nodes, plugins=OneProcess(), **quiet)
    return probe.num_devices * probe.num_nodes


def believe(trainer: L.Trainer) -> None:
    """Make the trainer's rank that of this process, for Lightning's `rank_zero_only` and for what is printed.

    InputError if its ranks are not those that were started.
    """
    count = trainer.num_devices * trainer.num_nodes
    environment: ClusterEnvironment | None = getattr(trainer.strategy, "cluster_environment", None)
    if count > 1 and environment is not None:
        _check_started(environment, trainer, count)
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    console.quiet = trainer.global_rank != 0


def _check_started(environment: ClusterEnvironment, trainer: L.Trainer, count: int) -> None:
    recipe = f"trainer.devices {trainer.num_devices} and trainer.num_nodes {trainer.num_nodes}"
    try:
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except ValueError as problem:
        raise InputError(f"{recipe}: {' '.join(str(problem).split())}") from problem
    started, rank = environment.world_size(), environment.global_rank()
    if started != count or not 0 <= rank < count:
        raise InputError(
            f"{recipe}: are {count} processes, the environment says that this is number {rank} of {started} "
            f"({type(environment).__name__}); start as many, or correct its variables (RANK, LOCAL_RANK, NODE_RANK, …)"
        )
