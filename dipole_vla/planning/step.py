"""One training step of a recipe: its network on the meta device, its pair, its passes, bytes per number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.weights import read_record
from dipole_vla.guidance import Role
from dipole_vla.objective import Rule, per_sample_loss, rule_named
from dipole_vla.policy import Backbone, Context
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.policy.separate import Pair, make_pair
from dipole_vla.training.memory import shared_base
from navsim_adapter.foundation.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Numbers:
    """Bytes per number, by the recipe's precision and strategy.

    optimiser: AdamW's two moments, and the float32 copy of what trains where the engine keeps one.
    """

    weights: int
    trained: int
    optimiser: int
    activations: torch.dtype
    stage: int  # ZeRO stage; 0 without DeepSpeed

    @property
    def frees_early(self) -> bool:
        """Whether one sign's backward pass comes before the other's forward pass (`training.memory`)."""
        return not self.stage and self.activations != torch.float16

    @classmethod
    def of(cls, trainer: dict[str, Any]) -> Numbers:
        precision, strategy = str(trainer.get("precision") or "32-true"), trainer.get("strategy") or "auto"
        stage, half = _zero_stage(strategy), torch.float16 if precision.startswith("16") else torch.bfloat16
        if precision in ("32", "32-true"):
            return cls(4, 4, 8, torch.float32, stage)
        if stage:  # DeepSpeed turns every weight to half precision, mixed or true, and keeps float32 copies
            return cls(2, 2, 12, half, stage)
        if precision.endswith("-true"):  # what trains stays in float32 (`training.dipole`)
            return cls(2, 4, 8, half, stage)
        return cls(4, 4, 8, half, stage)


def _zero_stage(strategy: Any) -> int:
    if isinstance(strategy, dict):
        named = str(strategy.get("class_path", ""))
        given = (strategy.get("init_args") or {}).get("stage")
        return int(given or 2) if "deepspeed" in named.lower() else 0
    found = re.match(r"deepspeed(?:_stage_(\d))?", str(strategy))
    return int(found[1] or 2) if found else 0


def is_here(folder: str | Path) -> bool:
    return (Path(folder) / "config.json").is_file()


def meta_backbone(where: str | Path) -> Backbone:
    """The backbone of a folder, or of a published name where there is no folder, on the meta device."""
    from dipole_vla import backbones
    from dipole_vla.backbones import published

    folder = Path(where)
    if is_here(folder):
        family = read_record(folder / "config.json", ("family", "config", "action", "solver"))["family"]
        return backbones.backbone_class(family, f"{folder}: family").from_config(folder)
    if folder.name not in published.PUBLISHED:
        known = list(published.PUBLISHED)
        raise InputError(
            f"model.backbone: {where}: no such folder, and {folder.name!r} is not a published model"
            f"{did_you_mean(folder.name, known)}; known are {', '.join(known)}"
        )
    return published.build_meta(folder.name)


def pair_of(model: dict[str, Any], backbone: Backbone) -> Pair | None:
    """The pair of a dipole recipe, with gradients for what its rule trains; None for imitation."""
    if "rank" not in model:
        return None
    options = {name: model[name] for name in ("scope", "rank", "alpha")}
    return make_pair(model["pair"], backbone, **options, trained=_rule(model).trained)


def _rule(model: dict[str, Any]) -> Rule:
    return rule_named(model.get("rule", "dichotomous"), model.get("routing", "both"))


def training_step(
    backbone: Backbone, pair: Pair | None, model: dict[str, Any], scenes: int, group: int, frees_early: bool = True
) -> Callable[..., None]:
    """observation -> the forward and backward passes that the recipe trains with, on random actions.

    frees_early: see `Numbers`. The step also takes the scenes' contexts by role, where they are read from disk.
    """
    per_scene = group * model.get("draws", 1)
    if model.get("routing") == "bernoulli":  # by chance about half of the rows go to each sign
        per_scene = math.ceil(per_scene / 2)
        # one pass for rows of both signs holds what two passes of half the rows hold together
        frees_early = frees_early and (not isinstance(pair, AdapterPair) or model.get("checkpointing", False))
    rows = scenes * per_scene

    def step(observation: dict[str, Tensor], stored: Mapping[Role, Context] | None = None) -> None:
        device = next(backbone.parameters()).device
        x0 = torch.randn(rows, backbone.action.horizon, backbone.action.dim, device=device)
        t = torch.full((rows,), 0.5, device=device)
        if pair is None:
            per_sample_loss(backbone.denoise(backbone.encode(observation), x0, t), x0).mean().backward()
            return
        losses, rule = [], _rule(model)
        with shared_base(pair):
            contexts = stored or pair.encode(observation, (*rule.trained, *([None] if rule.is_mirrored else [])))
            if rule.is_mirrored:
                with torch.no_grad():
                    pair.denoise(contexts[None], x0, t, None)
            for role in rule.trained:
                losses.append(per_sample_loss(pair.denoise(contexts[role], x0, t, role), x0).mean())
                if frees_early:
                    losses.pop().backward()
        if losses:
            torch.stack(losses).sum().backward()

    return step
