"""Collection: a policy drives every scene K times, the simulator scores it, and the advantage is written beside it.

The only place where G is made for driving data. Everything downstream sees (observation, action, advantage).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dipole_vla.advantage import group_relative, informative
from dipole_vla.commands.driving import inputs, is_finished, make_folder
from dipole_vla.commands.scene_run import SceneRun
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.columns import VARIANT
from dipole_vla.data.pictures import began
from dipole_vla.data.splits import refuse_collection
from dipole_vla.data.tables import SceneTable
from dipole_vla.policy import load_policy
from dipole_vla.progress import wrote
from dipole_vla.provenance import provenance
from dipole_vla.scoring import Scorer, columns, identity, require_sampling, require_scenes, score_plans
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_json
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.variants import varied


def collect(
    run: SceneRun,
    scorer: Scorer,
    candidates: int = 16,
    omega: float | None = None,
    with_human: bool = True,
    start_scale: float | None = None,
    variants: int = 0,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Sample, score and rank K candidates per scene; writes an Arrow table with one row per candidate.

    Args:
        scorer: class_path of a scorer and its init_args, e.g. navsim_adapter.scoring.scorer.Scorer with `cache`.
        candidates: trajectories sampled per scene.
        omega: greed of the collecting policy; null is the reference policy.
        with_human: also score the human's own future as candidate 0.
        start_scale: standard deviation of the start noise; null is the backbone's own, more makes candidates that
            differ more.
        variants: copies of each plan that are driven faster or slower and drift to a side, scored for the critic alone.
        seed: start noise.
        recipe: filled by the command line with the resolved recipe.
    """
    check_range("--candidates", candidates, 1)
    check_range("--variants", variants, 0)
    check_range("--omega", omega)
    check_range("--start_scale", start_scale, 0)
    if candidates + with_human < 2:
        raise InputError("--candidates: 1 without the human is compared with nothing; give 2, or --with_human true")
    table = SceneTable(run.scenes, run.sensors)
    refuse_collection(table.split, run.allow_eval_split)
    made_by = {
        **inputs("collect", run, table, began(run.out)),
        "scorer": identity(scorer),
        "candidates": candidates,
        "omega": omega,
        "with_human": with_human,
        "seed": seed,
        **({} if start_scale is None else {"start_scale": start_scale}),  # not so in tables of before
        **({"variants": variants} if variants else {}),  # not so in folders of before
    }
    if is_finished(run, made_by):
        return
    require_scenes(scorer, table.tokens)
    actor = load_policy(run.policy, run.backbone, run.device)
    require_sampling(scorer, actor.backbone.sampling)
    if with_human:
        table.futures_at(actor.backbone.sampling, range(1))  # rendered scenes have none

    def score(positions: range) -> pa.Table:
        return _score_part(
            actor, table, positions, scorer, candidates, omega, with_human, start_scale, variants, run.batch_size, seed
        )

    def assemble(rows: pa.Table) -> None:
        _write(run, rows, table, actor, omega, recipe or {})

    if make_folder(run, made_by, table, score, assemble):
        wrote("collect", run.out)


def _score_part(
    actor,
    table: SceneTable,
    positions: range,
    scorer: Scorer,
    candidates: int,
    omega: float | None,
    with_human: bool,
    start_scale: float | None,
    variants: int,
    batch_size: int,
    seed: int,
) -> pa.Table:
    tokens: list[str] = []
    drawn = []
    for batch in batches(table, positions, actor.processor, batch_size, actor.device):
        noise = start_noise(batch.tokens, candidates, actor.noise_shape, seed).to(actor.device)
        with torch.inference_mode():
            plans = actor.sample(
                batch.observation, omega=omega, candidates=candidates, noise=noise, start_scale=start_scale
            )
        drawn.append(plans.cpu().double().numpy())
        tokens += batch.tokens
    poses = np.concatenate(drawn)
    if with_human:
        human = table.futures_at(actor.backbone.sampling, positions)
        poses = np.concatenate([human[:, None], poses], axis=1)
    plans = poses.shape[1]
    if variants:
        poses = np.concatenate([poses, _variants(tokens, poses, variants, seed)], axis=1)
    scores = score_plans(scorer, tokens, poses, actor.backbone.sampling.interval)
    group = poses.shape[1]
    source = ["human"] * with_human + ["reference" if omega is None else "guided"] * candidates
    advantage = np.zeros(scores.score.shape)  # a variant has none
    advantage[:, :plans] = group_relative(torch.from_numpy(scores.score[:, :plans])).numpy()
    columns_of = {
        "token": np.repeat(tokens, group),
        "index": np.tile(np.arange(group, dtype=np.int32), len(tokens)),
        "source": np.tile(source + [VARIANT] * (group - plans), len(tokens)),
        "poses": [p.tolist() for p in poses.reshape(-1, *poses.shape[2:])],
        **{name: values.reshape(-1) for name, values in columns(scores).items()},
        "return": scores.score.reshape(-1),
        "advantage": advantage.reshape(-1),
    }
    rows = pa.table({name: pa.array(values) for name, values in columns_of.items()})
    return rows.replace_schema_metadata({"metric": scores.metric})


def _variants(tokens: Sequence[str], poses: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(S, K * count, T, 3): `count` variants of each plan (S, K, T, 3), one plan after the other."""
    draws = start_noise(tokens, poses.shape[1] * count, (2,), seed).numpy()
    return varied(np.repeat(poses, count, axis=1), draws)


def _write(run: SceneRun, rows: pa.Table, table: SceneTable, actor, omega: float | None, recipe: dict) -> None:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    metric = rows.schema.metadata[b"metric"].decode()
    disable_progress_bar()
    Dataset(rows.replace_schema_metadata(None)).save_to_disk(str(run.out))
    plans = rows.filter(pc.not_equal(rows["source"], VARIANT))
    advantage = plans["advantage"].to_numpy().reshape(len(table), -1)
    write_json(
        run.out / "candidates.json",
        {
            "metric": metric,
            "split": table.split,
            "logs": sorted(set(table.log_names)),
            "scenes": len(table),
            "candidates": advantage.shape[1],
            "interval": actor.backbone.sampling.interval,
            "cameras": list(actor.processor.cameras),
            "variants": (len(rows) - len(plans)) // len(table),
            "advantage": "group-relative: (return - group mean) / (group std + 1e-6)",
            "degenerate_groups": int((~informative(advantage)).sum()),
            "policy_fingerprint": actor.fingerprint,
            "base_fingerprint": actor.fingerprint if actor.pair is None else actor.pair.base_fingerprint,
            "omega": omega,
            "allow_eval_split": run.allow_eval_split,
            "sources": {"scenes": str(table.folder), "sensors": str(table.sensors)},
            "provenance": provenance(recipe),
        },
    )
