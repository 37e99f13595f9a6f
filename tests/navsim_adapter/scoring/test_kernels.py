"""The kernels' machine code: what the source says, made once, and without numba."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.metric import comfort, engine, machine_code
from navsim_adapter.metric.scene_index import SceneIndex, build_index, run
from navsim_adapter.scene_cache import SceneCache
from tests.navsim_adapter.scoring.random_scenes import random_scene
from tests.navsim_adapter.scoring.scenes import roots, scenes_of, trajectories_of

needs_scenes = pytest.mark.skipif(not roots(), reason="no data with official figures beside or inside this clone")


def interpreted(index: SceneIndex, poses: np.ndarray) -> np.ndarray:
    """`run` by Python itself, one operation after the other."""
    table, scratch = np.empty((len(poses), engine.COLUMNS)), np.empty(100_000)
    rest = (poses, 0.5, False, np.empty((0, 0)), table, np.empty((0, 41, 11)), scratch)
    with np.errstate(all="ignore"):
        assert engine.score_trajectories.py_func(index.block.address, *rest) == engine.DONE
    return table


@needs_scenes
@pytest.mark.parametrize("metric", ["pdms", "epdms"])
def test_machine_code_gives_the_bits_that_its_source_gives_in_python(metric: str) -> None:
    root = roots()[-1]
    token, scene = next(iter(scenes_of(root).items()))
    poses = np.array([poses for (own, _), (poses, _) in trajectories_of(root).items() if own == token])[::12]
    index = build_index(scene, metric)  # type: ignore[arg-type]
    np.testing.assert_array_equal(run(index, poses), interpreted(index, poses))


def test_a_process_that_finds_the_kernels_never_imports_numba() -> None:
    program = """
import sys
import numpy as np
from navsim_adapter.cache import build
from navsim_adapter.metric import two_frame
from navsim_adapter.pdm_closed import path, rollout
from navsim_adapter.scoring import scorer
comfort = np.empty(1)
two_frame.compare_plans(np.zeros((1, 2, 41)), np.zeros((1, 2, 41)), np.array([5]), np.empty((4, 41, 2)), comfort)
along = path.Path.through(np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])).project(np.array([[3.0, 1.0]]))
print(comfort[0], along[0], "numba" in sys.modules)
"""
    machine_code.function("compare_plans")  # made, if they are not
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "3.0", "False"]


def test_a_torn_or_foreign_file_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / machine_code.file_name()
    assert machine_code._read(path) is None
    for content in (b"", b"x" * 100):
        path.write_bytes(content)
        assert machine_code._read(path) is None


def test_the_file_is_named_by_what_the_sources_hold_and_not_by_their_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name_of(text: str) -> str:
        (tmp_path / "kernel.py").write_text(text)
        monkeypatch.setattr(machine_code, "_SOURCES", (tmp_path / "kernel.py",))
        machine_code.file_name.cache_clear()
        return machine_code.file_name()

    try:
        assert name_of("1") == name_of("1") != name_of("2")
    finally:
        monkeypatch.undo()
        machine_code.file_name.cache_clear()


@pytest.mark.parametrize("table", [np.empty((2, 3), np.float32), np.empty((3, 2)).T, np.empty(6)])
def test_a_kernel_takes_only_the_arrays_that_it_was_compiled_for(table: np.ndarray) -> None:
    with pytest.raises(TypeError, match="combine_rows"):
        engine.combine_rows(table, False, 0.0, np.empty(3), np.empty(2))


def crowded(scene: SceneCache, count: int) -> SceneCache:
    """The scene with `count` objects more, copies of its own moved by up to 40 m."""
    rows = np.concatenate([np.arange(len(scene.object_type)), np.arange(count) % len(scene.object_type)])
    pose = np.asarray(scene.object_pose)[rows]
    pose[-count:, :, :2] += np.random.default_rng(3).uniform(-40.0, 40.0, (count, 1, 2))
    return replace(
        scene,
        object_tokens=tuple(map(str, range(len(rows)))),
        object_type=np.asarray(scene.object_type)[rows],
        object_versions=np.asarray(scene.object_versions)[rows],
        object_size=np.asarray(scene.object_size)[rows],
        object_velocity=np.asarray(scene.object_velocity)[rows],
        object_pose=pose,
        object_knots=None,
    )


def plans(count: int) -> np.ndarray:
    """(count, 8, 3), from standing still to far off the road; the last turns round, the direction of which is a tie."""
    rng = np.random.default_rng(5)
    heading = np.cumsum(rng.normal(0.0, 0.1, (count, 8)), axis=1)
    step = rng.uniform(0.0, 6.0, (count, 1)) * np.ones(8)
    heading[-1, 4:] = heading[-1, 3] + np.pi
    return np.stack([np.cumsum(step * np.cos(heading), 1), np.cumsum(step * np.sin(heading), 1), heading], -1)


@pytest.mark.parametrize("metric", ["pdms", "epdms"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_passed_over_in_a_crowd_touches_nobody(seed: int, metric: str) -> None:
    """Objects are passed over by what all candidates of a call may reach: alone a candidate has other neighbours."""
    scene = random_scene(seed)
    index = build_index(crowded(scene, 150) if len(scene.object_type) else scene, metric)  # type: ignore[arg-type]
    poses = plans(70)
    together = run(index, poses)
    alone = np.concatenate([run(index, poses[i : i + 1]) for i in range(len(poses))])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("bound", [4.05, 2.40, 4.89, 8.37, 4.13, 1.93, 0.95, -4.05])
def test_rounded_values_are_within_a_bound_as_their_whole_numbers_are(bound: float) -> None:
    limit = abs(comfort._limit(bound))
    assert np.sign(comfort._limit(bound)) == np.sign(bound)
    assert (limit - 1.0) / 1e8 < abs(bound) <= limit / 1e8


def test_only_innermost_loops_are_called_parallel() -> None:
    from navsim_adapter.metric.fragments import _with_parallel_loops

    text = """
B0:
  br label %"B10"
B10:
  %".1" = load i64, ptr %".0"
  br label %"B20"
B20:
  store i64 %".1", ptr %".0"
  br label %"B20.if"
B20.if:
  br label %"B20"
B30:
  br label %"B10"
"""
    lines = _with_parallel_loops(text).splitlines()
    noted = [line for line in lines if "!llvm.loop !" in line]
    assert [line.split(",")[0].strip() for line in noted] == ['br label %"B20"']
    assert all("!llvm.access.group" in line for line in lines if " load " in line or "store " in line)
