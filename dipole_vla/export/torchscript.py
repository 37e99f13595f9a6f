"""The whole sampling loop as one TorchScript file: tensors of a scene and start noise in, plans out.

Traced, so solver, guidance and schedule are constants in it: omega, number of plans, number of steps, one scene at a
time, and the kind of device. To load it takes torch alone (Python or C++), not this program; how its inputs are
made is said beside it, with the tokenizer, if there is one. Checked after writing: the file is read again and must
give the policy's own plans on another observation and other noise.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dipole_vla.export.inputs import PLANS, described, noise_of, observation_of, prompt, settings
from dipole_vla.objective import rule_named
from dipole_vla.policy import GuidedPolicy
from dipole_vla.progress import console
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, write_json

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


def write_torchscript(
    policy: GuidedPolicy, out: Path, candidates: int, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Trace, write, read again, compare; InputError if the written loop gives other plans."""
    policy.backbone.requires_grad_(False)
    if policy.distilled is not None:
        policy.distilled.fold(policy.guidance.omega * rule_named(policy.guidance.rule).greed)
    observation = observation_of(policy)
    names = list(observation)
    loop = SamplingLoop(policy, names, candidates, steps).eval()
    noise = noise_of(policy, candidates, seed)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every constant, and constants are what is wanted
        console.print(f"export torchscript: tracing {steps or policy.backbone.solver.steps} solver steps")
        traced = torch.jit.trace(loop, (*observation.values(), noise), check_trace=False)
        with atomic_path(out / PROGRAM) as aside:
            torch.jit.save(traced, str(aside))
        console.print("export torchscript: reading it again, comparing its plans with the policy's")
        again = torch.jit.load(str(out / PROGRAM), map_location=policy.device)
        other, fresh = observation_of(policy, seed + 1), noise_of(policy, candidates, seed + 1)
        difference = float((again(*other.values(), fresh) - loop(*other.values(), fresh)).abs().max())
    if not difference <= TOLERANCE_M:
        raise InputError(
            f"{out / PROGRAM}: gives plans {difference:.3g} m off the policy's (at most {TOLERANCE_M} m is rounding); "
            f"the family {policy.backbone.family!r} decides by data somewhere and cannot be traced"
        )
    policy.backbone.save_assets(out)
    about = {
        "device": policy.device.type,
        "inputs": [described(name, value) for name, value in {**other, "noise": noise}.items()],
        "processor": settings(policy.processor),
        "prompt": prompt(policy.processor, other),
        "output": PLANS,
        "critic": False,  # all plans come out, none is chosen
        "omega": policy.guidance.omega,
        "candidates": candidates,
        "steps": steps or policy.backbone.solver.steps,
        "interval_s": policy.backbone.action.interval,
        "policy_fingerprint": policy.fingerprint,
        "difference_m": difference,
    }
    write_json(out / ABOUT, about)
    return about
