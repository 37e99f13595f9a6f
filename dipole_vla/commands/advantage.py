"""`dipole-vla advantage`: the same candidates with G = Q - V from a critic in place of group-relative returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dipole_vla.data.batches import batches
from dipole_vla.data.pictures import began, pictures_entry
from dipole_vla.data.tables import CANDIDATE_COLUMNS, CandidateTable, SceneTable, open_table
from dipole_vla.policy import load_policy
from dipole_vla.policy.critic import fitted_critic, refuse_other_metric, scene_features
from dipole_vla.progress import bar, console, skipped, wrote
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, making, stamp, write_json
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.words import counted


def advantage(
    candidates: Path,
    critic: Path,
    scenes: Path,
    backbone: Path,
    out: Path,
    sensors: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> None:
    """Write a copy of the candidates whose advantage is the critic's Q - V.

    Args:
        candidates: folder written by `dipole-vla collect`.
        critic: folder of a fitted critic.
        scenes: the scenes of the candidates.
        backbone: the backbone whose features the critic reads.
        out: folder to write.
        sensors: root of the camera paths; default is the one recorded in `scenes`.
        batch_size: scenes per forward pass.
        device: auto, cpu, cuda.
    """
    check_range("--batch_size", batch_size, 1)
    inputs = {"candidates": stamp(candidates), "critic": stamp(critic), "scenes": stamp(scenes)}
    table, scored = SceneTable(scenes, sensors), CandidateTable(candidates, with_variants=True)
    made_by = {"command": "advantage", **inputs, **pictures_entry(table.pictures, began(out), out)}
    actor = load_policy(backbone, device=device)
    model, fitted = fitted_critic(critic, backbone, actor.fingerprint, actor.backbone, actor.device)
    scored.refuse_other_sampling(actor.backbone.sampling)
    remark = refuse_other_metric(critic, fitted, scored.folder, scored.metric)
    if remark:
        console.print(remark, markup=False, soft_wrap=True)
    missing = [token for token in scored.tokens if token not in table.position]
    if missing:
        raise InputError(
            f"{scenes}: split {table.split!r} lacks {len(missing)} of the {counted(len(scored), 'scene')} of "
            f"{candidates}, first "
            f"{missing[0]}; give the scenes they were collected on"
        )
    with making(out, made_by) as is_open:
        if not is_open:
            return skipped("advantage", out)
        positions = [table.position[token] for token in scored.tokens]
        values: list[np.ndarray] = []
        with bar("advantage", len(positions)) as progress, torch.inference_mode():
            for batch in batches(table, positions, actor.processor, batch_size, actor.device):
                poses = torch.from_numpy(scored.poses[len(values) : len(values) + len(batch.tokens)]).to(actor.device)
                context = actor.encode(batch.observation).encoded(None)
                features = scene_features(actor.backbone, context, model.reads_tokens)
                values += list(model.advantage(features, poses).cpu().numpy())
                progress.advance(len(batch.tokens))
        rows = open_table(candidates, CANDIDATE_COLUMNS)
        rows = rows.remove_columns("advantage").add_column("advantage", np.stack(values).astype(np.float64).reshape(-1))
        rows.save_to_disk(str(out))
        about = {**scored.about, "advantage": "critic: least Q - V", "critic": str(critic)}
        write_json(Path(out) / "candidates.json", about)
        finish(out, made_by)
    wrote("advantage", out)
