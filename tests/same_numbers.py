"""The one tolerance for float32 numbers of networks: equal but for the order in which a processor adds.

Libraries add in another order on every instruction set and batch size, so a network's numbers agree to a share of its
largest number, never to a fixed amount. That share is given in bits: float32 keeps 24 in each operation.
"""

from __future__ import annotations

from typing import Any

import torch

FORWARD = 16  # one pass: some fifty roundings in a row cost 6 bits at most, seen with AVX-512 against AVX2
SAMPLED = 13  # ten passes, each fed with the one before
MAGNIFIED = 11  # sampling from a noise predictor at t = 1, where an error counts 1 / alpha = 150-fold at the first step
GRADIENT = 12  # forward and back, then a sum over rows that cancel


def assert_same_numbers(found: Any, wanted: Any, bits: int = FORWARD, size: float | None = None) -> None:
    """Every number within 2^-bits of `size`, which is the largest of `wanted` unless its terms were larger."""
    found, wanted = torch.as_tensor(found).detach(), torch.as_tensor(wanted).detach()
    size = float(wanted.abs().max()) if size is None else size
    torch.testing.assert_close(found, wanted, rtol=0, atol=2.0**-bits * size)
