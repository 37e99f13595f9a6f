"""X-VLA's head: one transformer over action tokens and scene tokens, with prompts and action layers per domain.

Names and order of operations are those of the published `transformer.*` weights. There is no adaLN: the time is part
of each action token. The encoder is in `dipole_vla.backbones.florence.encoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipole_vla.backbones.dit import MLP, Layout, SelfAttention
from navsim_adapter.foundation.errors import InputError


@dataclass(frozen=True)
class SoftTransformerSizes:
    """Sizes of the head; the defaults are the published ones."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    context_width: int = 1024
    domains: int = 30
    prompts: int = 32
    time_dim: int = 32
    max_tokens: int = 512
    is_hetero: bool = False  # whether scene tokens too are projected per domain
    action_dim: int = 20
    proprio_dim: int = 20
    dropout: float = 0.1


class DomainLinear(nn.Module):
    """A linear layer with its own weight and bias for each domain, stored as rows of two tables.

    A row of `fc` reads (inputs, outputs), the transpose of nn.Linear. LoRA does not reach these layers.
    """

    def __init__(self, width_in: int, width_out: int, domains: int) -> None:
        super().__init__()
        self.fc = nn.Embedding(domains, width_in * width_out)
        self.bias = nn.Embedding(domains, width_out)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """x (B, T, width_in), domain (B,) int64 -> (B, T, width_out)."""
        weight = self.fc(domain).reshape(x.shape[0], x.shape[-1], -1)
        return x @ weight + self.bias(domain)[:, None]


class SoftPromptedTransformer(nn.Module):
    """Noisy actions, time, proprio and a projected scene -> clean actions."""

    def __init__(self, sizes: SoftTransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.time_dim, self.prompts, self.is_hetero = sizes.time_dim, sizes.prompts, sizes.is_hetero
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.vlm_proj = self._scene_layer(sizes)
        self.aux_visual_proj = self._scene_layer(sizes)
        self.pos_emb = nn.Parameter(torch.randn(1, sizes.max_tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        token_width = sizes.action_dim + sizes.proprio_dim + sizes.time_dim
        self.action_encoder = DomainLinear(token_width, width, sizes.domains)
        self.action_decoder = DomainLinear(width, sizes.action_dim, sizes.domains)
        if sizes.prompts:
            self.soft_prompt_hub = nn.Embedding(sizes.domains, sizes.prompts * width)
            nn.init.normal_(self.soft_prompt_hub.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def scene(self, tokens: Tensor, auxiliary: Tensor, domain: Tensor, horizon: int) -> Tensor:
        """Scene part of the sequence, (B, tokens + auxiliary + prompts, width): what no action and no time changes.

        tokens, auxiliary: (B, length, context_width); domain: (B,). Positions follow those of the `horizon` action
        tokens; the soft prompts at the end have none.
        """
        if self.is_hetero:
            parts = [self.vlm_proj(tokens, domain), self.aux_visual_proj(auxiliary, domain)]
        else:
            parts = [self.vlm_proj(tokens), self.aux_visual_proj(auxiliary)]
        x = torch.cat(parts, dim=1)
        last = horizon + x.shape[1]
        if last > self.pos_emb.shape[1]:
            raise InputError(
                f"xvla: {last} tokens (horizon {horizon}, scene {x.shape[1]}) exceed max_tokens "
                f"{self.pos_emb.shape[1]}; show fewer or smaller views"
            )
        x = x + self.pos_emb[:, horizon:last]
        if not self.prompts:
            return x
        return torch.cat([x, self.soft_prompt_hub(domain).reshape(x.shape[0], self.prompts, -1)], dim=1)

    def forward(self, x_t: Tensor, t: Tensor, proprio: Tensor, domain: Tensor, scene: Tensor, layout: Layout) -> Tensor:
        """(rows, horizon, action_dim) from x_t of that shape, t (rows,) in [0, 1], proprio, domain, scene (B, ...)."""
        horizon = x_t.shape[1]
        constant = torch.cat([layout.per_row(proprio), self._time(t).to(x_t.dtype)], dim=-1)
        tokens = torch.cat([x_t, constant[:, None].expand(-1, horizon, -1)], dim=-1)
        x = layout.unpack(self.action_encoder(layout.pack(tokens), domain), horizon) + self.pos_emb[:, :horizon]
        x = torch.cat([x, layout.per_row(scene)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = layout.pack(self.norm(x[:, :horizon]))
        return layout.unpack(self.action_decoder(x, domain), horizon)

    def _time(self, t: Tensor) -> Tensor:
        """(rows, time_dim): cosines, then sines, of frequencies 100^(-i / half); an odd last number is zero."""
        half = self.time_dim // 2
        frequencies = 100.0 ** (-torch.arange(half, device=t.device) / half)
        angles = t.float()[:, None] * frequencies
        return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, self.time_dim % 2))

    @staticmethod
    def _scene_layer(sizes: SoftTransformerSizes) -> nn.Module:
        if sizes.is_hetero:
            return DomainLinear(sizes.context_width, sizes.width, sizes.domains)
        return nn.Linear(sizes.context_width, sizes.width)


class Block(nn.Module):
    def __init__(self, sizes: SoftTransformerSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width)
        self.attn = SelfAttention(sizes.width, sizes.heads, sizes.dropout)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.mlp = MLP(sizes.width, int(sizes.width * sizes.mlp_ratio), sizes.width, dropout=sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
