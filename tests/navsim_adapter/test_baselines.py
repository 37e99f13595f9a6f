"""Planners without weights. Scenes come from the official cache files under tests/data (see cache/test_official.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.baselines import BASELINES, constant_velocity, human, pdm_closed, plan_all, stopped
from navsim_adapter.cache.official import combine, read_official
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.trajectories import read_trajectories, write_trajectories

DATA = Path(__file__).resolve().parents[1] / "data" / "official_cache"


@pytest.fixture(scope="module")
def scene() -> SceneCache:
    return combine(*(read_official(next((DATA / version).rglob("metric_cache.pkl"))) for version in ("v1", "v2")))


def test_constant_velocity_keeps_speed_and_heading_in_float32(scene: SceneCache) -> None:
    moving = replace(scene, ego_state=np.array([0, 0, 1.0, 3.0, -4.0, 9, 9, 0, 0, 0, 0]))
    poses = constant_velocity(moving)
    np.testing.assert_array_equal(poses[:, 0], 2.5 * np.arange(1, 9))
    assert not poses[:, 1:].any()
    odd = constant_velocity(replace(scene, ego_state=np.array([0, 0, 0, 1.1, 0.1, 0, 0, 0, 0, 0, 0])))
    np.testing.assert_array_equal(odd, odd.astype(np.float32))
    squares = np.float32(1.1) ** 2 + np.float32(0.1) ** 2
    assert odd[2, 0] == np.float32(1.5 * float(squares) ** 0.5)


def test_stopped_stays(scene: SceneCache) -> None:
    assert not stopped(scene).any()


def test_human_is_the_log_and_needs_one(scene: SceneCache) -> None:
    np.testing.assert_array_equal(human(scene), scene.human_future)
    without = replace(scene, human_future=None)
    with pytest.raises(InputError, match="has no recorded future"):
        human(without)
    assert list(plan_all("human", {"a": scene, "b": without})) == ["a"]
    assert list(plan_all("stopped", {"a": scene, "b": without})) == ["a", "b"]


@pytest.mark.parametrize("metric", [PDMS, EPDMS])
def test_pdm_closed_lies_on_the_reference(scene: SceneCache, metric: int) -> None:
    """Moved back to the map by a complex rotation, its poses are every fifth state of the reference."""
    poses = pdm_closed(scene, metric)
    x, y, heading = scene.ego_state[:3]
    back = (poses[:, 0] + 1j * poses[:, 1]) * np.exp(1j * heading) + complex(x, y)
    wanted = (scene.reference_pdms if metric == PDMS else scene.reference_epdms)[[5, 10, 15, 20, 25, 30, 35, 40]]
    np.testing.assert_allclose(np.column_stack([back.real, back.imag]), wanted[:, :2], rtol=0, atol=2e-9)
    np.testing.assert_allclose(np.exp(1j * (poses[:, 2] + heading)), np.exp(1j * wanted[:, 2]), atol=1e-12)


def test_pdm_closed_of_a_metric_the_cache_does_not_serve_is_refused(scene: SceneCache) -> None:
    with pytest.raises(InputError, match="holds no EPDMS reference"):
        pdm_closed(replace(scene, versions=PDMS), EPDMS)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_tables_are_what_the_score_command_reads(scene: SceneCache, tmp_path: Path, name: str) -> None:
    plans = plan_all(name, {scene.token: scene})
    write_trajectories(tmp_path / "t.npz", name, plans)
    table = read_trajectories(tmp_path / "t.npz")
    assert (table.tokens, table.names, table.interval.tolist()) == ((scene.token,), (name,), [0.5])
    np.testing.assert_array_equal(table.poses[0], plans[scene.token])
    with pytest.raises(InputError, match="no scene has a"):
        write_trajectories(tmp_path / "t.npz", name, {})
