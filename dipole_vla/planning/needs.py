"""What a training recipe needs: parameters, memory, steps, hours, as data and as lines.

The model is built on the meta device, so no weights are needed; activations are counted on tensors without data
(`dipole_vla.planning.activations`). Hours come only from steps that were really timed.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dipole_vla.backbones.example import example_observation
from dipole_vla.backbones.published import PUBLISHED
from dipole_vla.forming import Advantage
from dipole_vla.planning.activations import StepCost, step_cost
from dipole_vla.planning.step import Numbers, is_here, meta_backbone, pair_of, training_step
from dipole_vla.policy import Backbone
from dipole_vla.policy.separate import Pair
from dipole_vla.training.memory import recompute_blocks
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import is_complete

RESERVE = 2e9  # CUDA context, kernels' workspaces and the allocator's slack, by experience of such jobs
GROUP = 17  # candidates per scene where the table is not there yet: 16 sampled and the human's


@dataclass(frozen=True)
class Gpus:
    count: int
    bytes: float

    @classmethod
    def parse(cls, text: str) -> Gpus:
        found = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", text)
        if not found or int(found[1]) < 1:
            raise InputError(f"--gpus: must be COUNTxGIGABYTES, as in 8x80, got {text!r}")
        return cls(int(found[1]), float(found[2]) * 1e9)


def say(what: str) -> None:
    """On standard error: standard output is the plan, for a program that reads it with --json."""
    print(f"plan: {what}", file=sys.stderr, flush=True)


def planned(recipe: dict[str, Any], gpus: Gpus, measure: bool = False) -> dict[str, Any]:
    """Everything the command prints, as plain data; memory in bytes per GPU."""
    model, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    backbone = meta_backbone(model["backbone"])
    total, parts = _count(backbone), _parts(backbone)
    say(f"counting a step of {backbone.family}, {total / 1e6:.0f} M parameters, without weights")
    if recipe["model"]["class_path"].endswith("CriticModule"):
        raise InputError("model: a critic is small; plan reads imitation and dipole recipes")
    pair = pair_of(model, backbone)
    held = sum(p.numel() for p in pair.parameters()) if pair else total
    trained = sum(p.numel() for p in pair.parameters() if p.requires_grad) if pair else total
    numbers, dataset = Numbers.of(trainer), _dataset(data)
    per_gpu, passes = data["batch_size"], int(trainer.get("accumulate_grad_batches") or 1)
    per_step = per_gpu * gpus.count * passes
    cost, why = _cost(backbone, pair, model, per_gpu, dataset["candidates"], numbers)
    memory = _memory(total, held, trained, numbers, gpus, cost, pair is not None)
    seen = trainer["max_steps"] * per_step
    found: dict[str, Any] = {
        "model": {"family": backbone.family, "backbone": str(model["backbone"])},
        "parameters": {
            "total": total,
            "per_adapter": sum(p.numel() for p in pair.parameters("positive")) if pair else 0,
            "trainable": trained,
            "with_adapters": total + (held if pair else 0),
            "adapter_share": sum(p.numel() for p in pair.parameters("positive")) / total if pair else 0.0,
            "by_part": parts,
        },
        "memory": {**memory, "available": gpus.bytes, "fits": memory["total"] <= gpus.bytes},
        "run": {
            "gpus": gpus.count,
            "precision": trainer.get("precision") or "32-true",
            "zero_stage": numbers.stage,
            "steps": trainer["max_steps"],
            "scenes_per_step": per_step,
            "dataset_scenes": dataset["scenes"],
            "candidates_per_scene": dataset["candidates"] if pair else 1,
            "advantage": dataset["advantage"] if pair else None,
            "passes_over_data": seen / dataset["scenes"] if dataset["scenes"] else None,
            "flops_per_step_and_gpu": cost.flops * passes if cost else None,
        },
        "context_cache": {
            "bytes_per_scene": cost.context if cost else None,
            "bytes": cost.context * dataset["scenes"] if cost and dataset["scenes"] else None,
        },
        "hours": None,
        "notes": [
            *_beside_published(model["backbone"], total),
            *dataset["notes"],
            *([f"activations not counted: {why}"] if why else []),
        ],
    }
    if measure:
        from dipole_vla.planning.timing import seconds_per_pass

        stored = bool(data.get("contexts"))
        seconds, device = seconds_per_pass(model, per_gpu, dataset["candidates"], numbers, stored)
        found["hours"] = trainer["max_steps"] * passes * seconds / 3600
        found["measured"] = {"seconds_per_step": passes * seconds, "device": device}
    return found


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _beside_published(where: str, total: int) -> list[str]:
    known = None if is_here(where) else PUBLISHED[Path(where).name].beside_published(total)
    return [known] if known else []


def _parts(backbone: nn.Module) -> dict[str, int]:
    """Parameters by the outermost modules; one that holds more than half is opened once."""
    total, parts = _count(backbone), dict[str, int]()
    for name, child in backbone.named_children():
        inner = {f"{name}.{key}": _count(module) for key, module in child.named_children() if _count(module)}
        whole = _count(child)
        parts |= inner if whole > total / 2 and sum(inner.values()) == whole else {name: whole}
    rest = total - sum(parts.values())
    return {**parts, "rest": rest} if rest else parts


def _dataset(data: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the tables that are there already."""
    from dipole_vla.data.tables import CandidateTable, SceneTable

    scenes, group, told, notes = None, GROUP, None, []
    if data.get("candidates") and is_complete(data["candidates"]):
        table = CandidateTable(data["candidates"])
        how = Advantage.of(data.get("advantage"))
        scenes, group = int(table.formed(how).kept.sum()), table.poses.shape[1]
        told = how.told(str(table.about.get("advantage")))
    elif data.get("scenes") and is_complete(data["scenes"]):
        scenes = len(SceneTable(data["scenes"]))
    if scenes is None:
        notes.append("the tables are not there yet: passes over the data are not known")
    if data.get("candidates") and not is_complete(data["candidates"]):
        notes.append(f"no candidates table yet: {GROUP} candidates per scene assumed")
    return {"scenes": scenes, "candidates": group if data.get("candidates") else 1, "advantage": told, "notes": notes}


def _cost(
    backbone: Backbone, pair: Pair | None, model: dict[str, Any], scenes: int, group: int, numbers: Numbers
) -> tuple[StepCost | None, str | None]:
    """The counted step, or why it could not be counted: only the count is lost then, not the plan."""
    try:
        observation = example_observation(backbone, scenes)
        step = training_step(backbone, pair, model, scenes, group, numbers.frees_early)
        cost = step_cost(backbone, step, observation, numbers.activations)
        if pair and model.get("checkpointing"):  # block inputs, and one block's activations at a time
            whole, blocks = cost.saved, recompute_blocks(pair)
            cost = step_cost(backbone, step, observation, numbers.activations)
            cost = replace(cost, saved=cost.saved + whole // max(blocks, 1))
    except Exception as problem:
        return None, f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"[:200]
    return cost, None


def _memory(
    total: int, held: int, trained: int, numbers: Numbers, gpus: Gpus, cost: StepCost | None, has_pair: bool
) -> dict[str, Any]:
    """Bytes on each GPU by part; `held` counts the sign that a rule does not train too.

    ZeRO 1 splits the optimiser, 2 the gradients too, 3 the weights too.
    """

    def split(size: float, from_stage: int) -> int:
        return math.ceil(size / (gpus.count if numbers.stage >= from_stage else 1))

    parts = {
        "weights": split((total if has_pair else total - trained) * numbers.weights, 3),
        "adapters" if has_pair else "trained_weights": split(held * numbers.trained, 3),
        "gradients": split(trained * numbers.trained, 2),
        "optimiser": split(trained * numbers.optimiser, 1),
        "activations": cost.saved if cost else None,
        "working": cost.working if cost else None,
        "reserve": int(RESERVE),
    }
    return {**parts, "total": sum(size or 0 for size in parts.values())}


def report_lines(found: dict[str, Any]) -> str:
    """The plan as lines for people."""
    sizes, memory, run = found["parameters"], found["memory"], found["run"]
    lines = [f"{found['model']['family']} from {found['model']['backbone']}", "", "parameters"]
    lines += [f"  {name:32s} {count / 1e6:10.1f} M" for name, count in sizes["by_part"].items()]
    lines.append(f"  {'total':32s} {sizes['total'] / 1e6:10.1f} M")
    if sizes["per_adapter"]:
        share = f"{100 * sizes['adapter_share']:.2f} % of the model"
        lines.append(f"  {'each adapter':32s} {sizes['per_adapter'] / 1e6:10.1f} M  ({share})")
    lines.append(f"  {'trainable':32s} {sizes['trainable'] / 1e6:10.1f} M")
    stage = f", ZeRO {run['zero_stage']}" if run["zero_stage"] else ""
    lines += ["", f"memory of each of {run['gpus']} GPUs ({run['precision']}{stage})"]
    for name, size in memory.items():
        if name not in ("fits", "available"):
            lines.append(f"  {name:32s} " + ("  not counted" if size is None else f"{size / 1e9:10.2f} GB"))
    verdict = "fits" if memory["fits"] else "does NOT fit; lower data.batch_size, or use bf16-true or ZeRO 3"
    lines.append(f"  of {memory['available'] / 1e9:.0f} GB: {verdict}")
    lines += ["", "run"]
    lines.append(
        f"  {run['steps']} steps of {run['scenes_per_step']} scenes x {run['candidates_per_scene']} candidates"
    )
    if run["advantage"]:
        lines.append(f"  G: {run['advantage']}")
    if run["passes_over_data"]:
        lines.append(f"  {run['dataset_scenes']} scenes: {run['passes_over_data']:.1f} passes over the data")
    if run["flops_per_step_and_gpu"]:
        lines.append(f"  {run['flops_per_step_and_gpu'] / 1e12:.2f} TFLOP per step and GPU, counted")
    cache = found["context_cache"]
    if cache["bytes_per_scene"]:
        whole = f", {cache['bytes'] / 1e9:.1f} GB in all" if cache["bytes"] else ""
        lines.append(f"  contexts on disk, if cached: {cache['bytes_per_scene'] / 1e6:.2f} MB a scene{whole}")
    if found["hours"] is None:
        lines.append("  hours: not measured (--measure times a few steps on this machine)")
    else:
        timed = found["measured"]
        lines.append(
            f"  {found['hours']:.1f} h at {timed['seconds_per_step']:.2f} s a step, timed on {timed['device']}"
        )
    return "\n".join(lines + [f"  note: {note}" for note in found["notes"]])
