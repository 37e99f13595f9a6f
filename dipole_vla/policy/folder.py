"""A policy as one folder.

    policy.json   where the backbone is and its fingerprint, defaults of guidance, action, what made it
    positive/ negative/   plain PEFT adapters          critic/   picks the best of N
    distilled/   where there is one: guidance in a single pass (`dipole-vla export --format distilled`)
    rl_tokens.json   scenes whose scores shaped the adapters; no evaluation may use them

The backbone is referred to, not copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dipole_vla import backbones
from dipole_vla.backbones import weights  # backbones as a module: it imports this package in turn
from dipole_vla.data.pictures import refuse_other_cameras
from dipole_vla.data.splits import RL_TOKENS
from dipole_vla.policy.adapters import AdapterPair, pass_the_base
from dipole_vla.policy.arguments import Guidance
from dipole_vla.policy.critic import load_critic
from dipole_vla.policy.distilled import FOLDER as DISTILLED
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.separate import Pair, load_pair
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from dipole_vla.policy.guided import GuidedPolicy

POLICY = "policy.json"
_KEYS = ("format", "family", "backbone", "backbone_fingerprint", "guidance", "action", "provenance")


def write_policy(
    policy: GuidedPolicy,
    folder: Path,
    backbone: str | Path,
    critic: str | Path | None,
    rl_tokens: Sequence[str] | None,
    provenance: Mapping[str, Any] | None,
) -> None:
    """See `GuidedPolicy.save_pretrained`."""
    if policy.pair is None:
        raise InputError(f"{folder}: a policy without adapters is its backbone; save that instead")
    chooser = policy.critic if critic is None else load_critic(critic)
    policy.pair.save(folder)
    if policy.distilled is not None:
        policy.distilled.save(folder)
    if chooser is not None:
        chooser.save_pretrained(folder / "critic")
    weights.write_json(folder / RL_TOKENS, sorted(policy.rl_tokens if rl_tokens is None else rl_tokens))
    description = {
        "format": 1,
        "family": policy.backbone.family,
        "backbone": os.path.relpath(Path(backbone).resolve(), folder.resolve()),
        "backbone_fingerprint": policy.pair.base_fingerprint,
        "guidance": asdict(policy.guidance),
        "action": asdict(policy.backbone.action),
        "provenance": dict(policy.provenance if provenance is None else provenance),
    }
    weights.write_json(folder / POLICY, description)


def read_policy(folder: Path, backbone: str | Path | None, device: str | torch.device) -> dict[str, Any]:
    """The fields of the `GuidedPolicy` that was saved there; see its `from_pretrained`."""
    raw = weights.read_record(folder / POLICY, _KEYS)
    where = Path(backbone) if backbone is not None else (folder / raw["backbone"]).resolve()
    if not where.is_dir():
        remedy = f"give its folder as --backbone (in Python `backbone=`), or link it there: ln -s FOLDER {where}"
        raise InputError(f"{folder / POLICY}: its backbone is not there, at {where}; {remedy}")
    base = backbones.load_backbone(where, device)
    pair = load_pair(base, folder)
    if raw["backbone_fingerprint"] != pair.base_fingerprint:
        raise InputError(
            f"{folder}: made on base {raw['backbone_fingerprint'][:12]}…, "
            f"{where} is {pair.base_fingerprint[:12]}…; {pass_the_base(base)}"
        )
    refuse_other_cameras(folder / POLICY, raw["provenance"], base.processor)
    critic = folder / "critic"
    return {
        "backbone": base,
        "pair": pair,
        "critic": load_critic(critic, device) if critic.is_dir() else None,
        "guidance": weights.record_from(Guidance, raw["guidance"], f"{folder / POLICY}: guidance"),
        "provenance": raw["provenance"],
        "rl_tokens": tuple(weights.read_json(folder / RL_TOKENS)),
        "distilled": _read_distilled(pair, folder) if (folder / DISTILLED).is_dir() else None,
    }


def _read_distilled(pair: Pair, folder: Path) -> DistilledPair:
    if not isinstance(pair, AdapterPair):
        raise InputError(f"{folder}: a distilled network needs a pair of adapters, this pair is of full copies")
    return DistilledPair.from_pretrained(pair, folder)
