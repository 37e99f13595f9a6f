"""A small evaluation folder with everything a report reads, written through the same code that evaluates.

The world is one straight street in every scene, the ego at 10 m/s with a stopped car 30 m ahead. Scenes are of four
kinds (index modulo 4): 0 the reference hits the car and dipole brakes; 1 dipole leaves the road; 2 dipole is a little
ahead; 3 nothing differs. So the counts in the report can be told beforehand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from dipole_vla.evaluation.settings import MEAN, Setting
from dipole_vla.evaluation.summary import summarise
from dipole_vla.evaluation.sweep import Sweep
from dipole_vla.solvers import SolverSpec
from navsim_adapter.cache.log_file import write_log
from navsim_adapter.cache.store import log_path, write_index
from navsim_adapter.foundation.files import finish, write_json
from navsim_adapter.scene_cache import AreaType, ObjectType, Polygons, SceneCache

OMEGAS, COUNTS = (-1.0, 0.0, 1.0, 4.0), (1, 4)
CHOSEN = {"omega": 1.0, "candidates": 4}
SUB_SCORES = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "driving_direction_compliance",
)
FULL = dict.fromkeys(SUB_SCORES, 1.0)
SPEED, CAR_AHEAD = 10.0, 30.0
EGO = np.array([1000.0, 2000.0, 0.7])


def straight(speed: float, drift: float = 0.0) -> np.ndarray:
    """(8, 3) poses at constant speed, drifting sideways by `drift` m/s."""
    seconds = 0.5 * np.arange(1, 9)
    return np.stack([speed * seconds, drift * seconds, np.zeros(8)], axis=1)


def street(
    token: str = "a" * 16, log_name: str = "log", car_ahead: float = CAR_AHEAD, car_speed: float = 0.0
) -> SceneCache:
    """Two lanes of 4 m, ego on the right one (on the route), 10 m to the edges' ends behind and 190 m ahead."""
    lanes = [_strip(-2.0, 2.0), _strip(2.0, 6.0)]
    shapes = [_strip(-2.0, 6.0), *lanes]
    rings = np.cumsum([0, *(len(shape) for shape in shapes)])
    steps = 0.1 * np.arange(51)
    car = np.stack([car_ahead + car_speed * steps, np.zeros(51), np.zeros(51)], axis=1)
    none = Polygons(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
    return SceneCache(
        token=token,
        log_name=log_name,
        map_name="us-nv-las-vegas-strip",
        time_us=0,
        is_synthetic=False,
        ego_state=np.array([*EGO, SPEED, 0, 0, 0, 0, 0, 0, 0], dtype=float),
        centerline=to_global(np.stack([np.linspace(-10, 190, 41), np.zeros(41), np.zeros(41)], axis=1)),
        route_lane_ids=("1",),
        areas=Polygons(np.concatenate(shapes), rings.astype(np.int64), np.arange(len(shapes) + 1)),
        area_type=np.array([AreaType.ROADBLOCK, AreaType.LANE, AreaType.LANE], np.int8),
        area_on_route=np.array([False, True, False]),
        area_ids=("0", "1", "2"),
        object_tokens=("car",),
        object_type=np.array([ObjectType.VEHICLE], np.int8),
        object_versions=np.array([3], np.uint8),
        object_size=np.array([[5.0, 2.0]]),
        object_pose=to_global(car)[None],
        object_velocity=np.zeros((1, 2)),
        lights=none,
        light_red=np.zeros((0, 41), bool),
        light_ids=(),
        human_future=straight(5.0),
        past_states=np.zeros((4, 11)),
        past_time_us=np.arange(4),
        reference_pdms=np.zeros((41, 3)),
        reference_epdms=np.zeros((41, 3)),
    )


def to_global(local: np.ndarray) -> np.ndarray:
    """Ego frame (..., 2 or 3) to the world the caches live in."""
    cosine, sine = np.cos(EGO[2]), np.sin(EGO[2])
    moved = local.copy()
    moved[..., 0] = EGO[0] + cosine * local[..., 0] - sine * local[..., 1]
    moved[..., 1] = EGO[1] + sine * local[..., 0] + cosine * local[..., 1]
    if local.shape[-1] == 3:
        moved[..., 2] += EGO[2]
    return moved


def _strip(right: float, left: float) -> np.ndarray:
    corners = [(-10, right), (190, right), (190, left), (-10, left), (-10, right)]
    return to_global(np.array(corners, dtype=float))


def write_evaluation(
    root: Path,
    scenes: int = 16,
    leaks: bool = False,
    chosen_on: str = "validation",
    provenance: dict[str, Any] | None = None,
) -> Path:
    """The evaluation at root/evaluation with candidates, scenes, sensors and cache beside it."""
    tokens = [f"{i:016x}" for i in range(scenes)]
    logs = [f"log-{min((i + 1) // 4, scenes // 4 - 1)}" for i in range(scenes)]  # of 3 to 5 scenes: logs differ
    plans = _plans(tokens, logs)
    facts = {
        "metric": "pdms-v1.1",
        "split": "held-out",
        "rl_split": "held-out" if leaks else "training",
        "rl_on_eval_split": leaks,
        "provenance": {"versions": {"python": "3.11.9"}, "commit": "0123abc", "recipe": {"dipole": {"beta": 1.0}}}
        | {"beta": 1.0, "routing": "both", "backbone": "dp_vla", "policy": "runs/p", "policy_fingerprint": "77c0"}
        | (provenance or {}),
        "inputs": {name: str(root / name) for name in ("scenes", "sensors", "cache", "candidates")},
    }
    choice = {**CHOSEN, "on": chosen_on, "on_these_scenes": chosen_on == facts["split"]}
    rows, summary = summarise(plans, settings_of_plans(), facts, choice)
    folder = root / "evaluation"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(plans, folder / "plans.parquet")
    pyarrow.parquet.write_table(rows, folder / "rows.parquet")
    write_json(folder / "summary.json", summary)
    finish(folder, {"command": "evaluate"})
    _write_origins(root, tokens, logs)
    return folder


def settings_of_plans() -> list[Setting]:
    sweep = Sweep.of(OMEGAS, COUNTS, [1.0], None, None, SolverSpec())
    return [setting for setting in sweep.settings if setting.policy != MEAN]


def _plans(tokens: list[str], logs: list[str]) -> pa.Table:
    rng = np.random.default_rng(0)
    lines = []
    for i, (token, log) in enumerate(zip(tokens, logs)):
        for policy, omega in [("human", None), ("reference", None), *(("dipole", omega) for omega in OMEGAS)]:
            for index in range(1 if policy == "human" else max(COUNTS)):
                poses, parts = _drive(i % 4, policy, omega)
                poses = poses + rng.normal(0, 0.05, 3) * np.arange(1, 9)[:, None] * (0.2, 0.02, 0.0)
                score = parts["no_at_fault_collisions"] * parts["drivable_area_compliance"] * parts["ego_progress"]
                q = np.nan if policy == "human" else score + rng.normal(0, 0.01)
                line = {"token": token, "log_name": log, "policy": policy, "omega": omega, "index": index, "q": q}
                lines.append({**line, "poses": poses.tolist(), **parts, "score": score})
    return pa.Table.from_pandas(pd.DataFrame(lines), preserve_index=False)


def _drive(kind: int, policy: str, omega: float | None) -> tuple[np.ndarray, dict[str, float]]:
    """The plan and its sub-scores by kind of scene; see the head of this file."""
    collides = {**FULL, "no_at_fault_collisions": 0.0, "ego_progress": 0.0}
    if policy == "human" or (policy == "dipole" and omega == 0.0):
        return straight(5.0), {**FULL, "ego_progress": 0.75 if kind == 3 else 0.8}
    if omega == -1.0 or (kind == 0 and policy == "reference"):
        return straight(SPEED), collides
    if policy == "reference":
        return straight(5.0), {**FULL, "ego_progress": 0.7}
    if kind == 1:
        return straight(5.0, drift=-1.0), {**FULL, "drivable_area_compliance": 0.0, "ego_progress": 0.0}
    return straight(5.5), {**FULL, "ego_progress": 0.7 if kind == 3 else 0.8}


def _write_origins(root: Path, tokens: list[str], logs: list[str]) -> None:
    import datasets

    datasets.disable_progress_bars()
    (root / "sensors").mkdir()
    Image.effect_noise((96, 54), 40).convert("RGB").save(root / "sensors" / "front.jpg")
    scenes = [
        {"token": token, "log_name": log, "map": "us-nv-las-vegas-strip", "command": "straight"}
        | {"cameras": {"CAM_F0": "front.jpg"}, "future": straight(5.0).tolist()}
        for token, log in zip(tokens, logs)
    ]
    datasets.Dataset.from_list(scenes).save_to_disk(str(root / "scenes"))
    finish(root / "scenes", {"command": "convert"})
    rng = np.random.default_rng(1)
    candidates = []
    for scene in range(30):
        scores = rng.random(8)
        advantage = (scores - scores.mean()) / scores.std()
        for index, (score, gain) in enumerate(zip(scores, advantage)):
            line = {"token": f"train-{scene}", "index": index, "source": "reference", "poses": straight(5.0).tolist()}
            candidates.append({**line, "score": score, "return": score, "advantage": gain})
    datasets.Dataset.from_list(candidates).save_to_disk(str(root / "candidates"))
    write_json(root / "candidates" / "candidates.json", {"advantage": "group-relative", "split": "training"})
    finish(root / "candidates", {"command": "collect"})
    by_log: dict[str, list[str]] = {}
    for token, log in zip(tokens, logs):
        by_log.setdefault(log, []).append(token)
    for log, own in by_log.items():
        write_log(log_path(root / "cache", log), [street(token, log) for token in own], {"command": "cache"})
    write_index(root / "cache", by_log)
    finish(root / "cache", {"command": "cache"})
