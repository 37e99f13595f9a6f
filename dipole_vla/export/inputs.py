"""What an exported loop takes in: examples to make and check it with, and in words how each input is made."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipole_vla.backbones.example import SCENE, example_observation
from dipole_vla.backbones.observing import COMMANDS, history, status
from dipole_vla.policy import GuidedPolicy, Processor

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
PLANS = "plans (1, candidates, horizon, 3): x, y, heading; ego frame, metres, radians"


def noise_of(policy: GuidedPolicy, candidates: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, candidates, *policy.noise_shape, generator=generator).to(policy.device)


def observation_of(policy: GuidedPolicy, seed: int | None = None) -> dict[str, Tensor]:
    """What the family's processor makes of a scene with black pictures, or of another one with pictures drawn by seed.

    Of the same shapes: what a trace that took a value for a constant would get wrong.
    """
    if seed is None:
        observation = example_observation(policy.backbone, 1)
    else:
        picture = np.random.default_rng(seed).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
        observation = example_observation(policy.backbone, 1, OTHER_SCENE, picture)
    return {name: value.to(policy.device) for name, value in _all_shown(observation).items()}


def _all_shown(observation: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the picture's own tiles alone, which are as many in every scene: no file can have as many as data say."""
    tiles = observation.get("tiles")
    if tiles is None:
        return observation
    rest = {name: value for name, value in observation.items() if name != "tiles"}
    return {**rest, "pixels": rest["pixels"][:, : int(tiles[0])]}


def described(name: str, value: Tensor) -> dict[str, Any]:
    """An input to be made without this program; `value` is what the processor made of OTHER_SCENE."""
    past, now = history(OTHER_SCENE), status(OTHER_SCENE)
    both = PAST[0] + "; then " + STATUS[0], PAST[1] + "; " + STATUS[1]
    meaning, unit = MEANINGS.get(name, ("see `processor`", "see `processor`"))
    for known, (words, its_unit) in ((past, PAST), (now, STATUS), (torch.cat([past, now]), both)):
        if value.shape == (1, *known.shape) and torch.equal(value[0].cpu().float(), known):
            meaning, unit = words, its_unit
    facts = {"shape": list(value.shape), "dtype": str(value.dtype), "unit": unit}
    return {"name": name, **facts, "meaning": meaning}


def settings(processor: Processor) -> dict[str, Any]:
    """What the family's processor says of itself, and its numbers."""
    fields: Any = dataclasses.fields(processor) if dataclasses.is_dataclass(processor) else ()
    found = {field.name: getattr(processor, field.name) for field in fields}
    settings = {name: value for name, value in found.items() if isinstance(value, str | int | float | tuple)}
    return {"about": inspect.getdoc(processor), **settings, "cameras": list(processor.cameras)}


def prompt(processor: Processor, observation: dict[str, Tensor]) -> dict[str, Any] | None:
    """The words of one scene, from which those of another are seen; None for families that read none."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or "input_ids" not in observation:
        return None
    ids = observation["input_ids"][0].tolist()
    told = ("command", "velocity", "acceleration", "history")
    return {"scene": {key: OTHER_SCENE[key] for key in told}, "text": tokenizer.decode(ids), "input_ids": ids}
