"""Driving: a policy plans once in every scene, as a table for `navsim-adapter score` and `submission`.

Nothing is scored here. The start noise is that of `evaluate`, so the scores of the table are those of its rows.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from dipole_vla import __version__
from dipole_vla.commands.driving import greed_and_count, inputs, require_critic
from dipole_vla.commands.parts import read_parts, run_parts
from dipole_vla.commands.scene_run import SceneRun
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.pictures import began
from dipole_vla.data.splits import check_not_trained_on
from dipole_vla.data.tables import SceneTable
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.progress import console, skipped, wrote
from dipole_vla.provenance import commit
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import only_writer
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.words import counted
from navsim_adapter.trajectories import read_about, write_trajectories


def drive(
    run: SceneRun,
    omega: float | Literal["default"] | None = "default",
    candidates: int | None = None,
    variants: int | None = None,
    start_scale: float | None = None,
    guidance: dict[str, Any] | None = None,
    name: str | None = None,
    seed: int = 1,
) -> None:
    """Plan once in every scene; writes the trajectory table that score and submission of navsim-adapter read.

    Args:
        omega: greed; null is the reference policy, default what the policy's own folder says.
        candidates: plans drawn per scene, of which the critic keeps the best; default what the policy's folder says.
        variants: copies of each plan, driven faster or slower and drifting to a side, among which the critic chooses,
            too; default what the policy's folder says.
        start_scale: standard deviation of the start noise; default the backbone's own, 0 gives one plan.
        guidance: low, high, clamp, distance, power, early, decay where they differ from the policy's own.
        name: of the planner in the table; default is made of the policy's folder, omega and candidates.
        seed: start noise, that of `evaluate`.
    """
    check_range("--candidates", candidates, 1)
    check_range("--variants", variants, 0)
    check_range("--omega", None if isinstance(omega, str) else omega)
    check_range("--start_scale", start_scale, 0)
    table = SceneTable(run.scenes, run.sensors)
    actor = load_policy(run.policy, run.backbone, run.device, guidance)
    greed, count = greed_and_count(run.policy, actor, omega, candidates)
    copies = actor.guidance.variants if variants is None else variants
    require_critic(actor, run.policy, count, copies)
    name = name or f"{run.policy.resolve().name}-{'reference' if greed is None else f'omega{greed:g}'}-n{count}"
    leaks = check_not_trained_on(table.split, table.tokens, table.log_names, actor.seen, run.allow_eval_split)
    unfinished = run.out.with_name(f"{run.out.name}.parts")
    before = _about(run.out) if run.out.exists() else began(unfinished)
    asked = {"omega": greed, "candidates": count, "seed": seed, "name": name}
    more: dict[str, Any] = {"start_scale": start_scale, "guidance": guidance or None, "variants": copies or None}
    asked |= {key: value for key, value in more.items() if value is not None}  # not so in tables of before
    made_by = {**inputs("drive", run, table, before), **asked}
    wanted = {**more, **made_by}  # a table of before that was asked for one of these is another one
    if _is_made(run.out, wanted):
        return skipped("drive", run.out)
    taken: list[float] = []  # seconds a scene, of the parts made here

    def plan(positions: range) -> pa.Table:
        start = time.monotonic()
        rows = _plan_part(actor, table, positions, greed, count, copies, start_scale, run.batch_size, seed)
        taken.extend([(time.monotonic() - start) / len(positions)] * len(positions))
        return rows

    if not run_parts(unfinished, made_by, f"drive {table.split}", len(table), plan, run.shard):
        return
    with only_writer(unfinished, wait=True):
        if not _is_made(run.out, wanted):  # another shard may have put them together
            about = {**made_by, **_facts(actor, table), "rl_on_eval_split": leaks}
            _write(run.out, name, read_parts(unfinished), actor, about)
        shutil.rmtree(unfinished)
    pace = f", {np.mean(taken):.2g} s a scene" if taken else ""
    console.print(
        f"{counted(len(table), 'scene')} of {table.split}, a plan each, by {name}{pace}", markup=False, soft_wrap=True
    )
    wrote("drive", run.out)


def _facts(actor: GuidedPolicy, table: SceneTable) -> dict[str, Any]:
    return {
        "policy_fingerprint": actor.fingerprint,
        "split": table.split,
        "rl_split": actor.rl_split,
        "rl_metric": actor.provenance.get("metric"),
        "version": __version__,
        "commit": commit(),
    }


def _write(out: Path, name: str, rows: pa.Table, actor: GuidedPolicy, about: Mapping[str, Any]) -> None:
    plans = dict(zip(rows["token"].to_pylist(), np.asarray(rows["poses"].to_pylist(), np.float64)))
    write_trajectories(out, name, plans, actor.backbone.action.interval, about)


def _is_made(out: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether the table is there; InputError where `out` is one of other inputs, or something else."""
    if not out.exists():
        return False
    about = _about(out)
    if about.get("command") != made_by["command"]:
        raise InputError(f"{out}: is there, and was not made by drive; choose another --out")
    for key, wanted in made_by.items():
        if about.get(key) != wanted:
            raise InputError(
                f"{out}: {key}: this table was made with {about.get(key)!r}, now {wanted!r}; remove it or choose "
                "another --out"
            )
    return True


def _about(out: Path) -> Mapping[str, Any]:
    try:
        return read_about(out)
    except InputError:
        return {}


def _plan_part(
    actor: GuidedPolicy,
    table: SceneTable,
    positions: range,
    omega: float | None,
    candidates: int,
    variants: int,
    start_scale: float | None,
    batch_size: int,
    seed: int,
) -> pa.Table:
    tokens: list[str] = []
    chosen = []
    for batch in batches(table, positions, actor.processor, batch_size, actor.device):
        noise = start_noise(batch.tokens, candidates, actor.noise_shape, seed)
        with torch.inference_mode():
            act = actor.act(batch.observation, omega, candidates, noise, start_scale=start_scale, variants=variants)
            plans = act.cpu().double().numpy()
        for token, plan in zip(batch.tokens, plans):
            if not np.isfinite(plan).all():
                raise InputError(f"scene {token}: the plan holds NaN or infinity; check the weights, or lower omega")
        tokens += batch.tokens
        chosen.append(plans)
    return pa.table({"token": tokens, "poses": [plan.tolist() for plan in np.concatenate(chosen)]})
