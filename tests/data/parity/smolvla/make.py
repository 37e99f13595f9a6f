"""Writes this folder anew: a tiny SmolVLA by lerobot's own code, with inputs, one prediction and one sampling run.

Needs lerobot 0.6.1 and transformers 5.5 (another environment than ours): python make.py OUT TOKENIZER
TOKENIZER: folder of the tokenizer, ours being `prompt.small_tokenizer`. `vlm/` stands for the SmolVLM2 it begins with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import lerobot.policies.smolvla.modeling_smolvla as upstream
import lerobot.policies.smolvla.smolvlm_with_expert as networks
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SmolVLMConfig

TASKS = ["keep the lane", "turn left at the next corner\n"]
NAME = "HuggingFaceTB/tiny"
OUT, TOKENIZER = Path(sys.argv[1]), PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: TOKENIZER)
RANDOM = torch.Generator().manual_seed(1)

tokens = SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)  # of marks that are not used by default
networks.AutoProcessor = SimpleNamespace(from_pretrained=lambda _: SimpleNamespace(tokenizer=tokens))
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
VISION |= {"patch_size": 8, "image_size": 32}
TEXT = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "head_dim": 8}
TEXT |= {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": len(TOKENIZER), "rms_norm_eps": 1e-5}
VLM = SmolVLMConfig(scale_factor=2, vision_config=VISION, text_config={**TEXT, "rope_theta": 273768.0})
VLM.save_pretrained(OUT / "vlm")
networks.AutoConfig = SimpleNamespace(from_pretrained=lambda _: VLM)


def deviations(channels: int) -> dict[str, torch.Tensor]:
    return {
        "mean": torch.randn(channels, generator=RANDOM) * 5,
        "std": torch.rand(channels, generator=RANDOM) * 5 + 0.5,
    }


torch.manual_seed(0)
pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 40, 60)) for name in ("front", "left")}
policy = upstream.SmolVLAPolicy(
    SmolVLAConfig(
        device="cpu",
        chunk_size=6,
        n_action_steps=6,
        max_state_dim=16,
        max_action_dim=8,
        tokenizer_max_length=24,
        resize_imgs_with_padding=(32, 32),
        vlm_model_name=NAME,
        num_vlm_layers=4,
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (12,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
).eval()
for name, parameter in policy.named_parameters():
    is_norm = "norm" in name and name.endswith("weight")
    torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.1 if is_norm else 0.15)
before, after = make_smolvla_pre_post_processors(
    policy.config, {"observation.state": deviations(12), "action": deviations(4)}
)
for part in (policy, before, after):
    part.save_pretrained(OUT)

facts = {
    "raw_state": torch.randn(2, 12, generator=RANDOM) * 10,
    "raw_action": torch.randn(2, 6, 4, generator=RANDOM) * 10,
}
shown = {name: torch.randint(256, (2, 3, 40, 60), generator=RANDOM, dtype=torch.uint8) for name in pictures}
batch = before(
    {
        "observation.state": facts["raw_state"].clone(),
        "action": facts["raw_action"].clone(),
        "task": TASKS,
        **{name: picture / 255 for name, picture in shown.items()},
    }
)
facts |= {"action": batch["action"], "input_ids": batch["observation.language.tokens"]}
facts |= {"state": batch["observation.state"], "picture": shown["observation.images.front"]}
words = batch["observation.language.attention_mask"]
pixels, views = policy.prepare_images(batch)
views[1] = torch.tensor([True, False])  # the second scene lacks its second view
facts |= {"attention_mask": words.long(), "pixels": torch.stack(pixels, 1), "view_mask": torch.stack(views, 1)}
noise, t, actions = (
    torch.randn(2, 6, 8, generator=RANDOM),
    torch.tensor([0.3, 0.85]),
    torch.randn(2, 6, 8, generator=RANDOM),
)
model, inputs = policy.model, (pixels, views, facts["input_ids"], words, policy.prepare_state(batch))
with torch.no_grad():
    embeds, real, blocks = model.embed_prefix(*inputs)
    _, cache = model.vlm_with_expert.forward(
        attention_mask=upstream.make_att_2d_masks(real, blocks),
        position_ids=real.cumsum(1) - 1,
        inputs_embeds=[embeds, None],
        use_cache=True,
    )
    facts["prediction"] = model.denoise_step(real, cache, noise, t)
    facts["sampled"] = model.sample_actions(*inputs, noise=noise)
    facts["decoded"] = torch.stack([after(facts["sampled"][:, i, :4]) for i in range(6)], 1)
    facts["loss"] = model.forward(*inputs, actions, noise, t)
facts |= {"noise": noise, "t": t, "actions": actions}
save_file({name: tensor.contiguous().clone() for name, tensor in facts.items()}, OUT / "facts.safetensors")
