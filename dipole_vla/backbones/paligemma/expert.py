"""A PaliGemma prefix read once, a Gemma action expert that denoises velocities, by transformers' own classes.

The prefix (pictures and prompt) becomes keys and values per layer, which all candidates of a scene share uncopied. The
expert's own token table, never used, is left out. A family adds how actions and time become tokens, and its prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from PIL import Image as Images
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PI0Config, PI0Model, PreTrainedTokenizerFast
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from dipole_vla.backbones.base import ActionSpec, Context, Observation
from dipole_vla.backbones.dit import Layout, unpacked
from dipole_vla.backbones.experts import PATH, PUBLISHED_SOLVER, ExpertLayer, Sight, Suffix, mask_beside, normed
from dipole_vla.backbones.native import Prompted, restore_buffers
from dipole_vla.backbones.observing import all_shown, history, pixels
from dipole_vla.backbones.prompt import small_tokenizer
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

P = TypeVar("P", bound="PrefixProcessor")

_LINEAR = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_EXPERT, _TEXT = rf"model\.dit\.{_LINEAR}", rf"model\.vlm\.language_model\.{_LINEAR}"


@dataclass(frozen=True)
class PaliGemmaSizes:
    """All sizes of both networks, and how scenes are shown to them; the defaults are the published ones.

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
    def tiny(cls, width: int = 32, **overrides: Any) -> Self:
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


class _Layer(ExpertLayer, GemmaDecoderLayer):
    """The expert's own."""


class PaliGemmaExpert(Prompted):
    """See the module docstring. Parameters: transformers' names, `model.vlm.*`, `model.dit.*` and the small layers."""

    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _EXPERT, "all": f"({_EXPERT}|{_TEXT})"}
    encoder_names = ("model.vlm.",)

    def __init__(
        self,
        config: PaliGemmaSizes,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action or ActionSpec(dim=config.max_action, is_padded=True), solver)
        self.model = PI0Model(config.native())
        self.model.dit.embed_tokens = None  # the expert is only ever given embedded actions
        for layer in self.model.dit.layers:
            layer.__class__ = _Layer
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action)
        self.tokenizer = tokenizer
        self.config: PaliGemmaSizes

    @property
    def schedule(self) -> LinearFlow:
        return PATH

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    @abstractmethod
    def suffix(self, context: Context, x_t: Tensor, t: Tensor, layout: Layout) -> Suffix:
        """What the expert reads of actions x_t (rows, horizon, max_action) at the network's times t (rows,)."""

    def encode(self, observation: Observation) -> Context:
        """The prefix's keys and values of every layer, (B, kv_heads, length, head_dim) each.

        pixels (B, views, 3, S, S), uint8 or floats in [-1, 1]; input_ids, attention_mask (B, length).
        Optional: view_mask (B, views), false where a view is missing; proprio (B, any), filled up with zeros.
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
        state = observation.get("proprio", mask[:, :0]).to(dtype)
        tensors = {"mask": mask.bool(), "state": pad(state, (0, self.config.max_state - state.shape[1]))}
        for i, layer in enumerate(output.cache.layers):
            tensors |= {f"keys.{i}": layer.keys, f"values.{i}": layer.values}
        weight = mask[..., None].float()
        tensors["mean"] = (output.last_hidden_state.float() * weight).sum(1) / weight.sum(1)
        return Context(tensors)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        layout = Layout(len(context), x_t.shape[0], context.serves)
        x_t = x_t.to(self.action_out_proj.weight.dtype)
        x, sees, condition = self.suffix(context, x_t, self.schedule.network_time(t), layout)
        first = layout.per_row(context["mask"].sum(1, keepdim=True))
        rotation = self.model.dit.rotary_emb(x, position_ids=first + torch.arange(x.shape[1], device=x.device))
        mask = mask_beside(context["mask"], layout.per_scene, sees)
        for layer, seen in zip(self.model.dit.layers, unpacked(context.tensors)):
            x = layer(x, Sight(rotation, seen, mask, layout), condition)
        x, _ = normed(self.model.dit.norm, x, condition)
        return self.action_out_proj(x[:, -x_t.shape[1] :]).float()

    def features(self, context: Context) -> Tensor:
        """(B, text_width + max_state): the prefix's mean hidden state and the ego state."""
        return torch.cat([context["mean"], context["state"].float()], dim=-1)

    def load_assets(self, folder: Path) -> None:
        restore_buffers(self.model)
        super().load_assets(folder)

    def prefix_processor(self, kind: type[P], **more: Any) -> P:
        """A processor of `kind` for this network; more: its fields beyond those of `PrefixProcessor`."""
        if self.tokenizer is None:
            raise InputError(f"{self.family}: this model has no tokenizer; import it again with --tokenizer FOLDER")
        config = self.config
        return kind(
            config.cameras,
            config.image_size,
            config.tokens_per_view,
            config.image_token,
            config.prompt_tokens,
            self.tokenizer,
            **more,
        )


@dataclass(frozen=True)
class PrefixProcessor(ABC):
    """Scene row and pictures -> pixels (views, 3, S, S) uint8, input_ids, attention_mask (length,), proprio (12,).

    Pictures keep their aspect on black; the ids are image places view by view, then the words, padded on the right.
    """

    cameras: tuple[str, ...]
    image_size: int
    tokens_per_view: int
    image_token: int
    prompt_tokens: int
    tokenizer: PreTrainedTokenizerFast

    @abstractmethod
    def words(self, scene: Mapping[str, Any], **options: Any) -> Mapping[str, list[int]]:
        """The tokenizer's input_ids and attention_mask of what is said of a scene; options: its own."""

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        words = self.words(scene, padding="max_length", truncation=True, max_length=self.prompt_tokens)
        places = len(self.cameras) * self.tokens_per_view
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "input_ids": torch.tensor([self.image_token] * places + words["input_ids"]),
            "attention_mask": torch.tensor([1] * places + words["attention_mask"]),
            "proprio": history(scene),
        }

    def shown(self, image: Image) -> Tensor:
        """(3, S, S) uint8: the longer side fills the square, the rest is black on both sides."""
        size = self.image_size
        ratio = max(image.width, image.height) / size
        width, height = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)
        square = Images.new("RGB", (size, size))
        shown = image.resize((width, height), Images.Resampling.BILINEAR)
        square.paste(shown, ((size - width) // 2, (size - height) // 2))
        return pixels(square)
