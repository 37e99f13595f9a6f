"""Candidates side by side: what one alone would find in its scene's prefix and in itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softmax

from dipole_vla.backbones import experts
from dipole_vla.backbones.dit import KeysValues
from dipole_vla.backbones.experts import beside, mask_beside
from tests.same_numbers import assert_same_numbers

SCENES, LENGTH, STEPS, HEADS, SIZE = 2, 5, 3, 4, 8


@pytest.mark.parametrize("together", [1, 6, 7, 100])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_each_candidate_finds_what_it_would_alone(monkeypatch, rows, together):
    """However many are asked together; by the definition of attention, two heads to each key."""
    monkeypatch.setattr(experts, "TOGETHER", together)
    prefix = torch.tensor([[True] * LENGTH, [False] * 2 + [True] * 3])
    sees = torch.ones(STEPS, STEPS).tril().bool()
    queries = torch.randn(SCENES, HEADS, rows * STEPS, SIZE)
    seen, own = (KeysValues(*torch.randn(2, SCENES, HEADS // 2, n, SIZE)) for n in (LENGTH, rows * STEPS))
    found = beside(queries, own, seen, mask_beside(prefix, rows, sees))
    for scene in range(SCENES):
        for row in range(rows):
            at = slice(row * STEPS, (row + 1) * STEPS)
            for head in range(HEADS):
                keys, values = (
                    torch.cat([before[scene, head // 2][prefix[scene]], mine[scene, head // 2, at]])
                    for before, mine in zip(seen, own)
                )
                scores = queries[scene, head, at] @ keys.T / SIZE**0.5
                scores[:, -STEPS:].masked_fill_(~sees, -torch.inf)
                assert_same_numbers(found[scene, head, at], softmax(scores, dim=-1) @ values)
