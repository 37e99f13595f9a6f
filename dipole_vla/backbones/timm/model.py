"""A small driving model: any timm image encoder and DP-VLA's action head, 20 to 100 million parameters.

It reads pictures and the ego state, no prompt; it trains on one GPU, and its smallest form in CI. The encoder's
parameters keep timm's names under `encoder.`, so a file of timm weights is read strictly (`init --encoder_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import timm
import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from dipole_vla.backbones.base import ActionSpec, Backbone, Context, JoinedSizes, Observation
from dipole_vla.backbones.dit import DiT, DiTSizes, Layout, packed, unpacked
from dipole_vla.backbones.dp_vla.model import SMALL_SOLVER
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD, all_shown, history, normalised_pixels, pixels, status
from dipole_vla.backbones.source_files import read_weights
from dipole_vla.backbones.weights import assign_strict, read_json
from dipole_vla.paths import Prediction, VPLinear
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

_BLOCK = r"decoder\.blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.proj(_[qkv])?|(mlp|cross_mlp)\.fc[12])"
_ENCODER = r"encoder\..*\.(fc1|fc2|qkv|proj)"  # the linear layers of timm's blocks, whatever the encoder


@dataclass(frozen=True)
class TimmConfig(DiTSizes, JoinedSizes):
    """All sizes; the defaults are a ConvNeXt-T with a three-block head, 60 million parameters.

    encoder: a timm model name. image_size: (height, width) of each view, aspect not kept.
    image_mean, image_std, interpolation: as the encoder was trained with, which `TimmDriver.tiny` fills in. Empty is
        ImageNet's: a folder that says nothing was trained so.
    """

    width: int = 512
    depth: int = 3
    heads: int = 8
    context_width: int = 512
    proprio_dim: int = 20  # four poses of history, command one-hot, velocity, acceleration
    encoder: str = "convnext_tiny"
    image_size: tuple[int, ...] = (256, 448)
    cameras: tuple[str, ...] = ("CAM_L0", "CAM_F0", "CAM_R0")
    prediction: str = "noise"
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            numbers = getattr(self, name)
            if len(numbers) not in (0, 3) or (name == "image_std" and any(number <= 0 for number in numbers)):
                raise InputError(f"config.{name}: must be empty or three numbers, above 0 for a std, got {numbers}")
        if self.interpolation.upper() not in Resampling.__members__:
            known = ", ".join(name.lower() for name in Resampling.__members__)
            raise InputError(f"config.interpolation: must be one of {known}, got {self.interpolation!r}")
        if self.prediction not in ("noise", "sample"):
            raise InputError(f"config.prediction: this family predicts noise or sample, got {self.prediction!r}")
        if not timm.is_model(self.encoder):
            hint = did_you_mean(self.encoder, timm.list_models())
            raise InputError(f"config.encoder: timm has no model {self.encoder!r}{hint}; see timm.list_models()")

    @classmethod
    def tiny(cls, width: int = 32, **overrides: Any) -> TimmConfig:
        """A model of about half a million parameters, for demos and tests."""
        sizes: dict[str, Any] = {
            "width": width,
            "depth": 2,
            "heads": 4,
            "input_width": width,
            "context_width": width,
            "dropout": 0.0,
            "encoder": "test_convnext",
            "image_size": (64, 96),
        }
        return cls(**{**sizes, **overrides})


class TimmDriver(Backbone):
    """See the module docstring. Parameters: `encoder.*` (timm's names), `tokens.*`, `decoder.*` (as DP-VLA's)."""

    family = "timm"
    config_class = TimmConfig
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _BLOCK, "all": f"({_BLOCK}|{_ENCODER})"}

    def __init__(self, config: TimmConfig, action: ActionSpec | None = None, solver: SolverSpec = SMALL_SOLVER) -> None:
        super().__init__(config, action or ActionSpec(config.horizon, config.action_dim), solver)
        token_shape(config)  # an encoder that gives no tokens is refused before it is built
        self.encoder = image_encoder(config)
        self.tokens = SceneTokens(config)
        self.decoder = DiT(config.part(DiTSizes))
        self.config: TimmConfig

    @classmethod
    def tiny(cls, config: TimmConfig | None = None, solver: SolverSpec = SMALL_SOLVER) -> TimmDriver:
        """A small model with fresh weights (from torch's global generator), shown pictures as timm shows them."""
        model = cls(config or TimmConfig.tiny(), solver=solver)
        model._show(timm.data.resolve_model_data_config(model.encoder))
        return model

    def _show(self, trained_with: Mapping[str, Any]) -> None:
        """Take mean, std and interpolation from timm's description of an encoder, where none are set."""
        if not self.config.image_mean and not self.config.image_std:
            wanted: dict[str, Any] = {name: trained_with[key] for name, key in _SHOWN.items() if key in trained_with}
            shown: dict[str, Any] = {k: tuple(v) if k != "interpolation" else v for k, v in wanted.items()}
            self.config = replace(self.config, **shown)

    @property
    def schedule(self) -> VPLinear:
        return VPLinear()

    @property
    def prediction(self) -> Prediction:
        return self.config.prediction  # type: ignore[return-value]

    def processor(self) -> TimmProcessor:
        return TimmProcessor(self.config.cameras, self.config.image_size, self.config.interpolation)

    def read_encoder(self, path: Path) -> None:
        """Take the encoder's weights from a file of timm's; what the classifier needs alone is left out.

        A config.json of timm's beside the file says how these weights were trained, where the name alone does not.
        """
        unused = tuple(f"{name}." for name in _CLASSIFIER)
        file = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith(unused)}
        assign_strict(self.encoder, file, str(path))
        beside = path.parent / "config.json"
        described = read_json(beside) if beside.is_file() else {}
        trained_with = described.get("pretrained_cfg") if isinstance(described, dict) else None
        by_name = timm.data.resolve_model_data_config(self.encoder)
        if isinstance(trained_with, dict) and self.config.image_mean == tuple(by_name["mean"]):
            self.config = replace(self.config, image_mean=(), image_std=())
            self._show({**by_name, **trained_with})

    def encode(self, observation: Observation) -> Context:
        """pixels (B, views, 3, H, W), uint8 or normalised floats; proprio (B, 20)."""
        dtype = self.decoder.pos_emb.dtype
        mean, std = self.config.image_mean or IMAGE_MEAN, self.config.image_std or IMAGE_STD
        pixels = normalised_pixels(observation["pixels"], mean, std).to(dtype)
        features = channels_last(self.encoder.forward_features(pixels.flatten(0, 1)), self.encoder.num_features)
        return Context({"tokens": self.tokens(features, pixels.shape[1]), "proprio": observation["proprio"].to(dtype)})

    def prepare(self, context: Context) -> Context:
        """Adds every block's keys and values of the scene."""
        return context.extended(packed(self.decoder.project(context["tokens"])))

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        context = context if "keys.0" in context else self.prepare(context)
        layout = Layout(len(context), x_t.shape[0], context.serves)
        x_t = x_t.to(self.decoder.pos_emb.dtype)
        return self.decoder(
            x_t, self.schedule.network_time(t), context["proprio"], unpacked(context.tensors), layout
        ).float()

    def features(self, context: Context) -> Tensor:
        """(B, views * width + 20): each view's mean token and the ego state."""
        tokens = context["tokens"].float().unflatten(1, (len(self.config.cameras), -1)).mean(2).flatten(1)
        return torch.cat([tokens, context["proprio"].float()], dim=-1)

    def load_assets(self, folder: Path) -> None:
        """Buffers that no file holds (position indices of some encoders), from a second encoder: they are few."""
        if not any(buffer.is_meta for buffer in self.encoder.buffers()):
            return
        with torch.random.fork_rng(devices=[]):
            fresh = dict(image_encoder(self.config).named_buffers())
        for name, buffer in list(self.encoder.named_buffers()):
            if buffer.is_meta:
                owner, _, leaf = name.rpartition(".")
                setattr(self.encoder.get_submodule(owner), leaf, fresh[name])


_SHOWN = {"image_mean": "mean", "image_std": "std", "interpolation": "interpolation"}
"""Our names of what timm's data configuration says."""

_CLASSIFIER = ("head", "fc", "classifier", "fc_norm", "head_drop", "global_pool")
"""What timm's models have behind their features, each some of these; it would never see a gradient."""


def image_encoder(config: TimmConfig) -> Any:
    """The timm model without its classifier, for pictures of the configured size, fresh weights."""
    try:  # transformers are built for one picture size, convolutional encoders know of none
        model = timm.create_model(config.encoder, num_classes=0, img_size=tuple(config.image_size))
    except TypeError:
        model = timm.create_model(config.encoder, num_classes=0)
    for name in _CLASSIFIER:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
    return model


@lru_cache
def token_shape(config: TimmConfig) -> tuple[int, int]:
    """(tokens, channels) of one view's features; InputError for an encoder that gives none of pictures of this size."""
    try:
        with torch.device("meta"):
            encoder = image_encoder(config).eval()
            features = encoder.forward_features(torch.empty(1, 3, *config.image_size))
            found = channels_last(features, encoder.num_features)
    except InputError:
        raise
    except Exception as problem:  # the encoders of timm check themselves in many ways
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
        raise InputError(
            f"config.encoder: {config.encoder} cannot read pictures of {tuple(config.image_size)} ({reason}); "
            "change image_size or the encoder"
        ) from problem
    return found.shape[1], found.shape[2]


def channels_last(features: Tensor, width: int) -> Tensor:
    """Whatever an encoder's feature map is, (N, C, H, W), (N, H, W, C) or (N, T, C), as (N, T, C)."""
    if not isinstance(features, Tensor):
        raise InputError(
            f"config.encoder: gives a {type(features).__name__} of features, not image tokens; use another"
        )
    if features.dim() == 4:
        features = features.flatten(2).transpose(1, 2) if features.shape[1] == width else features.flatten(1, 2)
    if features.dim() != 3 or features.shape[2] != width:
        raise InputError(
            f"config.encoder: gives features of shape {tuple(features.shape)}, which are no image tokens; use another"
        )
    return features


class SceneTokens(nn.Module):
    """Features of the views -> scene tokens: normalised, projected, with a learned place for every token."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        tokens, features = token_shape(config)
        self.norm = nn.LayerNorm(features)
        self.projection = nn.Linear(features, config.context_width)
        self.place = nn.Parameter(torch.randn(len(config.cameras) * tokens, config.context_width) * 0.02)

    def forward(self, features: Tensor, views: int) -> Tensor:
        """(B * views, T, features) -> (B, views * T, width)."""
        return self.projection(self.norm(features)).unflatten(0, (-1, views)).flatten(1, 2) + self.place


@dataclass(frozen=True)
class TimmProcessor:
    """Scene row and pictures -> pixels (views, 3, height, width) uint8, proprio (20,)."""

    cameras: tuple[str, ...]
    image_size: tuple[int, ...]
    interpolation: str = "bicubic"

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "proprio": torch.cat([history(scene), status(scene)]),
        }

    def shown(self, image: Image) -> Tensor:
        height, width = self.image_size
        return pixels(image.resize((width, height), Resampling[self.interpolation.upper()]))
