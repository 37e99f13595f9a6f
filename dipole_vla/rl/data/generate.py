"""OGBench data sets made by the package's own scripted policies, by the published recipe, on a CPU.

Recipe (OGBench's generation commands): 1,000 episodes of 1,001 steps and a tenth of that for validation. `play`
follows pre-computed plans with smoothed noise 0.1; `noisy` is closed-loop with Gaussian noise up to 0.1 and a share of
random actions (cube, scene 0.1; puzzle 0.2); mazes follow the shortest path with Gaussian noise 0.5. Data sets whose
behaviour is a trained expert (antmaze, humanoidmaze, antsoccer) cannot be made here.

An episode depends on its seed alone, so parts may be made in any order, and a killed run resumes with the next part.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dipole_vla.progress import bar, skipped, wrote
from dipole_vla.rl.arrays import read_arrays, write_arrays
from dipole_vla.rl.environments import seed_everything
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import making, read_json, write_json
from navsim_adapter.foundation.parallel import in_processes

EPISODES, STEPS, PART = 1000, 1001, 10
STACKING = {"double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5), "octuple": (0.0, 0.35)}
Record = dict[str, list[Any]]


def is_scripted(name: str) -> bool:
    words = name.split("-")
    family, kind = words[0], words[-1]
    return (family in ("cube", "scene", "puzzle") and kind in ("play", "noisy")) or (
        family == "pointmaze" and kind in ("navigate", "stitch")
    )


def generate(name: str, folder: Path, episodes: int = EPISODES, seed: int = 0, workers: int = 1) -> None:
    """Write `name`-v0.npz and `name`-v0-val.npz into `folder`, as OGBench's own loader expects them.

    `name`-v0.json, written last, says how they were made; finished data are left alone. workers: processes.
    """
    if not is_scripted(name):
        raise InputError(
            f"{name}: behaves as a trained expert, or is unknown, so it cannot be made here; download it where there "
            "is a network, or take cube-*, scene-*, puzzle-* (play, noisy) or pointmaze-* (navigate, stitch)"
        )
    made_by = {"data": name, "episodes": episodes, "seed": seed, "made": "scripted policies of the ogbench package"}
    if is_made(name, folder, made_by):
        return skipped(f"data {name}", folder / f"{name}-v0.npz")
    parts = folder / f".{name}-parts"
    with making(parts, made_by):
        total = episodes + max(1, episodes // 10)
        starts = range(0, total, PART)
        missing = [start for start in starts if not (parts / f"{start:06d}.npz").is_file()]
        with bar(f"episodes of {name}", total) as progress:
            progress.advance(min(total, PART * (len(starts) - len(missing))))
            ranges = [range(start, min(start + PART, total)) for start in missing]
            for _, made in in_processes(partial(_make_part, name, parts, seed), ranges, workers):
                progress.advance(made)
        _merge(parts, folder / f"{name}-v0.npz", starts, 0, episodes)
        _merge(parts, folder / f"{name}-v0-val.npz", starts, episodes, total)
        write_json(folder / f"{name}-v0.json", made_by)
        shutil.rmtree(parts)
    wrote(f"data {name}", folder / f"{name}-v0.npz")


def _make_part(name: str, parts: Path, seed: int, numbers: range) -> int:
    play = _player(name)
    record: Record = {}
    for number in numbers:
        for key, values in play(seed * 1_000_003 + number).items():
            record.setdefault(key, []).extend(values)
    write_arrays(parts / f"{numbers.start:06d}.npz", _typed(record), is_compressed=False)
    return len(numbers)


def is_made(name: str, folder: Path, made_by: Mapping[str, Any]) -> bool:
    """Whether these very data are there; InputError when others of the name are."""
    card = folder / f"{name}-v0.json"
    if not (folder / f"{name}-v0.npz").is_file() or not card.is_file():
        return False
    found = read_json(card)
    if found != made_by:
        key = next(key for key in made_by if found.get(key) != made_by[key])
        raise InputError(
            f"{card}: {key}: the data were made with {found.get(key)!r}, now {made_by[key]!r}; choose another --out"
        )
    return True


def _merge(parts: Path, path: Path, starts: range, first: int, end: int) -> None:
    """One file of the episodes [first, end), counted by their last steps."""
    columns: dict[str, list[np.ndarray]] = {}
    seen = 0
    for start in starts:
        content = read_arrays(parts / f"{start:06d}.npz", "remove it and run the same command again")
        of_step = seen + np.concatenate([[0], np.cumsum(content["terminals"])[:-1]])
        seen += int(content["terminals"].sum())
        kept = (of_step >= first) & (of_step < end)
        for key, values in content.items():
            columns.setdefault(key, []).append(values[kept])
    write_arrays(path, {key: np.concatenate(values) for key, values in columns.items()})


def _typed(record: Record) -> dict[str, np.ndarray]:
    types: Mapping[str, Any] = {"terminals": bool, "button_states": np.int64}
    return {key: np.array(values, dtype=types.get(key, np.float32)) for key, values in record.items()}


@cache
def _player(name: str) -> Callable[[int], Record]:
    """A function from an episode's seed to its steps."""
    import gymnasium
    import ogbench  # noqa: F401  registers the environments

    stem, kind = name.rsplit("-", 1)
    options: dict[str, Any] = {} if stem.startswith("pointmaze") else {"mode": "data_collection"}
    steps = 201 if kind == "stitch" else STEPS
    environment = gymnasium.make(
        f"{stem}-v0", terminate_at_goal=False, max_episode_steps=steps, disable_env_checker=True, **options
    )
    if stem.startswith("pointmaze"):
        maze = _Maze(environment, kind)
        return maze.episode
    return _Manipulation(environment, stem, kind).episode


class _Maze:
    """Walk to goals along the shortest path; `navigate` draws a new goal at each one reached, `stitch` stays near."""

    noise = 0.5

    def __init__(self, environment: Any, kind: str):
        self.environment, self.kind = environment, kind
        grid = environment.unwrapped.maze_map
        self.free = [(int(i), int(j)) for i, j in zip(*np.nonzero(grid == 0))]
        self.corners = [cell for cell in self.free if not _is_hallway(grid, *cell)]

    def episode(self, seed: int) -> Record:
        environment, inner = self.environment, self.environment.unwrapped
        seed_everything(environment, seed)
        start = self.free[np.random.randint(len(self.free))]
        goals = self.corners if self.kind == "navigate" else (_at_distance(self.free, start, 4) or [start])
        goal = goals[np.random.randint(len(goals))]
        observation, _ = environment.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        record: Record = {}
        is_over = False
        while not is_over:
            towards = inner.get_oracle_subgoal(inner.get_xy(), inner.cur_goal_xy)[0] - inner.get_xy()
            action = towards / (np.linalg.norm(towards) + 1e-6) + np.random.normal(0, self.noise, 2)
            action = np.clip(action, -1, 1)
            following, _, terminated, truncated, info = environment.step(action)
            is_over = bool(terminated or truncated)
            if info["success"] and self.kind == "navigate":
                inner.set_goal(self.corners[np.random.randint(len(self.corners))])
            _note(record, observation, action, is_over, info)
            observation = following
        return record


class _Manipulation:
    """Scripted pick-and-place, buttons, drawer and window; a new target whenever one is reached."""

    def __init__(self, environment: Any, stem: str, kind: str):
        self.environment, self.stem, self.kind = environment, stem, kind
        self.random_share = 0.0 if kind == "play" else (0.2 if stem.startswith("puzzle") else 0.1)
        self.agents = dict(_oracles(environment, stem, kind))

    def episode(self, seed: int) -> Record:
        """The first healthy try; only scenes have unhealthy ones (a cube out of sight)."""
        for attempt in range(100):
            record = self._attempt(seed + attempt * 500_000_003)
            if not self.stem.startswith("scene") or _is_healthy(np.array(record["qpos"])):
                return record
        raise InputError(f"{self.stem}: 100 unhealthy episodes in a row at seed {seed}; use another --seed")

    def _attempt(self, seed: int) -> Record:
        environment = self.environment
        seed_everything(environment, seed)
        observation, info = environment.reset(seed=seed % 2**31)
        low, high = self._stacking()
        stacking, spread = np.random.uniform(low, high), np.random.uniform(0, 0.1)
        agent = self.agents[info["privileged/target_task"]]
        agent.reset(observation, info)
        record: Record = {}
        is_over = False
        while not is_over:
            if np.random.rand() < self.random_share:
                action = environment.action_space.sample()
            else:
                action = np.array(agent.select_action(observation, info))
                if self.kind == "noisy":
                    action = action + np.random.normal(0, spread * np.array([1, 1, 1, 3, 10]), action.shape)
            action = np.clip(action, -1, 1)
            following, _, terminated, truncated, info = environment.step(action)
            is_over = bool(terminated or truncated)
            if agent.done:
                target_observation, target_info = environment.unwrapped.set_new_target(p_stack=stacking)
                agent = self.agents[target_info["privileged/target_task"]]
                agent.reset(target_observation, target_info)
            _note(record, observation, action, is_over, info)
            observation = following
        return record

    def _stacking(self) -> tuple[float, float]:
        if "single" in self.stem:
            return 0.0, 0.0
        return next((span for word, span in STACKING.items() if word in self.stem), (0.5, 0.5))


def _oracles(environment: Any, stem: str, kind: str) -> Iterator[tuple[str, Any]]:
    """The package's scripted policies for the objects of this family."""
    from importlib import import_module

    objects = {"cube": ["cube"], "scene": ["cube", "button", "drawer", "window"], "puzzle": ["button"]}
    family = stem.split("-")[0]
    module, suffix = ("plan", "PlanOracle") if kind == "play" else ("markov", "MarkovOracle")
    for name in objects[family]:
        options: dict[str, Any] = {"noise": 0.1, "noise_smoothing": 0.5} if kind == "play" else {"min_norm": 0.4}
        if family == "puzzle":
            options["gripper_always_closed"] = True
        if family == "scene" and name == "cube" and kind == "noisy":
            options["max_step"] = 100
        oracle = getattr(import_module(f"ogbench.manipspace.oracles.{module}.{name}_{module}"), name.title() + suffix)
        yield name, oracle(env=environment, **options)


def _note(record: Record, observation: np.ndarray, action: np.ndarray, is_over: bool, info: Mapping[str, Any]) -> None:
    step: dict[str, Any] = {"observations": observation, "actions": action, "terminals": is_over}
    step |= {key: info[f"prev_{key}"] for key in ("qpos", "qvel", "button_states") if f"prev_{key}" in info}
    for key, value in step.items():
        record.setdefault(key, []).append(np.array(value))


def _is_healthy(qpos: np.ndarray) -> bool:
    """The cube never leaves the view, unless it is in the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    is_lost_left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not ((y >= 0.29) | is_lost_left).any()


def _is_hallway(grid: np.ndarray, i: int, j: int) -> bool:
    along = grid[i - 1, j] == grid[i + 1, j] == 0 and grid[i, j - 1] == grid[i, j + 1] == 1
    across = grid[i, j - 1] == grid[i, j + 1] == 0 and grid[i - 1, j] == grid[i + 1, j] == 1
    return bool(along or across)


def _at_distance(free: list[tuple[int, int]], start: tuple[int, int], steps: int) -> list[tuple[int, int]]:
    """Cells whose shortest path from `start` has exactly `steps` moves."""
    distance, queue = {start: 0}, deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if cell in free and cell not in distance:
                distance[cell] = distance[i, j] + 1
                queue.append(cell)
    return [cell for cell, far in distance.items() if far == steps]
