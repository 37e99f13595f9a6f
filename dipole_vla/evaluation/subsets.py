"""The best of N of M drawn plans, over all subsets at once: every drawn plan counts for every N <= M.

Plans are ranked by the critic, equal ones by their index. Of a random N-subset the plan of rank r is kept where it is
in it and nothing better is: C(M - 1 - r, N - 1) of the C(M, N) subsets.
"""

from __future__ import annotations

from math import comb

import numpy as np


def best_of_weights(samples: int, candidates: int) -> np.ndarray:
    """(M - N + 1,) chance that the plan of rank r = 0, 1, … (0 the best) is the best of a random N of M; sums to 1."""
    ways = [comb(samples - 1 - rank, candidates - 1) for rank in range(samples - candidates + 1)]
    return np.array([way / comb(samples, candidates) for way in ways])


def best_of(values: np.ndarray, by: np.ndarray, candidates: int) -> np.ndarray:
    """(S, K) expected values of the plan that `by` would keep of a random N of M.

    values: (S, M, K). by: (S, M), the greatest is kept; of equal ones the first.
    """
    weights = best_of_weights(by.shape[1], candidates)
    order = np.argsort(-by, axis=1, kind="stable")[:, : len(weights)]
    return np.einsum("r,srk->sk", weights, np.take_along_axis(values, order[:, :, None], 1))
