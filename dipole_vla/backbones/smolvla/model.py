"""SmolVLA: SmolVLM2's first layers read pictures, prompt and state once; a smaller expert denoises velocities.

The expert's layers attend by turns to the actions so far with the prefix's keys and values (joint), and to keys and
values of its own made of the prefix's (cross). The latter do not depend on the actions: `prepare` makes them. Both
networks are transformers' own classes. Reading published folders is in `importer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dipole_vla.backbones.base import ActionSpec, Context, Observation
from dipole_vla.backbones.dit import Layout, unpacked
from dipole_vla.backbones.experts import PATH, PUBLISHED_SOLVER, ActionTime, CrossLayer, ExpertLayer, Sight, mask_beside
from dipole_vla.backbones.native import Prompted, restore_buffers
from dipole_vla.backbones.observing import all_shown, history, pixels
from dipole_vla.backbones.prompt import prompt, small_tokenizer
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_EXPERT, _TEXT = rf"lm_expert\.{_LINEAR}", rf"vlm\.text_model\.{_LINEAR}"
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}  # lerobot's, whatever SmolVLM2's own configuration says


@dataclass(frozen=True)
class SmolVLASizes:
    """All sizes of a SmolVLA, and how scenes are shown to it; the defaults are the published ones.

    text_layers: those of SmolVLM2 that are kept. joint_every: joint layers are the first and every so many after it;
    1 for all, 0 for none. picture_size: of the square that pictures are fitted into; image_size: of SmolVLM2's table of
    positions. shuffle: patches along a side that become one token.
    state_offset, state_scale: the state is shown as (state - offset) / scale; empty: as it is.
    """

    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_hidden: int = 3072
    vision_patch: int = 16
    image_size: int = 512
    picture_size: int = 512
    shuffle: int = 4
    text_width: int = 960
    text_layers: int = 16
    text_heads: int = 15
    text_kv_heads: int = 5
    text_hidden: int = 2560
    text_vocabulary: int = 49280
    head_dim: int = 64
    norm_eps: float = 1e-5
    expert_width: int = 720
    expert_hidden: int = 2048
    joint_every: int = 2
    max_state: int = 32
    max_action: int = 32
    min_period: float = 4e-3
    max_period: float = 4.0
    cameras: tuple[str, ...] = ("CAM_F0", "CAM_L0", "CAM_R0")
    prompt_tokens: int = 48
    state_offset: tuple[float, ...] = ()
    state_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.expert_width % 2:
            raise InputError(f"config.expert_width: must be even, got {self.expert_width}")
        if self.picture_size % (self.vision_patch * self.shuffle):
            step = self.vision_patch * self.shuffle
            raise InputError(f"config.picture_size: must be a multiple of {step}, got {self.picture_size}")

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> SmolVLASizes:
        """A model of about 0.1 million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            "vision_width": width,
            "vision_layers": 1,
            "vision_heads": 4,
            "vision_hidden": 2 * width,
            "image_size": 64,
            "picture_size": 64,
            "shuffle": 2,
            "text_width": width,
            "text_layers": 3,
            "text_heads": 4,
            "text_kv_heads": 2,
            "text_hidden": 2 * width,
            "text_vocabulary": len(small_tokenizer()),
            "head_dim": 8,
            "expert_width": width,
            "expert_hidden": 2 * width,
            "max_state": 24,
            "max_action": 8,
        }
        return cls(**{**sizes, **overrides})

    def is_joint(self, layer: int) -> bool:
        return self.joint_every > 0 and layer % self.joint_every == 0

    def vlm(self) -> SmolVLMConfig:
        """SmolVLM2's own configuration, of the layers that are kept."""
        vision = {
            "hidden_size": self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "intermediate_size": self.vision_hidden,
            "patch_size": self.vision_patch,
            "image_size": self.image_size,
        }
        text = {"model_type": "llama", "vocab_size": self.text_vocabulary}
        text |= self._llama(self.text_width, self.text_hidden)
        config = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=self.shuffle)
        config._attn_implementation = "sdpa"
        return config

    def expert(self) -> LlamaConfig:
        config = LlamaConfig(
            vocab_size=1, bos_token_id=None, eos_token_id=None, **self._llama(self.expert_width, self.expert_hidden)
        )
        config._attn_implementation = "sdpa"
        return config

    def _llama(self, width: int, hidden: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "num_key_value_heads": self.text_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": _ROPE,
        }


class SmolVLA(Prompted):
    """See the module docstring. Parameters: lerobot's names without what they all begin with."""

    family = "smolvla"
    config_class = SmolVLASizes
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _EXPERT, "all": f"({_EXPERT}|{_TEXT})"}
    encoder_names = ("vlm.", "state_proj.")

    def __init__(
        self,
        config: SmolVLASizes,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action or ActionSpec(dim=config.max_action, is_padded=True), solver)
        self.config: SmolVLASizes
        self.tokenizer = tokenizer
        self.vlm = SmolVLMModel(config.vlm())
        self.lm_expert = _expert(config)
        self.state_proj = nn.Linear(config.max_state, config.text_width)
        periods = (config.min_period, config.max_period)
        self.action_time = ActionTime(config.expert_width, config.max_action, periods)
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action)

    @classmethod
    def tiny(cls, config: SmolVLASizes | None = None, solver: SolverSpec | None = None) -> SmolVLA:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or SmolVLASizes.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=small_tokenizer())

    @property
    def schedule(self) -> LinearFlow:
        return PATH

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    def processor(self) -> SmolVLAProcessor:
        if self.tokenizer is None:
            raise InputError("smolvla: this model has no tokenizer; import it again with --tokenizer FOLDER")
        config = self.config
        shown = (config.state_offset, config.state_scale)
        return SmolVLAProcessor(config.cameras, config.picture_size, config.prompt_tokens, self.tokenizer, *shown)

    def encode(self, observation: Observation) -> Context:
        """The prefix's keys and values of every layer: of joint layers (B, kv_heads, length, head_dim) each, of cross
        layers (B, length, kv_heads * head_dim).

        pixels (B, views, 3, S, S), uint8 or floats in [-1, 1]; input_ids, attention_mask (B, length); proprio (B, any).
        Optional: view_mask (B, views), false where a view is missing. The state is filled up with zeros.
        """
        embeds, mask, state = self._prefix(observation)
        is_state = torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1
        output = self.vlm.text_model(
            inputs_embeds=embeds,
            attention_mask=mask[:, None, None]
            & (is_state[:, None] | ~is_state),  # nothing but the state sees the state
            position_ids=mask.long().cumsum(-1) - 1,
            use_cache=True,
        )
        tensors = {"mask": mask, "state": state}
        for i, layer in enumerate(output.cache.layers):
            joint = self.config.is_joint(i)
            for name, seen in (("keys", layer.keys), ("values", layer.values)):
                tensors[f"{name}.{i}"] = seen if joint else seen.transpose(1, 2).flatten(2)
        weight = mask[..., None].float()
        tensors["mean"] = (output.last_hidden_state.float() * weight).sum(1) / weight.sum(1)
        return Context(tensors)

    def _prefix(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded pictures, words and state (B, length, width), which of them are real (B, length), and the state."""
        dtype, scale = self.action_out_proj.weight.dtype, self.config.text_width**0.5
        shown, ids = observation["pixels"], observation["input_ids"]
        shown = (shown.float() / 127.5 - 1 if shown.dtype == torch.uint8 else shown).to(dtype)
        views = observation.get("view_mask", torch.ones(shown.shape[:2], device=ids.device)).bool()
        images = self.vlm.connector(self.vlm.vision_model(pixel_values=shown.flatten(0, 1)).last_hidden_state)
        state = observation["proprio"].to(dtype)
        state = pad(state, (0, self.config.max_state - state.shape[1]))
        images = images.unflatten(0, shown.shape[:2])
        embeds = [images.flatten(1, 2) * scale, self.vlm.text_model.embed_tokens(ids) * scale]
        mask = [
            views.repeat_interleave(images.shape[2], 1),
            observation.get("attention_mask", torch.ones_like(ids)).bool(),
        ]
        embeds.append(self.state_proj(state)[:, None])
        return torch.cat(embeds, 1), torch.cat([*mask, torch.ones_like(views[:, :1])], 1), state

    def prepare(self, context: Context) -> Context:
        """With the cross layers' own keys and values, (B, kv_heads, length, head_dim), in place of the prefix's."""
        tensors = dict(context.tensors)
        for i, layer in enumerate(self._layers):
            if not self.config.is_joint(i):
                attention = layer.self_attn
                for name, project in (("keys", attention.k_proj), ("values", attention.v_proj)):
                    own = project(tensors[f"{name}.{i}"])
                    tensors[f"{name}.{i}"] = own.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        return Context(tensors, context.serves)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        context = context if self._is_prepared(context) else self.prepare(context)
        layout = Layout(len(context), x_t.shape[0], context.serves)
        x = self.action_time.tokens(x_t.to(self.action_out_proj.weight.dtype), self.schedule.network_time(t))
        steps = torch.arange(x.shape[1], device=x.device)
        first = layout.per_row(context["mask"].sum(1, keepdim=True))
        rotary: Any = self.lm_expert.rotary_emb
        joint = rotary(x, position_ids=first + steps)
        joint_sees = mask_beside(context["mask"], layout.per_scene, steps[:, None] >= steps)
        cross, cross_sees = rotary(x, position_ids=torch.zeros_like(first) + steps), context["mask"][:, None, None]
        for i, (layer, seen) in enumerate(zip(self._layers, unpacked(context.tensors))):
            rotation, mask = (joint, joint_sees) if self.config.is_joint(i) else (cross, cross_sees)
            x = layer(x, Sight(rotation, seen, mask, layout))
        return self.action_out_proj(self.lm_expert.norm(x)).float()

    @property
    def _layers(self) -> Any:  # of transformers' own class
        return self.lm_expert.layers

    def _is_prepared(self, context: Context) -> bool:
        return all(context[f"keys.{i}"].dim() == 4 for i in range(self.config.text_layers))

    def features(self, context: Context) -> Tensor:
        """(B, text_width + max_state): the prefix's mean hidden state and the ego state."""
        return torch.cat([context["mean"], context["state"].float()], dim=-1)

    def load_assets(self, folder: Path) -> None:
        restore_buffers(self.vlm)
        restore_buffers(self.lm_expert)
        super().load_assets(folder)


class _Joint(ExpertLayer, LlamaDecoderLayer):
    """Attends to the prefix and to the actions so far."""


class _Cross(CrossLayer, LlamaDecoderLayer):
    """Attends to keys and values of its own made of the prefix's."""


def _expert(sizes: SmolVLASizes) -> LlamaModel:
    """Without a token table, which is never used; cross layers read keys and values as wide as the prefix's."""
    expert = LlamaModel(sizes.expert())
    expert.embed_tokens = None  # type: ignore[assignment]
    layers: Any = expert.layers
    wide = sizes.text_kv_heads * sizes.head_dim
    for i, layer in enumerate(layers):
        layer.__class__ = _Joint if sizes.is_joint(i) else _Cross
        if not sizes.is_joint(i):
            layer.self_attn.k_proj = nn.Linear(wide, wide, bias=False)
            layer.self_attn.v_proj = nn.Linear(wide, wide, bias=False)
    return expert


@dataclass(frozen=True)
class SmolVLAProcessor:
    """Scene row and pictures -> pixels (views, 3, S, S) uint8, input_ids, attention_mask (length,), proprio (12,).

    The prompt is DP-VLA's and a newline; the state is the ego history. Pictures keep their aspect and lie at the lower
    right of a black square, resized without smoothing, as published.
    """

    cameras: tuple[str, ...]
    picture_size: int
    prompt_tokens: int
    tokenizer: PreTrainedTokenizerFast
    state_offset: tuple[float, ...] = ()
    state_scale: tuple[float, ...] = ()

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.prompt_tokens}
        words = self.tokenizer(prompt(scene) + "\n", **options)
        state = history(scene)
        if self.state_scale:
            state = (state - torch.tensor(self.state_offset)) / torch.tensor(self.state_scale)
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "input_ids": torch.tensor(words["input_ids"]),
            "attention_mask": torch.tensor(words["attention_mask"]),
            "proprio": state,
        }

    def shown(self, image: Image) -> Tensor:
        size = self.picture_size
        ratio = max(image.width, image.height) / size
        height, width = max(int(image.height / ratio), 1), max(int(image.width / ratio), 1)
        shown = interpolate(pixels(image)[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
        return pad(shown.round().to(torch.uint8), (size - width, 0, size - height, 0))
