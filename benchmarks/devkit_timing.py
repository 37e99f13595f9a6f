"""CPU time of the official devkit on given scenes and candidates; prints JSON. Run by the devkit's own python.

    PYTHONPATH=<navsim>:<nuplan-devkit> OMP_NUM_THREADS=1 <python> benchmarks/devkit_timing.py --data ROOT \\
        --candidates C.npz --counts 1 16 64

The devkit's version is the one on PYTHONPATH, v1.1 or v2.2. Timed: metric caching (maps already read), reading a
cache file, `pdm_score` one trajectory at a time (v2.2 with its human filter, as its script runs it), and the batched
route: interpolate, simulate and `score_proposals` for N candidates and the reference at once (no human filter).
`benchmarks/scorer.py` calls this and puts our figures for the same file beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds navsim_logs/ and maps/")
    parser.add_argument("--split", default="mini")
    parser.add_argument("--candidates", type=Path, required=True, help="npz: token (S,), poses (S, N, T, 3), interval")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64, 256], help="candidates per batched call")
    parser.add_argument("--singles", type=int, default=8, help="candidates per scene given one at a time")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is printed")
    return parser.parse_args()


OPTIONS = arguments()
os.environ["OPENSCENE_DATA_ROOT"], os.environ["NUPLAN_MAPS_ROOT"] = str(OPTIONS.data), str(OPTIONS.data / "maps")

from navsim.common.dataclasses import SceneFilter, SensorConfig, Trajectory
from navsim.common.dataloader import SceneLoader
from navsim.evaluate.pdm_score import get_trajectory_as_array, pdm_score, transform_trajectory
from navsim.planning.metric_caching.metric_cache_processor import MetricCacheProcessor
from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario
from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig
from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

SAMPLING = TrajectorySampling(num_poses=40, interval_length=0.1)
IS_SECOND = importlib.util.find_spec("navsim.traffic_agents_policies") is not None
SIMULATOR = PDMSimulator(SAMPLING)


def scorer(is_filtered: bool) -> Any:
    if IS_SECOND:
        return PDMScorer(SAMPLING, PDMScorerConfig(human_penalty_filter=is_filtered))
    weights = {"progress_weight": 5.0, "ttc_weight": 5.0, "comfortable_weight": 2.0, "driving_direction_weight": 0.0}
    return PDMScorer(SAMPLING, PDMScorerConfig(**weights, progress_distance_threshold=5.0))


def traffic() -> Any:
    if not IS_SECOND:
        return None
    from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

    return LogReplayTrafficAgents(SAMPLING)


def write_cache(scene: Any, folder: Path) -> Path:
    scenario = NavSimScenario(scene, map_root=os.environ["NUPLAN_MAPS_ROOT"], map_version="nuplan-maps-v1.0")
    if IS_SECOND:
        return Path(MetricCacheProcessor(str(folder), True, SAMPLING).compute_and_save_metric_cache(scenario).file_name)
    return Path(MetricCacheProcessor(str(folder), True).compute_metric_cache(scenario).file_name)


def read_cache(path: Path) -> Any:
    with lzma.open(path) as file:
        return pickle.load(file)  # noqa: S301  written a moment ago by `write_cache`


def score_one(cache: Any, trajectory: Any, one: Any, policy: Any) -> None:
    more = {"traffic_agents_policy": policy} if IS_SECOND else {}
    pdm_score(cache, trajectory, future_sampling=SAMPLING, simulator=SIMULATOR, scorer=one, **more)


def score_batch(cache: Any, trajectories: list[Any], batch: Any, policy: Any) -> None:
    start, ego = cache.ego_state.time_point, cache.ego_state
    plans = [cache.trajectory, *(transform_trajectory(trajectory, ego) for trajectory in trajectories)]
    proposals = np.stack([get_trajectory_as_array(plan, SAMPLING, start) for plan in plans])
    states = SIMULATOR.simulate_proposals(proposals, ego)
    scene = (cache.observation, cache.centerline, cache.route_lane_ids, cache.drivable_area_map)
    if IS_SECOND:
        tracks = policy.simulate_environment(states[1], cache)
        batch.score_proposals(states, *scene, cache.map_parameters, tracks, cache.past_human_trajectory)
    else:
        batch.score_proposals(states, *scene)


def cpu_seconds(work: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    with np.load(OPTIONS.candidates) as arrays:
        tokens, poses = arrays["token"].astype(str).tolist(), arrays["poses"].astype(np.float64)
        interval = float(arrays["interval"]) if "interval" in arrays.files else 0.5
    sampling = TrajectorySampling(num_poses=poses.shape[2], interval_length=interval)
    candidates = [[Trajectory(plan, sampling) for plan in plans] for plans in poses]
    sensors = {"original_sensor_path": None} if IS_SECOND else {"sensor_blobs_path": None}
    chosen = SceneFilter(num_history_frames=4, num_future_frames=10, frame_interval=1, tokens=tokens)
    logs = OPTIONS.data / "navsim_logs" / OPTIONS.split
    loader = SceneLoader(logs, scene_filter=chosen, sensor_config=SensorConfig.build_no_sensors(), **sensors)
    scenes = [loader.get_scene_from_token(token) for token in tokens]
    repeats, count = OPTIONS.repeats, len(tokens)
    result: dict[str, Any] = {"devkit": "2.2" if IS_SECOND else "1.1", "scenes": count, "numpy": np.__version__}
    with tempfile.TemporaryDirectory() as folder:
        files = [write_cache(scene, Path(folder)) for scene in scenes]  # reads the maps
        caching = cpu_seconds(lambda: [write_cache(scene, Path(folder)) for scene in scenes] and None, 1)
        reading = cpu_seconds(lambda: [read_cache(file) for file in files] and None, repeats)
        caches = [read_cache(file) for file in files]
    result |= {"caching_s_per_scene": caching / count, "cache_reading_s_per_scene": reading / count}
    one, batch, policy = scorer(True), scorer(False), traffic()

    def singly() -> None:
        for cache, plans in zip(caches, candidates):
            for plan in plans[: OPTIONS.singles]:
                score_one(cache, plan, one, policy)

    def batched(size: int) -> None:
        for cache, plans in zip(caches, candidates):
            score_batch(cache, plans[:size], batch, policy)

    batched(1)
    result["per_trajectory_s"] = cpu_seconds(singly, repeats) / (count * min(OPTIONS.singles, poses.shape[1]))
    sizes = [size for size in OPTIONS.counts if size <= poses.shape[1]]
    result["batched_s_per_trajectory"] = {
        size: cpu_seconds(lambda size=size: batched(size), repeats) / (count * size)  # type: ignore[misc]
        for size in sizes
    }
    print(json.dumps(result))


main()
