"""Published architectures by name: family, true sizes, and the LoRA rank whose share of the model is 1 to 2 %.

A name here is also what the recipes `recipes/navsim_NAME.yaml` are for, and a `--size` of `dipole-vla init`. Nothing
is downloaded; `build_meta` makes the network without memory for its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dipole_vla.backbones import backbone_class
from dipole_vla.backbones.base import Backbone
from navsim_adapter.foundation.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Architecture:
    """family: key of `backbones.FAMILIES`. sizes: fields of its configuration that differ from the defaults.

    parts: millions of parameters of the published parts that the network keeps, by name; their sum is its size.
    left_out: of the others, which nothing reads here; with them it is the size by which the model is known.
    rank: LoRA rank under scope "head" of the recipe.
    adapted: how the names begin of what the rank's share is of; empty: the whole network.
    """

    family: str
    rank: int
    parts: Mapping[str, float]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)
    adapted: str = ""

    def beside_published(self, total: int) -> str | None:
        """How a network of `total` parameters compares with what was published; None where it is the whole of it."""
        if not self.left_out:
            return None
        more = " and ".join(f"{name} ({size:.1f} M)" for name, size in self.left_out.items())
        return f"published with {more}, which nothing reads: {total / 1e6 + sum(self.left_out.values()):.1f} M"


PUBLISHED: dict[str, Architecture] = {
    # Florence-2-large without its text decoder and LM head; the paper's head
    "dp_vla_1b": Architecture(
        "dp_vla", 32, {"vision tower": 360.63, "projector": 2.2, "text encoder": 207.9, "head": 462.06}
    ),
    # their own reinforcement learning trains the whole planner, so the rank is high
    "recogdrive_2b": Architecture(
        "recogdrive",
        160,
        {"language model": 2088.96 - 232.97, "planner": 34.33},
        left_out={"InternVL3's token head": 232.97},
    ),
    "xvla_0.9b": Architecture("xvla", 32, {"encoder": 570.71, "head": 308.78}),
    # published as 8.2 B without the language model's head and 2.3 B; the head writes reasoning
    "alpamayo": Architecture("alpamayo", 96, {"language model": 8200.0, "its head": 637.7, "expert": 2300.0}),
    "pi0": Architecture(
        "pi0",
        96,
        {"prefix": 2923.3, "expert": 575.0 - 263.3, "small layers": 3.2},
        left_out={"the expert's token table": 263.3},
    ),
    # the expert's norms are linear in the time: three vectors of its width for each of 37
    "pi05": Architecture(
        "pi05",
        96,
        {"prefix": 2923.3, "expert": 575.0 - 263.3, "norms": 116.5, "small layers": 2.2},
        left_out={"the expert's token head": 263.3},
    ),
    # Wan2.2's 5 B and the published expert; of the VAE, 704.7 M, what encodes one picture. Rank 16 is that of its own
    # reinforcement learning: 1.5 % of the expert that it adapts
    "simwam": Architecture(
        "simwam", 16, {"video expert": 5000.0, "expert": 1020.0, "VAE's encoder": 148.1}, adapted="mixtures.action."
    ),
    # 16 of SmolVLM2's 32 layers are kept
    "smolvla": Architecture(
        "smolvla",
        24,
        {"vision": 98.2, "tokens": 47.3, "text": 157.3, "expert": 99.0},
        left_out={"SmolVLM2's token head": 47.3},
    ),
    "timm_60m": Architecture("timm", 16, {"ConvNeXt-T": 27.82, "tokens and head": 31.4}),
}
"""Name -> architecture."""


def architecture(name: str) -> Architecture:
    if name not in PUBLISHED:
        hint = did_you_mean(name, list(PUBLISHED))
        raise InputError(f"size: {name!r} is not known{hint}; known are tiny, {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def build_meta(name: str) -> Backbone:
    """The published network on the meta device: names, shapes and counts, no values."""
    chosen = architecture(name)
    kind = backbone_class(chosen.family)
    with torch.device("meta"):
        return kind(kind.config_class(**chosen.sizes))  # type: ignore[call-arg]
