"""DP-VLA, the paper's NAVSIM model: Florence-2 encoder, diffusion-transformer head, VP diffusion, DPM-Solver++.

The class builds at its published size by default and small by `DPVLAConfig.tiny()`; both are saved and loaded as the
same kind of folder. The head is in `backbones.dit`, the encoder in `backbones.florence`, the prompt in
`backbones.prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context, JoinedSizes, Observation
from dipole_vla.backbones.dit import DiT, DiTSizes, Layout, packed, unpacked
from dipole_vla.backbones.florence.encoder import FlorenceEncoder, FlorenceSizes, small_florence
from dipole_vla.backbones.native import Prompted
from dipole_vla.backbones.observing import all_shown, history, normalised_pixels, pixels
from dipole_vla.backbones.prompt import prompt_ids, small_tokenizer
from dipole_vla.paths import Prediction, VPLinear
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PUBLISHED_SOLVER = SolverSpec("dpm++2m", steps=10, start_scale=0.5)
# For actions of unit variance. At t = 1 an error of the predicted noise counts 150-fold in the clean action, which a
# model trained for minutes shows as wild plans unless the estimate is kept where data are.
SMALL_SOLVER = SolverSpec("dpm++2m", steps=10, start_scale=1.0, clamp=(-5.0, 5.0))

_BLOCK = r"decoder\.blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.proj(_[qkv])?|(mlp|cross_mlp)\.fc[12])"
_TEXT = r"encoder\.language_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|fc[12])"


@dataclass(frozen=True)
class DPVLAConfig(FlorenceSizes, DiTSizes, JoinedSizes):
    """All sizes of a DP-VLA model; the defaults are the published 1.03 B parameters."""

    image_size: int = 384
    cameras: tuple[str, ...] = ("CAM_L0", "CAM_F0", "CAM_R0")
    prompt_tokens: int = 40
    prediction: str = "noise"  # "noise" (published base) or "sample" (its successor, with kinematic "diff")

    def __post_init__(self) -> None:
        if self.prediction not in ("noise", "sample"):
            raise InputError(f"config.prediction: DP-VLA predicts noise or sample, got {self.prediction!r}")
        self.check_read_by(self.context_width)

    @classmethod
    def tiny(cls, width: int = 64, **overrides: Any) -> DPVLAConfig:
        """A model of about a million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            **small_florence(width, layers=1, vocabulary=len(small_tokenizer())),
            "width": width,
            "depth": 3,
            "heads": 4,
            "input_width": width,
            "context_width": width,
            "dropout": 0.0,
            "image_size": 64,
        }
        return cls(**{**sizes, **overrides})


class DPVLA(Prompted):
    """See the module docstring. Parameters: `encoder.*` (transformers' names), `decoder.*` (published names)."""

    family = "dp_vla"
    config_class = DPVLAConfig
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _BLOCK, "all": f"({_BLOCK}|{_TEXT})"}

    def __init__(
        self,
        config: DPVLAConfig,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action or ActionSpec(config.horizon, config.action_dim), solver)
        self.encoder = FlorenceEncoder(config.part(FlorenceSizes))
        self.decoder = DiT(config.part(DiTSizes))
        self.tokenizer = tokenizer
        self.config: DPVLAConfig

    @classmethod
    def tiny(cls, config: DPVLAConfig | None = None, solver: SolverSpec = SMALL_SOLVER) -> DPVLA:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or DPVLAConfig.tiny(), solver=solver, tokenizer=small_tokenizer())

    @property
    def schedule(self) -> VPLinear:
        return VPLinear()

    @property
    def prediction(self) -> Prediction:
        return self.config.prediction  # type: ignore[return-value]

    def processor(self) -> DPVLAProcessor:
        if self.tokenizer is None:
            raise InputError("dp_vla: this model has no tokenizer; load it from a folder that holds one")
        return DPVLAProcessor(self.config.cameras, self.config.image_size, self.config.prompt_tokens, self.tokenizer)

    def encode(self, observation: Observation) -> Context:
        """pixels (B, views, 3, H, W), uint8 or normalised floats; input_ids (B, length); proprio (B, 12)."""
        dtype = self.decoder.pos_emb.dtype
        pixels = normalised_pixels(observation["pixels"]).to(dtype)
        tokens = self.encoder(pixels, observation["input_ids"])
        return Context({"tokens": tokens, "proprio": observation["proprio"].to(dtype)})

    def prepare(self, context: Context) -> Context:
        """Adds every block's keys and values of the scene: most of the head's work, since scene tokens outnumber
        action tokens by far."""
        return context.extended(packed(self.decoder.project(context["tokens"])))

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        dtype = self.decoder.pos_emb.dtype
        context = context if "keys.0" in context else self.prepare(context)
        layout = Layout(len(context), x_t.shape[0], context.serves)
        time = self.schedule.network_time(t)
        return self.decoder(x_t.to(dtype), time, context["proprio"], unpacked(context.tensors), layout).float()

    def features(self, context: Context) -> Tensor:
        """(B, (views + 1) * width + 12): each view's mean token, the mean of all tokens, and the ego history."""
        tokens = context["tokens"].float()
        views = len(self.config.cameras)
        per_view = (tokens.shape[1] - self.config.prompt_tokens) // views
        view_means = tokens[:, : views * per_view : per_view].flatten(1)
        return torch.cat([view_means, tokens.mean(1), context["proprio"].float()], dim=-1)


@dataclass(frozen=True)
class DPVLAProcessor:
    """Scene row and pictures -> pixels (views, 3, size, size) uint8, input_ids (length,), proprio (12,)."""

    cameras: tuple[str, ...]
    image_size: int
    prompt_tokens: int
    tokenizer: PreTrainedTokenizerFast

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "input_ids": prompt_ids(self.tokenizer, scene, self.prompt_tokens),
            "proprio": history(scene),
        }

    def shown(self, image: Image) -> Tensor:
        """(3, size, size) uint8, the aspect ratio not kept (as published)."""
        return pixels(image.resize((self.image_size, self.image_size), Resampling.BICUBIC))
