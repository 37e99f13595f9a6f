"""Transitions with n-step returns, and batches as a pure function of (seed, step).

Nothing of the order is saved: a resumed run asks for batch k and gets batch k. Offline data are shared by all seeds;
replayed episodes belong to one seed each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from navsim_adapter.foundation.errors import InputError

RETURNS = ("reward", "discount", "next_observation")  # what depends on the steps of a return
WEIGHING = "weighing_"  # before their names where they are the weighing critic's


@dataclass(frozen=True)
class Transitions:
    """float32 rows: observation (n, d), action (n, a), reward (n,), discount (n,), next_observation (n, d).

    reward: sum over n steps; discount: gamma^n of the bootstrap on next_observation, 0 after a terminal state.
    weighing_…: the same over other steps, for a critic of its own that weighs the samples; None where there is none.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Tensor
    weighing_reward: Tensor | None = None
    weighing_discount: Tensor | None = None
    weighing_next_observation: Tensor | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self._columns.items()}

    def to(self, device: torch.device | str) -> Transitions:
        return Transitions(**{name: column.to(device) for name, column in self._columns.items()})

    @staticmethod
    def concatenate(parts: Sequence[Transitions]) -> Transitions:
        names = parts[0]._columns
        return Transitions(**{name: torch.cat([part._columns[name] for part in parts]) for name in names})

    @property
    def _columns(self) -> dict[str, Tensor]:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


def n_step_transitions(
    observation: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    mask: np.ndarray,
    next_observation: np.ndarray,
    is_last: np.ndarray,
    gamma: float,
    n_step: int = 1,
    weigh_n_step: int | None = None,
) -> Transitions:
    """Transitions from consecutive steps: returns stop at a terminal state and at the end of an episode.

    reward, mask, is_last: (n,); mask 0 where the episode's value ends (success, failure), is_last True on the last
    step of an episode, whether it ended or was cut off (then the bootstrap continues from its next observation).
    n_step, weigh_n_step: of the critic that judges candidates, and of one that weighs, where there is one.
    """

    def returns(steps: int) -> dict[str, Tensor]:
        return _returns(reward, mask, next_observation, is_last.astype(bool), gamma, steps)

    weighing = {} if weigh_n_step is None else returns(weigh_n_step)
    return Transitions(
        torch.from_numpy(np.ascontiguousarray(observation, np.float32)),
        torch.from_numpy(np.ascontiguousarray(action, np.float32)),
        **returns(n_step),
        **{WEIGHING + name: column for name, column in weighing.items()},
    )


def _returns(
    reward: np.ndarray, mask: np.ndarray, next_observation: np.ndarray, is_last: np.ndarray, gamma: float, n_step: int
) -> dict[str, Tensor]:
    """The columns `RETURNS` over n steps."""
    size = len(reward)
    total, discount = reward.astype(np.float64), gamma * mask.astype(np.float64)
    end = np.arange(size)
    is_open = ~is_last & (mask > 0)
    for _ in range(n_step - 1):
        step = end + 1
        total[is_open] += discount[is_open] * reward[step[is_open]]
        discount[is_open] *= gamma * mask[step[is_open]]
        end[is_open] += 1
        is_open[is_open] = ~is_last[end[is_open]] & (mask[end[is_open]] > 0)
    columns = total, discount, next_observation[end]
    return {name: torch.from_numpy(np.ascontiguousarray(c, np.float32)) for name, c in zip(RETURNS, columns)}


class BatchStream:
    """Endless batches (seeds, rows, ...) with the noise and times of the policies' losses.

    offline_share: part of each batch from the offline data; None: in proportion to the sizes.
    replay: one table per seed, or nothing.
    """

    def __init__(
        self,
        offline: Transitions,
        seeds: Sequence[int],
        batch_size: int,
        replay: Sequence[Transitions] = (),
        offline_share: float | None = None,
        first: int = 0,
    ):
        if not len(offline):
            raise InputError("data: no transitions; make the data set again with more episodes")
        if replay and len(replay) != len(seeds):
            raise ValueError(f"replay: one table per seed is wanted, got {len(replay)} for {len(seeds)} seeds")
        self.offline, self.replay, self.seeds, self.batch_size = offline, list(replay), list(seeds), batch_size
        self.share, self.first = offline_share, first

    def __len__(self) -> int:
        return 2**31  # sized, so that Lightning does not prefetch to find the end

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.batch(step) for step in itertools.count(self.first))

    def batch(self, step: int) -> dict[str, Tensor]:
        """Batch `step`: the columns of Transitions, and noise (seeds, rows, a), t (seeds, rows)."""
        parts = [self._seed_batch(number, seed, step) for number, seed in enumerate(self.seeds)]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _seed_batch(self, number: int, seed: int, step: int) -> dict[str, Tensor]:
        """One seed's part: the same whichever other seeds are trained beside it."""
        generator = torch.Generator().manual_seed((seed * 1_000_000_007 + step) % 2**63)
        offline_rows = self._offline_rows(number)
        batch = self.offline.rows(torch.randint(len(self.offline), (offline_rows,), generator=generator))
        if offline_rows < self.batch_size:
            table = self.replay[number]
            more = table.rows(torch.randint(len(table), (self.batch_size - offline_rows,), generator=generator))
            batch = {name: torch.cat([batch[name], more[name]]) for name in batch}
        noise = torch.randn(batch["action"].shape, generator=generator)
        t = torch.rand(self.batch_size, generator=generator)
        return {**batch, "noise": noise, "t": t}

    def _offline_rows(self, number: int) -> int:
        replayed = len(self.replay[number]) if self.replay else 0
        if not replayed:
            return self.batch_size
        share = len(self.offline) / (len(self.offline) + replayed) if self.share is None else self.share
        return round(share * self.batch_size)
