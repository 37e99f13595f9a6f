"""What an update of the RL learner costs, in CPU seconds of one thread, beside plainer ways to do the same work.

    python benchmarks/rl.py                        # DIPOLE alone, all heads, plain loops
    python benchmarks/rl.py --fql PATH             # also FQL's own JAX update (a checkout of its repository; needs jax)
    python benchmarks/rl.py --json FILE

Rows:
  stacked          this package: every network of one shape in one batched matmul, one fused Adam
  per-network loop the same networks, losses and batch, each an nn.Sequential with its own backward and its own Adam
  per-method       what a table of seven separate methods trains: a critic of its own for each
  products alone   the matrix products of the stacked update and nothing else: what no implementation of it goes below
  bfloat16         the same with the hidden layers' products in bfloat16 (the loop: under autocast)
Times are the median over rounds that alternate between the contestants, so that a busy machine slows all alike; in a
round each does one update untimed, which brings its own weights back into the caches, and then two timed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from dipole_vla.paths import interpolate, target
from dipole_vla.policy.critic import expectile_loss
from dipole_vla.rl.heads import HEADS
from dipole_vla.rl.learner import PREDICTION, SCHEDULE, Learner, LearnerConfig
from dipole_vla.rl.memory import keep_freed_memory
from dipole_vla.rl.module import adam

OBSERVATION, ACTION = 28, 5  # cube-single
SIZES = {"2x128": (128, 2), "3x256": (256, 3), "4x512": (512, 4)}
# seven methods; rejection sampling needs a critic, so only plain BC goes without one
METHODS = (
    ("bc",),
    ("bc",),
    ("exponential",),
    ("exponential_x3",),
    ("bc", "indicator"),
    ("positive",),
    ("positive", "negative"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2x128", "3x256"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fql", type=Path, help="checkout of seohongpark/fql; its agents run in this Python")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `dipole-vla rl` does
    found = {size: measure(*SIZES[size], options.batch, options.rounds, options.fql) for size in options.sizes}
    for size, row in found.items():
        print(f"\n{size}, batch {options.batch}, CPU ms per update (median of {options.rounds} rounds)")
        for name, value in row.items():
            print(f"  {name:48s} {value:9.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(hidden: int, layers: int, batch: int, rounds: int, fql: Path | None) -> dict[str, float]:
    seven = list(HEADS)
    contestants = {
        "stacked, DIPOLE alone": stacked(hidden, layers, batch, ["positive", "negative"]),
        "stacked, six heads": stacked(hidden, layers, batch, [name for name in seven if name != "exponential_x10"]),
        "stacked, all seven heads": stacked(hidden, layers, batch, seven),
        "stacked, seven heads, four seeds": stacked(hidden, layers, batch, seven, seeds=4),
        "stacked, DIPOLE alone, bfloat16": stacked(hidden, layers, batch, ["positive", "negative"], low=True),
        "stacked, all seven heads, bfloat16": stacked(hidden, layers, batch, seven, low=True),
        "stacked, seven heads, four seeds, bfloat16": stacked(hidden, layers, batch, seven, seeds=4, low=True),
        "per-network loop, seven heads": looped(hidden, layers, batch, seven),
        "per-network loop, seven heads, bfloat16": looped(hidden, layers, batch, seven, low=True),
        "products alone, seven heads": products(hidden, layers, batch, len(seven)),
        "products alone, seven heads, bfloat16": products(hidden, layers, batch, len(seven), torch.bfloat16),
    }
    methods = [looped(hidden, layers, batch, list(heads), with_critic=i > 0) for i, heads in enumerate(METHODS)]
    contestants["per-method, seven methods"] = lambda: [step() for step in methods]
    if fql is not None:
        contestants["FQL's own JAX update"] = fql_update(fql, hidden, layers, batch)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            step()
            for _ in range(2):
                start = time.process_time()
                step()
                times[name].append(1e3 * (time.process_time() - start))
    row = {name: float(np.median(values[2:])) for name, values in times.items()}
    row["ratio: seven heads / DIPOLE alone"] = row["stacked, all seven heads"] / row["stacked, DIPOLE alone"]
    row["ratio: six heads / DIPOLE alone"] = row["stacked, six heads"] / row["stacked, DIPOLE alone"]
    loop, each = row["per-network loop, seven heads"], row["per-method, seven methods"]
    for end in ("", ", bfloat16"):
        row[f"ratio: per-network loop / stacked{end}"] = loop / row[f"stacked, all seven heads{end}"]
        row[f"ratio: per-network loop / four seeds, per seed{end}"] = (
            4 * loop / row[f"stacked, seven heads, four seeds{end}"]
        )
        row[f"ratio: per-network loop / products{end}"] = loop / row[f"products alone, seven heads{end}"]
        row[f"ratio: per-method / stacked{end}"] = each / row[f"stacked, all seven heads{end}"]
    ours = work(hidden, layers, batch, critic=12, policies=3 * len(seven))
    row["GFLOP/s, stacked seven heads"] = ours / row["stacked, all seven heads"] / 1e6
    if fql is not None:
        # passes over one network: target Q 2, Q 6, flow 3, flow sampling 10, one-step 3 + 1 + 1, Q of its actions 4
        theirs = work(hidden, layers, batch, critic=0, policies=30)
        row["GFLOP/s, FQL"] = theirs / row["FQL's own JAX update"] / 1e6
    return row


def work(hidden: int, layers: int, batch: int, critic: int, policies: int) -> float:
    """Floating-point operations of that many passes (a backward counts two) over one network."""
    weights = (OBSERVATION + ACTION) * hidden + (layers - 1) * hidden**2 + hidden * ACTION
    return 2.0 * batch * weights * (critic + policies)


def draw(batch: int, seeds: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation": torch.randn(seeds, batch, OBSERVATION, generator=generator),
        "next_observation": torch.randn(seeds, batch, OBSERVATION, generator=generator),
        "action": torch.rand(seeds, batch, ACTION, generator=generator) * 2 - 1,
        "reward": -torch.ones(seeds, batch),
        "discount": torch.full((seeds, batch), 0.99),
        "noise": torch.randn(seeds, batch, ACTION, generator=generator),
        "t": torch.rand(seeds, batch, generator=generator),
    }


def stacked(
    hidden: int, layers: int, batch: int, heads: list[str], seeds: int = 1, low: bool = False
) -> Callable[[], Any]:
    config = LearnerConfig(hidden=hidden, layers=layers, heads=heads, precision="bfloat16" if low else "float32")
    learner = Learner(OBSERVATION, ACTION, range(seeds), config)
    optimizer, data = adam(learner), draw(batch, seeds)

    def step() -> None:
        loss, _ = learner.loss(data, data["noise"], data["t"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        learner.after_step()

    return step


def looped(
    hidden: int, layers: int, batch: int, heads: list[str], with_critic: bool = True, low: bool = False
) -> Callable[[], Any]:
    """The plain way: one module, one backward and one optimiser per network."""

    def network(inputs: int, outputs: int, norm: bool = False) -> nn.Sequential:
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Linear(inputs, hidden), nn.GELU()] + ([nn.LayerNorm(hidden)] if norm else [])
            inputs = hidden
        return nn.Sequential(*parts, nn.Linear(hidden, outputs))

    qs = [network(OBSERVATION + ACTION, 1, True) for _ in range(2)]
    targets = [network(OBSERVATION + ACTION, 1, True).requires_grad_(False) for _ in range(2)]
    v = network(OBSERVATION, 1, True)
    policies = {name: network(OBSERVATION + ACTION + 1, ACTION) for name in heads}
    optimizers = {id(net): torch.optim.Adam(net.parameters(), lr=3e-4) for net in [*qs, v, *policies.values()]}
    data = {name: value[0] for name, value in draw(batch).items()}

    def descend(net: nn.Module, loss: torch.Tensor) -> None:
        optimizers[id(net)].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[id(net)].step()

    @torch.autocast("cpu", torch.bfloat16, enabled=low)
    def step() -> None:
        observation, action, noise, t = data["observation"], data["action"], data["noise"], data["t"]
        advantage = torch.zeros(batch)
        if with_critic:
            pairs = torch.cat([observation, action], -1)
            with torch.no_grad():
                wanted = data["reward"] + data["discount"] * v(data["next_observation"])[:, 0]
                least = torch.minimum(*[net(pairs)[:, 0] for net in targets])
            value = v(observation)[:, 0]
            advantage = least - value.detach()
            descend(v, expectile_loss(least - value, 0.9).mean())
            for net in qs:
                descend(net, (net(pairs)[:, 0] - wanted).pow(2).mean())
            with torch.no_grad():
                for slow, net in zip(targets, qs):
                    for mine, theirs in zip(slow.parameters(), net.parameters()):
                        mine.lerp_(theirs, 0.005)
        x_t = interpolate(SCHEDULE, action, noise, t)
        goal = target(PREDICTION, SCHEDULE, action, noise, t)
        for name, net in policies.items():
            error = (net(torch.cat([observation, x_t, t[:, None]], -1)) - goal).pow(2).mean(1)
            descend(net, (HEADS[name].weight(advantage, 2.0) * error).mean())

    return step


def products(hidden: int, layers: int, batch: int, heads: int, dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """Forward, input-gradient and weight-gradient products of one update, on operands of the right shapes.

    Per stack: networks, input width, output width, whether it is trained.
    """
    pairs = OBSERVATION + ACTION
    stacks = (
        (2, pairs, 1, False),  # target Q
        (1, OBSERVATION, 1, False),  # V of the next state
        (2, pairs, 1, True),  # Q
        (1, OBSERVATION, 1, True),  # V
        (heads, pairs + 1, ACTION, True),
    )
    operands = []
    for networks, inputs, outputs, is_trained in stacks:
        widths = [inputs, *[hidden] * layers, outputs]
        for layer, (rows, columns) in enumerate(pairwise(widths)):
            x, weight = torch.randn(networks, batch, rows).to(dtype), torch.randn(networks, rows, columns).to(dtype)
            gradient = torch.randn(networks, batch, columns).to(dtype)
            operands.append((x, weight))
            if is_trained:
                operands.append((x.mT, gradient))
                if layer > 0:  # nobody asks for the gradient of the data
                    operands.append((gradient, weight.mT))
    return lambda: [torch.bmm(left, right) for left, right in operands]


def fql_update(folder: Path, hidden: int, layers: int, batch: int) -> Callable[[], Any]:
    """FQL's own agent, imported from its checkout and run as it is on this CPU."""
    sys.path.insert(0, str(folder))
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    from agents.fql import FQLAgent, get_config

    data = {name: value[0].numpy() for name, value in draw(batch).items()}
    config = get_config()
    config.actor_hidden_dims = config.value_hidden_dims = (hidden,) * layers
    arrays = {
        "observations": data["observation"],
        "next_observations": data["next_observation"],
        "actions": data["action"],
        "rewards": data["reward"],
        "masks": np.ones(batch, np.float32),
    }
    agent = [FQLAgent.create(0, arrays["observations"][:1], arrays["actions"][:1], config)]

    def step() -> None:
        agent[0], info = agent[0].update(arrays)
        jax.block_until_ready(info)

    return step


if __name__ == "__main__":
    main()
