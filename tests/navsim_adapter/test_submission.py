"""Submission files: what we write, read back; what is wrong is said; the devkit reads them (slow, where it is there).

The last test runs if DIPOLE_DEVKIT_PYTHON (a python with the devkit's requirements) and DIPOLE_DEVKIT_PATH (its
PYTHONPATH: navsim v1.1 or v2.2, and nuplan-devkit) are set; run it once for each version.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import pickletools
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.submission import (
    TWO_STAGES,
    Plan,
    Team,
    check_submission,
    problems,
    read_submission,
    write_submission,
)
from tests.shared import SHARED, needs_shared

TEAM = Team("drivers", ("A. Author", "B. Author"), "a@example.org", "Institute", "Neverland")
POSES = np.random.default_rng(0).normal(size=(8, 3))
PLANS = {"0" * 16: Plan(POSES), "1" * 16: Plan(POSES.astype(np.float32)), "2" * 16: Plan(POSES[:5], 0.8)}


def test_a_process_that_has_imported_dill_writes_the_same_file(tmp_path: Path, monkeypatch) -> None:
    """`datasets` imports dill, which changes how the library's pickler saves types."""
    write_submission(tmp_path / "before.pkl", TEAM, PLANS)
    table = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def its_own_way(pickler, obj, name=None):
        raise AssertionError(f"{obj} was saved by another's way")

    for kind in (type, type(write_submission), type(len)):
        monkeypatch.setitem(pickle._Pickler.dispatch, kind, its_own_way)  # type: ignore[attr-defined]
    write_submission(tmp_path / "after.pkl", TEAM, PLANS)
    assert table != pickle._Pickler.dispatch  # type: ignore[attr-defined]
    assert (tmp_path / "after.pkl").read_bytes() == (tmp_path / "before.pkl").read_bytes()


def test_a_submission_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, PLANS)
    content = read_submission(path)
    assert content["team_name"] == "drivers"
    assert content["authors"] == ["A. Author", "B. Author"]
    assert content["country / region"] == "Neverland"
    (stage,) = content["predictions"]
    assert list(stage) == list(PLANS)
    for token, plan in PLANS.items():
        np.testing.assert_array_equal(stage[token].poses, plan.poses)
        assert stage[token].poses.dtype == plan.poses.dtype
        assert stage[token].interval == plan.interval
    assert check_submission(path, PLANS) == []


def test_a_second_stage_makes_a_two_stage_submission(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, PLANS, {"3" * 17: Plan(POSES)})
    assert [name for name in read_submission(path) if name.endswith("predictions")] == list(TWO_STAGES)
    assert check_submission(path, PLANS, ["3" * 17]) == []


def test_the_stream_names_the_official_classes_and_old_numpy_paths(tmp_path: Path) -> None:
    """numpy 1 does not know `numpy._core`; nothing of ours may be named."""
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, PLANS)
    texts = [argument for _, argument, _ in pickletools.genops(path.read_bytes()) if isinstance(argument, str)]
    for name in ("navsim.common.dataclasses", "Trajectory", "TrajectorySampling", "numpy.core.multiarray"):
        assert name in texts
    assert not [text for text in texts if "_core" in text or "navsim_adapter" in text]
    assert path.read_bytes()[1] <= 4  # the protocol


def test_the_official_attributes_are_there(tmp_path: Path) -> None:
    """The names that the devkit's dataclasses declare; unpickling does not run their constructors."""
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, PLANS)

    class Bare:
        pass

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return Bare if module.startswith(("navsim.", "nuplan.")) else super().find_class(module, name)

    with path.open("rb") as file:
        plan = Reader(file).load()["predictions"][0]["2" * 16]
    assert set(vars(plan)) == {"poses", "trajectory_sampling"}
    assert vars(plan.trajectory_sampling) == {"num_poses": 5, "time_horizon": 4.0, "interval_length": 0.8}


BAD_PLANS = [
    (Plan(np.full((8, 3), np.nan)), "NaN or infinity at step 0"),
    (Plan(np.where(np.arange(24).reshape(8, 3) == 13, np.inf, 1.0)), "NaN or infinity at step 4"),
    (Plan(np.zeros((8, 2))), "expected floats"),
    (Plan(np.zeros((8, 3), int)), "expected floats"),
    (Plan(np.zeros((0, 3))), "has no poses"),
    (Plan(POSES, 0.0), "must be positive"),
    (Plan(POSES, float("nan")), "must be positive"),
]


@pytest.mark.parametrize(("plan", "message"), BAD_PLANS)
def test_a_bad_plan_is_never_written(tmp_path: Path, plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=f"scene {'9' * 16}: .*{message}"):
        write_submission(tmp_path / "submission.pkl", TEAM, {"9" * 16: plan})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["team_name", "authors", "email", "institution", "country"])
def test_every_team_field_must_be_filled(tmp_path: Path, field: str) -> None:
    for empty in ("", " ", "???"):
        team = Team(**{**vars(TEAM), field: (empty,) if field == "authors" else empty})
        with pytest.raises(InputError, match="missing or empty"):
            write_submission(tmp_path / "submission.pkl", team, PLANS)
    with pytest.raises(InputError, match="is no address"):
        write_submission(tmp_path / "submission.pkl", Team(**{**vars(TEAM), "email": "nobody"}), PLANS)


def test_missing_and_surplus_scenes_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, PLANS)
    assert check_submission(path, ["0" * 16, "7" * 16, "8" * 16, "1" * 16]) == [
        f"predictions: 2 of 4 scenes have no trajectory ({'7' * 16} …); add them",
        f"predictions: 1 scene beyond the split ({'2' * 16} …); remove",
    ]
    assert check_submission(path, PLANS, ["3" * 17]) == [
        "second_stage_predictions: missing; this split needs a two-stage submission"
    ]


def test_each_fault_of_a_file_has_its_line() -> None:
    content = {
        "team_name": "drivers",
        "email": "a@example.org",
        "institution": "Institute",
        "country / region": "Neverland",
        "extra": 1,
        "predictions": [{"0" * 16: Plan(POSES), "1" * 16: "a list instead of a trajectory; write it again"}],
    }
    assert problems(content) == [
        "authors: missing or empty; fill it in",
        "extra: unknown field; remove it",
        f"predictions: scene {'1' * 16}: a list instead of a trajectory; write it again",
    ]
    assert any("one for each seed, found no list" in line for line in problems({**content, "predictions": {}}))


def _hydra_classes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for Hydra's classes, so that a list of its kind can be pickled."""
    made = {}
    for module, name in (("listconfig", "ListConfig"), ("nodes", "AnyNode"), ("base", "ContainerMetadata")):
        fake = ModuleType(f"omegaconf.{module}")
        made[name] = type(name, (), {"__module__": fake.__name__})
        setattr(fake, name, made[name])
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    return SimpleNamespace(**made)


def test_authors_may_be_hydras_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = _hydra_classes(monkeypatch)
    nodes = []
    for name in ("A", "B"):
        nodes.append(hydra.AnyNode())
        nodes[-1].__dict__.update(_val=name, _parent=None)
    about = hydra.ContainerMetadata()
    about.__dict__.update(ref_type=Any, object_type=list, key_type=int, resolver_cache=defaultdict(dict))
    authors = hydra.ListConfig()
    authors.__dict__.update(_metadata=about, _content=nodes, _parent=None)
    content = {"team_name": "t", "authors": authors, "email": "a@b", "institution": "i", "country / region": "c"}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({**content, "predictions": []}))
    assert read_submission(tmp_path / "s.pkl")["authors"] == ["A", "B"]


def test_several_seeds_are_checked_each() -> None:
    team = {"team_name": "t", "authors": ["a"], "email": "a@b", "institution": "i", "country / region": "c"}
    one = {"0" * 16: Plan(POSES)}
    assert problems({**team, "predictions": [one, one, one]}, set(one)) == []
    wrong = problems({**team, "predictions": [one, {"1" * 16: Plan(POSES * np.nan)}]}, set(one))
    assert any("seed 2 of 2: has other scenes than the first seed" in line for line in wrong)
    assert any("seed 2 of 2: scene 1111111111111111: poses contain NaN" in line for line in wrong)
    two = problems({**team, "first_stage_predictions": [one, one], "second_stage_predictions": [one]})
    assert len(two) == 1
    assert two[0].startswith("first_stage_predictions: has 2 seeds, the official two-stage scorer takes one")


def test_a_sampling_that_does_not_fit_its_poses_is_named(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    write_submission(path, TEAM, {"0" * 16: Plan(POSES)})
    stream = path.read_bytes()
    at = stream.index(b"num_poses") + len(b"num_poses")
    eight = stream.index(b"K\x08", at)  # BININT1 8
    path.write_bytes(stream[:eight] + b"K\x07" + stream[eight + 2 :])
    (line,) = check_submission(path)
    assert line.endswith("has 8 poses but a sampling of 7; make them agree")


def test_what_is_no_submission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "submission.pkl"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="holds a list, a submission is a dict"):
        read_submission(path)


# -- the devkit itself -------------------------------------------------------------------------------------------------

PYTHON, DEVKIT = os.environ.get("DIPOLE_DEVKIT_PYTHON"), os.environ.get("DIPOLE_DEVKIT_PATH")


@pytest.mark.slow
@needs_shared
@pytest.mark.skipif(not (PYTHON and DEVKIT), reason="DIPOLE_DEVKIT_PYTHON and DIPOLE_DEVKIT_PATH are not set")
def test_the_devkit_reads_our_submission_and_scores_it_the_same(tmp_path: Path) -> None:
    assert SHARED is not None
    root = SHARED / "navsim_dev"
    stages = [_plans(root / "trajectories.npz", 3), _plans(root / "two_stage" / "trajectories.npz", 2)]
    environment = {**os.environ, "PYTHONPATH": str(DEVKIT), "OMP_NUM_THREADS": "1"}
    probe = [str(PYTHON), "-c", "import navsim.traffic_agents_policies"]
    is_second = subprocess.run(probe, env=environment, capture_output=True).returncode == 0
    write_submission(tmp_path / "submission.pkl", TEAM, *(stages if is_second else stages[:1]))
    driver = Path(__file__).with_name("devkit_driver.py")
    command = [str(PYTHON), "-W", "ignore", str(driver), str(root), str(tmp_path / "submission.pkl")]
    done = subprocess.run([*command, str(tmp_path / "cache")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = {token for stage in (stages if is_second else stages[:1]) for token in stage}
    assert set(found["submitted"]) == tokens
    assert found["submitted"] == found["direct"]
    assert all(np.isfinite(score) for score in found["submitted"].values())
    if not is_second:
        with (root / "scores_v1.csv").open() as file:
            official = {row["token"]: float(row["score"]) for row in csv.DictReader(file) if row["name"] == "human"}
        for token, score in found["submitted"].items():
            assert score == pytest.approx(official[token], abs=1e-6)


def _plans(table: Path, count: int) -> dict[str, Plan]:
    with np.load(table) as arrays:
        rows = np.flatnonzero(arrays["name"] == "human")[:count]
        return {str(arrays["token"][row]): Plan(arrays["poses"][row]) for row in rows}
