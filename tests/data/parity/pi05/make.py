"""Writes this folder anew: a tiny PI0.5 by lerobot's own code, with inputs, one prediction and one sampling run.

Needs lerobot 0.6.1 and transformers 5.5 (another environment than ours): python make.py OUT TOKENIZER
TOKENIZER: folder of the tokenizer, since PaliGemma's own is not free to copy; ours is `prompt.small_tokenizer`.
Only sizes are changed: lerobot knows none but the published ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lerobot.policies.pi05.modeling_pi05 as upstream
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TASKS = ["keep the_lane\nand go", " turn left "]
OUT, TOKENIZER = Path(sys.argv[1]), PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: TOKENIZER)
RANDOM = torch.Generator().manual_seed(1)

SIZES = {
    "gemma_2b": upstream.GemmaConfig(width=32, depth=2, mlp_dim=48, num_heads=8, num_kv_heads=1, head_dim=8),
    "gemma_300m": upstream.GemmaConfig(width=24, depth=2, mlp_dim=40, num_heads=8, num_kv_heads=1, head_dim=8),
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "patch_size": 16,
}
whole, expert = upstream.PaliGemmaForConditionalGenerationWithPiGemma, upstream.PiGemmaForCausalLM


def small_whole(config: Any) -> Any:
    for name, value in {**VISION, "projection_dim": config.text_config.hidden_size}.items():
        setattr(config.vision_config, name, value)
    config.projection_dim = config.text_config.hidden_size
    config.text_config.vocab_size = config.image_token_id = len(TOKENIZER)
    return whole(config)


def small_expert(config: Any) -> Any:
    config.vocab_size = len(TOKENIZER)
    return expert(config)


upstream.get_gemma_config = SIZES.__getitem__
upstream.PaliGemmaForConditionalGenerationWithPiGemma, upstream.PiGemmaForCausalLM = small_whole, small_expert


def quantiles(channels: int) -> dict[str, torch.Tensor]:
    low, high = (torch.rand(channels, generator=RANDOM) * 20 + 1 for _ in range(2))
    return {"q01": -low, "q99": high, "mean": high - low, "std": high}


torch.manual_seed(0)
pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in ("front", "left")}
policy = upstream.PI05Policy(
    PI05Config(
        device="cpu",
        chunk_size=6,
        n_action_steps=6,
        max_state_dim=16,
        max_action_dim=8,
        tokenizer_max_length=64,
        image_resolution=(32, 32),
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (12,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
    )
).eval()
for name, parameter in policy.named_parameters():
    torch.nn.init.normal_(parameter, std=0.1 if "norm" in name and "dense" not in name else 0.15)
before, after = make_pi05_pre_post_processors(
    policy.config, {"observation.state": quantiles(12), "action": quantiles(3)}
)
for part in (policy, before, after):
    part.save_pretrained(OUT)

facts = {
    "raw_state": torch.randn(2, 12, generator=RANDOM) * 10,
    "raw_action": torch.randn(2, 6, 3, generator=RANDOM) * 10,
}
shown = {name: torch.rand(2, 3, 32, 32, generator=RANDOM) for name in pictures}
batch = before(
    {"observation.state": facts["raw_state"].clone(), "action": facts["raw_action"].clone(), "task": TASKS, **shown}
)
facts |= {"action": batch["action"], "input_ids": batch["observation.language.tokens"]}
words = batch["observation.language.attention_mask"]
pixels, views = policy._preprocess_images(batch)
views[1] = torch.tensor([True, False])  # the second scene lacks its second view
facts |= {"attention_mask": words.long(), "pixels": torch.stack(pixels, 1), "view_mask": torch.stack(views, 1)}
noise, t, actions = (
    torch.randn(2, 6, 8, generator=RANDOM),
    torch.tensor([0.3, 0.85]),
    torch.randn(2, 6, 8, generator=RANDOM),
)
model, inputs = policy.model, (pixels, views, facts["input_ids"], words)
with torch.no_grad():
    embeds, real, blocks = model.embed_prefix(*inputs)
    model.paligemma_with_expert.paligemma.model.language_model.config._attn_implementation = "eager"
    _, cache = model.paligemma_with_expert.forward(
        attention_mask=upstream.prepare_attention_masks_4d(upstream.make_att_2d_masks(real, blocks)),
        position_ids=real.cumsum(1) - 1,
        inputs_embeds=[embeds, None],
        use_cache=True,
    )
    facts["prediction"] = model.denoise_step(real, cache, noise, t)
    facts["sampled"] = model.sample_actions(*inputs, noise=noise)
    facts["decoded"] = torch.stack([after(facts["sampled"][:, i, :3]) for i in range(6)], 1)
    facts["loss"] = model.forward(*inputs, actions, noise, t)
facts |= {"noise": noise, "t": t, "actions": actions}
save_file({name: tensor.contiguous().clone() for name, tensor in facts.items()}, OUT / "facts.safetensors")
