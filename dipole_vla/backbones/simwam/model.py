"""SimWAM: Wan2.2's video expert reads the present picture once; an action expert denoises trajectories by flow.

Both are Wan's transformer (`wan.py`), of one depth and with the same heads. Under the published mask actions never
look at future frames, so none are made: what actions see of the video is the first frame's keys and values, the same at
every step. Both signs and all candidates of a scene share them uncopied. The prompt never changes; its embedding by
Wan's text encoder lies with the weights. Reading published files is in `importer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image as Images
from torch import Tensor, nn

from dipole_vla.backbones.base import ActionSpec, Backbone, Context, Observation
from dipole_vla.backbones.dit import KeysValues, Layout, packed, unpacked
from dipole_vla.backbones.experts import joint_mask
from dipole_vla.backbones.observing import all_shown, pixels, status
from dipole_vla.backbones.simwam.frame import CHANNELS, SHRINKS, FrameEncoder
from dipole_vla.backbones.simwam.wan import ActionExpert, Look, Mix, VideoExpert, attend
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PATH = LinearFlow(noise_at=1, shift=5.0)
PUBLISHED_ACTION = ActionSpec(heading="angle", dim=3, offset=(31.8, 1.32, 0.095), scale=(33.37, 21.0, 1.765))
"""x, y and heading; -1 and 1 are the published bounds of each."""
PUBLISHED_SOLVER = SolverSpec("euler", steps=10)
STATE = 8
"""Velocity (2), acceleration (2), command (4)."""

_LINEAR = r"blocks\.\d+\.(self|cross)_attn\.[qkvo]"


@dataclass(frozen=True)
class SimWAMSizes:
    """All sizes of a SimWAM, and how scenes are shown to it; the defaults are the published ones.

    time_width: of the sinusoids of the time. prompt_tokens: of the prompt's embedding, padding and all.
    image_size: height, width.
    """

    video_width: int = 3072
    video_hidden: int = 14336
    action_width: int = 1024
    action_hidden: int = 4096
    layers: int = 30
    heads: int = 24
    head_dim: int = 128
    text_width: int = 4096
    time_width: int = 256
    prompt_tokens: int = 256
    vae_width: int = 160
    cameras: tuple[str, ...] = ("CAM_F0",)
    image_size: tuple[int, ...] = (384, 672)

    def __post_init__(self) -> None:
        unit = 2 * SHRINKS
        if len(self.image_size) != 2 or any(side < unit or side % unit for side in self.image_size):
            raise InputError(f"config.image_size: must be height and width in whole {unit}s, got {self.image_size}")
        if len(self.cameras) != 1:
            raise InputError(f"config.cameras: must be the one that it sees, got {self.cameras}")
        if self.head_dim % 2 or self.head_dim // 3 % 2 or self.head_dim < 6:
            raise InputError(
                f"config.head_dim: it and the whole part of its third must be even, from 6 on, got {self.head_dim}"
            )
        if self.time_width < 2 or self.time_width % 2:
            raise InputError(f"config.time_width: must be even, got {self.time_width}")

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> SimWAMSizes:
        """A model of about 0.2 million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            "video_width": width,
            "video_hidden": 2 * width,
            "action_width": width,
            "action_hidden": 2 * width,
            "layers": 2,
            "heads": 2,
            "head_dim": 12,
            "text_width": width,
            "time_width": 16,
            "prompt_tokens": 6,
            "vae_width": 8,
            "image_size": (32, 64),
        }
        return cls(**{**sizes, **overrides})

    @property
    def shared(self) -> tuple[int, ...]:
        """What both experts have alike."""
        return self.layers, self.heads, self.head_dim, self.text_width, self.time_width


class SimWAM(Backbone):
    """See the module docstring. Parameters: `mixtures.video.*`, `mixtures.action.*`, `proprio_encoder.*` as published;
    `vae.*` as Wan2.2's.
    """

    family = "simwam"
    config_class = SimWAMSizes
    lora_scopes: ClassVar[Mapping[str, str]] = {
        "head": rf"mixtures\.action\.{_LINEAR}",
        "all": rf"mixtures\.(action|video)\.{_LINEAR}",
    }
    encoder_names = ("mixtures.video.", "proprio_encoder.", "vae.")
    adapts_rows_only = True
    reads_blocks = True

    def __init__(
        self, config: SimWAMSizes, action: ActionSpec = PUBLISHED_ACTION, solver: SolverSpec = PUBLISHED_SOLVER
    ) -> None:
        super().__init__(config, action, solver)
        self.config: SimWAMSizes
        if action.dim != 3:
            raise InputError(f"action.dim: must be 3 (x, y, heading), as this family has them, got {action.dim}")
        self.mixtures = nn.ModuleDict(
            {
                "video": VideoExpert(CHANNELS, config.video_width, config.video_hidden, *config.shared),
                "action": ActionExpert(action.dim, config.action_width, config.action_hidden, *config.shared),
            }
        )
        self.proprio_encoder = nn.Linear(STATE, config.text_width)
        self.vae = FrameEncoder(config.vae_width)
        self.prompt = nn.Buffer(torch.randn(config.prompt_tokens, config.text_width))

    @classmethod
    def tiny(cls, config: SimWAMSizes | None = None, solver: SolverSpec | None = None) -> SimWAM:
        """A small model with fresh weights (from torch's global generator), prompt and all."""
        return cls(config or SimWAMSizes.tiny(), solver=solver or PUBLISHED_SOLVER)

    @property
    def schedule(self) -> LinearFlow:
        return PATH

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    def processor(self) -> SimWAMProcessor:
        return SimWAMProcessor(self.config.cameras, self.config.image_size)

    def encode(self, observation: Observation) -> Context:
        """The video expert's keys and values, (B, heads, tokens, head_dim) for each layer, and what actions are told,
        the embedded prompt and state (B, prompt_tokens + 1, action_width).

        pixels (B, 3, H, W), uint8 or floats in [-1, 1]; proprio (B, 8): velocity, acceleration, command.
        """
        shown, state = observation["pixels"], observation["proprio"]
        shown = shown.float() / 127.5 - 1 if shown.dtype == torch.uint8 else shown
        latents = self.vae(shown.to(self.prompt.dtype))
        token = self.proprio_encoder(state.to(self.prompt.dtype))
        told = torch.cat([self.prompt.expand(len(state), -1, -1), token[:, None]], dim=1)
        tokens, seen = self.mixtures["video"](latents, told)
        action: Any = self.mixtures["action"]
        context = {"told": action.text_embedding(told), "mean": tokens.mean(1), "state": state}
        return Context(context | packed(seen))

    def prepare(self, context: Context) -> Context:
        """With keys and values of the action expert's cross-attention, "told.keys.0" and so on."""
        layers = packed(self.mixtures["action"].project(context["told"]))  # type: ignore[operator]
        return context.extended({f"told.{name}": tensor for name, tensor in layers.items()})

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        if "told.keys.0" not in context:
            context = self.prepare(context)
        of_told = {name[5:]: tensor for name, tensor in context.tensors.items() if name.startswith("told.")}
        seen, told = unpacked(context.tensors), unpacked(of_told)
        layout = Layout(len(context), len(x_t), context.serves, context.rounds)
        roles = Layout(len(told[0].keys), len(x_t), context.serves)  # what was prepared, each role has its own of
        sees = torch.ones(x_t.shape[1], x_t.shape[1], dtype=torch.bool, device=x_t.device)
        mask = joint_mask(sees.new_ones(1, seen[0].keys.shape[2]), layout.per_scene, sees)
        layers = [_attention(before, words, mask, layout, roles) for before, words in zip(seen, told)]
        action = self.mixtures["action"]
        time = 1000 * self.schedule.network_time(t)
        return action(x_t.to(self.prompt.dtype), time, layers).float()

    def features(self, context: Context) -> Tensor:
        """(B, video_width + 8): the picture's mean last token, and the state."""
        return torch.cat([context["mean"].float(), context["state"].float()], dim=-1)


def _attention(before: KeysValues, words: KeysValues, mask: Tensor, layout: Layout, roles: Layout) -> tuple[Mix, Look]:
    """How rows of actions attend in one layer: to their scene's picture and themselves, and to what they are told."""

    def mix(queries: Tensor, own: KeysValues) -> Tensor:
        steps, pack = queries.shape[2], partial(_side_by_side, layout)
        both = (torch.cat([seen, pack(mine)], dim=2) for seen, mine in zip(before, own))
        return layout.unpack(attend(pack(queries), KeysValues(*both), mask), steps)

    def look(queries: Tensor) -> Tensor:
        return roles.unpack(attend(_side_by_side(roles, queries), words), queries.shape[2])

    return mix, look


def _side_by_side(layout: Layout, heads: Tensor) -> Tensor:
    """(rows, heads, steps, head_dim) -> (B, heads, G * steps, head_dim)."""
    flat = layout.pack(heads.transpose(1, 2).flatten(2))
    return flat.unflatten(-1, (heads.shape[1], -1)).transpose(1, 2)


@dataclass(frozen=True)
class SimWAMProcessor:
    """The front picture stretched to `image_size`, and the ego's state in the order this model was shown it."""

    cameras: tuple[str, ...]
    image_size: tuple[int, ...]

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        (front,) = all_shown(scene, images, self)
        command, motion = status(scene).split([4, 4])
        return {"pixels": front, "proprio": torch.cat([motion, command])}

    def shown(self, image: Image) -> Tensor:
        high, wide = self.image_size
        return pixels(image.resize((wide, high), Images.Resampling.BILINEAR))
