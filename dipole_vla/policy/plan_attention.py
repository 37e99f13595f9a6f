"""A plan that looks at a scene: one query of each plan attends to the scene's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PlanAttention(nn.Module):
    """(B, N, query_width) of plans and (B, L, token_width) of their scenes -> (B, N, 1)."""

    def __init__(
        self, query_width: int, tokens: int, token_width: int, hidden: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.query = nn.Sequential(
            nn.Linear(query_width, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
        )
        self.tokens = nn.Linear(token_width, hidden)
        self.places = nn.Parameter(torch.randn(tokens, hidden) * 0.02)
        self.layers = nn.ModuleList(_Layer(hidden, heads, dropout) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1))

    def forward(self, plans: Tensor, tokens: Tensor) -> Tensor:
        query, seen = self.query(plans), self.tokens(tokens) + self.places
        for layer in self.layers:
            query = layer(query, seen)
        return self.head(query)


class _Layer(nn.Module):
    """Attention of the plans to the scene, then a network of each plan's own; plans do not see each other."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.query = nn.LayerNorm(width), nn.Linear(width, width)
        self.key_value, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.own = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )

    def forward(self, plans: Tensor, seen: Tensor) -> Tensor:
        query = self._heads(self.query(self.norm(plans)))
        key, value = (self._heads(part) for part in self.key_value(seen).chunk(2, dim=-1))
        found = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        plans = plans + self.out(found)
        return plans + self.own(plans)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, heads, L, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
