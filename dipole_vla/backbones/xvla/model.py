"""X-VLA: Florence-2 encoder, soft-prompted transformer, clean-action prediction, re-noising solver.

The class builds at its published size (0.88 B) by default and small by `XVLAConfig.tiny()`. Module names are those
of the published file without its leading `model.`; reading such a file is in `importer.py`, the head in
`soft_transformer.py`. Actions and scene attend to each other in one sequence, so nothing but the projected scene can
be shared between candidates: N candidates cost N head passes, by this model's design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.base import ActionSpec, Context, JoinedSizes, Observation
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.florence.encoder import FlorenceEncoder, FlorenceSizes, small_florence
from dipole_vla.backbones.native import Prompted
from dipole_vla.backbones.observing import IMAGE_MEAN, all_shown, history, normalised_pixels, pixels
from dipole_vla.backbones.prompt import prompt_ids, small_tokenizer
from dipole_vla.backbones.xvla.soft_transformer import SoftPromptedTransformer, SoftTransformerSizes
from dipole_vla.paths import LinearFlow, Prediction
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

if TYPE_CHECKING:
    from transformers.models.bart.modeling_bart import BartEncoder

PUBLISHED_SOLVER = SolverSpec("renoise", steps=10)

_BLOCK = r"transformer\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
_TEXT = r"vlm\.language_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|fc[12])"


@dataclass(frozen=True)
class XVLAConfig(FlorenceSizes, SoftTransformerSizes, JoinedSizes):
    """All sizes of an X-VLA model, and how scenes are shown to it; the defaults are the published ones.

    action_mode: the checkpoint's action space, for the record; `muted` is what it does to the network's input.
    muted: channels set to zero in noisy action and state (the grippers of "ee6d"); none for driving ("auto").
    domain: the domain whose prompts and action layers are used where an observation names none.
    cameras: in the order of the views, the first of which is read together with the text.
    views: views the network expects; those without a camera count as black with zero features.
    image_size: (height, width) of a view. fit: "stretch", or "pad" to keep the aspect (left and top are filled).
    """

    action_mode: str = "auto"
    muted: tuple[int, ...] = ()
    domain: int = 0
    cameras: tuple[str, ...] = ("CAM_F0", "CAM_L0", "CAM_R0")
    views: int = 3
    image_size: tuple[int, ...] = (224, 224)
    fit: Literal["stretch", "pad"] = "stretch"
    prompt_tokens: int = 64

    def __post_init__(self) -> None:
        self.check_read_by(self.context_width)
        if self.heads < 1 or self.width % self.heads:
            raise InputError(f"config.heads: must divide the width {self.width}, got {self.heads} heads")
        if not 0 <= self.domain < self.domains:
            raise InputError(f"config.domain: must be in 0..{self.domains - 1}, got {self.domain}")
        if self.fit not in ("stretch", "pad"):
            raise InputError(f"config.fit: must be stretch or pad, got {self.fit!r}")
        if not 1 <= len(self.cameras) <= self.views:
            raise InputError(
                f"config.cameras: {len(self.cameras)} cameras for {self.views} views; name 1 to {self.views}"
            )
        widest = min(self.action_dim, self.proprio_dim) if self.muted else 0
        if any(not 0 <= channel < widest for channel in self.muted):
            raise InputError(
                f"config.muted: channels {self.muted} must lie within action_dim {self.action_dim} and proprio_dim "
                f"{self.proprio_dim}; action mode {self.action_mode!r} needs a wider state"
            )

    @classmethod
    def tiny(cls, width: int = 64, **overrides: Any) -> XVLAConfig:
        """A model of about half a million parameters with every part of the real one, for demos and tests."""
        sizes: dict[str, Any] = {
            **small_florence(width, layers=2, vocabulary=len(small_tokenizer())),
            "width": width,
            "depth": 3,
            "heads": 4,
            "context_width": width,
            "domains": 4,
            "prompts": 4,
            "max_tokens": 160,
            "dropout": 0.0,
            "image_size": (64, 64),
        }
        return cls(**{**sizes, **overrides})


class XVLA(Prompted):
    """See the module docstring. Parameters: `vlm.*` (transformers' names), `transformer.*` (published names)."""

    family = "xvla"
    config_class = XVLAConfig
    lora_scopes: ClassVar[Mapping[str, str]] = {"head": _BLOCK, "all": f"({_BLOCK}|{_TEXT})"}
    encoder_names = ("vlm.",)

    def __init__(
        self,
        config: XVLAConfig,
        action: ActionSpec | None = None,
        solver: SolverSpec = PUBLISHED_SOLVER,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        super().__init__(config, action or ActionSpec(dim=config.action_dim, is_padded=True), solver)
        self.vlm = FlorenceEncoder(config.part(FlorenceSizes))
        self.transformer = SoftPromptedTransformer(config.part(SoftTransformerSizes))
        self.tokenizer = tokenizer
        self.config: XVLAConfig

    @classmethod
    def tiny(cls, config: XVLAConfig | None = None, solver: SolverSpec | None = None) -> XVLA:
        """A small model with fresh weights (from torch's global generator) and its own tokenizer."""
        return cls(config or XVLAConfig.tiny(), solver=solver or PUBLISHED_SOLVER, tokenizer=small_tokenizer())

    @property
    def schedule(self) -> LinearFlow:
        return LinearFlow(noise_at=1, is_stratified=True)

    @property
    def prediction(self) -> Prediction:
        return "sample"

    def processor(self) -> XVLAProcessor:
        if self.tokenizer is None:
            raise InputError("xvla: this model has no tokenizer; import it again with --tokenizer FOLDER")
        config = self.config
        return XVLAProcessor(config.cameras, config.image_size, config.fit, config.prompt_tokens, self.tokenizer)

    def encode(self, observation: Observation) -> Context:
        """pixels (B, views, 3, H, W), uint8 or normalised floats; input_ids (B, length); proprio (B, any).

        Optional: view_mask (B, views), false where a view is missing; domain_id (B,). Fewer views than the model
        expects are missing views. The state is cut or filled with zeros to the model's width.
        """
        dtype = self.transformer.pos_emb.dtype
        pixels = observation["pixels"]
        images = self._images(normalised_pixels(pixels).to(dtype), observation.get("view_mask"))
        text: BartEncoder = self.vlm.language_model.encoder  # type: ignore[assignment]
        embeds = torch.cat([images[:, 0], text.embed_tokens(observation["input_ids"])], dim=1)
        tokens = text(inputs_embeds=embeds).last_hidden_state  # no mask: padding of the prompt is attended to
        domain = observation.get("domain_id")
        if domain is None:
            domain = torch.full((pixels.shape[0],), self.config.domain, device=pixels.device)
        proprio = observation["proprio"].to(dtype)
        proprio = nn.functional.pad(proprio, (0, self.config.proprio_dim - proprio.shape[1]))  # a negative pad cuts
        return Context(
            {"tokens": tokens, "auxiliary": images[:, 1:].flatten(1, 2), "proprio": proprio, "domain": domain}
        )

    def _images(self, pixels: Tensor, mask: Tensor | None) -> Tensor:
        """(B, views, 1 + h*w, width) features of each view, its mean before its grid; zero where a view is missing."""
        rows, views = pixels.shape[:2]
        flat = pixels.flatten(0, 1)
        shown = torch.arange(rows * views, device=pixels.device) if mask is None else mask.flatten().nonzero()[:, 0]
        if not len(shown):
            raise InputError("xvla: view_mask hides every view of the batch; at least one must be seen")
        found = self.vlm.multi_modal_projector(self.vlm.vision_tower(flat[shown]).last_hidden_state)
        images = found.new_zeros(len(flat), *found.shape[1:]).index_copy(0, shown, found).unflatten(0, (rows, views))
        return nn.functional.pad(images, (0, 0, 0, 0, 0, max(self.config.views - views, 0)))

    def prepare(self, context: Context) -> Context:
        """Adds the projected scene with positions and soft prompts. No adapter is involved."""
        scene = self.transformer.scene(
            context["tokens"], context["auxiliary"], context["domain"].long(), self.action.horizon
        )
        return context.extended({"scene": scene})

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        dtype = self.transformer.pos_emb.dtype
        context = context if "scene" in context else self.prepare(context)
        layout = Layout(len(context), x_t.shape[0], context.serves)
        x_t, proprio = self._muted(x_t.to(dtype)), self._muted(context["proprio"])
        time, domain = self.schedule.network_time(t), context["domain"].long()
        return self.transformer(x_t, time, proprio, domain, context["scene"], layout).float()

    def _muted(self, x: Tensor) -> Tensor:
        if not self.config.muted:
            return x
        return x.index_fill(-1, torch.tensor(self.config.muted, device=x.device), 0.0)

    def features(self, context: Context) -> Tensor:
        """(B, (views + 1) * width + proprio_dim): each view's mean token, the mean of all tokens, and the state."""
        tokens, auxiliary = context["tokens"].float(), context["auxiliary"].float()
        per_view = max(auxiliary.shape[1] // max(self.config.views - 1, 1), 1)
        means = torch.cat([tokens[:, :1], auxiliary[:, ::per_view]], dim=1).flatten(1)
        return torch.cat([means, tokens.mean(1), context["proprio"].float()], dim=-1)


@dataclass(frozen=True)
class XVLAProcessor:
    """Scene row and pictures -> pixels (cameras, 3, height, width) uint8, input_ids (length,), proprio (12,).

    The prompt and the state are DP-VLA's: this model was published for robot arms and says nothing about driving.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, ...]
    fit: str
    prompt_tokens: int
    tokenizer: PreTrainedTokenizerFast

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image.Image | Tensor]) -> Observation:
        return {
            "pixels": torch.stack(all_shown(scene, images, self)),
            "input_ids": prompt_ids(self.tokenizer, scene, self.prompt_tokens),
            "proprio": history(scene),
        }

    def shown(self, image: Image.Image) -> Tensor:
        height, width = self.image_size
        if self.fit == "pad":  # filled with the mean colour, which is zero once normalised
            mean = tuple(round(255 * channel) for channel in IMAGE_MEAN)
            resized = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, mean, (1.0, 1.0))
        else:
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return pixels(resized)
