"""Sampling trajectories for a table of scenes, batch by batch, with noise that belongs to the scene.

Candidate i of a scene starts from the same noise for every policy and every omega (common random numbers), whatever
the batch size, the shard or the order: differences between policies are then differences of the policies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from dipole_vla.data.tables import SceneTable


@dataclass(frozen=True)
class SceneBatch:
    tokens: list[str]
    log_names: list[str]
    observation: dict[str, Tensor]


def batches(
    scenes: SceneTable, positions: Sequence[int], processor: Any, size: int, device: torch.device
) -> Iterator[SceneBatch]:
    """Observations of the scenes at `positions`, at most `size` at a time."""
    for start in range(0, len(positions), size):
        chosen = positions[start : start + size]
        samples = []
        for position in chosen:
            row = scenes.row(position)
            samples.append(processor(row, scenes.images(row, processor.cameras)))
        observation = {name: value.to(device) for name, value in default_collate(samples).items()}
        yield SceneBatch([scenes.tokens[i] for i in chosen], [scenes.log_names[i] for i in chosen], observation)


def start_noise(tokens: Sequence[str], candidates: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """(scenes, candidates, *shape) standard normal; a scene's first candidates do not depend on how many follow."""
    rows = []
    for token in tokens:
        digest = hashlib.sha256(f"{seed}:{token}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        rows.append(torch.stack([torch.randn(shape, generator=generator) for _ in range(candidates)]))
    return torch.stack(rows)
