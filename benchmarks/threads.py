"""What one policy gives to several threads: plans per second of 1, 2, … threads, as ratios; every plan is checked.

    python benchmarks/threads.py                 # the middle-sized DP-VLA of sampling.py, on scenes encoded once
    python benchmarks/threads.py --quick         # a tiny one, where Python's own lock is most of the work

Each thread samples with omegas of its own. Runs take turns, so a load that others put on the machine meets all alike.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sampling import make_policy

from dipole_vla.backbones.example import example_observation

OMEGAS = (None, -1.0, 0.0, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = make_policy(options.quick, 8)
    scenes = policy.encode(example_observation(policy.backbone, 1))
    noise = torch.randn(1, options.candidates, *policy.noise_shape, generator=torch.Generator().manual_seed(0))

    def plans(index: int) -> torch.Tensor:
        return policy.sample(scenes, OMEGAS[index % len(OMEGAS)], options.candidates, noise)

    wanted = [plans(index) for index in range(len(OMEGAS))]
    calls = len(OMEGAS) * max(options.threads)
    wall: dict[int, list[float]] = {count: [] for count in options.threads}
    cpu: dict[int, list[float]] = {count: [] for count in options.threads}
    for _ in range(options.rounds):
        for count in options.threads:
            with ThreadPoolExecutor(count) as pool:
                start = time.perf_counter(), time.process_time()
                found = list(pool.map(plans, range(calls)))
                wall[count].append(time.perf_counter() - start[0])
                cpu[count].append(time.process_time() - start[1])
            assert all(torch.equal(plan, wanted[index % len(OMEGAS)]) for index, plan in enumerate(found))
    first = options.threads[0]
    print(f"{'threads':>8s} {'ms a call':>10s} {'x calls per second':>19s} {'x CPU a call':>13s}")
    for count in options.threads:
        rate, cost = min(wall[first]) / min(wall[count]), min(cpu[count]) / min(cpu[first])
        print(f"{count:8d} {1e3 * min(wall[count]) / calls:10.1f} {rate:19.2f} {cost:13.2f}")


if __name__ == "__main__":
    main()
