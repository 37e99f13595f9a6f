"""Collection: a policy drives every scene K times, the simulator scores it, and the advantage is written beside it.

The only place where G is made for driving data. Everything downstream sees (observation, action, advantage).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dipole_vla.critic.returns import group_relative
from dipole_vla.data.tables import SceneTable
from dipole_vla.policy import load_policy
from dipole_vla.progress import bar, skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.rollout import batches, start_noise
from dipole_vla.scoring import Scorer, columns
from dipole_vla.splits import refuse_collection
from navsim_adapter.files import atomic_path, begin, finish, stamp, write_json

PART = 128  # scenes per resumable part


def collect(
    policy: Path,
    scenes: Path,
    scorer: Scorer,
    out: Path,
    candidates: int = 16,
    omega: float | None = None,
    with_human: bool = True,
    sensors: Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    allow_eval_split: bool = False,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Sample, score and rank K candidates per scene; writes an Arrow table with one row per candidate.

    Args:
        policy: backbone folder (the reference policy) or policy folder (a guided one, for the next round).
        scenes: folder written by `navsim-adapter convert`.
        scorer: class_path of a scorer and its init_args, e.g. navsim_adapter.scoring.scorer.Scorer with `cache`.
        out: folder to write.
        candidates: trajectories sampled per scene.
        omega: greed of the collecting policy; null is the reference policy.
        with_human: also score the human's own future as candidate 0.
        sensors: root of the camera paths; default is the one recorded in `scenes`.
        batch_size: scenes per forward pass.
        seed: start noise.
        device: auto, cpu, cuda.
        allow_eval_split: collect on an evaluation split; every report will say so in red.
        recipe: filled by the command line with the resolved recipe.
    """
    table = SceneTable(scenes, sensors)
    refuse_collection(table.split, allow_eval_split)
    made_by = {
        "command": "collect",
        "policy": stamp(policy),
        "scenes": stamp(scenes),
        "candidates": candidates,
        "omega": omega,
        "with_human": with_human,
        "seed": seed,
    }
    if not begin(out, made_by):
        return skipped("collect", out)
    actor = load_policy(policy, device=device)
    parts = Path(out) / "parts"
    with bar(f"collect {table.split}", len(table)) as progress:
        for start in range(0, len(table), PART):
            positions = range(start, min(start + PART, len(table)))
            part = parts / f"{start:08d}.parquet"
            if not part.is_file():
                rows = _score_part(actor, table, positions, scorer, candidates, omega, with_human, batch_size, seed)
                with atomic_path(part) as aside:
                    pq.write_table(rows, aside)
            progress.advance(len(positions))
    _assemble(Path(out), parts, table, actor, made_by, recipe or {}, allow_eval_split)
    wrote("collect", out)


def _score_part(
    actor,
    table: SceneTable,
    positions: range,
    scorer: Scorer,
    candidates: int,
    omega: float | None,
    with_human: bool,
    batch_size: int,
    seed: int,
) -> pa.Table:
    tokens: list[str] = []
    drawn = []
    for batch in batches(table, positions, actor.processor, batch_size, actor.device):
        noise = start_noise(batch.tokens, candidates, actor.noise_shape, seed).to(actor.device)
        with torch.inference_mode():
            drawn.append(
                actor.sample(batch.observation, omega=omega, candidates=candidates, noise=noise).cpu().double().numpy()
            )
        tokens += batch.tokens
    poses = np.concatenate(drawn)
    if with_human:
        human = np.stack([np.asarray(table.row(i)["future"], dtype=np.float64) for i in positions])
        poses = np.concatenate([human[:, None], poses], axis=1)
    scores = scorer.score(tokens, poses)
    group = poses.shape[1]
    source = "reference" if omega is None else "guided"
    columns_of = {
        "token": np.repeat(tokens, group),
        "index": np.tile(np.arange(group, dtype=np.int32), len(tokens)),
        "source": np.tile((["human"] if with_human else []) + [source] * candidates, len(tokens)),
        "poses": [p.tolist() for p in poses.reshape(-1, *poses.shape[2:])],
        **{name: values.reshape(-1) for name, values in columns(scores).items()},
        "return": scores.score.reshape(-1),
        "advantage": group_relative(torch.from_numpy(scores.score)).numpy().reshape(-1),
    }
    rows = pa.table({name: pa.array(values) for name, values in columns_of.items()})
    return rows.replace_schema_metadata({"metric": scores.metric})


def _assemble(
    out: Path, parts: Path, table: SceneTable, actor, made_by: dict, recipe: dict, allow_eval_split: bool
) -> None:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    tables = [pq.read_table(path) for path in sorted(parts.glob("*.parquet"))]
    metric = tables[0].schema.metadata[b"metric"].decode()
    rows = pa.concat_tables(tables)
    disable_progress_bar()
    Dataset(rows.replace_schema_metadata(None)).save_to_disk(str(out))
    advantage = rows["advantage"].to_numpy().reshape(len(table), -1)
    write_json(
        out / "candidates.json",
        {
            "metric": metric,
            "split": table.split,
            "scenes": len(table),
            "candidates": advantage.shape[1],
            "advantage": "group-relative: (return - group mean) / (group std + 1e-6)",
            "degenerate_groups": int((np.ptp(advantage, axis=1) < 1e-9).sum()),
            "policy_fingerprint": actor.fingerprint,
            "omega": made_by["omega"],
            "allow_eval_split": allow_eval_split,
            "sources": {"scenes": str(table.folder), "sensors": str(table.sensors)},
            "provenance": provenance(recipe),
        },
    )
    shutil.rmtree(parts)
    finish(out, made_by)
