"""Evaluation: every omega, N, start noise and way of guidance from the same noise; one row per token and setting.

The critic chooses among candidates, because the car has no simulator. Only the row named `oracle` lets the
simulator choose, as an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dipole_vla.commands.driving import inputs, is_finished, make_folder, require_critic
from dipole_vla.commands.scene_run import SceneRun
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.pictures import began
from dipole_vla.data.splits import check_not_trained_on
from dipole_vla.data.tables import SceneTable
from dipole_vla.evaluation.choice import choice_of
from dipole_vla.evaluation.settings import Setting, mean_plan
from dipole_vla.evaluation.summary import HUMAN, headline, summarise
from dipole_vla.evaluation.sweep import Sweep
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.progress import console, wrote
from dipole_vla.provenance import provenance
from dipole_vla.scoring import Scorer, columns, identity, require_sampling, require_scenes, score_plans, seen_of
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, read_json, stamp, write_json
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.words import counted


def evaluate(
    run: SceneRun,
    scorer: Scorer,
    omega: Sequence[float] = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0),
    candidates: Sequence[int] = (1, 8),
    start_scale: Sequence[float] | None = None,
    samples: int | None = None,
    guidance: Sequence[dict[str, Any]] | None = None,
    variants: int = 0,
    choose_on: Path | None = None,
    seed: int = 1,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Sweep omega and N over a split; writes rows.parquet, plans.parquet, scores.csv and summary.json.

    Args:
        scorer: class_path of a scorer and its init_args.
        omega: greed values to try.
        candidates: numbers of candidates N; the critic keeps the best.
        start_scale: standard deviations of the start noise to try, for the reference, too; 0 gives one plan a scene,
            null is the backbone's own.
        samples: plans drawn per scene and setting, from which every N is estimated; null is the greatest N.
        guidance: ways of guidance to try, mappings of low, high, clamp, distance, power, early, decay; {} is the
            policy's own, which null means alone.
        variants: copies of each plan, driven faster or slower and drifting to a side; where the critic rates one best,
            it takes the plan's place, for the reference, too.
        choose_on: an evaluation of other scenes, whose chosen setting is the one to report and whose best reference
            the one to compare it with; without it these very scenes choose both, and both are then optimistic.
        seed: start noise, shared by all policies.
        recipe: filled by the command line with the resolved recipe.
    """
    check_range("--variants", variants, 0)
    actor = _policy(run)
    sweep = Sweep.of(omega, candidates, start_scale, guidance, samples, actor.backbone.solver)
    _require(actor, run, sweep, variants)
    table = SceneTable(run.scenes, run.sensors)
    made_by = {
        **inputs("evaluate", run, table, began(run.out)),
        "scorer": identity(scorer),
        "omega": sweep.omegas,
        "candidates": sweep.counts,
        "start_scale": sweep.starts,
        "samples": sweep.samples,
        "guidance": sweep.ways,
        "choose_on": stamp(choose_on) if choose_on else None,
        "seed": seed,
        **({"variants": variants} if variants else {}),  # not so in folders of before
    }
    require_sampling(scorer, actor.backbone.sampling)
    table.futures_at(seen_of(scorer, actor.backbone.sampling), range(1))  # the human is scored; rendered have none
    require_scenes(scorer, table.tokens)
    leaks = check_not_trained_on(table.split, table.tokens, table.log_names, actor.seen, run.allow_eval_split)
    chosen = None
    if choose_on:
        this = actor.fingerprint, made_by["scorer"], sweep.settings, variants
        chosen = choice_of(choose_on, table.tokens, *this)
    if is_finished(run, made_by):
        return

    def plan(positions: range) -> pa.Table:
        return _evaluate_part(actor, table, positions, scorer, sweep, variants, run.batch_size, seed)

    def assemble(plans: pa.Table) -> None:
        facts = {"rl_on_eval_split": leaks, "variants": variants, **_facts(plans, run, actor, table, recipe or {})}
        rows, summary = summarise(plans, sweep.settings, facts, chosen, scorer)
        _write(run.out, plans, rows, {**summary, "rl_metric": actor.provenance.get("metric")})

    if make_folder(run, made_by, table, plan, assemble):
        _say(read_json(run.out / "summary.json"))
        wrote("evaluate", run.out / "summary.json")


def _policy(run: SceneRun) -> GuidedPolicy:
    actor = load_policy(run.policy, run.backbone, run.device)
    if actor.pair is None:
        raise InputError(
            f"{run.policy}: a backbone without adapters; evaluate needs a policy folder from `dipole-vla fit`"
        )
    return actor


def _require(actor: GuidedPolicy, run: SceneRun, sweep: Sweep, variants: int) -> None:
    """What the sweep asks of the policy, before the first scene: a critic, and guidance it can follow."""
    require_critic(actor, run.policy, max(sweep.counts), variants)
    for way in sweep.ways:
        actor.combination(way)


def _write(out: Path, plans: pa.Table, rows: pa.Table, summary: dict[str, Any]) -> None:
    for name, content in (("plans.parquet", plans), ("rows.parquet", rows)):
        with atomic_path(out / name) as aside:
            pq.write_table(content, aside)
    write_json(out / "summary.json", summary)
    _write_csv(out / "scores.csv", rows, summary)


def _say(summary: dict[str, Any]) -> None:
    metric = summary["metric"]
    console.print(
        f"{metric} x 100 on {summary['split']}, {counted(summary['scenes'], 'scene')}, "
        f"{counted(summary['logs'], 'log')}:"
    )
    for line in headline(summary):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if summary["rl_metric"] not in (None, metric):
        console.print(f"trained on {summary['rl_metric']}, evaluated by {metric}", markup=False)


def _facts(
    plans: pa.Table, run: SceneRun, actor: GuidedPolicy, table: SceneTable, recipe: dict[str, Any]
) -> dict[str, Any]:
    """What was measured, what made the numbers, and where a report finds the pictures' material."""
    return {
        "metric": plans.schema.metadata[b"metric"].decode(),
        "split": table.split,
        "rl_split": actor.rl_split,
        "start_scale": actor.backbone.solver.start_scale,
        "interval": actor.backbone.sampling.interval,
        "provenance": {
            **provenance(recipe),
            **actor.provenance,
            "policy": str(run.policy),
            "policy_fingerprint": actor.fingerprint,
        },
        "inputs": {
            "scenes": str(run.scenes),
            "sensors": str(table.sensors),
            "cache": (recipe.get("scorer") or {}).get("init_args", {}).get("cache"),
            "candidates": actor.provenance.get("candidates"),
        },
    }


def _evaluate_part(
    actor: GuidedPolicy,
    table: SceneTable,
    positions: range,
    scorer: Scorer,
    sweep: Sweep,
    variants: int,
    batch_size: int,
    seed: int,
) -> pa.Table:
    """Plans of one part, scored one by one: the human's, each draw's, and the means of the reference's.

    The human's ends where the scorer looks no further: a log may be shorter than the policy's plans.
    """
    tokens: list[str] = []
    logs: list[str] = []
    drawn, kept, values = [], [], []
    for batch in batches(table, positions, actor.processor, batch_size, actor.device):
        noise = start_noise(batch.tokens, sweep.samples, actor.noise_shape, seed).to(actor.device)
        with torch.inference_mode():
            context = actor.encode(batch.observation)
            plans = [
                actor.sample(
                    context, d.omega, d.count, noise[:, : d.count], start_scale=d.start_scale, guidance=d.guidance
                )
                for d in sweep.draws
            ]
            drawn.append(torch.cat(plans, dim=1).cpu().double().numpy())
            if actor.critic is not None:
                improved = [actor.improved(context, plan, variants) for plan in plans]
                plans = [plan for plan, _ in improved]
                values.append(torch.cat([rated for _, rated in improved], dim=1).cpu().double().numpy())
            kept.append(torch.cat(plans, dim=1).cpu().double().numpy())
        tokens += batch.tokens
        logs += batch.log_names
    poses = np.concatenate(drawn)
    q = np.concatenate(values) if values else np.zeros(poses.shape[:2])
    counts = [draw.count for draw in sweep.draws]
    parts = np.split(poses, np.cumsum(counts)[:-1], axis=1)
    means = [(d.setting.mean, mean_plan(p)) for d, p in zip(sweep.draws, parts) if d.omega is None and d.count > 1]
    sampling = actor.backbone.sampling
    human = table.futures_at(seen_of(scorer, sampling), positions)[:, None]
    poses = np.concatenate([np.concatenate(kept), *(plan for _, plan in means)], axis=1)
    q = np.pad(q, ((0, 0), (1, len(means))), constant_values=np.nan)
    drawn_as = [(HUMAN, 0), *((d.setting, index) for d in sweep.draws for index in range(d.count))]
    groups = [(plans, score_plans(scorer, tokens, plans, sampling.interval)) for plans in (human, poses)]
    return _table(tokens, logs, [*drawn_as, *((mean, 0) for mean, _ in means)], groups, q)


def _table(
    tokens: list[str],
    logs: list[str],
    columns_of: list[tuple[Setting, int]],
    groups: list[tuple[np.ndarray, Any]],
    q: np.ndarray,
) -> pa.Table:
    """Rows of `plans.parquet`. columns_of: what the plans of a scene are, in order. groups: plans of one length
    (S, K_i, T_i, 3) and their scores, the first K_1 of a scene, the next K_2, ...; q (S, K)."""
    per_scene = len(columns_of)
    figures = [columns(scores) for _, scores in groups]
    flat = {
        "token": np.repeat(tokens, per_scene),
        "log_name": np.repeat(logs, per_scene),
        "policy": [setting.policy for setting, _ in columns_of] * len(tokens),
        "omega": pa.array([setting.omega for setting, _ in columns_of] * len(tokens), pa.float64()),
        "start_scale": pa.array([setting.start_scale for setting, _ in columns_of] * len(tokens), pa.float64()),
        "guidance": [setting.guidance for setting, _ in columns_of] * len(tokens),
        "index": np.tile(np.asarray([index for _, index in columns_of], dtype=np.int32), len(tokens)),
        "q": q.reshape(-1),
        "poses": [plan.tolist() for scene in range(len(tokens)) for plans, _ in groups for plan in plans[scene]],
        **{name: np.concatenate([own[name] for own in figures], axis=1).reshape(-1) for name in figures[0]},
    }
    rows = pa.table({name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in flat.items()})
    return rows.replace_schema_metadata({"metric": groups[0][1].metric})


def _write_csv(path: Path, rows: pa.Table, summary: dict) -> None:
    """The chosen policy's scores in NAVSIM's own column order, with its closing `average` row."""
    frame = rows.to_pandas()
    frame = frame[Setting.of({"policy": "dipole", **summary["chosen"]}).of_rows(frame)]
    names = [*summary["sub_scores"], "score"]
    frame = frame[["token", *names]].assign(valid=True)[["token", "valid", *names]]
    frame.loc[len(frame) + 1] = ["average", True, *frame[names].mean().tolist()]
    with atomic_path(path) as aside:
        frame.reset_index(drop=True).to_csv(aside)
