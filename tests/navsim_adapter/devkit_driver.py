"""Run by the devkit's own python, never by ours: official caches of a few scenes, then scores of a submission file.

usage: devkit_driver.py DATA_ROOT SUBMISSION.pkl FOLDER, with the devkit on PYTHONPATH. DATA_ROOT is laid out as
navsim_dev. Scenes are those of the submission. Prints JSON: "submitted" {token: score} by the devkit's submission
script, "direct" the same trajectories given to its scorer one by one, "version" 1 or 2.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

DATA, SUBMISSION, FOLDER = map(Path, sys.argv[1:4])
os.environ["OPENSCENE_DATA_ROOT"], os.environ["NUPLAN_MAPS_ROOT"] = str(DATA), str(DATA / "maps")

from navsim.common.dataclasses import Scene, SceneFilter, SensorConfig, Trajectory  # noqa: E402
from navsim.common.dataloader import MetricCacheLoader, SceneLoader  # noqa: E402
from navsim.evaluate.pdm_score import pdm_score  # noqa: E402
from navsim.planning.metric_caching.metric_cache_processor import MetricCacheProcessor  # noqa: E402
from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario  # noqa: E402
from navsim.planning.script import run_pdm_score_from_submission as script  # noqa: E402
from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig  # noqa: E402
from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator  # noqa: E402
from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling  # noqa: E402

SAMPLING = TrajectorySampling(num_poses=40, interval_length=0.1)
IS_SECOND = importlib.util.find_spec("navsim.traffic_agents_policies") is not None


def scenes(tokens: set[str]) -> list[Scene]:
    chosen = SceneFilter(num_history_frames=4, num_future_frames=10, frame_interval=1, tokens=sorted(tokens))
    sensors = {"original_sensor_path": None} if IS_SECOND else {"sensor_blobs_path": None}
    loader = SceneLoader(
        data_path=DATA / "navsim_logs/mini",
        scene_filter=chosen,
        sensor_config=SensorConfig.build_no_sensors(),
        **sensors,
    )
    found = [loader.get_scene_from_token(token) for token in loader.tokens]
    if IS_SECOND:
        files = sorted((DATA / "two_stage/synthetic_scene_pickles").glob("*.pkl"))
        loaded = (Scene.load_from_disk(file, None) for file in files)
        found += [scene for scene in loaded if scene.scene_metadata.initial_token in tokens]
    return found


def write_caches(tokens: set[str]) -> None:
    for scene in scenes(tokens):
        scenario = NavSimScenario(scene, map_root=str(DATA / "maps"), map_version="nuplan-maps-v1.0")
        if IS_SECOND:
            MetricCacheProcessor(str(FOLDER), True, SAMPLING).compute_and_save_metric_cache(scenario)
        else:
            MetricCacheProcessor(str(FOLDER), True).compute_metric_cache(scenario)
    files = sorted(FOLDER.glob("*/unknown/*/metric_cache.pkl"))
    (FOLDER / "metadata").mkdir()
    (FOLDER / "metadata" / "index.csv").write_text("\n".join(["file_name", *map(str, files)]) + "\n")


def main() -> None:
    content = pickle.loads(SUBMISSION.read_bytes())  # noqa: S301  ours, read as the devkit reads it
    names = ("first_stage_predictions", "second_stage_predictions") if IS_SECOND else ("predictions",)
    plans = {token: plan for name in names for token, plan in content[name][0].items()}
    assert all(type(plan) is Trajectory for plan in plans.values())
    write_caches(set(plans))
    simulator, loader = PDMSimulator(SAMPLING), MetricCacheLoader(FOLDER)
    common = {"future_sampling": SAMPLING, "simulator": simulator}
    if IS_SECOND:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        config = Path(script.__file__).parent / "config/common/traffic_agents_policy/navsim_IDM_traffic_agents.yaml"
        policy = OmegaConf.load(config)
        policy = policy.get("reactive", policy)
        scorer = PDMScorer(SAMPLING, PDMScorerConfig(human_penalty_filter=True))
        settings = OmegaConf.create({"traffic_agents_policy": {"reactive": policy}})
        rows = script.run_pdm_score(settings, *(content[name][0] for name in names), simulator, scorer, FOLDER)
        submitted = {row["token"].iloc[0]: float(row["pdm_score"].iloc[0]) for row in rows}
        common["traffic_agents_policy"] = instantiate(policy, SAMPLING)
    else:
        weights = {
            "progress_weight": 5.0,
            "ttc_weight": 5.0,
            "comfortable_weight": 2.0,
            "driving_direction_weight": 0.0,
        }
        scorer = PDMScorer(SAMPLING, PDMScorerConfig(**weights, progress_distance_threshold=5.0))
        table = script.run_pdm_score(SUBMISSION, simulator, scorer, FOLDER)
        submitted = dict(zip(table["token"], map(float, table["score"])))
    direct = {}
    for token, plan in plans.items():
        own = Trajectory(plan.poses.copy(), TrajectorySampling(num_poses=len(plan.poses), interval_length=0.5))
        result = pdm_score(loader.get_from_token(token), own, scorer=scorer, **common)
        direct[token] = float(result[0]["pdm_score"].iloc[0] if IS_SECOND else result.score)
    print(json.dumps({"version": 2 if IS_SECOND else 1, "submitted": submitted, "direct": direct}))


main()
