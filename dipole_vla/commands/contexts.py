"""`dipole-vla contexts`: the contexts of a table, made ahead of a job."""

from __future__ import annotations

from pathlib import Path

import torch

from dipole_vla import backbones
from dipole_vla.data.contexts import INDEX, ContextDtype, Encoder, made_of, make_contexts
from dipole_vla.data.tables import SceneTable
from dipole_vla.progress import skipped, wrote
from navsim_adapter.foundation.files import is_made
from navsim_adapter.foundation.option_checks import check_range


def contexts(
    backbone: Path,
    scenes: Path,
    out: Path,
    dtype: ContextDtype = "model",
    sensors: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> None:
    """Encode every scene once, for the key `data.contexts` of adapter trainings with scope head.

    Args:
        backbone: folder of the frozen backbone.
        scenes: folder written by `navsim-adapter convert`.
        out: folder to write.
        dtype: of the stored numbers; model = that of the backbone, bfloat16 halves the size.
        sensors: root of the camera paths; default is the one recorded in `scenes`.
        batch_size: scenes per forward pass.
        device: auto, cpu, cuda.
    """
    check_range("--batch_size", batch_size, 1)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = backbones.load_backbone(backbone, device)
    encoder = Encoder(model.encode, model.processor(), model.fingerprint(), model.device)
    table = SceneTable(scenes, sensors)
    if is_made(out, made_of(Path(out), encoder, table, dtype), passing=(INDEX,)):
        return skipped("contexts", out)
    make_contexts(out, encoder, table, dtype, batch_size)
    wrote("contexts", out)
