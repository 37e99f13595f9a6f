"""A row of the table: which policy, how greedy, by which guidance, from how much start noise, best of how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

REFERENCE, MEAN = "reference", "reference mean"


@dataclass(frozen=True)
class Setting:
    """policy: human, reference, `MEAN` (the mean of the reference's plans), dipole, or oracle: dipole as the simulator
    chooses. omega: None where nothing is guided. start_scale: standard deviation of the start noise, None for the
    human. guidance: `guidance.label` of what differs from the policy's own.
    """

    policy: str
    omega: float | None = None
    candidates: int = 1
    start_scale: float | None = 1.0
    guidance: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Setting:
        """From a row of a summary. Those of earlier versions say nothing of start noise: it was all of it, 1."""
        start = None if row["policy"] == "human" else row.get("start_scale", 1.0)
        return cls(row["policy"], row.get("omega"), int(row["candidates"]), start, row.get("guidance") or "")

    def best_of(self, candidates: int) -> Setting:
        return replace(self, candidates=candidates)

    @property
    def mean(self) -> Setting:
        """Of a reference: the mean of its plans."""
        return Setting(MEAN, start_scale=self.start_scale)

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def label(self) -> str:
        return self.words(True)

    def words(self, with_start: bool) -> str:
        """with_start: where a table knows more than one start noise."""
        if self.policy == MEAN:
            name = "mean of the reference's plans"
            return f"{name} at start noise {self.start_scale:g}" if with_start else name
        parts = [self.policy] if self.omega is None else [f"{self.policy} ω = {self.omega:g}"]
        parts += [self.guidance] if self.guidance else []
        parts += [f"start noise {self.start_scale:g}"] if with_start and self.start_scale is not None else []
        return ", ".join([*parts, f"N = {self.candidates}"])

    def of_plans(self, plans: pd.DataFrame) -> pd.Series:
        """Mask of the plans it chooses from in a table of plans, whatever its N."""
        return self._mask(plans, "dipole" if self.policy == "oracle" else self.policy)

    def of_rows(self, rows: pd.DataFrame) -> pd.Series:
        """Mask of its own lines in a table of rows."""
        return self._mask(rows, self.policy) & (rows["candidates"] == self.candidates)

    def _mask(self, table: pd.DataFrame, policy: str) -> pd.Series:
        mask = (table["policy"] == policy) & _same(table, "omega", self.omega)
        if "start_scale" in table and self.start_scale is not None:
            mask &= _same(table, "start_scale", self.start_scale)
        return mask & (table["guidance"] == self.guidance) if "guidance" in table else mask


def mean_plan(plans: np.ndarray) -> np.ndarray:
    """(S, 1, T, 3) the mean of plans (S, N, T, 3): places by coordinate, headings on the circle."""
    heading = np.arctan2(np.sin(plans[..., 2]).mean(1), np.cos(plans[..., 2]).mean(1))
    return np.concatenate([plans[..., :2].mean(1), heading[..., None]], axis=-1)[:, None]


def fewest_of(settings: Iterable[Setting], setting: Setting) -> Setting:
    """The same with the fewest candidates of the table."""
    return min((s for s in settings if s.best_of(1) == setting.best_of(1)), key=lambda found: found.candidates)


def several_starts(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether rows of a summary differ in start noise."""
    return len({Setting.of(row).start_scale for row in rows} - {None}) > 1


def _same(table: pd.DataFrame, name: str, value: float | None) -> pd.Series:
    values = table[name].astype(float)
    return values.isna() if value is None else pd.Series(np.isclose(values, value), index=table.index)
