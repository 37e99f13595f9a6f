"""The whole sampling loop as one TorchScript file: tensors of a scene and start noise in, plans out.

Traced, so solver, guidance and schedule are constants in it: omega, number of plans, number of steps, and one scene
at a time. Whoever loads it needs torch alone (Python or C++), not this program. Checked after writing: the file is
read again and must give the policy's own plans on another observation and other noise.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipole_vla.objective import RULES
from dipole_vla.plan_activations import SCENE, example_observation
from dipole_vla.policy import GuidedPolicy
from dipole_vla.progress import console
from navsim_adapter.errors import InputError
from navsim_adapter.files import atomic_path, write_json

PROGRAM, ABOUT = "sampler.pt", "sampler.json"
TOLERANCE_M = 1e-3  # of plans tens of metres long; the traced loop does the same operations


class SamplingLoop(nn.Module):
    """(observation tensors in the order of `names`, noise) -> plans (1, N, horizon, 3) at one omega."""

    def __init__(self, policy: GuidedPolicy, names: list[str], candidates: int, steps: int | None) -> None:
        super().__init__()
        self.backbone = policy.backbone
        self.names, self.candidates, self.steps = names, candidates, steps
        self._policy = [policy]  # in a list: not a submodule a second time

    def forward(self, *tensors: Tensor) -> Tensor:
        *shown, noise = tensors
        (policy,) = self._policy
        return policy.sample(dict(zip(self.names, shown)), candidates=self.candidates, noise=noise, steps=self.steps)


def write_program(
    policy: GuidedPolicy, out: Path, candidates: int, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Trace, write, read again, compare; InputError if the written loop gives other plans."""
    policy.backbone.requires_grad_(False)
    if policy.distilled is not None:
        policy.distilled.fold(policy.guidance.omega * RULES[policy.guidance.rule].greed)
    observation = {name: value.to(policy.device) for name, value in example_observation(policy.backbone, 1).items()}
    names = list(observation)
    loop = SamplingLoop(policy, names, candidates, steps).eval()
    noise = _noise(policy, candidates, seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every constant, and constants are what is wanted
        console.print(f"export torchscript: tracing {steps or policy.backbone.solver.steps} solver steps")
        traced = torch.jit.trace(loop, (*observation.values(), noise), check_trace=False)
        with atomic_path(out / PROGRAM) as aside:
            torch.jit.save(traced, str(aside))
        console.print("export torchscript: reading it again, comparing its plans with the policy's")
        again = torch.jit.load(str(out / PROGRAM), map_location=policy.device)
        other, fresh = _other(policy, seed + 1), _noise(policy, candidates, seed + 1)
        difference = float((again(*other.values(), fresh) - loop(*other.values(), fresh)).abs().max())
    if not difference <= TOLERANCE_M:
        raise InputError(
            f"{out / PROGRAM}: gives plans {difference:.3g} m off the policy's (at most {TOLERANCE_M} m is rounding); "
            f"the family {policy.backbone.family!r} decides by data somewhere and cannot be traced"
        )
    inputs = [
        {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)} for name, value in observation.items()
    ]
    inputs.append({"name": "noise", "shape": list(noise.shape), "dtype": str(noise.dtype)})
    about = {
        "inputs": inputs,
        "output": "plans (1, candidates, horizon, 3): x, y, heading; ego frame, metres, radians",
        "omega": policy.guidance.omega,
        "candidates": candidates,
        "steps": steps or policy.backbone.solver.steps,
        "interval_s": policy.backbone.action.interval,
        "policy_fingerprint": policy.fingerprint,
        "difference_m": difference,
    }
    write_json(out / ABOUT, about)
    return about


def _noise(policy: GuidedPolicy, candidates: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, candidates, *policy.noise_shape, generator=generator).to(policy.device)


def _other(policy: GuidedPolicy, seed: int) -> dict[str, Tensor]:
    """Another scene of the same shapes: what a trace that took a value for a constant would get wrong."""
    scene = {**SCENE, "command": "left", "velocity": [9.0, 0.3], "acceleration": [-0.7, 0.1]}
    picture = np.random.default_rng(seed).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    observation = example_observation(policy.backbone, 1, scene, picture)
    return {name: value.to(policy.device) for name, value in observation.items()}
