"""Data sets: made in resumable parts, merged as OGBench's loader wants them, ExORL's format read and relabelled."""

from __future__ import annotations

import numpy as np
import pytest

from dipole_vla.cli import main
from dipole_vla.rl.arrays import read_arrays, write_arrays
from dipole_vla.rl.data import generate as making
from navsim_adapter.foundation.errors import InputError


def fake_player(name):
    def episode(seed):
        rng = np.random.default_rng(seed)
        steps = 3 + seed % 3
        return {
            "observations": list(rng.standard_normal((steps, 2))),
            "actions": list(rng.standard_normal((steps, 1))),
            "terminals": [False] * (steps - 1) + [True],
            "qpos": list(rng.standard_normal((steps, 4))),
            "qvel": list(rng.standard_normal((steps, 4))),
        }

    return episode


def test_killed_making_ends_in_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "_player", fake_player)
    making.generate("cube-single-play", tmp_path / "whole", episodes=25)
    calls = []

    def dying(name):
        play = fake_player(name)

        def episode(seed):
            calls.append(seed)
            if len(calls) == 14:
                raise KeyboardInterrupt
            return play(seed)

        return episode

    monkeypatch.setattr(making, "_player", dying)
    with pytest.raises(KeyboardInterrupt):
        making.generate("cube-single-play", tmp_path / "killed", episodes=25)
    assert not list((tmp_path / "killed").glob("*.npz"))
    making.generate("cube-single-play", tmp_path / "killed", episodes=25)
    assert len(calls) == 14 + 25 + 2 - 10  # the first part of ten was kept
    for name, episodes in (("cube-single-play-v0.npz", 25), ("cube-single-play-v0-val.npz", 2)):
        whole, killed = read_arrays(tmp_path / "whole" / name, ""), read_arrays(tmp_path / "killed" / name, "")
        assert set(whole) == {"observations", "actions", "terminals", "qpos", "qvel"}
        for key in whole:
            np.testing.assert_array_equal(whole[key], killed[key])
        assert whole["terminals"].sum() == episodes
        assert whole["terminals"].dtype == bool
    np.testing.assert_array_equal(
        read_arrays(tmp_path / "whole" / "cube-single-play-v0-val.npz", "")["observations"][:3],
        np.float32(fake_player("")(25)["observations"])[:3],
    )
    assert not list((tmp_path / "killed").glob(".cube*"))
    making.generate("cube-single-play", tmp_path / "killed", episodes=25)
    assert len(calls) == 31
    with pytest.raises(InputError, match="episodes: the data were made with 25, now 30"):
        making.generate("cube-single-play", tmp_path / "killed", episodes=30)


def test_several_processes_make_the_same_data(tmp_path):
    pytest.importorskip("ogbench")
    for workers in (1, 2):
        making.generate("pointmaze-medium-navigate", tmp_path / str(workers), episodes=12, workers=workers)
    for name in ("pointmaze-medium-navigate-v0.npz", "pointmaze-medium-navigate-v0-val.npz"):
        one, two = (read_arrays(tmp_path / folder / name, "") for folder in ("1", "2"))
        assert one["terminals"].sum() == (1 if "val" in name else 12)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


@pytest.mark.parametrize("name", ["antmaze-medium-navigate", "humanoidmaze-medium-navigate", "cube-single-plai"])
def test_experts_cannot_be_made(name):
    assert not making.is_scripted(name)


def test_arrays_that_are_damaged_or_hold_objects_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.arange(5)})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"a\.npz: cannot be read .*do this"):
        read_arrays(path, "do this")
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(path, "do this")


def test_pointmaze_is_made_and_read_as_ogbench_reads_it(tmp_path):
    pytest.importorskip("ogbench")
    from dipole_vla.rl.data import ogbench

    assert main(["data", "ogbench", "pointmaze-medium-navigate", "--out", str(tmp_path), "--episodes", "2"]) == 0
    raw = read_arrays(tmp_path / "pointmaze-medium-navigate-v0.npz", "")
    assert raw["observations"].shape == (2002, 2)
    table = ogbench.load("pointmaze-medium-navigate-singletask-task1-v0", tmp_path, 0.99)
    assert len(table) == 2000
    np.testing.assert_array_equal(table.observation[:1000], raw["observations"][:1000])
    np.testing.assert_array_equal(table.next_observation[:1000], raw["observations"][1:1001])
    np.testing.assert_array_equal(table.observation[1000:], raw["observations"][1001:2001])
    assert set(table.reward.unique().tolist()) <= {-1.0, 0.0}
    np.testing.assert_allclose(table.discount, np.where(table.reward == 0, 0, 0.99), rtol=1e-6)
    moved = np.linalg.norm(table.next_observation - table.observation, axis=1)
    assert 0 < moved.mean() < 0.5
    with pytest.raises(InputError, match="dipole-vla data ogbench cube-single-play"):
        ogbench.load("cube-single-play-singletask-task2-v0", tmp_path, 0.99)


def test_exorls_format_is_read_with_rewards_of_the_asked_task(tmp_path):
    pytest.importorskip("dm_control")
    from dipole_vla.rl.data import exorl

    exorl.substitute("walker-walk", tmp_path, episodes=1)
    (path,) = tmp_path.glob("episode_*.npz")
    assert path.name == "episode_000000_1000.npz"
    raw = read_arrays(path, "")
    assert raw["observation"].shape == (1001, 24)
    assert "not ExORL" in (tmp_path / "manifest.json").read_text()
    walk = exorl.load("walker-walk", tmp_path, 0.99)
    assert len(walk) == 1000
    np.testing.assert_allclose(walk.reward, raw["reward"][1:], atol=2e-3)  # as the simulator paid them
    np.testing.assert_array_equal(walk.action, raw["action"][1:])
    np.testing.assert_array_equal(walk.next_observation, raw["observation"][1:])
    stand = exorl.load("walker-stand", tmp_path, 0.99)
    assert stand.reward.mean() > walk.reward.mean()
    write_arrays(path, {"observation": raw["observation"]})
    with pytest.raises(InputError, match="'action' is missing"):
        exorl.load("walker-walk", tmp_path, 0.99)
    with pytest.raises(InputError, match="exorl-substitute"):
        exorl.load("walker-walk", tmp_path / "none", 0.99)
