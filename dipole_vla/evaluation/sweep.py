"""What an evaluation draws: each omega, way of guidance and start noise once, M plans a scene, for every N <= M."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipole_vla.evaluation.settings import REFERENCE, Setting
from dipole_vla.guidance import Combination, adjusted, label
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range


@dataclass(frozen=True)
class Draw:
    """`count` plans a scene at one setting. guidance: what differs from the policy's own."""

    omega: float | None
    start_scale: float
    guidance: Mapping[str, Any]
    count: int

    @property
    def setting(self) -> Setting:
        policy = REFERENCE if self.omega is None else "dipole"
        return Setting(policy, self.omega, 1, self.start_scale, label(self.guidance))


@dataclass(frozen=True)
class Sweep:
    """omegas, counts (N), starts: in order, each once. ways: of guidance, {} being the policy's own. samples: M."""

    omegas: Sequence[float]
    counts: Sequence[int]
    starts: Sequence[float]
    ways: Sequence[Mapping[str, Any]]
    samples: int
    solver: SolverSpec

    @classmethod
    def of(
        cls,
        omega: Sequence[float],
        candidates: Sequence[int],
        start_scale: Sequence[float] | None,
        guidance: Sequence[Mapping[str, Any]] | None,
        samples: int | None,
        solver: SolverSpec,
    ) -> Sweep:
        """From the options of `evaluate`; InputError for a value that cannot be meant."""
        omegas, counts = sorted({float(w) for w in omega}), sorted({int(n) for n in candidates})
        if not omegas or not counts or counts[0] < 1:
            raise InputError(f"omega, candidates: need values and N >= 1, got {list(omega)} and {list(candidates)}")
        for value in omegas:
            check_range("--omega", value)
        starts = sorted({float(scale) for scale in ([solver.start_scale] if start_scale is None else start_scale)})
        if not starts:
            raise InputError("--start_scale: needs at least one number; leave it out for the backbone's own")
        for scale in starts:
            check_range("--start_scale", scale, 0)
        samples = counts[-1] if samples is None else samples
        if samples < counts[-1]:
            raise InputError(f"--samples: {samples} plans hold no best of {counts[-1]}; give at least the greatest N")
        return cls(omegas, counts, starts, _ways(guidance), samples, solver)

    def count(self, start_scale: float) -> int:
        """Plans a scene at that start noise: one where all would be the same."""
        return self.samples if self.solver.with_start(start_scale).is_random else 1

    @property
    def draws(self) -> list[Draw]:
        own = [Draw(None, start, {}, self.count(start)) for start in self.starts]
        return own + [
            Draw(omega, start, way, self.count(start))
            for omega in self.omegas
            for way in self.ways
            for start in self.starts
        ]

    @property
    def settings(self) -> list[Setting]:
        """Every row of the table but the human's and the oracle's, smaller omega and N first."""
        found = []
        for draw in self.draws:
            sizes = self.counts if draw.count > 1 else [1]
            found += [draw.setting.best_of(count) for count in sizes]
        means = [draw.setting.mean for draw in self.draws if draw.omega is None and draw.count > 1]
        references = [setting for setting in found if setting.policy == REFERENCE]
        return [*references, *means, *found[len(references) :]]


def _ways(given: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    ways = [{}] if given is None else list(given)
    if not ways:
        raise InputError("guidance: needs at least one mapping; {} is the policy's own")
    for number, way in enumerate(ways):
        adjusted(Combination(), way, f"guidance[{number}]")
    return list({label(way): way for way in ways}.values())
