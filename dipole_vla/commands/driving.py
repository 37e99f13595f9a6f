"""What commands that drive ask of a policy before the first scene."""

from __future__ import annotations

from pathlib import Path

from dipole_vla.policy import GuidedPolicy
from navsim_adapter.foundation.errors import InputError


def require_critic(actor: GuidedPolicy, policy: Path, candidates: int) -> None:
    """Raises InputError, before the first scene is driven, where there is a choice and nothing to choose by."""
    if candidates > 1 and actor.critic is None:
        raise InputError(f"candidates: {candidates} to choose from, but {policy} has no critic; use 1")
