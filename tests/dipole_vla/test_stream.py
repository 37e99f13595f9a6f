"""The data order is a pure function of (seed, step): exact resume without saved state."""

import itertools
from collections import Counter

from dipole_vla.data.stream import StepStream


def first(stream: StepStream, n: int) -> list[list[int]]:
    return list(itertools.islice(iter(stream), n))


def test_a_stream_started_at_step_k_continues_the_undisturbed_one():
    whole = first(StepStream(10, 4, seed=3), 12)
    for k in (1, 5, 10):
        assert first(StepStream(10, 4, seed=3, first=k), 12 - k) == whole[k:]


def test_every_pass_shows_every_sample_once():
    indices = list(itertools.chain(*first(StepStream(10, 5, seed=1), 6)))
    for turn in range(3):
        assert sorted(indices[turn * 10 : turn * 10 + 10]) == list(range(10))
    assert indices[:10] != indices[10:20]


def test_ranks_share_one_global_order():
    alone = list(itertools.chain(*first(StepStream(12, 6, seed=2), 4)))
    two = [first(StepStream(12, 3, seed=2, rank=r, world=2), 4) for r in (0, 1)]
    merged = list(itertools.chain(*[two[0][k] + two[1][k] for k in range(4)]))
    assert merged == alone


def test_a_batch_larger_than_the_data_is_filled_from_the_next_pass():
    counts = Counter(itertools.chain(*first(StepStream(3, 7, seed=0), 3)))
    assert set(counts.values()) == {7}


def test_seeds_differ():
    assert first(StepStream(50, 10, seed=0), 2) != first(StepStream(50, 10, seed=1), 2)
