"""Caches made where the devkit's fit had failed are refused, sound ones are not (metric 10.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cache import official_folder
from navsim_adapter.cache.health import Humans
from navsim_adapter.cache.inspect import verify_cache
from navsim_adapter.cache.official import read_official
from navsim_adapter.cache.official_folder import import_official
from navsim_adapter.cli import main
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.metric import simulate
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.vehicle import STATES, STEPS
from tests.navsim_adapter.scoring.scenes import roots, scenes_of
from tests.shared import SHARED, needs_shared

DATA = Path(__file__).resolve().parents[2] / "data" / "official_cache"


@pytest.fixture(scope="module")
def sound() -> SceneCache:
    return read_official(next((DATA / "v2").rglob("metric_cache.pkl")))


def moved(array: np.ndarray, column: int, value: float) -> np.ndarray:
    changed = np.array(array)
    changed[..., column] = value
    return changed


POISONS: dict[str, tuple[str, Callable[[SceneCache], dict[str, Any]]]] = {
    "a start of -491 m/s": ("ego has 491 m/s", lambda s: {"ego_state": moved(s.ego_state, 3, -491.34)}),
    "a past at 600 m/s": ("ego's past has 600", lambda s: {"past_states": moved(s.past_states, 3, 600.0)}),
    "NaN in the past": ("past states has NaN", lambda s: {"past_states": moved(s.past_states, 5, np.nan)}),
    "NaN in a path": ("reference path has NaN", lambda s: {"reference_epdms": moved(s.reference_epdms, 0, np.nan)}),
    "a reference elsewhere": ("m away from the ego", lambda s: {"reference_epdms": s.reference_epdms + 9e3}),
    "a human of kilometres": ("human's path has", lambda s: {"human_future": s.human_future * 1000.0}),
    "a human who is not where simulated": (
        "own path",
        lambda s: {"ego_state": moved(moved(s.ego_state, 3, 95.0), 5, 50.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("poison", POISONS)
def test_a_scene_that_cannot_be_is_named(sound: SceneCache, poison: str) -> None:
    said, change = POISONS[poison]
    with pytest.raises(InputError, match=f"scene {sound.token}: .*{said}.*cache the scenes anew"):
        Humans().see(replace(sound, **change(sound)))


def without_road(scene: SceneCache) -> SceneCache:
    return replace(scene, areas=replace(scene.areas, vertices=scene.areas.vertices + 5000.0))


def test_a_human_off_the_road_in_most_scenes_is_none(sound: SceneCache) -> None:
    humans = Humans()
    for _ in range(6):
        humans.see(without_road(sound))
    assert humans.counts == [6, 6, 0]
    with pytest.raises(InputError, match="off the drivable area in 6 of 6 scenes"):
        humans.require_sound("cache")
    for _ in range(6):
        humans.see(sound)
    humans.require_sound("cache")


def test_few_scenes_say_nothing(sound: SceneCache) -> None:
    humans = Humans()
    humans.see(without_road(sound))
    humans.require_sound("cache")


def test_the_sound_sample_is_taken(tmp_path: Path) -> None:
    import_official(DATA / "v1", tmp_path / "one", DATA / "v2")
    import_official(DATA / "v2", tmp_path / "two")
    assert verify_cache(tmp_path / "one") == verify_cache(tmp_path / "two") == 1


@pytest.mark.parametrize("poison", ["NaN in the past", "a start of -491 m/s"])
def test_import_and_inspect_refuse_in_one_line(
    sound: SceneCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], poison: str
) -> None:
    said, change = POISONS[poison]

    def poisoned(*_: Any) -> Iterator[SceneCache]:
        yield replace(sound, **change(sound))

    monkeypatch.setattr(official_folder, "import_log", poisoned)
    assert main(["import", str(DATA / "v2"), "--out", str(tmp_path / "c"), "--workers", "1"]) == 2
    assert said in (line := capsys.readouterr().err.splitlines()[-1])
    assert "cache the scenes anew" in line
    monkeypatch.setattr(official_folder, "_sound", lambda scenes, where, counts: scenes)  # a cache of before
    monkeypatch.setattr(Humans, "add", lambda self, counts: None)
    assert main(["import", str(DATA / "v2"), "--out", str(tmp_path / "c"), "--workers", "1"]) == 0
    assert main(["inspect", str(tmp_path / "c"), "--verify"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("root", roots(), ids=lambda root: root.name)
def test_no_sound_set_is_refused(root: Path) -> None:
    humans = Humans()
    for scene in scenes_of(root).values():
        humans.see(scene)
    humans.require_sound(root)


@needs_shared
def test_the_scenes_that_carry_state_are_sound(tmp_path: Path) -> None:
    data = str((SHARED or Path()) / "navsim_carried")
    assert main(["cache", "--data", data, "--split", "mini", "--out", str(tmp_path / "c"), "--workers", "1"]) == 0
    assert verify_cache(tmp_path / "c") > 0


def test_the_fit_on_which_the_devkit_s_failed() -> None:
    """The input of WZiang/navsim-score-basis-audit (MIT, arXiv 2608.04896), whose start speed is 12.533835468245853 m/s
    in 200 digits, and on which numpy's default pseudo-inverse gave -491.34 on the audit's machine."""
    lengths = np.array([1.2487, 1.2565, 1.2641, 1.2715, *(1.2754 + 0.0076 * np.arange(36))])
    heading = -1.26986045
    way = np.concatenate([[0.0], np.cumsum(lengths)])
    poses = np.column_stack([way * np.cos(heading), way * np.sin(heading), np.full(STATES, heading)])
    reference, speed = np.empty((simulate.REFERENCE_PLANES, STATES, 1)), np.empty((STEPS, 1))
    reference[:3, :, 0] = poses.T
    reference[3], reference[4] = np.cos(heading), np.sin(heading)
    simulate.fit_speed.py_func(reference, 1, speed)
    assert speed[0, 0] == pytest.approx(12.533835468245853, abs=1e-11)
    assert np.abs(np.diff(speed[:, 0])).max() < 0.11  # 1.0439 m/s2 at most, say 200 digits
