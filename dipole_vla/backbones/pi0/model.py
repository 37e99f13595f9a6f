"""PI0: a PaliGemma prefix and a Gemma action expert whose tokens are the state, then actions joined with the time.

What it shares with PI0.5 is in `paligemma/expert.py`. Reading published folders is in `importer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.experts import PUBLISHED_SOLVER, ActionTime, Suffix
from dipole_vla.backbones.paligemma.expert import PaliGemmaExpert, PaliGemmaSizes, PrefixProcessor
from dipole_vla.backbones.prompt import prompt, small_tokenizer
from dipole_vla.solvers import SolverSpec


@dataclass(frozen=True)
class PI0Sizes(PaliGemmaSizes):
    """All sizes of a PI0 model, and how scenes are shown to it; the defaults are the published ones."""


class PI0(PaliGemmaExpert):
    """See the module docstring."""

    family = "pi0"
    config_class = PI0Sizes

    def __init__(
        self,
        config: PI0Sizes,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action, solver, tokenizer)
        self.embed_action_time = ActionTimeEmbedding(config)

    @classmethod
    def tiny(cls, config: PI0Sizes | None = None, solver: SolverSpec | None = None) -> PI0:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or PI0Sizes.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=small_tokenizer())

    def processor(self) -> PI0Processor:
        return self.prefix_processor(PI0Processor)

    def suffix(self, context: Context, x_t: Tensor, t: Tensor, layout: Layout) -> Suffix:
        x = self.embed_action_time(layout.per_row(context["state"]), x_t, t)
        is_action = torch.arange(x.shape[1], device=x.device) > 0
        return Suffix(x, is_action[:, None] | ~is_action)  # the state, first of each row, does not see the actions


class ActionTimeEmbedding(ActionTime):
    """State, noisy actions and time -> the expert's tokens: one for the state, one per action."""

    def __init__(self, sizes: PI0Sizes) -> None:
        periods = (sizes.min_period, sizes.max_period)
        super().__init__(sizes.expert_width, sizes.max_action, periods, torch.float32)  # as transformers computes it
        self.state_proj = nn.Linear(sizes.max_state, sizes.expert_width)

    def forward(self, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(rows, 1 + horizon, width)."""
        return torch.cat([self.state_proj(state)[:, None], self.tokens(x_t, t)], dim=1)


@dataclass(frozen=True)
class PI0Processor(PrefixProcessor):
    """The prompt is DP-VLA's and a newline: this model was published for robot arms and says nothing about driving."""

    def words(self, scene: Mapping[str, Any], **options: Any) -> Mapping[str, list[int]]:
        text = f"{self.tokenizer.bos_token or ''}{prompt(scene)}\n"
        return self.tokenizer(text, add_special_tokens=False, **options)
