"""PI0.5: a PaliGemma prefix that reads the state as words, a Gemma expert whose norms are steered by the time.

What it shares with PI0 is in `paligemma/expert.py`. Reading published folders is in `importer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.experts import PUBLISHED_SOLVER, Suffix, sinusoids
from dipole_vla.backbones.observing import history
from dipole_vla.backbones.paligemma.expert import PaliGemmaExpert, PaliGemmaSizes, PrefixProcessor
from dipole_vla.backbones.prompt import prompt, prompts, small_tokenizer
from dipole_vla.solvers import SolverSpec

BINS = 256
_PAST = (24.0, 8.0, 1.0)  # metres behind, metres aside, radians: half the range of 1.5 s of driving


@dataclass(frozen=True)
class PI05Sizes(PaliGemmaSizes):
    """All sizes of a PI0.5 model, and how scenes are shown to it; the defaults are the published ones.

    state_offset, state_scale: the state is shown as (state - offset) / scale in 256 steps from -1 to 1. Empty: a range
    for the ego history in driving.
    """

    prompt_tokens: int = 200
    state_offset: tuple[float, ...] = ()
    state_scale: tuple[float, ...] = ()

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> Self:
        words = len(_small_tokenizer())
        return super().tiny(width, **{"text_vocabulary": words, "image_token": words, **overrides})


class PI05(PaliGemmaExpert):
    """See the module docstring."""

    family = "pi05"
    config_class = PI05Sizes

    def __init__(
        self,
        config: PI05Sizes,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action, solver, tokenizer)
        self.config: PI05Sizes
        self.embed_action_time = ActionAndTime(config)
        for layer in self.model.dit.layers:
            layer.input_layernorm = AdaptiveNorm(config.expert_width)
            layer.post_attention_layernorm = AdaptiveNorm(config.expert_width)
        self.model.dit.norm = AdaptiveNorm(config.expert_width)

    @classmethod
    def tiny(cls, config: PI05Sizes | None = None, solver: SolverSpec | None = None) -> PI05:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or PI05Sizes.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=_small_tokenizer())

    def processor(self) -> PI05Processor:
        config = self.config
        return self.prefix_processor(PI05Processor, state_offset=config.state_offset, state_scale=config.state_scale)

    def suffix(self, context: Context, x_t: Tensor, t: Tensor, layout: Layout) -> Suffix:
        tokens, condition = self.embed_action_time(x_t, t)
        return Suffix(tokens, torch.ones(x_t.shape[1], x_t.shape[1], dtype=torch.bool, device=x_t.device), condition)


class ActionAndTime(nn.Module):
    """Noisy actions -> the expert's tokens; time -> what its norms are steered by."""

    def __init__(self, sizes: PI05Sizes) -> None:
        super().__init__()
        width = sizes.expert_width
        self.periods = (sizes.min_period, sizes.max_period)
        self.action_in_proj = nn.Linear(sizes.max_action, width)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, horizon, width) and (rows, width)."""
        time = sinusoids(t, self.time_mlp_in.in_features, self.periods, torch.float64).to(x_t.dtype)
        return self.action_in_proj(x_t), silu(self.time_mlp_out(silu(self.time_mlp_in(time))))


class AdaptiveNorm(nn.Module):
    """Root mean square norm whose scale and shift, and the gate of what follows, are linear in a condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (rows, steps, width) normalised, and the gate (rows, 1, width); condition (rows, width)."""
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, dim=-1)
        plain = rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        return (plain * (1 + scale.float()) + shift.float()).to(x.dtype), gate


@dataclass(frozen=True)
class PI05Processor(PrefixProcessor):
    """The task is DP-VLA's prompt in one line; the state, in the words of the prompt, is the ego history."""

    state_offset: tuple[float, ...] = ()
    state_scale: tuple[float, ...] = ()

    def words(self, scene: Mapping[str, Any], **options: Any) -> Mapping[str, list[int]]:
        offset, scale = self.state_offset or (-_PAST[0], 0.0, 0.0) * 4, self.state_scale or _PAST * 4
        state = (history(scene) - torch.tensor(offset)) / torch.tensor(scale)
        return self.tokenizer(task_and_state(prompt(scene), state.numpy()), **options)


def task_and_state(task: str, state: np.ndarray) -> str:
    """The published prompt; state (any,), -1 to 1, where numbers below -1 are shown as step -1."""
    steps = np.digitize(state, np.linspace(-1, 1, BINS + 1)[:-1]) - 1
    line = task.strip().replace("_", " ").replace("\n", " ")
    return f"Task: {line}, State: {' '.join(map(str, steps))};\nAction: "


def _small_tokenizer() -> PreTrainedTokenizerFast:
    states = np.random.default_rng(0).uniform(-1, 1, (200, 12))
    return small_tokenizer(texts=[task_and_state(task, state) for task, state in zip(prompts(), states)])
