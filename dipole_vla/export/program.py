"""The whole sampling loop as one TorchScript file: tensors of a scene and start noise in, plans out.

Traced, so solver, guidance and schedule are constants in it: omega, number of plans, number of steps, one scene at a
time, and the kind of device. To load it takes torch alone (Python or C++), not this program; how its inputs are
made is said beside it, with the tokenizer, if there is one. Checked after writing: the file is read again and must
give the policy's own plans on another observation and other noise.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipole_vla.backbones.example import SCENE, example_observation
from dipole_vla.backbones.observing import COMMANDS, history, status
from dipole_vla.objective import rule_named
from dipole_vla.policy import GuidedPolicy, Processor
from dipole_vla.progress import console
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, write_json

PROGRAM, ABOUT = "sampler.pt", "sampler.json"
TOLERANCE_M = 1e-3  # of plans tens of metres long; the traced loop does the same operations

OTHER_SCENE: dict[str, Any] = {**SCENE, "command": "left", "velocity": [9.0, 0.3], "acceleration": [-0.7, 0.1]}

PAST = "x, y, heading of the last four frames, 0.5 s apart, oldest first, in the ego frame of the last", "m, m, rad"
STATUS = (
    f"command as one of ({', '.join(COMMANDS)}), then velocity x, y and acceleration x, y in the ego frame",
    "1 or 0, m/s, m/s^2",
)
MEANINGS = {
    "pixels": ("RGB pictures of the cameras in the order of `processor`, channels first", "0 to 255"),
    "input_ids": ("tokens of the prompt, as in `prompt`, by the tokenizer beside this file", "ids"),
    "attention_mask": ("1 for a token that counts, 0 for padding", "1 or 0"),
    "tiles": ("how many of the picture's tiles count; the rest are black", "number"),
    "noise": ("start of the plans, each drawn for itself", "standard normal"),
}
"""Input -> what it is and its unit, where its numbers do not tell."""


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
        policy.distilled.fold(policy.guidance.omega * rule_named(policy.guidance.rule).greed)
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
    policy.backbone.save_assets(out)
    about = {
        "device": policy.device.type,
        "inputs": [_described(name, value) for name, value in {**other, "noise": noise}.items()],
        "processor": _settings(policy.processor),
        "prompt": _prompt(policy.processor, other),
        "output": "plans (1, candidates, horizon, 3): x, y, heading; ego frame, metres, radians",
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


def _noise(policy: GuidedPolicy, candidates: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, candidates, *policy.noise_shape, generator=generator).to(policy.device)


def _other(policy: GuidedPolicy, seed: int) -> dict[str, Tensor]:
    """Another scene of the same shapes: what a trace that took a value for a constant would get wrong."""
    picture = np.random.default_rng(seed).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    observation = example_observation(policy.backbone, 1, OTHER_SCENE, picture)
    return {name: value.to(policy.device) for name, value in observation.items()}


def _described(name: str, value: Tensor) -> dict[str, Any]:
    """An input to be made without this program; `value` is what the processor made of OTHER_SCENE."""
    past, now = history(OTHER_SCENE), status(OTHER_SCENE)
    both = PAST[0] + "; then " + STATUS[0], PAST[1] + "; " + STATUS[1]
    meaning, unit = MEANINGS.get(name, ("see `processor`", "see `processor`"))
    for known, (words, its_unit) in ((past, PAST), (now, STATUS), (torch.cat([past, now]), both)):
        if value.shape == (1, *known.shape) and torch.equal(value[0].cpu().float(), known):
            meaning, unit = words, its_unit
    facts = {"shape": list(value.shape), "dtype": str(value.dtype), "unit": unit}
    return {"name": name, **facts, "meaning": meaning}


def _settings(processor: Processor) -> dict[str, Any]:
    """What the family's processor says of itself, and its numbers."""
    fields: Any = dataclasses.fields(processor) if dataclasses.is_dataclass(processor) else ()
    found = {field.name: getattr(processor, field.name) for field in fields}
    settings = {name: value for name, value in found.items() if isinstance(value, str | int | float | tuple)}
    return {"about": inspect.getdoc(processor), **settings, "cameras": list(processor.cameras)}


def _prompt(processor: Processor, observation: dict[str, Tensor]) -> dict[str, Any] | None:
    """The words of one scene, from which those of another are seen; None for families that read none."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or "input_ids" not in observation:
        return None
    ids = observation["input_ids"][0].tolist()
    told = ("command", "velocity", "acceleration", "history")
    return {"scene": {key: OTHER_SCENE[key] for key in told}, "text": tokenizer.decode(ids), "input_ids": ids}
