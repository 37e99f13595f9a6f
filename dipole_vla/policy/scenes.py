"""Scenes as a policy has encoded them: what every omega, candidate and solver step shares."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dipole_vla.backbones.base import Context, Observation
from dipole_vla.backbones.example import example_observation
from dipole_vla.guidance import Role
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.policy.arguments import misfit, scenes_in
from dipole_vla.policy.distilled import AtOmega
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from dipole_vla.policy.guided import GuidedPolicy


class EncodedScenes:
    """A batch of scenes, encoded once per role at most, when first needed; shared by all omegas and candidates.

    What is kept is never changed, and made the same way whatever was asked before, so threads may share it: at worst
    two of them make the same thing at the same time.
    """

    def __init__(self, policy: GuidedPolicy, observation: Observation, count: int | None = None) -> None:
        self._policy, self._observation = policy, observation
        self._encoded: dict[Role, Context] = {}
        self._prepared: dict[Role, Context] = {}
        self._both: dict[tuple[Role, Role], Context] = {}
        self._distilled: tuple[float, Context] | None = None
        self._count = self._counted() if count is None else count

    @torch.no_grad()
    def _counted(self) -> int:
        """Scenes in the observation, which for somebody else's network may be anything: there its context tells."""
        if self._policy.backbone.network_name:
            return len(self.encoded("positive"))
        return scenes_in(self._observation)

    def encoded(self, role: Role) -> Context:
        """What `Backbone.encode` gave under `role`."""
        pair = self._policy.pair
        key = None if pair is None or pair.shares_context else role
        if key not in self._encoded:
            if pair is None:
                self._encoded[key] = self._policy.backbone.encode(self._observation)
            else:
                self._encoded.update(pair.encode(self._observation, (key,)))
        return self._encoded[key]

    def any_role(self) -> Context:
        """What is encoded already, under whichever role: for what no adapter changes."""
        return next(iter(self._encoded.values())) if self._encoded else self.encoded(None)

    def prepared(self, role: Role) -> Context:
        """The same with the head's work on it done under `role`."""
        if role not in self._prepared:
            pair, context = self._policy.pair, self.encoded(role)
            self._prepared[role] = (
                self._policy.backbone.prepare(context) if pair is None else pair.prepare(context, role)
            )
        return self._prepared[role]

    def prepared_both(self, roles: tuple[Role, Role]) -> Context:
        """Rows prepared under the first role, then under the second."""
        if roles not in self._both:
            pair = self._policy.pair
            assert isinstance(pair, AdapterPair)
            self._both[roles] = pair.prepare_both({role: self.encoded(role) for role in roles}, roles)
        return self._both[roles]

    def prepared_at(self, omega: float, network: AtOmega) -> Context:
        """Prepared by the distilled network at one omega; the latest is kept."""
        latest = self._distilled
        if latest is None or latest[0] != omega:
            self._distilled = latest = (omega, network.prepare(self.encoded(None)))
        return latest[1]

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """What fails within the block, on tensors unlike those of the policy's processor, is an InputError about them.

        Told apart only then: a family may well take more than its processor makes.
        """
        try:
            yield
        except (InputError, torch.OutOfMemoryError):
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as problem:
            backbone = self._policy.backbone
            if backbone.network_name or not self._observation:  # somebody else's, or already encoded
                raise
            told = misfit(self._observation, example_observation(copy.copy(backbone), 1))
            if told is None:
                raise
            raise InputError(f"observation: {told}") from problem
