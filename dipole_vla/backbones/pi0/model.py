"""PI0: a PaliGemma prefix read once, a Gemma action expert that denoises velocities, by transformers' own classes.

The prefix (pictures and prompt) becomes keys and values per layer, which all candidates of a scene share uncopied:
their tokens are laid side by side in one sequence per scene, and a mask keeps the candidates apart. The expert's own
token table, never used, is left out. Reading published folders is in `importer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image as Images
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu
from transformers import PI0Config, PI0Model, PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context, Observation
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.native import Prompted, restore_buffers
from dipole_vla.backbones.observing import history, pictures, pixels
from dipole_vla.backbones.prompt import prompt, small_tokenizer
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PUBLISHED_SOLVER = SolverSpec("euler", steps=10)

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_EXPERT, _TEXT = rf"model\.dit\.{_LINEAR}", rf"model\.vlm\.language_model\.{_LINEAR}"


@dataclass(frozen=True)
class PI0Sizes:
    """All sizes of a PI0 model, and how scenes are shown to it; the defaults are the published ones.

    cameras: in the order of the views.
    """

    vision_width: int = 1152
    vision_layers: int = 27
    vision_heads: int = 16
    vision_hidden: int = 4304
    vision_patch: int = 14
    image_size: int = 224
    text_width: int = 2048
    text_layers: int = 18
    text_heads: int = 8
    text_kv_heads: int = 1
    text_hidden: int = 16384
    text_vocabulary: int = 257152
    image_token: int = 257152
    expert_width: int = 1024
    expert_hidden: int = 4096
    expert_heads: int = 8
    head_dim: int = 256
    max_state: int = 32
    max_action: int = 32
    min_period: float = 4e-3
    max_period: float = 4.0
    cameras: tuple[str, ...] = ("CAM_F0", "CAM_L0", "CAM_R0")
    prompt_tokens: int = 48

    def __post_init__(self) -> None:
        if self.expert_width % 2:
            raise InputError(f"config.expert_width: must be even, got {self.expert_width}")

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> PI0Sizes:
        """A model of about 0.1 million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            "vision_width": width,
            "vision_layers": 1,
            "vision_heads": 4,
            "vision_hidden": 2 * width,
            "vision_patch": 16,
            "image_size": 32,
            "text_width": width,
            "text_layers": 2,
            "text_heads": 4,
            "text_hidden": 2 * width,
            "text_vocabulary": len(small_tokenizer()),
            "image_token": len(small_tokenizer()),
            "expert_width": width,
            "expert_hidden": 2 * width,
            "expert_heads": 4,
            "head_dim": 8,
            "max_state": 24,
            "max_action": 8,
        }
        return cls(**{**sizes, **overrides})

    @property
    def tokens_per_view(self) -> int:
        return (self.image_size // self.vision_patch) ** 2

    def native(self) -> PI0Config:
        """The same as transformers' own configuration."""
        text = {
            "model_type": "gemma",
            "hidden_size": self.text_width,
            "num_hidden_layers": self.text_layers,
            "intermediate_size": self.text_hidden,
            "num_attention_heads": self.text_heads,
            "num_key_value_heads": self.text_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.text_vocabulary,
        }
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "intermediate_size": self.vision_hidden,
            "patch_size": self.vision_patch,
            "image_size": self.image_size,
            "vision_use_head": False,
        }
        expert = {
            **text,
            "hidden_size": self.expert_width,
            "intermediate_size": self.expert_hidden,
            "num_attention_heads": self.expert_heads,
        }
        config = PI0Config(
            vlm_config={
                "model_type": "paligemma",
                "text_config": text,
                "vision_config": vision,
                "projection_dim": self.text_width,
                "image_token_id": self.image_token,
            },
            dit_config=expert,
            max_state_dim=self.max_state,
            max_action_dim=self.max_action,
            min_period=self.min_period,
            max_period=self.max_period,
        )
        config._attn_implementation = "sdpa"
        return config


class PI0(Prompted):
    """See the module docstring. Parameters: transformers' names, `model.vlm.*`, `model.dit.*` and the small layers."""

    family = "pi0"
    config_class = PI0Sizes
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _EXPERT, "all": f"({_EXPERT}|{_TEXT})"}
    encoder_names = ("model.vlm.",)

    def __init__(
        self,
        config: PI0Sizes,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action or ActionSpec(dim=config.max_action, is_padded=True), solver)
        self.model = PI0Model(config.native())
        self.model.dit.embed_tokens = None  # the expert is only ever given embedded actions
        self.embed_action_time = ActionTimeEmbedding(config)
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action)
        self.tokenizer = tokenizer
        self.config: PI0Sizes

    @classmethod
    def tiny(cls, config: PI0Sizes | None = None, solver: SolverSpec | None = None) -> PI0:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or PI0Sizes.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=small_tokenizer())

    @property
    def schedule(self) -> LinearFlow:
        return LinearFlow(noise_at=1, power=1.5, slope=0.999, floor=0.001)

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    def processor(self) -> PI0Processor:
        if self.tokenizer is None:
            raise InputError("pi0: this model has no tokenizer; import it again with --tokenizer FOLDER")
        config = self.config
        return PI0Processor(
            config.cameras,
            config.image_size,
            config.tokens_per_view,
            config.image_token,
            config.prompt_tokens,
            self.tokenizer,
        )

    def encode(self, observation: Observation) -> Context:
        """The prefix's keys and values of every layer, (B, kv_heads, length, head_dim) each.

        pixels (B, views, 3, S, S), uint8 or floats in [-1, 1]; input_ids, attention_mask (B, length); proprio (B, any).
        Optional: view_mask (B, views), false where a view is missing. The state is cut or filled up with zeros.
        """
        dtype = self.action_out_proj.weight.dtype
        pixels = observation["pixels"]
        pixels = (pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels).to(dtype)
        views = observation.get("view_mask")
        views = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device) if views is None else views.bool()
        ids, mask = observation["input_ids"], observation.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.long()
        embeds = self.model.embed_prefix(ids, pixels, views)
        output = self.model.vlm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(ids),  # one block: every token sees every other
            use_cache=True,
        )
        state = observation["proprio"].to(dtype)
        tensors = {"mask": mask.bool(), "state": pad(state, (0, self.config.max_state - state.shape[1]))}
        for i, layer in enumerate(output.cache.layers):
            tensors |= {f"keys.{i}": layer.keys, f"values.{i}": layer.values}
        weight = mask[..., None].float()
        tensors["mean"] = (output.last_hidden_state.float() * weight).sum(1) / weight.sum(1)
        return Context(tensors)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        layout = Layout(len(context), x_t.shape[0], context.serves)
        x_t = x_t.to(self.action_out_proj.weight.dtype)
        x = self.embed_action_time(layout.per_row(context["state"]), x_t, self.schedule.network_time(t))
        steps = x.shape[1]
        first = layout.per_row(context["mask"].sum(1, keepdim=True))
        positions = first + torch.arange(steps, device=x.device)
        rotation = self.model.dit.rotary_emb(x, position_ids=positions)
        mask = _mask(context["mask"], layout.per_scene, steps)
        for i, layer in enumerate(self.model.dit.layers):
            x = x + self._attend(layer, x, rotation, context[f"keys.{i}"], context[f"values.{i}"], mask, layout)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.action_out_proj(self.model.dit.norm(x)[:, 1:]).float()

    def _attend(
        self,
        layer: Any,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        layout: Layout,
    ) -> Tensor:
        """(rows, steps, width): each row attends to its scene's prefix and to itself."""
        attention, h = layer.self_attn, layer.input_layernorm(x)

        def packed(projected: Tensor, turn: bool) -> Tensor:
            """(rows, steps, heads * head_dim) -> (B, heads, G * steps, head_dim)."""
            heads = projected.unflatten(-1, (-1, self.config.head_dim))
            heads = _rotated(heads, rotation) if turn else heads
            return layout.pack(heads.flatten(2)).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

        queries, own = packed(attention.q_proj(h), True), packed(attention.k_proj(h), True)
        attended = scaled_dot_product_attention(
            queries,
            torch.cat([keys, own], dim=2),
            torch.cat([values, packed(attention.v_proj(h), False)], dim=2),
            attn_mask=mask,
            enable_gqa=True,
        )
        return attention.o_proj(layout.unpack(attended.transpose(1, 2).flatten(2), x.shape[1]))

    def features(self, context: Context) -> Tensor:
        """(B, text_width + max_state): the prefix's mean hidden state and the ego state."""
        return torch.cat([context["mean"], context["state"].float()], dim=-1)

    def load_assets(self, folder: Path) -> None:
        restore_buffers(self.model)
        super().load_assets(folder)


class ActionTimeEmbedding(nn.Module):
    """State, noisy actions and time -> the expert's tokens: one for the state, one per action."""

    def __init__(self, sizes: PI0Sizes) -> None:
        super().__init__()
        width = sizes.expert_width
        self.width, self.periods = width, (sizes.min_period, sizes.max_period)
        self.action_in_proj = nn.Linear(sizes.max_action, width)
        self.state_proj = nn.Linear(sizes.max_state, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def forward(self, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(rows, 1 + horizon, width)."""
        shortest, longest = self.periods
        place = torch.linspace(0, 1, self.width // 2, device=t.device)
        angles = t.float()[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** place))
        time = torch.cat([angles.sin(), angles.cos()], dim=-1).to(x_t.dtype)[:, None].expand(-1, x_t.shape[1], -1)
        joined = torch.cat([self.action_in_proj(x_t), time], dim=-1)
        actions = self.action_time_mlp_out(silu(self.action_time_mlp_in(joined)))
        return torch.cat([self.state_proj(state)[:, None], actions], dim=1)


def _mask(prefix: Tensor, rows: int, steps: int) -> Tensor:
    """(B, 1, rows * steps, length + rows * steps), true where a token may look.

    prefix (B, length): a scene's real tokens, seen by all. Rows do not see each other; the state, first of each row,
    does not see the actions.
    """
    number = torch.arange(rows * steps, device=prefix.device)
    row, step = number // steps, number % steps
    own = (row[:, None] == row) & ((step[:, None] > 0) | (step == 0))
    seen = prefix[:, None, None].expand(-1, -1, len(number), -1)
    return torch.cat([seen, own.expand(len(prefix), 1, -1, -1)], dim=-1)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x (rows, steps, heads, head_dim), turned by its positions."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@dataclass(frozen=True)
class PI0Processor:
    """Scene row and pictures -> pixels (views, 3, S, S) uint8, input_ids, attention_mask (length,), proprio (20,).

    The prompt is DP-VLA's: this model was published for robot arms and says nothing about driving. Pictures keep
    their aspect on black; the ids are image places view by view, then the prompt and a newline, padded on the right.
    """

    cameras: tuple[str, ...]
    image_size: int
    tokens_per_view: int
    image_token: int
    prompt_tokens: int
    tokenizer: PreTrainedTokenizerFast

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image]) -> Observation:
        text = f"{self.tokenizer.bos_token or ''}{prompt(scene)}\n"
        words = self.tokenizer(
            text, add_special_tokens=False, padding="max_length", truncation=True, max_length=self.prompt_tokens
        )
        places = len(self.cameras) * self.tokens_per_view
        return {
            "pixels": torch.stack([self._pixels(image) for image in pictures(scene, images, self.cameras)]),
            "input_ids": torch.tensor([self.image_token] * places + words["input_ids"]),
            "attention_mask": torch.tensor([1] * places + words["attention_mask"]),
            "proprio": history(scene),
        }

    def _pixels(self, image: Image) -> Tensor:
        """(3, S, S) uint8: the longer side fills the square, the rest is black on both sides."""
        size = self.image_size
        ratio = max(image.width, image.height) / size
        width, height = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)
        square = Images.new("RGB", (size, size))
        shown = image.resize((width, height), Images.Resampling.BILINEAR)
        square.paste(shown, ((size - width) // 2, (size - height) // 2))
        return pixels(square)
