"""What an importer of published files hands back: a backbone, and the pair of adapters if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dipole_vla.backbones.base import Backbone


@dataclass(frozen=True)
class PublishedPair:
    """Two LoRA adapters as a file has them, under our names (`AdapterPair.state`)."""

    rank: int
    alpha: float
    states: Mapping[str, Mapping[str, Tensor]]  # by sign
    omega: float = 1.0
    where: str = ""


@dataclass(frozen=True)
class Imported:
    """What a source held.

    base: folder of the backbone where the source has adapters only; it is then referred to, not copied.
    notes: what the source does not say and was assumed, or what is missing; printed.
    """

    backbone: Backbone
    pair: PublishedPair | None = None
    base: Path | None = None
    notes: list[str] = field(default_factory=list)
