"""Collection: a policy drives every scene K times, the simulator scores it, and the advantage is written beside it.

The only place where G is made for driving data. Everything downstream sees (observation, action, advantage).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dipole_vla.advantage import group_relative, informative
from dipole_vla.commands.parts import FOLDER, read_parts, run_parts
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.splits import refuse_collection
from dipole_vla.data.tables import SceneTable
from dipole_vla.policy import load_policy
from dipole_vla.progress import skipped, wrote
from dipole_vla.provenance import provenance
from dipole_vla.scoring import Scorer, columns, identity, require_scenes
from navsim_adapter.foundation.files import finish, is_made, making, stamp, write_json
from navsim_adapter.foundation.option_checks import check_range


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
    backbone: Path | None = None,
    allow_eval_split: bool = False,
    shard: str | None = None,
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
        backbone: of a policy folder, where its backbone is no longer at the place that the policy names.
        allow_eval_split: collect on an evaluation split; every report will say so in red.
        shard: i/n, do this part of the work only, as a task of a job array; the last to finish puts them together.
        recipe: filled by the command line with the resolved recipe.
    """
    check_range("--candidates", candidates, 1)
    check_range("--batch_size", batch_size, 1)
    check_range("--omega", omega)
    out = Path(out)
    table = SceneTable(scenes, sensors)
    refuse_collection(table.split, allow_eval_split)
    made_by = {
        "command": "collect",
        "policy": stamp(policy),
        "scenes": stamp(scenes),
        "scorer": identity(scorer),
        "candidates": candidates,
        "omega": omega,
        "with_human": with_human,
        "seed": seed,
        **pictures_entry(table.pictures, began(out), out),
    }
    if is_made(out, made_by):
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        return skipped("collect", out)
    if with_human:
        table.futures(range(1))  # rendered scenes have none
    require_scenes(scorer, table.tokens)
    actor = load_policy(policy, backbone, device)

    def score(positions: range) -> pa.Table:
        return _score_part(actor, table, positions, scorer, candidates, omega, with_human, batch_size, seed)

    if not run_parts(out, made_by, f"collect {table.split}", len(table), score, shard):
        return
    with making(out, made_by, wait=True) as is_open:
        if not is_open:
            return skipped("collect", out)  # another shard has put them together
        _assemble(out, table, actor, made_by, recipe or {}, allow_eval_split)
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
        human = table.futures(positions, poses.shape[2])
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


def _assemble(out: Path, table: SceneTable, actor, made_by: dict, recipe: dict, allow_eval_split: bool) -> None:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    rows = read_parts(out)
    metric = rows.schema.metadata[b"metric"].decode()
    disable_progress_bar()
    Dataset(rows.replace_schema_metadata(None)).save_to_disk(str(out))
    advantage = rows["advantage"].to_numpy().reshape(len(table), -1)
    write_json(
        out / "candidates.json",
        {
            "metric": metric,
            "split": table.split,
            "logs": sorted(set(table.log_names)),
            "scenes": len(table),
            "candidates": advantage.shape[1],
            "advantage": "group-relative: (return - group mean) / (group std + 1e-6)",
            "degenerate_groups": int((~informative(advantage)).sum()),
            "policy_fingerprint": actor.fingerprint,
            "base_fingerprint": actor.fingerprint if actor.pair is None else actor.pair.base_fingerprint,
            "omega": made_by["omega"],
            "allow_eval_split": allow_eval_split,
            "sources": {"scenes": str(table.folder), "sensors": str(table.sensors)},
            "provenance": provenance(recipe),
        },
    )
    finish(out, made_by, exclude=(FOLDER,))
    shutil.rmtree(out / FOLDER)
