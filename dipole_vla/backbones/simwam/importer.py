"""Published SimWAM weights -> `SimWAM`: the checkpoint, Wan2.2's VAE and the prompt's embedding, three files.

The checkpoint (`SimWAM.pt`, `SimWAM-RL.pt`, ...) has no configuration: sizes are read from its shapes. Of the video
expert's last layer and the VAE, what makes future frames is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.simwam.model import STATE, SimWAM, SimWAMSizes
from dipole_vla.backbones.source_files import check_pixels, read_torch, read_weights, refuse_adapters, without_adapters
from dipole_vla.backbones.weights import assign_strict, check_names
from navsim_adapter.foundation.errors import InputError

PROMPT = (
    "A high-quality, photorealistic dashboard camera view of autonomous driving. Based on the past 2 seconds videos, "
    "predict and generate the next 4 seconds of realistic driving continuation, Maintain temporal consistency, stable "
    "camera perspective, natural motion flow without jitter or artifacts, clear details, and realistic physics. "
)
"""What the published NAVSIM weights are told of every scene; its embedding's file is named by its hash."""
VAE = ("Wan2.2_VAE.pth", "Wan2.2_VAE.safetensors")
HEADS = 24
LICENCE = "SimWAM's and Wan2.2's weights are under Apache-2.0"
_FUTURE = re.compile(r"mixtures\.video\.head\..+")
_FILM = re.compile(r"(conv2|decoder)\..+|encoder\..+\.time_conv\..+")


def read(
    source: Path, encoder: Path | None = None, heads: int | None = None, sizes: dict[str, Any] | None = None
) -> Imported:
    """See `commands.import_.convert` for the options."""
    checkpoint = _checkpoint(source)
    check_pixels(checkpoint.parent, (0.5,) * 3, (0.5,) * 3)
    mixtures, proprio = _experts(checkpoint)
    if sizes and set(sizes) - {"image_size"}:
        raise InputError(
            f"--sizes: {min(set(sizes) - {'image_size'})}: the weights say it; leave all but image_size out"
        )
    beside = encoder or checkpoint.parent
    vae, prompt = _vae(beside), _prompt(beside)
    config = _sizes(mixtures, proprio, vae, prompt, heads or HEADS, sizes or {}, str(checkpoint))
    with torch.device("meta"):
        model = SimWAM(config)
    wanted = model.state_dict()
    for part, (file, where) in {
        ("mixtures.", "proprio_encoder."): ({**mixtures, **proprio}, checkpoint),
        ("vae.",): (vae, beside),
        ("prompt",): ({"prompt": prompt}, beside),
    }.items():
        check_names(file, {name: tensor for name, tensor in wanted.items() if name.startswith(part)}, str(where))
    assign_strict(model, mixtures | proprio | vae | {"prompt": prompt}, str(checkpoint))
    notes = [
        "left out: the video expert's last projection and the VAE's decoder, which make future frames",
        "actions are NAVSIM's: 8 poses every 0.5 s within the published bounds, which the weights do not say",
        LICENCE,
    ]
    return Imported(model.eval(), notes=notes)


def _checkpoint(source: Path) -> Path:
    """The file given, or the one of a folder."""
    refuse_adapters(source)
    if source.is_file():
        return source
    found = sorted(source.glob("SimWAM*.pt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{source}: must hold one SimWAM*.pt, has {names}; pass the file itself")
    return found[0]


def _experts(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mixture's tensors without what makes future frames, and the state's, by our names."""
    raw = read_torch(path)
    for entry in ("mot", "proprio_encoder"):
        if not isinstance(raw.get(entry), Mapping) or not all(isinstance(x, Tensor) for x in raw[entry].values()):
            raise InputError(
                f"{path}: has no {entry!r}, the tensors of SimWAM's experts or state; pass the published .pt"
            )
    where = str(path)
    mixtures = without_adapters(dict(raw["mot"]), where)
    strangers = [name for name in mixtures if not name.startswith(("mixtures.video.", "mixtures.action."))]
    if strangers or not mixtures:
        raise InputError(f"{where}: mot: unexpected key {min(strangers, default='')}; its experts are video and action")
    proprio = {f"proprio_encoder.{name}": tensor for name, tensor in raw["proprio_encoder"].items()}
    return {name: tensor for name, tensor in mixtures.items() if not _FUTURE.fullmatch(name)}, proprio


def _vae(folder: Path) -> dict[str, Tensor]:
    """What encodes a single picture, by our names."""
    path = next((folder / name for name in VAE if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: has no {' or '.join(VAE)}; pass --encoder FOLDER with Wan2.2's VAE and the prompt")
    return {f"vae.{name}": tensor for name, tensor in read_weights(path).items() if not _FILM.fullmatch(name)}


def _prompt(folder: Path) -> Tensor:
    """(tokens, text width): the prompt's embedding, zeros for padding, which the model was trained to see."""
    name = hashlib.sha256(PROMPT.encode()).hexdigest()
    found = sorted(folder.glob(f"{name}.t5_len*.wan22ti2v5b.pt"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: must hold one {name}.t5_len*.wan22ti2v5b.pt, the prompt's embedding, has {len(found)}; write "
            "it with SimWAM's precomput_text_embed.sh and pass its folder by --encoder"
        )
    raw = read_torch(found[0])
    context, mask = raw.get("context"), raw.get("mask")
    if (
        not (isinstance(context, Tensor) and isinstance(mask, Tensor))
        or context.dim() != 2
        or mask.shape != context.shape[:1]
    ):
        raise InputError(f"{found[0]}: must hold 'context' (tokens, width) and 'mask' (tokens); write it again")
    return context.to(torch.bfloat16).float() * mask.bool()[:, None]  # rounded as in training


def _sizes(
    experts: Mapping[str, Tensor],
    proprio: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    prompt: Tensor,
    heads: int,
    chosen: Mapping[str, Any],
    where: str,
) -> SimWAMSizes:
    """All sizes by the shapes of the tensors that show them."""

    def shape(name: str, axes: int = 2) -> torch.Size:
        found = {**experts, **proprio, **vae}.get(name)
        if found is None or found.dim() != axes:
            state = "missing" if found is None else f"of shape {list(found.shape)}"
            raise InputError(f"{where}: key {name} is {state}; this file is of another model")
        return found.shape

    channels = shape("mixtures.action.action_encoder.weight")[1]
    if channels != 3 or shape("proprio_encoder.weight")[1] != STATE:
        raise InputError(
            f"{where}: actions have {channels} channels, states {shape('proprio_encoder.weight')[1]}; NAVSIM's weights "
            f"have 3 (x, y, heading) and {STATE}: pass one of those"
        )
    video, action = (f"mixtures.{name}.blocks.0." for name in ("video", "action"))
    inner = shape(f"{video}self_attn.q.weight")[0]
    if inner % heads:
        raise InputError(f"{where}: {inner} channels of attention are not {heads} heads; pass --heads")
    layers = {name.split(".")[3] for name in experts if name.startswith("mixtures.video.blocks.")}
    return SimWAMSizes(
        video_width=shape(f"{video}ffn.0.weight")[1],
        video_hidden=shape(f"{video}ffn.0.weight")[0],
        action_width=shape(f"{action}ffn.0.weight")[1],
        action_hidden=shape(f"{action}ffn.0.weight")[0],
        layers=len(layers),
        heads=heads,
        head_dim=inner // heads,
        text_width=shape("mixtures.action.text_embedding.0.weight")[1],
        time_width=shape("mixtures.action.time_embedding.0.weight")[1],
        prompt_tokens=len(prompt),
        vae_width=shape("vae.encoder.conv1.weight", 5)[0],
        **{name: tuple(value) for name, value in chosen.items()},
    )
