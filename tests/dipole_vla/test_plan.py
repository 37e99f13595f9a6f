"""`dipole-vla plan`: counts against sums by hand, memory against what a real step holds, messages that help."""

from __future__ import annotations

import json
import re

import pytest
import torch
from small_backbone import make_backbone, make_observation
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.backbones.example import example_observation
from dipole_vla.backbones.recogdrive.model import ReCogDrive
from dipole_vla.planning import timing
from dipole_vla.planning.activations import step_cost
from dipole_vla.planning.needs import Gpus, planned, report_lines
from dipole_vla.planning.step import Numbers, meta_backbone, training_step
from dipole_vla.policy import AdapterPair, Context
from dipole_vla.training import DipoleModule
from navsim_adapter.foundation.errors import InputError


@pytest.fixture
def folder(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe(backbone, rank=4, routing="both", precision="32-true", strategy="auto", **model):
    arguments = {"backbone": str(backbone), "rank": rank, "alpha": None, "scope": "head", "pair": "lora", "draws": 1}
    return {
        "model": {"class_path": "DipoleModule", "init_args": {**arguments, "routing": routing, **model}},
        "data": {"class_path": "D", "init_args": {"scenes": "nowhere", "candidates": "nowhere", "batch_size": 2}},
        "trainer": {"max_steps": 100, "precision": precision, "strategy": strategy},
    }


def test_parameters_of_the_papers_model_are_those_of_its_parts():
    """No activations here: the counts of 1.03 B parameters on the meta device, adapters by hand from the sizes."""
    with torch.device("meta"):
        model = DPVLA(DPVLAConfig())
    total = sum(p.numel() for p in model.parameters())
    pair = AdapterPair(model, "head", rank=32)
    width, blocks = 1024, 12
    square, wide = 32 * (width + width), 32 * (width + 4 * width)
    by_hand = blocks * (32 * (width + 3 * width) + square + 4 * square + 4 * wide)  # qkv, proj, cross, two MLPs
    assert total == pytest.approx(1032.8e6, rel=1e-4)
    assert sum(p.numel() for p in pair.parameters("positive")) == by_hand == pytest.approx(0.0129 * total, rel=0.01)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * by_hand
    assert all(p.is_meta for p in model.parameters())


def test_the_plan_of_a_folder_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    found = planned(recipe(folder), Gpus.parse("8x80"))
    real = make_backbone()
    pair = AdapterPair(real, "head", rank=4)
    sizes = found["parameters"]
    assert sizes["total"] == sum(p.numel() for n, p in real.named_parameters() if "lora_" not in n)
    assert sizes["per_adapter"] == sum(p.numel() for p in pair.parameters("positive"))
    assert sizes["trainable"] == 2 * sizes["per_adapter"]
    assert sum(sizes["by_part"].values()) == sizes["total"]
    parts = {name: size for name, size in found["memory"].items() if name not in ("total", "available", "fits")}
    assert sum(parts.values()) == found["memory"]["total"]
    assert found["memory"]["fits"]
    assert found["hours"] is None
    assert found["run"]["scenes_per_step"] == 16
    json.dumps(found)
    assert "not measured" in report_lines(found)


def test_a_gpu_that_is_too_small_is_said_to_be(folder):
    found = planned(recipe(folder), Gpus.parse("1x1"))
    assert not found["memory"]["fits"]
    assert "does NOT fit" in report_lines(found)


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_counted_activations_are_what_a_real_step_holds(folder, routing):
    """Independent truth: bytes the CPU allocator has given and not got back at the end of a real forward pass."""
    model = recipe(folder, routing=routing)["model"]["init_args"]
    scenes, group = 2, 6
    planned_model = meta_backbone(folder)
    pair = AdapterPair(planned_model, "head", rank=4)
    cost = step_cost(
        planned_model,
        training_step(planned_model, pair, model, scenes, group),
        example_observation(planned_model, scenes),
    )
    real = make_backbone()
    pair = AdapterPair(real, "head", rank=4)
    contexts = pair.encode(make_observation(scenes))
    rows = scenes * group
    x, t, routes = torch.randn(rows, 8, 4), torch.rand(rows), torch.arange(rows) % 2 == 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        if routing == "both":
            output = pair.denoise(contexts["positive"], x, t, "positive")
        else:
            output = pair.denoise_routed(contexts, x, t, routes, group)
    held = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert output.requires_grad
    assert cost.saved == pytest.approx(held, rel=0.15)


def test_one_scenes_context_is_counted_exactly(folder):
    planned_model = meta_backbone(folder)
    pair = AdapterPair(planned_model, "head", rank=4)
    model = recipe(folder)["model"]["init_args"]
    cost = step_cost(
        planned_model, training_step(planned_model, pair, model, 1, 2), example_observation(planned_model, 1)
    )
    context = make_backbone().encode(make_observation(1))
    assert cost.context == sum(tensor.nbytes for tensor in context.tensors.values())


def test_flops_of_a_linear_layer_are_those_of_the_textbook(folder):
    """Two multiplications' worth for each pass that is needed: forward, input gradient, weight gradient."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.device("meta"):
                self.layer = nn.Linear(64, 32)

        def encode(self, shown):
            return Context({"x": shown["x"]})

    one = One()
    step = lambda shown: one.layer(shown["x"].requires_grad_()).sum().backward()  # noqa: E731
    assert step_cost(one, step, {"x": torch.zeros(10, 64)}).flops == 3 * 2 * 10 * 64 * 32


@pytest.mark.parametrize("heads", [4, 2])
def test_flops_of_attention_are_those_of_its_products(heads):
    """Two products forward; the scores anew and four gradients backward. Heads that share keys are heads."""

    class One(nn.Module):
        def encode(self, shown):
            return Context({"x": shown["queries"]})

    def step(shown):
        queries, keys = (shown[name].requires_grad_() for name in ("queries", "keys"))
        scaled_dot_product_attention(queries, keys, keys, enable_gqa=True).sum().backward()

    shown = {"queries": torch.zeros(3, 4, 10, 8), "keys": torch.zeros(3, heads, 20, 8)}
    assert step_cost(One(), step, shown).flops == (2 + 5) * 2 * (3 * 4) * 10 * 20 * 8


def test_a_family_whose_pictures_are_of_any_number_is_counted_with_the_most(tmp_path):
    """Its context is as large as a real one."""
    ReCogDrive.tiny().save_pretrained(tmp_path / "base")
    found = planned(recipe(tmp_path / "base"), Gpus.parse("1x80"))
    assert found["memory"]["activations"] > 0
    assert not any("not counted" in note for note in found["notes"])
    model = ReCogDrive.from_pretrained(tmp_path / "base")
    context = model.encode(example_observation(model, 1))
    assert found["context_cache"]["bytes_per_scene"] == sum(tensor.nbytes for tensor in context.tensors.values())


@pytest.mark.parametrize(
    ("precision", "strategy", "bytes_each", "stage"),
    [
        ("32-true", "auto", (4, 4, 8), 0),
        ("bf16-mixed", "ddp", (4, 4, 8), 0),
        ("bf16-true", "auto", (2, 4, 8), 0),
        ("bf16-mixed", "deepspeed_stage_3", (2, 2, 12), 3),
        ("bf16-true", {"class_path": "a.PairDeepSpeed", "init_args": {"stage": 1}}, (2, 2, 12), 1),
    ],
)
def test_bytes_by_precision_and_strategy(precision, strategy, bytes_each, stage):
    numbers = Numbers.of({"precision": precision, "strategy": strategy})
    assert (numbers.weights, numbers.trained, numbers.optimiser) == bytes_each
    assert numbers.stage == stage


def test_zero_divides_what_it_shards(folder):
    plain = planned(recipe(folder, precision="bf16-true"), Gpus.parse("4x80"))["memory"]
    third = planned(recipe(folder, precision="bf16-true", strategy="deepspeed_stage_3"), Gpus.parse("4x80"))["memory"]
    assert third["weights"] == -(-plain["weights"] // 4)
    assert third["optimiser"] < plain["optimiser"]


@pytest.mark.parametrize("rule", ["dichotomous", "positive_only", "implicit"])
def test_what_trains_is_what_the_training_itself_trains(folder, rule):
    found = planned(recipe(folder, rule=rule), Gpus.parse("1x80"))
    module = DipoleModule(folder, rank=4, rule=rule)
    trained = sum(parameter.numel() for _, parameter in module.named_trained())
    assert found["parameters"]["trainable"] == trained
    assert found["memory"]["optimiser"] == 8 * trained
    assert found["memory"]["adapters"] == 4 * sum(p.numel() for p in module.pair.parameters())


def test_a_rule_with_one_adapter_runs_one_head_and_a_mirrored_one_the_bases_too(folder):
    """Head passes by rule: forward and backward of two signs; of one; of one, and the base's forward alone."""
    found = {
        rule: planned(recipe(folder, rule=rule), Gpus.parse("1x80"))["run"]["flops_per_step_and_gpu"]
        for rule in ("dichotomous", "positive_only", "implicit")
    }
    trained, forward = (found[rule] - found["positive_only"] for rule in ("dichotomous", "implicit"))
    assert 0 < forward < trained < 3 * forward  # gradients of inputs and of the small adapters, not of frozen weights


def test_bernoulli_with_one_adapter_is_refused_as_fit_refuses_it(folder):
    with pytest.raises(InputError, match="bernoulli needs two policies"):
        planned(recipe(folder, routing="bernoulli", rule="positive_only"), Gpus.parse("1x80"))


def test_a_step_is_as_many_batches_as_it_accumulates(folder, monkeypatch):
    asked = recipe(folder)
    once = planned(asked, Gpus.parse("2x80"))["run"]
    asked["trainer"]["accumulate_grad_batches"] = 8
    monkeypatch.setattr(timing, "seconds_per_pass", lambda *_: (0.5, "a clock"))
    found = planned(asked, Gpus.parse("2x80"), measure=True)
    assert found["run"]["scenes_per_step"] == 8 * once["scenes_per_step"]
    assert found["run"]["flops_per_step_and_gpu"] == 8 * once["flops_per_step_and_gpu"]
    assert found["measured"]["seconds_per_step"] == 8 * 0.5
    assert found["hours"] == pytest.approx(100 * 8 * 0.5 / 3600)


@pytest.mark.parametrize(
    ("precision", "strategy", "pair", "frozen", "trained", "is_mixed"),
    [
        ("32-true", "auto", "lora", torch.float32, torch.float32, False),
        ("bf16-mixed", "auto", "lora", torch.float32, torch.float32, True),
        ("bf16-true", "auto", "lora", torch.bfloat16, torch.float32, False),
        ("bf16-true", "auto", "separate", torch.bfloat16, torch.bfloat16, False),
        ("bf16-mixed", "deepspeed_stage_2", "lora", torch.bfloat16, torch.bfloat16, False),
    ],
)
def test_what_is_timed_is_what_the_recipe_trains(
    folder, monkeypatch, precision, strategy, pair, frozen, trained, is_mixed
):
    facts, encoded, encode, make_step = [], [], DPVLA.encode, timing.training_step

    def watched(backbone, pair, *arguments):
        step = make_step(backbone, pair, *arguments)

        def look(observation, contexts):
            kinds = {p.dtype for p in pair.parameters() if p.requires_grad}
            facts.append((next(backbone.encoder.parameters()).dtype, kinds, torch.is_autocast_enabled("cpu")))
            step(observation, contexts)

        return look

    monkeypatch.setattr(timing, "STEPS", 1)
    monkeypatch.setattr(timing, "training_step", watched)
    monkeypatch.setattr(DPVLA, "encode", lambda self, shown: encoded.append(shown) or encode(self, shown))
    model = recipe(folder, pair=pair, checkpointing=True)["model"]["init_args"]
    numbers = Numbers.of({"precision": precision, "strategy": strategy})
    for stored in (False, True):
        facts.clear(), encoded.clear()
        timing.seconds_per_pass(model, 1, 2, numbers, stored)
        assert facts == [(frozen, {trained}, is_mixed)] * 2
        assert len(encoded) == (1 if stored else 2)  # once ahead, or once in each of two passes


def test_mistakes_are_told_in_one_line(folder):
    for text in ("8", "x80", "8x", "0x80"):
        with pytest.raises(InputError, match="COUNTxGIGABYTES"):
            Gpus.parse(text)
    with pytest.raises(InputError, match=r"did you mean 'dp_vla_1b'"):
        meta_backbone("checkpoints/dpvla_1b")
    with pytest.raises(InputError, match="critic"):
        planned(
            recipe(folder) | {"model": {"class_path": "CriticModule", "init_args": {"backbone": folder}}}, Gpus(1, 1e9)
        )


def test_the_command_reads_a_recipe_and_prints_json(folder, tmp_path, capsys):
    from dipole_vla.cli import main

    (tmp_path / "r.yaml").write_text(
        f"out: {tmp_path / 'out'}\n"
        "model:\n  class_path: dipole_vla.training.DipoleModule\n"
        f"  init_args: {{backbone: {folder}, rank: 4}}\n"
        "data:\n  class_path: dipole_vla.data.module.DrivingData\n"
        f"  init_args: {{scenes: {tmp_path / 'none'}, candidates: {tmp_path / 'none'}, batch_size: 2}}\n"
        "trainer: {max_steps: 5}\n"
    )
    assert main(["plan", "--config", str(tmp_path / "r.yaml"), "--gpus", "2x24", "--json", "--model.rank", "8"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(re.search(r"\{.*\}", printed, re.S)[0])
    assert found["run"]["gpus"] == 2
    assert found["parameters"]["trainable"] == 2 * found["parameters"]["per_adapter"]
    assert not (tmp_path / "out").exists()
    assert main(["plan", "--config", str(tmp_path / "r.yaml"), "--model.rnak", "8"]) == 2
    assert "rnak" in capsys.readouterr().err
