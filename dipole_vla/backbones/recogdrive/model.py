"""ReCogDrive: InternVL language model, diffusion-transformer planner; noise by DDIM or velocity by Euler steps.

The class builds at its published size (2B) by default and small by `ReCogDriveConfig.tiny()`. The planner is in
`planner.py`, the language model in `internvl/`, tiles and prompt in `input.py`, the reading of
published files in `importer.py`. A model may hold the planner alone and be given hidden states that the
language model wrote before, as its own authors train it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context, JoinedSizes, Observation
from dipole_vla.backbones.dit import Layout, packed, unpacked
from dipole_vla.backbones.internvl import model as internvl
from dipole_vla.backbones.internvl.model import InternVLSizes
from dipole_vla.backbones.native import Prompted, restore_buffers
from dipole_vla.backbones.observing import all_shown, history, normalised_pixels, status
from dipole_vla.backbones.recogdrive.input import IMAGE_TOKEN, padded_ids, picture_tiles, prompt, small_tokenizer
from dipole_vla.backbones.recogdrive.planner import Planner, PlannerSizes
from dipole_vla.paths import CosineTable, LinearFlow, Prediction, Schedule
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Bounds that the published code maps to [-1, 1], (low, high) of x, y and heading: metres and radians, or per second.
BOUNDS: dict[str, tuple[tuple[float, float], ...]] = {
    "waypoint": ((-1.57, 65.17), (-19.68, 22.32), (-1.67, 1.86)),
    "velocity": ((-1.62, 29.72), (-9.38, 9.98), (-1.02, 0.86)),
}

DDIM = SolverSpec("ddim", steps=5, clamp=(-1.0, 1.0))
EULER = SolverSpec("euler", steps=5, clamp=(-1.0, 1.0), clamp_at="end")

_BLOCK = (
    r"action_head\.model\.transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0)|ffn\.(w12|w3)|adaLN_modulation\.1)"
)
_TEXT = r"vlm\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True)
class ReCogDriveConfig(InternVLSizes, PlannerSizes, JoinedSizes):
    """All sizes of a ReCogDrive model, and how scenes are shown to it; the defaults are the published 2B.

    prediction: "noise" (the published files, DDIM) or "velocity" (the flow variant).
    has_vlm: false for the planner alone. prompt_tokens: length every prompt is padded to. max_tiles: without thumbnail.
    """

    prediction: str = "noise"
    train_steps: int = 100  # times of the noise schedule
    has_vlm: bool = True
    camera: str = "CAM_F0"
    prompt_tokens: int = 2800
    max_tiles: int = 12

    def __post_init__(self) -> None:
        if self.prediction not in ("noise", "velocity"):
            raise InputError(f"config.prediction: ReCogDrive predicts noise or velocity, got {self.prediction!r}")
        if self.has_vlm and self.feature_width != self.text_width:
            raise InputError(
                f"config.feature_width: the planner reads {self.feature_width} numbers, the language model writes "
                f"{self.text_width}; pass the language model that belongs to this planner"
            )

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> ReCogDriveConfig:
        """A model of about 0.2 million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            "vision_width": width,
            "vision_layers": 2,
            "vision_heads": 4,
            "vision_hidden": 2 * width,
            "vision_patch": 8,
            "tile_size": 32,
            "text_width": width,
            "text_layers": 2,
            "text_heads": 4,
            "text_kv_heads": 2,
            "text_hidden": 2 * width,
            "text_vocabulary": len(small_tokenizer()),
            "text_positions": 1024,
            "heads": 4,
            "head_dim": width // 4,
            "depth": 4,
            "output_width": width,
            "hidden": 2 * width,
            "feature_width": width,
            "prompt_tokens": 640,
            "max_tiles": 2,
        }
        return cls(**{**sizes, **overrides})


class ReCogDrive(Prompted):
    """See the module docstring. Parameters: `vlm.*` (transformers' names), `action_head.*` (published names)."""

    family = "recogdrive"
    config_class = ReCogDriveConfig
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _BLOCK, "all": f"({_BLOCK}|{_TEXT})"}
    encoder_names = ("vlm.",)
    lengths = ("tiles",)
    """What says how much of another tensor of an observation is real; without it all is, and no data need be asked."""

    def __init__(
        self,
        config: ReCogDriveConfig,
        action: ActionSpec | None = None,
        solver: SolverSpec | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        default = DDIM if config.prediction == "noise" else EULER
        super().__init__(config, action or bounded_action(config.positions), solver or default)
        self.vlm = internvl.build(config.part(InternVLSizes)) if config.has_vlm else None
        self.action_head = Planner(config.part(PlannerSizes))
        self.tokenizer = tokenizer
        self.config: ReCogDriveConfig

    @classmethod
    def tiny(cls, config: ReCogDriveConfig | None = None, solver: SolverSpec | None = None) -> ReCogDrive:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        tokenizer = small_tokenizer()
        config = replace(config or ReCogDriveConfig.tiny(), image_token=image_token_of(tokenizer))
        return cls(config, solver=solver, tokenizer=tokenizer)

    @property
    def schedule(self) -> Schedule:
        if self.config.prediction == "noise":
            return CosineTable(self.config.train_steps)
        # level = Beta(1.5, 1) / 0.999, so the noisiest of times lies a thousandth beyond pure noise, as published
        return LinearFlow(noise_at=0, power=1.5, slope=1 / 0.999, network_scale=1000)

    @property
    def prediction(self) -> Prediction:
        return self.config.prediction  # type: ignore[return-value]

    def processor(self) -> ReCogDriveProcessor:
        if self.vlm is None or self.tokenizer is None:
            missing = "language model" if self.vlm is None else "tokenizer"
            raise InputError(
                f"recogdrive: this model has no {missing}, so it cannot read scenes; import it again with --encoder "
                "and the folder of the language model"
            )
        config = self.config
        return ReCogDriveProcessor(
            config.camera,
            config.tile_size,
            config.max_tiles,
            config.tokens_per_tile,
            config.prompt_tokens,
            self.action.horizon,
            self.tokenizer,
        )

    def encode(self, observation: Observation) -> Context:
        """proprio (B, 12) history, status (B, 8), and either what the language model reads or what it wrote.

        Reads: pixels (B, T, 3, S, S), uint8 or normalised floats, of which the first tiles (B,) are real (all, if not
        given); input_ids, attention_mask (B, length). Wrote: last_hidden_state (B, length, feature_width).
        """
        dtype = self.action_head.feature_encoder.weight.dtype
        hidden = observation.get("last_hidden_state")
        if hidden is None:
            hidden = self._read(observation)
        hidden = hidden.to(dtype)
        return Context(
            {
                "tokens": self.action_head.feature_encoder(hidden),
                "hidden": hidden.float().mean(1),
                "proprio": observation["proprio"].to(dtype),
                "status": observation["status"].to(dtype),
            }
        )

    def _read(self, observation: Observation) -> Tensor:
        if self.vlm is None:
            raise InputError("recogdrive: this model is the planner alone; give it last_hidden_state, not pictures")
        pixels = observation["pixels"]
        counts = observation.get("tiles")
        ids = observation["input_ids"]
        mask = observation.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        dtype = next(self.vlm.parameters()).dtype
        return internvl.hidden_states(self.vlm, normalised_pixels(pixels).to(dtype), counts, ids, mask)

    def prepare(self, context: Context) -> Context:
        """Adds the scene's mean token and the keys and values of every block that attends to it."""
        projected = self.action_head.model.project(context["tokens"])
        return context.extended({"mean": context["tokens"].mean(1), **packed(projected)})

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        head = self.action_head
        context = context if "mean" in context else self.prepare(context)
        layout = Layout(len(context), x_t.shape[0], context.serves)
        time = self.schedule.network_time(t)
        x_t = x_t.to(head.feature_encoder.weight.dtype)
        return head(
            x_t, time, context["proprio"], context["status"], context["mean"], unpacked(context.tensors), layout
        ).float()

    def features(self, context: Context) -> Tensor:
        """(B, feature_width + 20): the language model's mean hidden state, the ego history and status."""
        return torch.cat([context[name].float() for name in ("hidden", "proprio", "status")], dim=-1)

    def load_assets(self, folder: Path) -> None:
        if self.vlm is not None:
            restore_buffers(self.vlm)
        super().load_assets(folder)


def bounded_action(horizon: int = 8, kinematic: str = "waypoint") -> ActionSpec:
    """The published action: poses, or their steps per second, mapped to [-1, 1] by fixed bounds."""
    bounds = BOUNDS[kinematic]
    return ActionSpec(
        horizon,
        dim=3,
        kinematic=kinematic,  # type: ignore[arg-type]
        heading="angle",
        offset=tuple((low + high) / 2 for low, high in bounds),
        scale=tuple((high - low) / 2 for low, high in bounds),
    )


@dataclass(frozen=True)
class ReCogDriveProcessor:
    """Scene row and front picture -> pixels, tiles, input_ids, attention_mask, proprio (12,), status (8,).

    pixels (max_tiles + 1, 3, S, S) uint8, black after the first `tiles`; ids and mask padded on the left.
    """

    camera: str
    tile_size: int
    max_tiles: int
    tokens_per_tile: int
    prompt_tokens: int
    horizon: int
    tokenizer: PreTrainedTokenizerFast

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.camera,)

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        (tiles,) = all_shown(scene, images, self)
        text = prompt(scene, len(tiles), self.tokens_per_tile, self.horizon)
        padded = padded_ids(self.tokenizer, text, self.prompt_tokens)
        if padded is None:
            raise InputError(
                f"scene {scene.get('token', '?')}: its prompt with {len(tiles)} picture tiles is longer than "
                f"prompt_tokens {self.prompt_tokens}; set config.max_tiles lower or prompt_tokens higher"
            )
        missing = self.max_tiles + 1 - len(tiles)
        pixels = torch.nn.functional.pad(tiles, (0, 0) * 3 + (0, missing)) if missing else tiles
        return {
            "pixels": pixels,
            "tiles": torch.tensor(len(tiles)),
            "input_ids": padded[0],
            "attention_mask": padded[1],
            "proprio": history(scene),
            "status": status(scene),
        }

    def shown(self, image: Image) -> Tensor:
        return picture_tiles(image, self.tile_size, self.max_tiles)


def image_token_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the placeholder that picture features replace."""
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if found is None:
        raise InputError(f"tokenizer: has no {IMAGE_TOKEN}; pass the tokenizer that belongs to this language model")
    return found
