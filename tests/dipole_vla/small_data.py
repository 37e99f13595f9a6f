"""A few scenes with pictures, scored candidates and a small backbone, on disk as the stages leave them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from PIL import Image
from small_backbone import make_backbone

from dipole_vla.commands.fit import quiet_lightning
from dipole_vla.data.module import DrivingData
from dipole_vla.training import DipoleModule
from navsim_adapter.foundation.files import finish, write_json

CAMERAS = ("CAM_L0", "CAM_F0", "CAM_R0")
SCENES, GROUP = 8, 4


def write_inputs(folder: Path, scenes: int = SCENES, group: int = GROUP) -> Path:
    """scenes/, candidates/, backbone/ and pictures/ in `folder`."""
    disable_progress_bar()
    rng = np.random.default_rng(0)
    tokens = [f"scene{i:02d}" for i in range(scenes)]
    _write_scenes(folder, tokens, rng)
    _write_candidates(folder / "candidates", tokens, group, rng)
    make_backbone().save_pretrained(folder / "backbone")
    write_manifest(folder / "backbone")
    return folder


def write_manifest(folder: Path) -> None:
    finish(folder, {"command": "test"})


def _write_scenes(folder: Path, tokens: list[str], rng: np.random.Generator) -> None:
    rows = []
    for token in tokens:
        cameras = {camera: f"{token}/{camera}.jpg" for camera in CAMERAS}
        for relative in cameras.values():
            path = folder / "pictures" / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        rows.append(
            {
                "token": token,
                "log_name": token[:6],
                "history": rng.normal(size=(4, 3)).tolist(),
                "velocity": [5.0, 0.0],
                "acceleration": [0.1, 0.0],
                "command": "straight",
                "cameras": cameras,
                "future": _plans(rng, 1)[0].tolist(),
            }
        )
    Dataset.from_list(rows).save_to_disk(str(folder / "scenes"))
    write_json(folder / "scenes" / "scenes.json", {"split": "trainval", "sensors": str(folder / "pictures")})
    write_manifest(folder / "scenes")


def _write_candidates(folder: Path, tokens: list[str], group: int, rng: np.random.Generator) -> None:
    score = rng.uniform(size=(len(tokens), group))
    advantage = (score - score.mean(1, keepdims=True)) / score.std(1, keepdims=True)
    rows = {
        "token": np.repeat(tokens, group).tolist(),
        "index": list(range(group)) * len(tokens),
        "source": ["reference"] * (group * len(tokens)),
        "poses": _plans(rng, len(tokens) * group).tolist(),
        "score": score.ravel().tolist(),
        "return": score.ravel().tolist(),
        "advantage": advantage.ravel().tolist(),
    }
    Dataset.from_dict(rows).save_to_disk(str(folder))
    about = {"metric": "pdms-v1.1", "split": "trainval", "allow_eval_split": False, "advantage": "group-relative"}
    write_json(folder / "candidates.json", about)
    write_manifest(folder)


def _plans(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 8, 3): straight lines of some speed and a little noise."""
    speed = rng.uniform(2, 10, size=(count, 1, 1))
    line = np.stack([np.arange(1, 9) * 0.5, np.zeros(8), np.zeros(8)], axis=-1)
    return line * speed + rng.normal(scale=0.1, size=(count, 8, 3))


class Kept(L.Callback):
    """Every step's logged numbers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def data_of(inputs: Path, **options: Any) -> DrivingData:
    return DrivingData(inputs / "scenes", **{"candidates": inputs / "candidates", "batch_size": 4, **options})


def train(
    inputs: Path,
    steps: int = 3,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    module: L.LightningModule | None = None,
    resume: Path | None = None,
    **options: Any,
) -> tuple[Any, list[dict[str, float]]]:
    """A DipoleModule trained for a few steps, and what it logged at each."""
    quiet_lightning()
    torch.manual_seed(0)
    kept = Kept()
    fitted = module or DipoleModule(inputs / "backbone", **{"rank": 4, "lr": 1e-2, "warmup_steps": 1, **options})
    settings = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "callbacks": [kept],
        **(trainer or {}),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(**settings).fit(fitted, data_of(inputs, **(data or {})), ckpt_path=resume, weights_only=True)
    return fitted, kept.rows


def adapters(module: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_trained()}
