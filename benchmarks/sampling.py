"""What guidance costs: CPU seconds of one core per scene, end to end, from pictures to plans; one table, one run.

    python benchmarks/sampling.py                      # a DP-VLA at a quarter of its width (minutes)
    python benchmarks/sampling.py --family alpamayo    # what one step of another family costs, and its FLOPs
    python benchmarks/sampling.py --quick              # a tiny one (seconds; the shape of the table, not the bars)

Weights do not change the cost, so they are random. "unguided" is one adapter alone: the policy a team drives today.
"naive" encodes the scene and runs the whole head anew for both signs at every step and for every candidate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from quarter import QUARTERS, build

from dipole_vla.backbones.example import example_observation
from dipole_vla.guidance import SIGNS, guide
from dipole_vla.paths import to_x0
from dipole_vla.planning.activations import Operations
from dipole_vla.policy import AdapterPair, GuidedPolicy
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.solvers import solve

OMEGA, STEPS, CANDIDATES = 1.0, 10, 8
BARS = {"guided, N=1": ("unguided, N=1", 1.3), "guided, N=16": ("guided, N=1", 4.0)}
BARS |= {"distilled, folded, N=1": ("unguided, N=1", 1.05)}


def make_policy(name: str, quick: bool) -> GuidedPolicy:
    backbone = build(name, quick)
    pair = AdapterPair(backbone, "head", QUARTERS[name].rank)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_(0, 0.02)
    return GuidedPolicy(backbone, pair)


def naive(policy: GuidedPolicy, observation: dict[str, torch.Tensor], steps: int) -> None:
    """Two models, each asked for the whole way from pictures to prediction at every step, for one candidate."""
    backbone, pair = policy.backbone, policy.pair
    assert isinstance(pair, AdapterPair)

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signs = []
        for role in SIGNS:
            with pair.acting(role):
                signs.append(backbone.denoise(backbone.encode(observation), x_t, t))
        return to_x0(backbone.prediction, backbone.schedule, guide(*signs, OMEGA), x_t, t)

    with torch.no_grad():
        solve(backbone.solver.with_steps(steps), backbone.schedule, denoise, torch.randn(1, *policy.noise_shape))


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Least of several: what the work itself costs, without the caches that other programs take."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def measure(policy: GuidedPolicy, repeats: int) -> dict[str, float]:
    """Seconds by row of the table, printed as they come."""
    observation = example_observation(policy.backbone, 1)
    pair = policy.pair
    assert isinstance(pair, AdapterPair)
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], times: float = 1) -> None:
        found[name] = times * cpu_seconds(work, repeats)
        print(f"{name:34s} {1e3 * found[name]:10.1f} ms", flush=True)

    def sampled(name: str, omega: float | None, candidates: int, actor: GuidedPolicy = policy) -> None:
        draw = partial(actor.sample, observation, omega=omega, candidates=candidates, steps=STEPS)
        timed(name, lambda: draw(generator=torch.Generator().manual_seed(0)))

    sampled("(warm-up)", OMEGA, 1)
    timed("encode alone", lambda: policy.encode(observation).encoded(None))
    sampled("unguided, N=1", 0.0, 1)
    sampled("guided, N=1", OMEGA, 1)
    sampled("guided, N=16", OMEGA, 16)
    distilled = DistilledPair(pair)
    single = GuidedPolicy(policy.backbone, pair, distilled=distilled)
    sampled("distilled, N=1", OMEGA, 1, single)
    distilled.fold(OMEGA)
    sampled("distilled, folded, N=1", OMEGA, 1, single)
    sampled("distilled, folded, N=16", OMEGA, 16, single)
    sampled("reference, N=1", None, 1)
    sampled("guided, N=4", OMEGA, 4)
    sampled("guided, N=64", OMEGA, 64)
    # one solver step and the evaluation at the clean end: two of the eleven evaluations, which cost the same each
    timed("naive, N=1", lambda: naive(policy, observation, 1), times=(STEPS + 1) / 2)
    found["naive, N=16 (16 x N=1)"] = 16 * found["naive, N=1"]
    return found


def measure_steps(policy: GuidedPolicy, repeats: int) -> dict[str, float]:
    """One evaluation for each of the rows of `CANDIDATES` plans, and the context they share; all beside each other."""
    observation, pair = example_observation(policy.backbone, 1), policy.pair
    assert isinstance(pair, AdapterPair)
    distilled = DistilledPair(pair)
    distilled.fold(OMEGA)
    single = GuidedPolicy(policy.backbone, pair, distilled=distilled)
    encoded = policy.encode(observation)

    def step(actor: GuidedPolicy, omega: float | None) -> Callable[[], object]:
        scenes = actor.encoded(encoded.encoded(None))
        return partial(actor.sample, scenes, omega=omega, candidates=CANDIDATES, steps=1)

    works = {
        "context": lambda: policy.encode(observation).encoded(None),
        "one step, unguided": step(policy, 0.0),
        "one step, guided": step(policy, OMEGA),
        "one step, distilled and folded": step(single, OMEGA),
    }
    flops = {name: counted(work) for name, work in works.items()}
    found = dict.fromkeys(works, math.inf)
    for _ in range(repeats):
        for name, work in works.items():
            found[name] = min(found[name], cpu_seconds(work, 1))
            print(f"  {name}: {found[name]:.2f} s at best", flush=True)
    print(f"\n{'':34s} {'ms':>10s} {'GFLOP':>10s} {'GFLOP/s':>10s}")
    for name, seconds in found.items():
        print(f"{name:34s} {1e3 * seconds:10.1f} {flops[name] / 1e9:10.2f} {flops[name] / seconds / 1e9:10.1f}")
    return found | {f"{name}, flops": count for name, count in flops.items()}


def counted(work: Callable[[], object]) -> int:
    with Operations() as operations:
        work()
    return operations.flops


def show_steps(found: dict[str, float]) -> None:
    unguided, guided = (found[f"one step, {name}"] for name in ("unguided", "guided"))
    ideal = found["one step, guided, flops"] / found["one step, unguided, flops"]
    print(f"\nguided / unguided, N={CANDIDATES}, beyond the context: {guided / unguided:.2f}; by FLOPs {ideal:.2f}")
    plans = [found["context"] + STEPS * step for step in (guided, unguided)]
    print(f"plans of {STEPS} steps with their context, guided / unguided: {plans[0] / plans[1]:.2f}")


def show(found: dict[str, float]) -> None:
    unguided = found["unguided, N=1"]
    print(f"\n{'':34s} {'ms':>10s} {'x unguided':>11s}")
    for name, seconds in found.items():
        print(f"{name:34s} {1e3 * seconds:10.1f} {seconds / unguided:11.2f}")
    print()
    for name, (base, most) in BARS.items():
        ratio = found[name] / found[base]
        print(f"{name} / {base}: {ratio:.2f} (at most {most}) {'ok' if ratio <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--family", choices=QUARTERS, default="dp_vla")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = make_policy(options.family, options.quick)
    count = sum(p.numel() for name, p in policy.backbone.named_parameters() if "lora_" not in name)
    print(f"{options.family}: {count / 1e6:.0f} M parameters, one core of this machine\n")
    is_paper = options.family == "dp_vla"
    found = (measure if is_paper else measure_steps)(policy, options.repeats)
    (show if is_paper else show_steps)(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
