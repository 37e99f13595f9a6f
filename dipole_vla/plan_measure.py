"""Seconds per training step, timed on this machine: the only source of hours in `dipole-vla plan`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dipole_vla.plan import meta_backbone, training_step
from dipole_vla.plan_activations import example_observation
from dipole_vla.policy import Backbone
from dipole_vla.policy.separate import make_pair

STEPS = 3  # timed, after one that warms up


def seconds_per_step(model: dict[str, Any], scenes: int, group: int) -> tuple[float, str]:
    """Median of a few steps of one device with its own batch, and the device's name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = _built(model["backbone"], device)
    pair = None
    if "rank" in model:
        pair = make_pair(model["pair"], backbone, model["scope"], model["rank"], model["alpha"])
    observation = {name: value.to(device) for name, value in example_observation(backbone, scenes).items()}
    step = training_step(backbone, pair, model, scenes, group)
    optimiser = torch.optim.AdamW(list(pair.parameters() if pair else backbone.parameters()), lr=1e-9)
    times = []
    for _ in range(1 + STEPS):
        _wait(device)
        start = time.perf_counter()
        optimiser.zero_grad()
        step(observation)
        optimiser.step()
        _wait(device)
        times.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return sorted(times[1:])[STEPS // 2], name


def _built(where: str | Path, device: torch.device) -> Backbone:
    """The backbone of a folder, or of its published name with small random weights."""
    from dipole_vla.backbones import load_backbone

    if (Path(where) / "config.json").is_file():
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
