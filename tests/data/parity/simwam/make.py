"""Writes this folder anew: a tiny SimWAM by public code, with inputs, one prediction and one sampling run.

Needs FastWAM's repository (yuantianyuan01/FastWAM at 45d8e14), on which SimWAM's (H-EmbodVis/SimWAM at 1433ee7) builds:
the two transformers, their mixture, the schedule, the VAE and `infer_action`. FastWAM's stand in for SimWAM's here; its
mixture and `infer_action` were compared with SimWAM's by reading. python make.py FASTWAM/src OUT
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, sys.argv[1])
OUT = Path(sys.argv[2])

from fastwam.models.wan22.action_dit import ActionDiT  # noqa: E402
from fastwam.models.wan22.fastwam import FastWAM  # noqa: E402
from fastwam.models.wan22.mot import MoT  # noqa: E402
from fastwam.models.wan22.wan_video_dit import WanVideoDiT  # noqa: E402
from fastwam.models.wan22.wan_video_vae import VideoVAE38_, WanVideoVAE38  # noqa: E402

from dipole_vla.backbones.simwam.frame import MEAN, STD  # noqa: E402
from dipole_vla.backbones.simwam.importer import PROMPT  # noqa: E402

RANDOM = torch.Generator().manual_seed(0)
torch.manual_seed(0)
SHARED = {"text_dim": 16, "freq_dim": 16, "eps": 1e-6, "num_heads": 2, "attn_head_dim": 12, "num_layers": 3}
video = WanVideoDiT(
    **SHARED,
    hidden_dim=24,
    in_dim=48,
    out_dim=48,
    ffn_dim=32,
    patch_size=(1, 2, 2),
    has_image_input=False,
    seperated_timestep=True,
    require_clip_embedding=False,
    require_vae_embedding=False,
    fuse_vae_embedding_in_latents=True,
    video_attention_mask_mode="first_frame_causal",
)
action = ActionDiT(**SHARED, hidden_dim=16, action_dim=3, ffn_dim=24)
mot = MoT({"video": video, "action": action}, mot_checkpoint_mixed_attn=False)
vae = WanVideoVAE38.__new__(WanVideoVAE38)  # as its constructor makes it, with a narrow decoder
torch.nn.Module.__init__(vae)
vae.model = VideoVAE38_(dim=4, z_dim=48, dec_dim=4)
vae.upsampling_factor, vae.temporal_downsample_factor, vae.z_dim = 16, 4, 48
vae.mean, vae.std = (torch.tensor(numbers) for numbers in (MEAN, STD))
vae.scale = [vae.mean, 1 / vae.std]
model = FastWAM(video, action, mot, vae, text_dim=16, proprio_dim=8).eval()
for name, parameter in model.named_parameters():
    is_norm = "norm" in name or name.endswith("gamma")
    torch.nn.init.normal_(parameter, mean=float(is_norm and not name.endswith("bias")), std=0.1 if is_norm else 0.2)

torch.save({"mot": mot.state_dict(), "step": 3, "torch_dtype": "torch.float32",
            "proprio_encoder": model.proprio_encoder.state_dict()}, OUT / "SimWAM.pt")  # fmt: skip
kept = {
    name: tensor for name, tensor in vae.model.state_dict().items() if not name.startswith("decoder.up")
}  # for size
torch.save(kept, OUT / "Wan2.2_VAE.pth")
context, mask = torch.randn(6, 16, generator=RANDOM), torch.arange(6) < 4
name = hashlib.sha256(PROMPT.encode()).hexdigest()
torch.save({"context": context, "mask": mask}, OUT / f"{name}.t5_len6.wan22ti2v5b.pt")
told = context.to(torch.bfloat16)  # from here as SimWAM's data set reads that file: padding is zeros, and seen
told[~mask] = 0
told, seen = told.float(), torch.ones(6, dtype=torch.bool)

facts = {
    "pixels": torch.rand(2, 3, 64, 96, generator=RANDOM) * 2 - 1,
    "state": torch.randn(2, 8, generator=RANDOM) * 3,
    "x_t": torch.randn(2, 8, 3, generator=RANDOM),
    "t": torch.tensor([0.3, 0.85]),
}
velocities, joint, plans, noise = [], [], [], []
with torch.no_grad():
    facts["latents"] = vae.encode(list(facts["pixels"][:, :, None]), device="cpu")[:, :, 0]
    for scene in range(2):
        latents = facts["latents"][scene, None, :, None]
        words = model._append_proprio_to_context(told[None], seen[None], facts["state"][scene, None])
        asked = facts["x_t"][scene, None], 1000 * facts["t"][scene, None], *words, True
        velocities.append(model._predict_action_noise(latents, *asked))
        film = torch.cat([latents, torch.randn(1, 48, 2, 4, 6, generator=RANDOM)], dim=2)
        joint.append(model._predict_joint_noise(film, asked[0], torch.tensor([400.0]), *asked[1:])[1])
        options = {"proprio": facts["state"][scene], "context": told, "context_mask": seen, "num_inference_steps": 10}
        plans.append(model.infer_action(None, facts["pixels"][scene], 8, seed=scene, **options)["action"])
        noise.append(torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(scene))[0])
facts |= {"velocity": torch.cat(velocities), "joint": torch.cat(joint)}
facts |= {"plans": torch.stack(plans), "noise": torch.stack(noise)}
save_file({name: tensor.contiguous().clone() for name, tensor in facts.items()}, OUT / "facts.safetensors")
