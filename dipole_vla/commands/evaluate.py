"""Evaluation: every omega, every N, the same start noise; one row per (token, policy, omega, N).

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
from dipole_vla.evaluation.summary import headline, summarise
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.progress import console, wrote
from dipole_vla.provenance import provenance
from dipole_vla.scoring import Scorer, columns, identity, require_scenes
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, read_json, stamp, write_json
from navsim_adapter.foundation.option_checks import check_range


def evaluate(
    run: SceneRun,
    scorer: Scorer,
    omega: Sequence[float] = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0),
    candidates: Sequence[int] = (1, 8),
    choose_on: Path | None = None,
    seed: int = 1,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Sweep omega and N over a split; writes rows.parquet, plans.parquet, scores.csv and summary.json.

    Args:
        scorer: class_path of a scorer and its init_args.
        omega: greed values to try.
        candidates: numbers of candidates N; the critic keeps the best.
        choose_on: an evaluation of other scenes whose best (omega, N) is the one to report; without it the best of
            this very evaluation is marked, and is then optimistic.
        seed: start noise, shared by all policies.
        recipe: filled by the command line with the resolved recipe.
    """
    omegas, counts = _grid(omega, candidates)
    table = SceneTable(run.scenes, run.sensors)
    made_by = {
        **inputs("evaluate", run, table, began(run.out)),
        "scorer": identity(scorer),
        "omega": omegas,
        "candidates": counts,
        "choose_on": stamp(choose_on) if choose_on else None,
        "seed": seed,
    }
    actor = _policy(run, max(counts))
    table.futures(range(1))  # the human is scored, too, and rendered scenes have none
    require_scenes(scorer, table.tokens)
    leaks = check_not_trained_on(table.split, table.tokens, table.log_names, actor.seen, run.allow_eval_split)
    chosen = None
    if choose_on:
        chosen = choice_of(choose_on, table.tokens, actor.fingerprint, made_by["scorer"], omegas, counts)
    if is_finished(run, made_by):
        return

    def plan(positions: range) -> pa.Table:
        return _evaluate_part(actor, table, positions, scorer, omegas, max(counts), run.batch_size, seed)

    def assemble(plans: pa.Table) -> None:
        facts = {"rl_on_eval_split": leaks, **_facts(plans, run, actor, table, recipe or {})}
        rows, summary = summarise(plans, omegas, counts, facts, chosen, scorer)
        _write(run.out, plans, rows, {**summary, "rl_metric": actor.provenance.get("metric")})

    if make_folder(run, made_by, table, plan, assemble):
        _say(read_json(run.out / "summary.json"))
        wrote("evaluate", run.out / "summary.json")


def _policy(run: SceneRun, most: int) -> GuidedPolicy:
    actor = load_policy(run.policy, run.backbone, run.device)
    if actor.pair is None:
        raise InputError(
            f"{run.policy}: a backbone without adapters; evaluate needs a policy folder from `dipole-vla fit`"
        )
    require_critic(actor, run.policy, most)
    return actor


def _write(out: Path, plans: pa.Table, rows: pa.Table, summary: dict[str, Any]) -> None:
    for name, content in (("plans.parquet", plans), ("rows.parquet", rows)):
        with atomic_path(out / name) as aside:
            pq.write_table(content, aside)
    write_json(out / "summary.json", summary)
    _write_csv(out / "scores.csv", rows, summary)


def _say(summary: dict[str, Any]) -> None:
    metric = summary["metric"]
    console.print(f"{metric} x 100 on {summary['split']}, {summary['scenes']} scenes, {summary['logs']} logs:")
    for line in headline(summary):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if summary["rl_metric"] not in (None, metric):
        console.print(f"trained on {summary['rl_metric']}, evaluated by {metric}", markup=False)


def _grid(omega: Sequence[float], candidates: Sequence[int]) -> tuple[list[float], list[int]]:
    """Omegas and Ns in order, each once."""
    omegas, counts = sorted({float(w) for w in omega}), sorted({int(n) for n in candidates})
    if not omegas or not counts or counts[0] < 1:
        raise InputError(f"omega, candidates: need values and N >= 1, got {list(omega)} and {list(candidates)}")
    for value in omegas:
        check_range("--omega", value)
    return omegas, counts


def _facts(
    plans: pa.Table, run: SceneRun, actor: GuidedPolicy, table: SceneTable, recipe: dict[str, Any]
) -> dict[str, Any]:
    """What was measured, what made the numbers, and where a report finds the pictures' material."""
    return {
        "metric": plans.schema.metadata[b"metric"].decode(),
        "split": table.split,
        "rl_split": actor.rl_split,
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
    actor, table: SceneTable, positions: range, scorer: Scorer, omegas, most: int, batch_size: int, seed: int
) -> pa.Table:
    """Plans of one part: human (index 0), reference and each omega (`most` candidates each), scored one by one."""
    settings: list[float | None] = [None, *omegas]
    tokens: list[str] = []
    logs: list[str] = []
    drawn, values = [], []
    for batch in batches(table, positions, actor.processor, batch_size, actor.device):
        noise = start_noise(batch.tokens, most, actor.noise_shape, seed).to(actor.device)
        with torch.inference_mode():
            context = actor.encode(batch.observation)
            plans = [actor.sample(context, omega=w, candidates=most, noise=noise) for w in settings]
            drawn.append(torch.cat(plans, dim=1).cpu().double().numpy())
            values.append(torch.cat([actor.value(context, plan) for plan in plans], dim=1).cpu().double().numpy())
        tokens += batch.tokens
        logs += batch.log_names
    poses, q = np.concatenate(drawn), np.concatenate(values)
    human = table.futures(positions, poses.shape[2])
    poses = np.concatenate([human[:, None], poses], axis=1)
    scores = scorer.score(tokens, poses)
    per_scene = poses.shape[1]
    names = ["human"] + ["reference"] * most + ["dipole"] * (most * len(omegas))
    greed = [None] * (1 + most) + [w for w in omegas for _ in range(most)]
    index = [0] + list(range(most)) * len(settings)
    flat = {
        "token": np.repeat(tokens, per_scene),
        "log_name": np.repeat(logs, per_scene),
        "policy": names * len(tokens),
        "omega": pa.array(greed * len(tokens), pa.float64()),
        "index": np.tile(np.asarray(index, dtype=np.int32), len(tokens)),
        "q": np.concatenate([np.full((len(tokens), 1), np.nan), q], axis=1).reshape(-1),
        "poses": [p.tolist() for p in poses.reshape(-1, *poses.shape[2:])],
        **{name: value.reshape(-1) for name, value in columns(scores).items()},
    }
    rows = pa.table({name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in flat.items()})
    return rows.replace_schema_metadata({"metric": scores.metric})


def _write_csv(path: Path, rows: pa.Table, summary: dict) -> None:
    """The chosen policy's scores in NAVSIM's own column order, with its closing `average` row."""
    chosen = summary["chosen"]
    frame = rows.to_pandas()
    frame = frame[
        (frame.policy == "dipole") & (frame.omega == chosen["omega"]) & (frame.candidates == chosen["candidates"])
    ]
    names = [*summary["sub_scores"], "score"]
    frame = frame[["token", *names]].assign(valid=True)[["token", "valid", *names]]
    frame.loc[len(frame) + 1] = ["average", True, *frame[names].mean().tolist()]
    with atomic_path(path) as aside:
        frame.reset_index(drop=True).to_csv(aside)
