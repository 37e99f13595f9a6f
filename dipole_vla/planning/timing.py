"""Seconds of one batch through a training, timed on this machine: the only source of hours in `dipole-vla plan`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dipole_vla.backbones.example import example_observation
from dipole_vla.guidance import SIGNS
from dipole_vla.planning.step import Numbers, is_here, meta_backbone, pair_of, training_step
from dipole_vla.policy import Backbone
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.training.memory import recompute_blocks

STEPS = 3  # timed, after one that warms up


def seconds_per_pass(
    model: dict[str, Any], scenes: int, group: int, numbers: Numbers, stored: bool
) -> tuple[float, str]:
    """Median over a few batches of one device, in the recipe's precision, and the device's name.

    stored: the frozen encoder's answers are read from disk, so it does not run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = numbers.activations if numbers.weights == 2 else torch.float32
    backbone = _built(model["backbone"], device).to(kind)
    pair = pair_of(model, backbone)
    trained = [parameter for parameter in (pair or backbone).parameters() if parameter.requires_grad]
    if isinstance(pair, AdapterPair) and numbers.trained == 4:
        kind = torch.float32  # as `training.dipole` keeps its adapters
    for parameter in trained:
        parameter.data = parameter.data.to(kind)
    if pair and model.get("checkpointing"):
        recompute_blocks(pair)
    observation = {name: value.to(device) for name, value in example_observation(backbone, scenes).items()}
    with torch.no_grad():
        contexts = pair.encode(observation, (*SIGNS, None)) if pair and stored else None
    step = training_step(backbone, pair, model, scenes, group, numbers.frees_early)
    is_mixed = numbers.weights == 4 and numbers.activations != torch.float32
    optimiser = torch.optim.AdamW(trained, lr=1e-9)
    times = []
    for _ in range(1 + STEPS):
        _wait(device)
        start = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast(device.type, numbers.activations, enabled=is_mixed):
            step(observation, contexts)
        optimiser.step()
        _wait(device)
        times.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return sorted(times[1:])[STEPS // 2], name


def _built(where: str | Path, device: torch.device) -> Backbone:
    """The backbone of a folder, or of its published name with small random weights."""
    from dipole_vla.backbones import load_backbone

    if is_here(where):
        return load_backbone(where, device)
    backbone = meta_backbone(where).to_empty(device=device)
    with torch.no_grad():
        for tensor in [*backbone.parameters(), *backbone.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
            else:
                tensor.zero_()
    return backbone


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
