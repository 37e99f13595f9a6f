"""A small policy with a critic, as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dipole_vla.policy import AdapterPair, Guidance, GuidedPolicy
from dipole_vla.policy.critic import CriticConfig, OneStepCritic
from tests.dipole_vla.small_backbone import make_backbone, spread_adapters


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    backbone = make_backbone()
    backbone.save_pretrained(folder / "backbone")
    pair = AdapterPair(backbone, "head", rank=4)
    spread_adapters(pair, scale=0.1)
    torch.manual_seed(0)
    critic = OneStepCritic(CriticConfig(feature_dim=4 * 32 + 12, hidden=16)).eval()
    policy = GuidedPolicy(backbone, pair, critic, Guidance(candidates=2), {"rl_split": "train"})
    policy.save_pretrained(folder / "policy", folder / "backbone")
    return folder / "policy"
