"""The i-th of n parts of a job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from navsim_adapter.foundation.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The i-th of n parts, counted from 1."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """From "i/n"; raises InputError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise InputError(f"--shard: must be i/n with 1 <= i <= n, as 3/16, got {text!r}")
        return shard

    def take(self, units: Sequence[T]) -> list[T]:
        """Every n-th unit; units must come in the same order in every shard."""
        return list(units[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
