"""Alpamayo 1 and 1.5: Qwen3-VL read once, an expert that denoises a unicycle's controls, by transformers' own classes.

The prompt, its pictures and, where asked for, the reasoning that the language model writes become keys and values per
layer (`reading.py`), which both signs and all candidates of a scene share uncopied: their tokens are laid side by side
in one sequence per scene, and a mask keeps the candidates apart. Reading published folders is in `importer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextModel

from dipole_vla.backbones import weights
from dipole_vla.backbones.alpamayo.input import CAMERAS, SPEED_UNIT, AlpamayoProcessor, Bins, id_of, small_tokenizer
from dipole_vla.backbones.alpamayo.reading import causal, positions_of, projected, read, see
from dipole_vla.backbones.base import Context, Observation
from dipole_vla.backbones.dit import KeysValues, Layout, packed, unpacked
from dipole_vla.backbones.experts import (
    PUBLISHED_SOLVER,
    ExpertLayer,
    Sight,
    beside,
    mask_beside,
    one_by_one,
    side_by_side,
)
from dipole_vla.backbones.native import Prompted, restore_buffers
from dipole_vla.backbones.unicycle import Unicycle
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

PUBLISHED_ACTION = Unicycle(
    offset=(0.02902694707164455, 0.0002692167976330542), scale=(0.6810426736454882, 0.026148280660833106)
)

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_EXPERT, _TEXT = rf"expert\.{_LINEAR}", rf"vlm\.model\.language_model\.{_LINEAR}"


@dataclass(frozen=True)
class AlpamayoSizes:
    """All sizes of an Alpamayo, and how scenes are shown to it; the defaults are those of version 1.5.

    names_views: version 1.5 is told cameras, frames and route, version 1 is not.
    reasoning: most tokens of reasoning that are written before a plan; 0 plans at once.
    cameras: in the order of the views. image_size: height, width.
    trajectory: first token and number of those that stand for plans and pasts, which no reasoning may hold.
    """

    vision_width: int = 1152
    vision_layers: int = 27
    vision_heads: int = 16
    vision_hidden: int = 4304
    vision_patch: int = 16
    vision_merge: int = 2
    vision_positions: int = 2304
    vision_deep: tuple[int, ...] = (8, 16, 24)
    text_width: int = 4096
    text_layers: int = 36
    text_heads: int = 32
    text_kv_heads: int = 8
    text_hidden: int = 12288
    text_vocabulary: int = 155697
    head_dim: int = 128
    rope_base: float = 5e6
    rope_sections: tuple[int, ...] = (24, 20, 20)
    epsilon: float = 1e-6
    expert_width: int = 2048
    expert_hidden: int = 8256
    expert_heads: int = 16
    input_layers: int = 2
    input_width: int = 512
    fourier: int = 20
    max_frequency: float = 100.0
    image_token: int = 151655
    start_token: int = 155681
    trajectory: tuple[int, ...] = (151669, 4000)
    past_bins: int = 1000
    past_low: tuple[float, ...] = (-4.0, -4.0, -10.0)
    past_high: tuple[float, ...] = (4.0, 4.0, 10.0)
    names_views: bool = True
    reasoning: int = 0
    cameras: tuple[str, ...] = ("CAM_L0", "CAM_F0", "CAM_R0")
    image_size: tuple[int, ...] = (320, 576)

    def __post_init__(self) -> None:
        unit = self.vision_patch * self.vision_merge
        if len(self.image_size) != 2 or any(side < unit or side % unit for side in self.image_size):
            raise InputError(f"config.image_size: must be height and width in whole {unit}s, got {self.image_size}")
        unnamed = [camera for camera in self.cameras if self.names_views and camera not in CAMERAS]
        if unnamed or not self.cameras:
            named = ", ".join(CAMERAS)
            raise InputError(
                f"config.cameras: must be some of {named}, which this version has names for, got {unnamed}"
            )
        if self.reasoning < 0:
            raise InputError(f"config.reasoning: must be a number of tokens >= 0, got {self.reasoning}")

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> AlpamayoSizes:
        """A model of about 0.1 million parameters with every part of the real one, for demos and tests."""
        tokenizer = small_tokenizer()
        sizes: dict[str, Any] = {
            "vision_width": width,
            "vision_layers": 2,
            "vision_heads": 4,
            "vision_hidden": 2 * width,
            "vision_patch": 8,
            "vision_positions": 16,
            "vision_deep": (0,),
            "text_width": width,
            "text_layers": 2,
            "text_heads": 4,
            "text_kv_heads": 2,
            "text_hidden": 2 * width,
            "text_vocabulary": len(tokenizer),
            "head_dim": 16,
            "rope_sections": (4, 2, 2),
            "expert_width": width,
            "expert_hidden": 2 * width,
            "expert_heads": 4,
            "input_width": width,
            "max_frequency": 2.0,  # with random weights the published waves turn rounding into metres
            "image_token": id_of(tokenizer, "<|image_pad|>"),
            "start_token": id_of(tokenizer, "<|traj_future_start|>"),
            "trajectory": (id_of(tokenizer, "<i0>"), 24),
            "past_bins": 16,
            "image_size": (32, 64),
        }
        return cls(**{**sizes, **overrides})

    def grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """Tokens of a picture of this height and width, high and wide."""
        high, wide = (side // (self.vision_patch * self.vision_merge) for side in size)
        return high, wide

    @property
    def bins(self) -> Bins:
        """The last of the trajectory tokens stand for the past."""
        first, count = self.trajectory
        return Bins(first + count - self.past_bins, self.past_bins, self.past_low, self.past_high)

    def native(self) -> Qwen3VLConfig:
        """The language model as transformers' own configuration."""
        vision = {
            "hidden_size": self.vision_width,
            "depth": self.vision_layers,
            "num_heads": self.vision_heads,
            "intermediate_size": self.vision_hidden,
            "patch_size": self.vision_patch,
            "spatial_merge_size": self.vision_merge,
            "num_position_embeddings": self.vision_positions,
            "deepstack_visual_indexes": list(self.vision_deep),
            "out_hidden_size": self.text_width,
        }
        text = self._text(self.text_width, self.text_hidden, self.text_heads)
        return Qwen3VLConfig(vision_config=vision, text_config=text, image_token_id=self.image_token)

    def native_expert(self) -> Qwen3VLTextConfig:
        """The expert's; it has no words, so its table is empty and dropped."""
        return Qwen3VLTextConfig(
            **self._text(self.expert_width, self.expert_hidden, self.expert_heads) | {"vocab_size": 1}
        )

    def _text(self, width: int, hidden: int, heads: int) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": self.rope_base, "mrope_section": list(self.rope_sections)}
        return {
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_attention_heads": heads,
            "num_hidden_layers": self.text_layers,
            "num_key_value_heads": self.text_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.text_vocabulary,
            "rms_norm_eps": self.epsilon,
            "rope_parameters": rope | {"mrope_interleaved": True},
        }


class Alpamayo(Prompted):
    """See the module docstring. Parameters: the published names, `vlm.*`, `expert.*`, `action_in_proj.*`, ...

    A frozen network may be cast whole; its plans stay exact, for the controls are integrated in float64.
    """

    family = "alpamayo"
    config_class = AlpamayoSizes
    action_class = Unicycle
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _EXPERT, "all": f"({_EXPERT}|{_TEXT})"}
    encoder_names = ("vlm.",)
    reads_blocks = True
    adapts_rows_only = True

    def __init__(
        self,
        config: AlpamayoSizes,
        action: Unicycle = PUBLISHED_ACTION,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action, solver)  # type: ignore[arg-type]  # controls, from the ego's own speed
        self.action: Unicycle  # type: ignore[assignment]
        self.vlm = Qwen3VLForConditionalGeneration(config.native())
        self.expert = Qwen3VLTextModel(config.native_expert())
        self.expert.embed_tokens = None  # type: ignore[assignment]  # the expert is only ever given embedded actions
        for layer in self.expert.layers:
            layer.__class__ = ActionLayer
        self.action_in_proj = ActionInput(config)
        self.action_out_proj = nn.Linear(config.expert_width, action.dim)
        self.tokenizer = tokenizer
        self.config: AlpamayoSizes

    @classmethod
    def tiny(cls, config: AlpamayoSizes | None = None, solver: SolverSpec | None = None) -> Alpamayo:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or AlpamayoSizes.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=small_tokenizer())

    @property
    def schedule(self) -> LinearFlow:
        return LinearFlow(noise_at=0)

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    def fingerprint(self) -> str:
        """As of every backbone; what is said before a plan is part of what the weights are asked."""
        facts = {"action": self.action.meaning(), "config": asdict(self.config)}
        return weights.fingerprint(weights.base_state(self), facts)

    def processor(self) -> AlpamayoProcessor:
        if self.tokenizer is None:
            raise InputError("alpamayo: this model has no tokenizer; import it again with --tokenizer FOLDER")
        config = self.config
        return AlpamayoProcessor(
            config.cameras,
            config.image_size,  # type: ignore[arg-type]
            math.prod(config.grid_of(config.image_size)),
            config.image_token,
            config.bins,
            self.action,
            config.names_views,
            config.reasoning > 0,
            self.tokenizer,
        )

    def encode(self, observation: Observation) -> Context:
        """The keys and values of prompt and reasoning, (B, kv_heads, length, head_dim) for each layer.

        pixels (B, views, 3, H, W), uint8 or floats in [-1, 1]; input_ids, attention_mask (B, length), padded on the
        left; speed (B,), whole micrometres per second.
        """
        text, ids = self.vlm.model.language_model, observation["input_ids"]
        mask = observation["attention_mask"].bool() if "attention_mask" in observation else torch.ones_like(ids).bool()
        pixels = observation["pixels"]
        pixels = pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels
        is_picture = ids == self.config.image_token
        seen = see(self.vlm.model.visual, pixels.flatten(0, 1).to(text.norm.weight.dtype))
        words, place = text.embed_tokens(ids), is_picture[..., None]
        deep = [torch.zeros_like(words).masked_scatter(place, feature.to(words.dtype)) for feature in seen.deep]
        positions, following = positions_of(is_picture, mask, self.config.grid_of(pixels.shape[-2:]))
        embedded = words.masked_scatter(place, seen.tokens.to(words.dtype))
        hidden, cache = read(text, embedded, positions, causal(mask), deep=deep)
        mean = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if self.config.reasoning:
            cache, mask, following = self._reasoned(hidden[:, -1:], cache, mask, following)
        told = {"mask": mask, "following": following, "speed": observation["speed"].long(), "mean": mean}
        return Context(told | packed(cache))

    def _reasoned(
        self, hidden: Tensor, cache: list[KeysValues], mask: Tensor, following: Tensor
    ) -> tuple[list[KeysValues], Tensor, Tensor]:
        """Cache, mask and next position after the likeliest reasoning, token by token, until a plan is to start.

        Always `reasoning` tokens long: what comes after a plan's start is not seen, and the last is made one.
        """
        most, text = self.config.reasoning, self.vlm.model.language_model
        first, count = self.config.trajectory
        running = torch.ones_like(mask[:, 0])
        for number in range(most):
            logits = self.vlm.lm_head(hidden)[:, -1].float()
            logits[:, first : first + count] = -torch.inf
            token = logits.argmax(-1) if number + 1 < most else torch.full_like(following, self.config.start_token)
            mask = torch.cat([mask, running[:, None]], dim=1)
            itself = torch.ones_like(running[:, None])  # a row that has ended sees something, which nobody reads
            seen = torch.cat([mask[:, :-1], itself], dim=1)[:, None, None]
            position = following[None, :, None].expand(3, -1, 1)
            hidden, cache = read(text, text.embed_tokens(token[:, None]), position, seen, cache)
            following = following + running.long()
            running = running & (token != self.config.start_token)
            if not running.any():
                break
        missing = most - number - 1
        cache = [KeysValues(*(pad(part, (0, 0, 0, missing)) for part in layer)) for layer in cache]
        return cache, pad(mask, (0, missing)), following

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        layout, steps = Layout(len(context), len(x_t), context.serves, context.rounds), x_t.shape[1]
        x = self.action_in_proj(x_t.to(self.action_out_proj.weight.dtype), self.schedule.network_time(t))
        positions = layout.per_row(context["following"][:, None]) + torch.arange(steps, device=x.device)
        rotation = self.expert.rotary_emb(x, positions[None].expand(3, -1, -1))
        sees = torch.ones(steps, steps, dtype=torch.bool, device=x.device)
        mask = mask_beside(context["mask"], layout.per_scene, sees)
        layers: Any = self.expert.layers
        for layer, seen in zip(layers, unpacked(context.tensors)):
            x = layer(x, Sight(rotation, seen, mask, layout))
        return self.action_out_proj(self.expert.norm(x)).float()

    def features(self, context: Context) -> Tensor:
        """(B, text_width + 1): the prompt's mean hidden state and the speed, m/s."""
        return torch.cat([context["mean"].float(), self._speed(context)], dim=-1)

    def to_action(self, raw: Tensor, context: Callable[[], Context]) -> Tensor:
        return self.action.encode(raw, self._speed(context()))

    def to_raw(self, action: Tensor, context: Callable[[], Context]) -> Tensor:
        return self.action.decode(action, self._speed(context()))

    @staticmethod
    def _speed(context: Context) -> Tensor:
        """(B, 1), m/s, float32."""
        return (context["speed"][:, None].double() * SPEED_UNIT).float()

    def load_assets(self, folder: Path) -> None:
        restore_buffers(self.vlm)
        restore_buffers(self.expert)
        super().load_assets(folder)


class ActionLayer(ExpertLayer, Qwen3VLTextDecoderLayer):
    """The expert's own: queries and keys are normalised, as the language model's."""

    def look(self, x: Tensor, sight: Sight) -> Tensor:
        queries, keys, values = (
            side_by_side(part.transpose(1, 2), sight.layout) for part in projected(self.self_attn, x, sight.rotation)
        )
        attended = beside(queries, KeysValues(keys, values), sight.seen, sight.mask)
        return self.self_attn.o_proj(one_by_one(attended, sight.layout, x.shape[1]))


class ActionInput(nn.Module):
    """Controls and time -> the expert's tokens, one for each step; under the published names."""

    def __init__(self, sizes: AlpamayoSizes) -> None:
        super().__init__()
        self.frequencies = sizes.fourier // 2, sizes.max_frequency
        self.encoder = nn.ModuleDict({"trunk": nn.Sequential(*_trunk(sizes))})
        self.norm = nn.LayerNorm(sizes.expert_width)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(rows, steps, width) of x_t (rows, steps, 2) and t (rows,)."""
        time = t.to(x_t.dtype)[:, None, None].expand(-1, x_t.shape[1], 1)
        return self.norm(self.encoder["trunk"](self._waves(torch.cat([x_t, time], dim=-1))))

    def _waves(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., n * fourier): sines, then cosines, number by number."""
        half, highest = self.frequencies
        frequencies = torch.logspace(0, math.log10(highest), half, device=x.device)
        angles = x.float()[..., None] * frequencies * (2 * math.pi)
        return (torch.cat([angles.sin(), angles.cos()], dim=-1) * math.sqrt(2)).flatten(-2).to(x.dtype)


def _trunk(sizes: AlpamayoSizes) -> list[nn.Module]:
    width = sizes.input_width
    layers: list[nn.Module] = [nn.Linear(3 * 2 * (sizes.fourier // 2), width), nn.SiLU()]
    for _ in range(sizes.input_layers - 1):
        layers += [nn.RMSNorm(width, eps=1e-5), nn.Linear(width, width), nn.SiLU()]
    return [*layers, nn.RMSNorm(width, eps=1e-5), nn.Linear(width, sizes.expert_width)]
