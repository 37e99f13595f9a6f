"""The order of the training data, as a pure function of (seed, step).

Nothing has to be saved or restored: a resumed run asks for batch k and gets batch k, whatever the loader's workers
had prefetched before the kill. Passes follow each other without an epoch edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils.data import Sampler


class StepStream(Sampler[list[int]]):
    """Endless batches of indices for one rank; pass e over the data is a permutation seeded by (seed, e)."""

    def __init__(self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1, first: int = 0):
        if size < 1 or batch_size < 1:
            raise ValueError(f"a stream needs data and a batch size, got size={size}, batch_size={batch_size}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.first = rank, world, first

    def __len__(self) -> int:
        return 2**31  # sized, so that Lightning does not prefetch to find the end

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(step) for step in itertools.count(self.first))

    def batch(self, step: int) -> list[int]:
        """Indices of batch `step` of this rank; ranks share one global order without overlap."""
        start = (step * self.world + self.rank) * self.batch_size
        return [
            _order(self.size, self.seed, i // self.size)[i % self.size] for i in range(start, start + self.batch_size)
        ]


@lru_cache(maxsize=4)
def _order(size: int, seed: int, turn: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + turn) % 2**63)
    return torch.randperm(size, generator=generator).tolist()
