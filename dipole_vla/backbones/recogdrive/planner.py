"""ReCogDrive's planner: a diffusion transformer over eight poses, under its published parameter names.

Even blocks attend among the poses, odd ones to the scene. There is no mask anywhere: every hidden state of the
language model counts, padding rows too, in the attention and in the mean. The schedule's tables are not stored; an
importer checks those of a file against `dipole_vla.paths.CosineTable`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from dipole_vla.backbones.dit import KeysValues, Layout

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class PlannerSizes:
    """Sizes of the planner; the defaults are the published "small" one on InternVL3-2B."""

    heads: int = 8
    head_dim: int = 48
    depth: int = 16
    output_width: int = 512
    hidden: int = 1024  # of the small MLPs
    feature_width: int = 1536  # of the language model
    positions: int = 8  # longest plan
    action_dim: int = 3
    history_dim: int = 12
    status_dim: int = 8
    is_biased: bool = True  # queries, keys and values have biases

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Planner(nn.Module):
    """Noisy poses, time, history, status and the scene's hidden states -> the raw prediction."""

    def __init__(self, sizes: PlannerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.model = DiT(sizes)
        self.his_traj_encoder = NormedMLP(sizes.history_dim, sizes.hidden, width)
        self.ego_status_encoder = NormedMLP(sizes.status_dim, sizes.hidden, width)
        self.action_encoder = ActionEncoder(sizes.action_dim, width)
        self.feature_encoder = nn.Linear(sizes.feature_width, width)
        self.fusion_projector = nn.Linear(3 * width, width)
        self.action_decoder = NormedMLP(sizes.output_width, sizes.hidden, sizes.action_dim)
        self.position_embedding = nn.Embedding(sizes.positions, width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        history: Tensor,
        status: Tensor,
        mean: Tensor,
        scene: list[KeysValues],
        layout: Layout,
    ) -> Tensor:
        """(rows, horizon, action_dim) from x_t of that shape and the raw time t (rows,).

        history (B, history_dim), status (B, status_dim), mean (B, width) of the scene tokens; scene: keys and values
        of the odd blocks.
        """
        steps = x_t.shape[1]
        action = self.action_encoder(x_t, t) + self.position_embedding.weight[:steps]
        per_scene = torch.cat([self.his_traj_encoder(history), mean], dim=-1)
        per_row = layout.per_row(per_scene)[:, None].expand(-1, steps, -1)
        x = self.fusion_projector(torch.cat([per_row, action], dim=-1))
        return self.action_decoder(self.model(x, t, layout.per_row(self.ego_status_encoder(status)), scene, layout))


class DiT(nn.Module):
    def __init__(self, sizes: PlannerSizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        self.timestep_encoder = TimeEncoder(sizes.width)
        self.transformer_blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.final_layer = FinalLayer(sizes.width, sizes.output_width)
        for modulated in (
            *(block.adaLN_modulation for block in self.transformer_blocks),
            self.final_layer.modulation_proj,
        ):
            for parameter in modulated.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)

    def project(self, tokens: Tensor) -> list[KeysValues]:
        """Keys and values of the odd blocks for scene tokens (B, length, width): the part without x_t and t."""
        return [block.attn.project(tokens) for block in self.transformer_blocks[1::2]]  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, scene: list[KeysValues], layout: Layout) -> Tensor:
        condition = self.timestep_encoder(t, x.dtype) + condition
        rotation = _rotation(x.shape[1], self.head_dim, x)
        for number, block in enumerate(self.transformer_blocks):
            x = block(x, condition, scene[number // 2] if number % 2 else None, rotation, layout)
        return self.final_layer(x, condition)


class Block(nn.Module):
    def __init__(self, sizes: PlannerSizes) -> None:
        super().__init__()
        self.norm1 = RMSNorm(sizes.width)
        self.attn = Attention(sizes)
        self.norm2 = RMSNorm(sizes.width)
        self.ffn = SwiGLU(sizes.width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(sizes.width, 6 * sizes.width))

    def forward(
        self, x: Tensor, condition: Tensor, scene: KeysValues | None, rotation: tuple[Tensor, Tensor], layout: Layout
    ) -> Tensor:
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, scene, rotation, layout)
        return x + gate_ffn * self.ffn(self.norm2(x) * (1 + scale_ffn) + shift_ffn)


class Attention(nn.Module):
    """Among the poses, or from the poses to a scene's projected tokens; heads of queries and keys are normalised."""

    def __init__(self, sizes: PlannerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.to_q = nn.Linear(width, width, bias=sizes.is_biased)
        self.to_k = nn.Linear(width, width, bias=sizes.is_biased)
        self.to_v = nn.Linear(width, width, bias=sizes.is_biased)
        self.q_norm = RMSNorm(sizes.head_dim)
        self.k_norm = RMSNorm(sizes.head_dim)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def project(self, tokens: Tensor) -> KeysValues:
        return KeysValues(self.k_norm(self._heads(self.to_k(tokens))), self._heads(self.to_v(tokens)))

    def forward(self, x: Tensor, scene: KeysValues | None, rotation: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """Positions turn the queries everywhere, the keys only among the poses."""
        queries = _rotated(self.q_norm(self._heads(self.to_q(x))), rotation)
        if scene is None:
            keys, values = self.project(x)
            attended = scaled_dot_product_attention(queries, _rotated(keys, rotation), values)
            return self.to_out[0](attended.transpose(1, 2).flatten(2))
        packed = self._heads(layout.pack(queries.transpose(1, 2).flatten(2)))
        attended = scaled_dot_product_attention(packed, scene.keys, scene.values)
        return self.to_out[0](layout.unpack(attended.transpose(1, 2).flatten(2), x.shape[1]))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, heads, T, head_dim)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32, with a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * width)
        self.w3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(silu(gate) * value)


class NormedMLP(nn.Module):
    """Linear, exact GELU, LayerNorm, Linear."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(nn.functional.gelu(self.fc1(x))))


class ActionEncoder(nn.Module):
    """Poses and a sinusoid of the time (sines first, frequencies 10000^(-i/half)), joined and mixed."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.fc1 = nn.Linear(action_dim, width)
        self.fc2 = nn.Linear(2 * width, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        angles = _angles(t, half, half)
        time = torch.cat([angles.sin(), angles.cos()], dim=-1).to(x_t.dtype)[:, None].expand(-1, x_t.shape[1], -1)
        return self.fc3(silu(self.fc2(torch.cat([self.fc1(x_t), time], dim=-1))))


class TimeEncoder(nn.Module):
    """Sinusoid of the raw time (256 numbers, cosines first, frequencies 10000^(-i/127)), then an MLP."""

    size = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(self.size, width), "linear_2": nn.Linear(width, width)}
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        angles = _angles(t, self.size // 2, self.size // 2 - 1)
        x = self.timestep_embedder["linear_1"](torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return self.timestep_embedder["linear_2"](silu(x))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, out)
        self.modulation_proj = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation_proj(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def rotary_frequencies(head_dim: int, device: torch.device | None = None) -> Tensor:
    """(head_dim / 2,) float32."""
    return ROTARY_BASE ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)


def _rotation(steps: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (steps, head_dim)."""
    angles = torch.arange(steps, device=like.device, dtype=torch.float32)[:, None]
    angles = (angles * rotary_frequencies(head_dim, like.device)).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def _angles(t: Tensor, count: int, span: int) -> Tensor:
    """(rows, count): time times 10000^(-i/span)."""
    frequencies = torch.exp(-math.log(ROTARY_BASE) * torch.arange(count, device=t.device, dtype=torch.float32) / span)
    return t.float()[:, None] * frequencies
