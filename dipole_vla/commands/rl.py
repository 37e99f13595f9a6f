"""`dipole-vla rl`: one task from a recipe: offline training, then rounds of collecting and training, then the table.

A run is a list of stages; each trains up to a number of updates and then measures. Checkpoints, replayed episodes and
measurements are files written once, so the same command resumes exactly where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import yaml

from dipole_vla.backbones import weights
from dipole_vla.commands.fit import quiet_lightning
from dipole_vla.preemption import Preempted, requeue
from dipole_vla.progress import bar, console, skipped, wrote
from dipole_vla.provenance import commit, provenance
from dipole_vla.rl.acting import Panel
from dipole_vla.rl.arrays import read_arrays, write_arrays
from dipole_vla.rl.config import EvaluationConfig, LearnerConfig, OnlineConfig
from dipole_vla.rl.data import exorl, ogbench
from dipole_vla.rl.environments import Environment, Episode, make_environment, play
from dipole_vla.rl.evaluation import Cell, acting, append_rows, cells, measure, player
from dipole_vla.rl.heads import method_named
from dipole_vla.rl.memory import keep_freed_memory
from dipole_vla.rl.module import LOG_EVERY, RLModule
from dipole_vla.rl.transitions import BatchStream, Transitions, n_step_transitions
from dipole_vla.training.callbacks import Curves, StepProgress
from dipole_vla.training.checkpoints import Checkpoints, SyncedFiles, newest_checkpoint
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import RECIPE, finish, making, read_json, write_json, write_text

CHECKPOINTS, LOGS, REPLAY, MEASURED = "checkpoints", "logs", "replay", "measured"


@dataclass(frozen=True)
class Stage:
    """Train up to `updates`; online_round: play this round first; is_full: measure the whole table at the end."""

    updates: int
    online_round: int | None = None
    is_measured: bool = False
    is_full: bool = False


def rl(
    task: str,
    data: Path,
    out: Path,
    learner: LearnerConfig,
    evaluation: EvaluationConfig,
    online: OnlineConfig,
    seed: int | list[int] = 0,
    updates: int = 100_000,
    batch_size: int = 256,
    checkpoint_every: int = 10_000,
    results: Path | None = None,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Train the critic and every policy head on one RL task and measure the whole table of methods, omega and N.

    Args:
        task: OGBench single task (cube-single-play-singletask-task2-v0) or dm_control task (walker-walk).
        data: folder of the data set (see `dipole-vla data`).
        out: folder of this run.
        learner: networks, heads, inverse temperature, critic.
        evaluation: what is measured, and when.
        online: rounds of collecting and training after the offline updates.
        seed: training seed, or several that are trained together as one batch of networks.
        updates: offline updates.
        batch_size: transitions per update and seed.
        checkpoint_every: updates between checkpoints.
        results: CSV table that the rows are added to; default is results.csv in `out`.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    quiet_lightning()
    keep_freed_memory()
    made_by = {
        "command": "rl",
        "task": task,
        "data": data_identity(task, data),
        "learner": asdict(learner),
        "evaluation": asdict(evaluation),
        "online": asdict(online),
        "seeds": seeds,
        "updates": updates,
        "batch_size": batch_size,
    }
    stages = plan(updates, evaluation, online)
    _check(evaluation, online, learner)
    if learner.precision == "bfloat16" and not has_bfloat16_products():
        console.print(
            "[yellow]learner.precision: no bfloat16 products in this processor; float32 is faster here[/yellow]"
        )
    with making(out, made_by, passing=(RECIPE, LOGS)) as is_open:
        if not is_open:
            return skipped("rl", out)
        write_text(out / RECIPE, yaml.safe_dump(recipe or made_by, sort_keys=False))
        offline = load_data(task, data, learner)
        whole = stages[-1].updates
        run = _Run(out, task, seeds, learner, evaluation, online, whole, batch_size, checkpoint_every, offline)
        for stage in stages:
            run.train(stage)
            if stage.is_measured:
                append_rows(results or out / "results.csv", run.measured(stage))
        run.export(provenance(recipe or made_by))
        finish(out, made_by, exclude=(CHECKPOINTS, LOGS))
    wrote("rl", out)


def plan(updates: int, evaluation: EvaluationConfig, online: OnlineConfig) -> list[Stage]:
    """The stages of a run, in order; the whole table after the offline updates and after the last round."""
    every = evaluation.every or updates
    marks = [*range(every, updates, every), updates]
    stages = [Stage(mark, None, True, mark == updates) for mark in marks]
    for number in range(online.rounds):
        end = updates + (number + 1) * online.updates
        is_last = number == online.rounds - 1
        is_mark = evaluation.every > 0 and (end - updates) // every > (end - online.updates - updates) // every
        stages.append(Stage(end, number, is_mark or is_last, is_last))
    return stages


def load_data(task: str, folder: Path, learner: LearnerConfig) -> Transitions:
    """Offline transitions by the task's kind: OGBench's files, or an ExORL buffer."""
    source = ogbench.load if "singletask" in task else exorl.load
    return source(task, folder, learner.discount, learner.n_step, learner.weigh_n_step)


def data_identity(task: str, folder: Path) -> Any:
    """What the data are, so that a run is never continued on others; InputError names the command that makes them."""
    if not folder.is_dir():
        kind = f"ogbench {ogbench.data_name(task)}" if "singletask" in task else f"exorl-substitute {task}"
        raise InputError(f"{folder}: no such data folder; run `dipole-vla data {kind} --out {folder}`")
    if "singletask" not in task:
        return {"episodes": len(list(folder.glob("episode_*.npz")))}
    card, file = (folder / f"{ogbench.data_name(task)}-v0.{end}" for end in ("json", "npz"))
    return read_json(card) if card.is_file() else {"bytes": file.stat().st_size if file.is_file() else 0}


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16; True where torch cannot tell."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not found or any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check(evaluation: EvaluationConfig, online: OnlineConfig, learner: LearnerConfig) -> None:
    cells(evaluation, learner.heads)
    for text in [*evaluation.curve, *([online.policy] if online.rounds else [])]:
        method_named(Cell.parse(text).method, learner.heads)


class _Run:
    """One output folder: the module, its checkpoints, the replay and what was measured."""

    def __init__(
        self,
        out: Path,
        task: str,
        seeds: Sequence[int],
        learner: LearnerConfig,
        evaluation: EvaluationConfig,
        online: OnlineConfig,
        updates: int,
        batch_size: int,
        checkpoint_every: int,
        offline: Transitions,
    ):
        self.out, self.task, self.seeds, self.learner = out, task, list(seeds), learner
        self.evaluation, self.online, self.batch_size = evaluation, online, batch_size
        self.checkpoint_every, self.offline = checkpoint_every, offline
        sizes = offline.observation.shape[1], offline.action.shape[1]
        self.module = RLModule(*sizes, seeds, learner, updates)
        self.module.learner.fit_statistics(offline.observation)
        self._fleet: list[Environment] = []
        self.step = 0
        self._restore()

    def _restore(self) -> None:
        newest = newest_checkpoint(self.out / CHECKPOINTS)
        if newest is not None:
            state = torch.load(newest, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["state_dict"])
            self.step = int(state["global_step"])
            console.print(f"resuming from {newest}")

    def train(self, stage: Stage) -> None:
        """Up to the stage's updates; nothing when a checkpoint is there already."""
        if self.step >= stage.updates:
            return
        if stage.online_round is not None:
            self.collect(stage.online_round)
        stream = BatchStream(
            self.offline, self.seeds, self.batch_size, self.replay(stage), self.online.offline_share, first=self.step
        )
        keeper = Checkpoints(self.out / CHECKPOINTS, self.checkpoint_every)
        trainer = L.Trainer(
            max_steps=stage.updates,
            accelerator="cpu",
            devices=1,
            callbacks=[StepProgress(f"rl {self.task}", refresh=LOG_EVERY), keeper],
            plugins=[SyncedFiles()],
            enable_checkpointing=False,
            logger=Curves(self.out / LOGS, until=self.step),
            log_every_n_steps=LOG_EVERY,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        newest = newest_checkpoint(self.out / CHECKPOINTS)
        trainer.fit(self.module, stream, ckpt_path=newest, weights_only=True)
        if keeper.notice and trainer.global_step < stage.updates:
            raise Preempted(f"{self.out}: {keeper.notice} came, update {trainer.global_step} is saved; {requeue()}")
        if trainer.interrupted:
            raise InputError(f"{self.out}: interrupted at update {trainer.global_step}; run the same command to go on")
        self.step = stage.updates

    def collect(self, number: int) -> None:
        """Play a round with the current policy, unless its file is there; one file per seed, written once."""
        cell = Cell.parse(self.online.policy)
        missing = [seed for seed in self.seeds if not self._replay_path(number, seed).is_file()]
        if not missing:
            return
        panel = Panel(self.module.learner, [player(cell, self.seeds.index(seed)) for seed in missing])
        first = number * self.online.episodes
        wanted = np.array([[seed * 1_000_000 + first + i for i in range(self.online.episodes)] for seed in missing])
        for seed, episodes in zip(missing, play(self.fleet(), acting(panel, 1, cell.candidates), wanted)):
            write_arrays(self._replay_path(number, seed), _joined(episodes))

    def replay(self, stage: Stage) -> list[Transitions]:
        """Each seed's table of the rounds in the window; nothing while offline."""
        if stage.online_round is None:
            return []
        end, window = stage.online_round + 1, self.online.window
        rounds = range(max(0, end - window) if window else 0, end)
        return [
            Transitions.concatenate([self._replayed(self._replay_path(number, seed)) for number in rounds])
            for seed in self.seeds
        ]

    def _replay_path(self, number: int, seed: int) -> Path:
        return self.out / REPLAY / f"seed{seed}-round{number:05d}.npz"

    def _replayed(self, path: Path) -> Transitions:
        columns = read_arrays(path, f"remove {self.out} and run the command again")
        return n_step_transitions(
            columns["observation"],
            columns["action"],
            columns["reward"],
            columns["mask"],
            columns["next_observation"],
            columns["is_last"],
            self.learner.discount,
            self.learner.n_step,
            self.learner.weigh_n_step,
        )

    def measured(self, stage: Stage) -> list[dict[str, object]]:
        """Rows of this stage, measured once and kept in a file."""
        config = self.evaluation
        wanted = [Cell.parse(text) for text in config.curve]
        episodes = config.curve_episodes
        if stage.is_full:
            wanted, episodes = cells(config, self.learner.heads), config.episodes
        path = self.out / MEASURED / f"{stage.updates:08d}.json"
        if not path.is_file():
            each = [(number, cell) for number in range(len(self.seeds)) for cell in wanted]
            with bar(f"evaluate at {stage.updates}", len(each)) as progress:
                returns = measure(self.module.learner, self.fleet(), each, episodes, config, progress)
            rows = [self._row(c, self.seeds[n], gain, episodes, stage) for (n, c), gain in zip(each, returns)]
            write_json(path, rows)
        return read_json(path)

    def _row(self, cell: Cell, seed: int, gain: float, episodes: int, stage: Stage) -> dict[str, object]:
        return {
            "task": self.task,
            "method": cell.method,
            "seed": seed,
            "omega": cell.omega,
            "candidates": cell.candidates,
            "return": round(gain, 3),
            "episodes": episodes,
            "updates": stage.updates,
            "commit": commit() or "unknown",
        }

    def fleet(self) -> list[Environment]:
        while len(self._fleet) < max(self.evaluation.fleet, len(self.seeds)):
            self._fleet.append(make_environment(self.task))
        return self._fleet

    def export(self, facts: dict[str, Any]) -> None:
        """Networks of all seeds as safetensors, with what made them."""
        weights.write_tensors(self.out / "model.safetensors", self.module.learner.state_dict())
        sizes = {"observation_dim": self.offline.observation.shape[1], "action_dim": self.offline.action.shape[1]}
        write_json(self.out / "config.json", {**sizes, "seeds": self.seeds, "learner": asdict(self.learner)})
        write_json(self.out / "provenance.json", facts)


def _joined(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Columns of a replay file: steps of all episodes in order, is_last on the last step of each."""
    columns = ("observation", "action", "reward", "mask", "next_observation")
    joined = {name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in columns}
    is_last = np.concatenate([np.arange(len(episode.reward)) == len(episode.reward) - 1 for episode in episodes])
    return {**joined, "is_last": is_last}
