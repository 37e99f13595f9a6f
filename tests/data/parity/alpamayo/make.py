"""How the numbers of this folder were made, by NVlabs/alpamayo1.5 at f42e594 with transformers 4.57.1 and torch on CPU.

    PYTHONPATH=ALPAMAYO1_5/src python make.py

Needs `vlm/tokenizer.json` and its neighbour, which stay; writes all else. Nothing of the model's code is changed: its
sampler is given a stand-in that asks for one prediction more, and its processor is the tokenizer alone, since the
pictures are given as numbers.
"""

from __future__ import annotations

import json
import types
from pathlib import Path

import torch
from alpamayo1_5.action_space.unicycle_accel_curvature import UnicycleAccelCurvatureActionSpace
from alpamayo1_5.config import Alpamayo1_5Config
from alpamayo1_5.models import base_model
from alpamayo1_5.models.alpamayo1_5 import Alpamayo1_5
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3VLConfig

HERE = Path(__file__).parent
VLM = HERE / "vlm"
PAST_TOKENS, BINS, PLAN_BINS, SAMPLES, MOST = 48, 12, 8, 2, 6
SYSTEM = "You are a driving assistant that generates safe and accurate actions."
TASK = "output the chain-of-thought reasoning of the driving process, then output the future trajectory."
PICTURE = "<|vision_start|>" + "<|image_pad|>" * 8 + "<|vision_end|>"
PICTURES = f"Front left camera: frame 0 {PICTURE}Front camera: frame 0 {PICTURE}frame 1 {PICTURE}"


def tokenizer_only(name: str, **_: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(name))


base_model.AutoProcessor = types.SimpleNamespace(from_pretrained=tokenizer_only)


def make_model() -> Alpamayo1_5:
    plain = AutoTokenizer.from_pretrained(VLM)
    ids = {name: plain.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "vision_start", "vision_end")}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    text |= {"num_key_value_heads": 2, "vocab_size": len(plain), "rope_theta": 5e6, "rope_scaling": rope}
    vision = {"hidden_size": 16, "intermediate_size": 24, "depth": 3, "num_heads": 2, "patch_size": 8}
    vision |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1], "out_hidden_size": 16}
    Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    ).save_pretrained(VLM)
    space = {"_target_": "alpamayo1_5.action_space.UnicycleAccelCurvatureActionSpace"}
    space |= {"accel_mean": 0.03125, "accel_std": 0.6875, "curvature_mean": 0.00024, "curvature_std": 0.026}
    config = Alpamayo1_5Config(
        vlm_name_or_path=str(VLM),
        attn_implementation="sdpa",
        model_dtype="float32",
        traj_vocab_size=PLAN_BINS + BINS,
        tokens_per_history_traj=PAST_TOKENS,
        add_special_tokens=True,
        include_camera_ids=True,
        include_frame_nums=True,
        traj_tokenizer_cfg={
            "_target_": "alpamayo1_5.action_space.discrete_action_space.DiscreteTrajectoryTokenizer",
            "_recursive_": False,
            "action_space_cfg": space,
            "dims_min": [-10.0, -10.0],
            "dims_max": [10.0, 10.0],
            "num_bins": PLAN_BINS,
        },
        hist_traj_tokenizer_cfg={
            "_target_": "alpamayo1_5.models.delta_tokenizer.DeltaTrajectoryTokenizer",
            "num_bins": BINS,
        },
        diffusion_cfg={"_target_": "alpamayo1_5.diffusion.flow_matching.FlowMatching", "num_inference_steps": 10},
        action_space_cfg=space,
        action_in_proj_cfg={
            "_target_": "alpamayo1_5.models.action_in_proj.PerWaypointActionInProjV2",
            "hidden_size": 20,
            "num_enc_layers": 3,
        },
        action_out_proj_cfg={"_target_": "torch.nn.Linear"},
        expert_cfg={"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2, "head_dim": 8},
    )
    torch.manual_seed(0)
    model = Alpamayo1_5(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "norm" in name else 0.2)
    return model


class AskedOnce(torch.nn.Module):
    """The model's own sampler, after one prediction at a state and time of ours."""

    def __init__(self, sampler: torch.nn.Module, x_t: torch.Tensor, t: torch.Tensor) -> None:
        super().__init__()
        self.sampler, self.x_t, self.t = sampler, x_t, t

    def sample(self, step_fn, **options: object) -> torch.Tensor:
        with torch.no_grad():
            self.velocity = step_fn(x=self.x_t, t=self.t[:, None, None])
        torch.manual_seed(7)
        self.actions = self.sampler.sample(step_fn=step_fn, **options)
        return self.actions


def drives(generator: torch.Generator, kind: torch.dtype) -> torch.Tensor:
    """(4, 80, 3) x, y, heading at 0.1 s: 16 of the past, the last of them the origin, then 64; not quite smooth."""
    time = torch.arange(-15, 65) * 0.1
    turn = torch.tensor([[0.9], [0.05], [-0.12], [0.0]], dtype=torch.float64)
    speed, change = torch.tensor([[3.0], [9.0], [6.0], [0.0]]), torch.tensor([[0.3], [-0.8], [0.4], [0.0]])
    heading = turn * time
    move = (speed + change * time) * 0.1
    xy = torch.stack([(move * heading.cos()).cumsum(-1), (move * heading.sin()).cumsum(-1)], dim=-1)
    poses = torch.cat([xy - xy[:, 15:16], heading.sin().atan2(heading.cos())[..., None]], dim=-1)
    shaken = poses + 0.01 * torch.randn(poses.shape, generator=generator, dtype=torch.float64)
    shaken[:, 15] = 0
    return shaken.to(kind)


def matrices(heading: torch.Tensor) -> torch.Tensor:
    cos, sin, zero = heading.cos(), heading.sin(), torch.zeros_like(heading)
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def flat(poses: torch.Tensor) -> torch.Tensor:
    return torch.cat([poses[..., :2], torch.zeros_like(poses[..., :1])], dim=-1)


def back(xyz: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    heading = torch.atan2(rotations[..., 1, 0], rotations[..., 0, 0])
    return torch.cat([xyz[..., :2], heading[..., None].to(xyz)], dim=-1)


def codec(facts: dict[str, torch.Tensor]) -> None:
    """In float64, with a normaliser that float32 holds exactly."""
    space = UnicycleAccelCurvatureActionSpace(0.03125, 0.6875, 2.0**-12, 2.0**-5)
    poses = drives(torch.Generator().manual_seed(3), torch.float64)
    past, future = poses[:, :16], poses[:, 16:]
    sides = flat(past), matrices(past[..., 2])
    facts["codec.poses"] = poses
    facts["codec.speed"] = space.estimate_t0_states(*sides)["v"]
    facts["codec.action"] = space.traj_to_action(*sides, flat(future), matrices(future[..., 2]))
    facts["codec.decoded"] = back(*space.action_to_traj(facts["codec.action"], *sides))


def prompts(model: Alpamayo1_5, reasons: bool) -> dict[str, torch.Tensor]:
    """Two scenes of different length, padded on the left."""
    task, start = (TASK, "<|cot_start|>") if reasons else ("output the future trajectory.", "<|traj_future_start|>")
    past = "<|traj_history_start|>" + "<|traj_history|>" * PAST_TOKENS + "<|traj_history_end|>"
    texts = [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{PICTURES}{past}{route}{task}<|im_end|>\n"
        f"<|im_start|>assistant\n{start}"
        for route in ("<|route_start|>Turn left<|route_end|>", "")
    ]
    model.tokenizer.padding_side = "left"
    return dict(model.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False))


def run(model: Alpamayo1_5, facts: dict[str, torch.Tensor], reasons: bool) -> None:
    name = "reasoned" if reasons else "plain"
    words, generator = prompts(model, reasons), torch.Generator().manual_seed(5)
    pixels = torch.rand(2 * 3, 3, 32, 64, generator=generator) * 2 - 1
    blocks = pixels.reshape(6, 3, 2, 2, 8, 4, 2, 8).permute(0, 2, 5, 3, 6, 1, 4, 7)
    patches = blocks.reshape(6 * 32, 3, 1, 8, 8).repeat(1, 1, 2, 1, 1).flatten(1)
    past = drives(torch.Generator().manual_seed(4), torch.float32)[:2, :16]
    x_t = torch.randn(2 * SAMPLES, 64, 2, generator=generator)
    t = torch.rand(2 * SAMPLES, generator=generator)
    model.diffusion = asked = AskedOnce(model.diffusion, x_t, t)
    tokenized = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 8]] * 6)}
    tokenized |= {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
    history = {"ego_history_xyz": flat(past)[:, None], "ego_history_rot": matrices(past[..., 2])[:, None]}
    facts[f"{name}.input_ids"] = model.fuse_traj_tokens(words["input_ids"], history)
    sequences = []
    generate = model.vlm.generate

    def kept(**options: object) -> object:
        found = generate(**options)
        sequences.append(found.sequences[::SAMPLES, words["input_ids"].shape[1] :].clone())
        return found

    model.vlm.generate = kept
    plans = model.sample_trajectories_from_data_with_vlm_rollout(
        {"tokenized_data": tokenized, **history},
        top_k=1,
        num_traj_samples=SAMPLES,
        max_generation_length=MOST if reasons else 1,
    )
    model.vlm.generate, model.diffusion = generate, asked.sampler
    facts |= {"in.pixels": pixels.unflatten(0, (2, 3)), "in.past": past, "in.x_t": x_t, "in.t": t}
    facts[f"{name}.mask"] = words["attention_mask"]
    facts[f"{name}.velocity"], facts[f"{name}.actions"] = asked.velocity, asked.actions
    facts[f"{name}.plans"] = back(*(part[:, 0] for part in plans))
    if reasons:
        facts["reasoned.tokens"] = sequences[0]
    torch.manual_seed(7)
    facts["in.noise"] = torch.randn(2 * SAMPLES, 64, 2)


def speak(model: Alpamayo1_5) -> None:
    """Give a plan's start such a word that the scenes' reasonings end, neither at once nor together."""
    start = model.tokenizer.convert_tokens_to_ids("<|traj_future_start|>")
    for seed in range(1000):
        with torch.no_grad():
            model.vlm.lm_head.weight[start] = torch.randn(16, generator=torch.Generator().manual_seed(seed)) * 0.3
        facts: dict[str, torch.Tensor] = {}
        run(model, facts, reasons=True)
        ends = [row.tolist().index(start) for row in facts["reasoned.tokens"] if start in row]
        if len(ends) == 2 and 0 < ends[0] != ends[1] > 0:
            return
    raise RuntimeError("no word found")


def main() -> None:
    facts: dict[str, torch.Tensor] = {}
    codec(facts)
    model = make_model()
    speak(model)
    for reasons in (False, True):
        run(model, facts, reasons)
    print(facts["reasoned.tokens"], model.tokenizer.convert_tokens_to_ids("<|traj_future_start|>"))
    model.config.vlm_name_or_path = "vlm"
    described = json.dumps(model.config.to_dict(), indent=1, default=str)  # saving itself asks the hub for defaults
    (HERE / "model").mkdir(exist_ok=True)
    (HERE / "model" / "config.json").write_text(described + "\n")
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, HERE / "model" / "model.safetensors"
    )
    save_file({name: tensor.contiguous() for name, tensor in facts.items()}, HERE / "facts.safetensors")


if __name__ == "__main__":
    main()
