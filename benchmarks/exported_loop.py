"""The sampling loop in onnxruntime beside ours, on one core: the same context, omega and noise in, the same plans out.

python benchmarks/exported_loop.py --quick          # a tiny DP-VLA (minutes, most of them tracing)
python benchmarks/exported_loop.py                  # at a quarter of its width, as in sampling.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from sampling import make_policy

from dipole_vla.export.inputs import noise_of, observation_of
from dipole_vla.export.program import FILES, READERS, write_loop


def least(work: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """CPU seconds of either, taken in turns: what the work itself costs, beside other programs."""
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        middle = time.process_time()
        other()
        found.append((middle - start, time.process_time() - middle))
    first, second = zip(*found[1:])
    return min(first), min(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = make_policy(options.quick, 8)
    with TemporaryDirectory() as folder:
        write_loop(policy, Path(folder), "onnx", options.candidates, options.steps)
        encode, loop = (READERS["onnx"](Path(folder) / name) for name in FILES["onnx"])
    observation, noise = observation_of(policy, 1), noise_of(policy, options.candidates, 1)
    omega, context, own = torch.ones(options.candidates), encode([*observation.values()]), policy.encode(observation)
    encoded = own.encoded(None)
    exported, ours = least(
        lambda: loop([*context, omega, noise]),
        lambda: policy.sample(policy.encoded(encoded), 1.0, options.candidates, noise, steps=options.steps),
        options.repeats,
    )
    print(f"loop, N={options.candidates}, {options.steps} steps:")
    print(f"onnxruntime {1e3 * exported:.1f} ms, ours {1e3 * ours:.1f} ms")
    print(f"ratio {exported / ours:.2f} (at most 1) {'ok' if exported <= ours else 'MISSED'}")


if __name__ == "__main__":
    main()
