"""The DataModule of all three trainings: scenes, with the human future or with scored candidates as actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dipole_vla.data.stream import StepStream
from dipole_vla.data.tables import CandidateTable, SceneTable
from navsim_adapter.errors import InputError


class DrivingData(L.LightningDataModule):
    """Batches {token, observation, poses (B, K, horizon, 3), score (B, K), advantage (B, K)}."""

    def __init__(
        self,
        scenes: Path,
        candidates: Path | None = None,
        sensors: Path | None = None,
        batch_size: int = 32,
        workers: int = 0,
        keep_in_memory: bool = False,
        seed: int = 0,
    ):
        """
        Args:
            scenes: folder written by `navsim-adapter convert`.
            candidates: folder written by `dipole-vla collect`; without it the action is the human's future (K = 1).
            sensors: root of the camera paths; default is the one recorded in `scenes`.
            batch_size: scenes per step and rank.
            workers: loader processes.
            keep_in_memory: keep decoded, resized pictures in memory (small splits only).
            seed: order of the data.
        """
        super().__init__()
        self.scenes, self.candidates, self.sensors = scenes, candidates, sensors
        self.batch_size, self.workers, self.keep_in_memory, self.seed = batch_size, workers, keep_in_memory, seed
        self.dataset: DrivingDataset | None = None

    def setup(self, stage: str) -> None:
        if self.dataset is None:
            assert self.trainer is not None
            module: Any = self.trainer.lightning_module
            processor = module.backbone.processor()
            scenes = SceneTable(self.scenes, self.sensors)
            candidates = CandidateTable(self.candidates) if self.candidates else None
            self.dataset = DrivingDataset(scenes, processor, candidates, self.keep_in_memory, module.needs_observation)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        assert self.dataset is not None
        stream = StepStream(
            len(self.dataset),
            self.batch_size,
            self.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            first=self.trainer.global_step * self.trainer.accumulate_grad_batches,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=stream,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=default_collate,
        )


class DrivingDataset(Dataset):
    """One item per scene; scenes whose candidates all scored alike are left out (they carry no preference)."""

    def __init__(
        self,
        scenes: SceneTable,
        processor: Any,
        candidates: CandidateTable | None,
        keep_in_memory: bool = False,
        with_observation: bool = True,
    ):
        self.with_observation = with_observation
        self.scenes, self.processor, self.candidates = scenes, processor, candidates
        self.memory: dict[int, dict[str, Tensor]] | None = {} if keep_in_memory else None
        if candidates is None:
            self.futures = torch.from_numpy(scenes.futures()).float()
            self.items = [(i, i) for i in range(len(scenes))]
        else:
            unknown = [token for token in candidates if token not in scenes.position]
            if unknown:
                raise InputError(
                    f"{candidates.folder}: token {unknown[0]} (and {len(unknown) - 1} more) is not in {scenes.folder}; "
                    "use the scenes the candidates were collected on"
                )
            kept = candidates.informative.nonzero()[0].tolist()
            self.items = [(scenes.position[candidates.tokens[j]], j) for j in kept]
            if not self.items:
                raise InputError(
                    f"{candidates.folder}: every scene's candidates scored alike; collect with more spread"
                )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, group = self.items[index]
        item: dict[str, Any] = {"token": self.scenes.tokens[scene]}
        if self.with_observation:
            item["observation"] = self.observe(scene)
        if self.candidates is None:
            item["poses"] = self.futures[group][None]
            item["score"] = item["advantage"] = torch.zeros(1)
        else:
            item["poses"] = torch.from_numpy(self.candidates.poses[group])
            item["score"] = torch.from_numpy(self.candidates.score[group]).float()
            item["advantage"] = torch.from_numpy(self.candidates.advantage[group]).float()
        return item

    def observe(self, scene: int) -> dict[str, Tensor]:
        """The backbone's own view of a scene: pictures, prompt, history."""
        if self.memory is not None and scene in self.memory:
            return self.memory[scene]
        row = self.scenes.row(scene)
        observation = self.processor(row, self.scenes.images(row, self.processor.cameras))
        if self.memory is not None:
            self.memory[scene] = observation
        return observation
