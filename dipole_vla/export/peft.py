"""The two adapters as folders that PEFT alone loads, checked by loading them with PEFT alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dipole_vla.guidance import SIGNS
from dipole_vla.objective import rule_named
from dipole_vla.policy import AdapterPair, GuidedPolicy
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_text

README = """# Two LoRA adapters of one {family} backbone

`positive/` and `negative/` are plain PEFT folders (rank {rank}, alpha {alpha:g}, scope {scope}). With the backbone
loaded as a torch module:

    model = PeftModel.from_pretrained(backbone, "positive", adapter_name="positive")
    model.load_adapter("negative", adapter_name="negative")

Base weights: SHA-256 {base}. Weighting rule: {rule}. At every denoising step the policy predicts
{formula}, in the backbone's own parameterisation, and clamps afterwards.
{untrained}Adding the adapters' weights with these factors
(`add_weighted_adapter`) is another policy: the network is not linear in its weights.
"""


def write_peft(policy: GuidedPolicy, out: Path) -> dict[str, Any]:
    """Write the folders; returns what the report says of them."""
    pair = policy.pair
    assert isinstance(pair, AdapterPair)
    pair.save(out)
    facts = {"family": policy.backbone.family, "rank": pair.rank, "alpha": float(pair.alpha), "scope": pair.scope}
    write_text(out / "README.md", README.format(**facts, base=pair.base_fingerprint, **_guidance(policy)))
    for role in SIGNS:
        written = load_file(out / role / "adapter_model.safetensors")
        own = pair.state(role)
        if written.keys() != own.keys() or any(not torch.equal(written[name], own[name].cpu()) for name in own):
            raise InputError(f"{out / role}: what was written differs from the adapter; check the disk, export again")
    return {**facts, "base_fingerprint": pair.base_fingerprint, "parameters": sum(p.numel() for p in pair.parameters())}


def _guidance(policy: GuidedPolicy) -> dict[str, str]:
    """The rule's own formula, in the words of the README."""
    name = policy.guidance.rule
    rule = rule_named(name)
    omega = "omega" if rule.greed == 1 else f"{rule.greed:g} * omega"
    if rule.negative_role is not None:
        return {"rule": name, "formula": f"(1 + {omega}) * positive - {omega} * negative", "untrained": ""}
    return {
        "rule": name,
        "formula": f"(1 + {omega}) * positive - {omega} * base",
        "untrained": "`base` is the backbone without adapters; this rule trains no negative one, so leave "
        "`negative/` out.\n",
    }
