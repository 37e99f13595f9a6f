"""The DataModule of all three trainings: scenes, with the human future or with scored candidates as actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dipole_vla.backbones.base import Backbone
from dipole_vla.data.contexts import ContextDtype, ContextStore, Encoder, Ranks, make_contexts
from dipole_vla.data.stream import StepStream
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.forming import AS_RECORDED, Advantage
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range, local_path
from navsim_adapter.foundation.words import counted
from navsim_adapter.sampling import Sampling

EXACT = ("poses", "score", "advantage", "sign", "weight")  # float32 whatever the network's precision


class DrivingData(L.LightningDataModule):
    """Batches {token, observation, poses (B, K, horizon, 3), score (B, K), advantage (B, K)}.

    `sign` and `weight` (B, K) are there where a row has a fixed sign, or counts otherwise than others. With `contexts`,
    `context` (the frozen encoder's tensors) takes the place of `observation`.
    """

    def __init__(
        self,
        scenes: Path,
        candidates: Path | None = None,
        sensors: Path | None = None,
        batch_size: int = 32,
        workers: int = 0,
        keep_in_memory: bool = False,
        contexts: Path | None = None,
        contexts_dtype: ContextDtype = "model",
        advantage: Advantage = AS_RECORDED,
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
            contexts: folder for what the frozen encoder says of each scene, computed once; made when it is not there
                (its size is said first). For adapters with scope head.
            contexts_dtype: of the numbers in that folder: model = the backbone's, float32, bfloat16.
            advantage: how G is formed of what the candidates record.
            seed: order of the data.
        """
        super().__init__()
        check_range("data.batch_size", batch_size, 1)
        check_range("data.workers", workers, 0)
        self.contexts = None if contexts is None else local_path("data.contexts", contexts)
        self.contexts_dtype, self.advantage = contexts_dtype, advantage
        self.scenes, self.candidates, self.sensors = scenes, candidates, sensors
        self.batch_size, self.workers, self.keep_in_memory, self.seed = batch_size, workers, keep_in_memory, seed
        self.dataset: DrivingDataset | None = None

    def open(
        self,
        backbone: Backbone,
        with_observation: bool = True,
        frozen_encoder: Callable[[], Encoder | None] = lambda: None,
        ranks: Ranks | None = None,
        with_variants: bool = False,
    ) -> DrivingDataset:
        """Read the tables, once, for who is to learn from them. Our trainings call this; in a loop of your own, you do.

        backbone: its processor makes observations of scenes, and its plans are as long as the actions.
        with_observation: whether items hold the scene itself. frozen_encoder: called where `contexts` are wanted.
        ranks: who share the making of contexts. with_variants: for a critic, see `CandidateTable`.
        """
        if self.dataset is None:
            scenes = SceneTable(self.scenes, self.sensors)
            candidates = CandidateTable(self.candidates, with_variants) if self.candidates else None
            contexts = self._contexts(scenes, frozen_encoder(), ranks) if self.contexts else None
            dataset = DrivingDataset(
                scenes,
                backbone.processor(),
                backbone.sampling,
                candidates,
                self.keep_in_memory,
                with_observation,
                contexts,
                self.advantage,
            )
            self.dataset = dataset
        return self.dataset

    def _contexts(self, scenes: SceneTable, encoder: Encoder | None, ranks: Ranks | None) -> ContextStore:
        assert self.contexts is not None
        if encoder is None:
            raise InputError(
                f"data.contexts: {self.contexts}: this training changes the encoding or does not read it; "
                "drop the key, or train a pair with model.scope head"
            )
        return make_contexts(self.contexts, encoder, scenes, self.contexts_dtype, self.batch_size, ranks)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        if self.dataset is None:
            raise InputError("data: the scenes are not open; call DrivingData.open(backbone) before the trainer's fit")
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
            collate_fn=collate,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what a loader process could only send; give the exact numbers back as tensors."""
        if isinstance(batch, InputError):
            raise batch
        return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in batch.items()}


def collate(items: Sequence[dict[str, Any] | InputError]) -> dict[str, Any] | InputError:
    """One batch. Actions and scores stay arrays, out of reach of a half-precision trainer, which casts tensors:
    in bfloat16 a pose 40 m ahead is known to 0.25 m."""
    for item in items:
        if isinstance(item, InputError):  # a loader process would wrap it in pages of traceback
            return item
    rows = [item for item in items if not isinstance(item, InputError)]
    batch = default_collate([{name: value for name, value in row.items() if name not in EXACT} for row in rows])
    return {**batch, **{name: np.stack([row[name] for row in rows]) for name in EXACT if name in rows[0]}}


class DrivingDataset(Dataset):
    """One item per scene; scenes whose candidates all scored the same are left out (they carry no preference).

    sampling: of the backbone's plans, at whose times the actions have their poses.
    formed: of the candidates, by `advantage`.
    """

    def __init__(
        self,
        scenes: SceneTable,
        processor: Any,
        sampling: Sampling,
        candidates: CandidateTable | None,
        keep_in_memory: bool = False,
        with_observation: bool = True,
        contexts: ContextStore | None = None,
        advantage: Advantage = AS_RECORDED,
    ):
        self.how = advantage
        self.with_observation, self.contexts = with_observation, contexts
        self.scenes, self.processor, self.sampling, self.candidates = scenes, processor, sampling, candidates
        self.memory: dict[int, dict[str, Tensor]] | None = {} if keep_in_memory else None
        if candidates is None:
            self.futures = scenes.futures_at(sampling).astype(np.float32)
            self.items = [(i, i) for i in range(len(scenes))]
        else:
            candidates.refuse_other_sampling(sampling)
            unknown = [token for token in candidates if token not in scenes.position]
            if unknown:
                raise InputError(
                    f"{candidates.folder}: token {unknown[0]} (and {len(unknown) - 1} more) is not in {scenes.folder}; "
                    "use the scenes the candidates were collected on"
                )
            self.formed = candidates.formed(advantage)
            kept = self.formed.kept.nonzero()[0].tolist()
            self.items = [(scenes.position[candidates.tokens[j]], j) for j in kept]
            if not self.items:
                raise InputError(
                    f"{candidates.folder}: every scene's candidates scored alike; collect with more spread"
                )

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """(scenes, K) by the name in a batch."""
        assert self.candidates is not None
        score = self.formed.returns if self.how.reward.names else self.candidates.score
        found = {"score": score, "advantage": self.formed.advantage}
        fixed = {"sign": self.formed.sign, "weight": self.formed.weight}
        return found | {name: rows for name, rows in fixed.items() if rows is not None}

    @property
    def advantage_told(self) -> str:
        """How G was formed, for the record."""
        assert self.candidates is not None
        signs = self.formed.sign
        fixed = (
            "" if signs is None else f"; {counted(int((signs[self.formed.kept] != 0).sum()), 'row')} of a fixed sign"
        )
        return self.how.told(self.candidates.about["advantage"]) + fixed

    @property
    def formed_otherwise(self) -> str | None:
        """A remark where G is not simply what the table records."""
        if self.candidates is None or not (self.how.asked or self.formed.sign is not None):
            return None
        return f"G: {self.advantage_told}; {len(self.items)} of {counted(len(self.candidates), 'scene')}"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any] | InputError:
        try:
            return self.item(index)
        except InputError as problem:
            return problem

    def item(self, index: int) -> dict[str, Any]:
        scene, group = self.items[index]
        item: dict[str, Any] = {"token": self.scenes.tokens[scene]}
        if self.with_observation:
            item.update(self.view(scene))
        if self.candidates is None:
            item["poses"] = self.futures[group][None]
            item["score"] = item["advantage"] = np.zeros(1, np.float32)
        else:
            item["poses"] = self.candidates.poses[group]
            item.update({name: rows[group].astype(np.float32) for name, rows in self.numbers.items()})
        return item

    def view(self, scene: int) -> dict[str, dict[str, Tensor]]:
        """{"observation": what the encoder takes}, or {"context": what it made of it} where that is stored."""
        return {"context": self.contexts[scene]} if self.contexts is not None else {"observation": self.observe(scene)}

    def observe(self, scene: int) -> dict[str, Tensor]:
        """The backbone's own view of a scene: pictures, prompt, history."""
        if self.memory is not None and scene in self.memory:
            return self.memory[scene]
        row = self.scenes.row(scene)
        observation = self.processor(row, self.scenes.images(row, self.processor.cameras))
        if self.memory is not None:
            self.memory[scene] = observation
        return observation
