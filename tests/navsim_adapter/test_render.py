"""Bird's-eye pictures: where things are drawn, that the same scene gives the same bytes, and the render command."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navsim_adapter.commands.render import add_arguments, run
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish
from navsim_adapter.render import (
    CARPARK,
    INK,
    OBJECT_COLORS,
    PAPER,
    ROAD,
    Moment,
    Plan,
    box_corners,
    ego_corners,
    picture,
    seen_by,
    to_ego,
)
from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, ObjectType, Polygons, SceneCache

EGO = np.array([500.0, -300.0, 2.1])
SIZE, DPI = (4.0, 4.0), 100
STILL = Plan("stay", np.zeros((8, 3)))  # keeps the view at its smallest: 34 m, from 9 m behind the ego


def _world(local: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(EGO[2]), np.sin(EGO[2])
    moved = local.copy()
    moved[..., 0] = EGO[0] + cosine * local[..., 0] - sine * local[..., 1]
    moved[..., 1] = EGO[1] + sine * local[..., 0] + cosine * local[..., 1]
    if local.shape[-1] == 3:
        moved[..., 2] += EGO[2]
    return moved


def _square(x: float, y: float, half: float) -> np.ndarray:
    return _world(np.array([(x + a * half, y + b * half) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]))


def _scene(token: str = "t", objects: list[tuple[ObjectType, float, float]] | None = None) -> SceneCache:
    """A road square of 16 m half side with a 3 m hole ahead on the left, a car park far right, and still objects."""
    rings = [_square(0, 0, 16.0), _square(14, 8, 1.5), _square(0, -25, 8.0)]
    kinds, xs, ys = zip(*(objects or [(ObjectType.VEHICLE, 10.0, 0.0)]))
    still = np.stack([xs, ys, np.zeros(len(xs))], axis=1)
    none = Polygons(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
    return SceneCache(
        token=token,
        log_name="log",
        map_name="sg-one-north",
        time_us=0,
        is_synthetic=False,
        ego_state=np.array([*EGO, 5.0, *np.zeros(7)]),
        centerline=_world(np.array([[-16.0, -6.0, 0.0], [16.0, -6.0, 0.0]])),
        route_lane_ids=(),
        areas=Polygons(np.concatenate(rings), np.array([0, 5, 10, 15]), np.array([0, 2, 3])),
        area_type=np.array([AreaType.ROADBLOCK, AreaType.CARPARK_AREA], np.int8),
        area_on_route=np.zeros(2, bool),
        area_ids=("1", "2"),
        object_tokens=tuple(f"o{i}" for i in range(len(xs))),
        object_type=np.array(kinds, np.int8),
        object_versions=np.full(len(xs), PDMS | EPDMS, np.uint8),
        object_size=np.tile([4.0, 2.0], (len(xs), 1)),
        object_pose=np.repeat(_world(still)[:, None], 51, axis=1),
        object_velocity=np.zeros((len(xs), 2)),
        lights=none,
        light_red=np.zeros((0, 41), bool),
        light_ids=(),
        human_future=np.cumsum(np.tile([1.0, 0.0, 0.0], (8, 1)), axis=0),
        past_states=np.zeros((4, 11)),
        past_time_us=np.zeros(4, np.int64),
        reference_pdms=np.zeros((41, 3)),
        reference_epdms=np.zeros((41, 3)),
    )


def _color(content: bytes, x: float, y: float) -> str:
    """Colour at an ego-frame point of a picture whose view is the smallest one."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = image.height / 34.0
    place = (round(image.width / 2 - y * scale), round(image.height - (x + 9.0) * scale))
    return "#{:02x}{:02x}{:02x}".format(*image.getpixel(place))  # type: ignore[misc]


def test_frames_are_inverse() -> None:
    local = np.array([[3.0, -2.0, 0.4], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(to_ego(_world(local), EGO), local, atol=1e-12)
    np.testing.assert_allclose(to_ego(_world(local[:, :2]), EGO), local[:, :2], atol=1e-12)


def test_box_corners_start_at_the_front_left() -> None:
    corners = box_corners(np.array([1.0, 2.0, np.pi / 2]), 4.0, 2.0)
    np.testing.assert_allclose(corners, [[0, 4], [0, 0], [2, 0], [2, 4]], atol=1e-12)


def test_ego_body_reaches_from_rear_bumper_to_front_bumper() -> None:
    corners = ego_corners(np.zeros(3))
    np.testing.assert_allclose(corners[:, 0], [4.049, -1.127, -1.127, 4.049], atol=1e-9)
    np.testing.assert_allclose(corners[:, 1], [1.1485, 1.1485, -1.1485, -1.1485], atol=1e-9)


def test_ego_is_at_the_origin_heading_up_and_left_is_left() -> None:
    content = picture(_scene(objects=[(ObjectType.PEDESTRIAN, 12.0, 4.0)]), [STILL], size=SIZE, dpi=DPI, legend=False)
    assert _color(content, 3.0, 0.8) == INK
    assert _color(content, 12.0, 4.0) == OBJECT_COLORS[ObjectType.PEDESTRIAN]
    assert _color(content, 12.0, -4.0) == ROAD
    assert _color(content, 20.0, 0.0) == PAPER  # beyond the road


def test_hole_in_an_area_is_left_open() -> None:
    content = picture(_scene(), [STILL], size=SIZE, dpi=DPI, legend=False)
    assert _color(content, 14.0, 8.0) == PAPER
    assert _color(content, 14.0, 11.0) == ROAD


def test_red_light_is_tinted_only_while_red() -> None:
    zone = Polygons(_square(8, 8, 3.0), np.array([0, 5]), np.array([0, 1]))
    red = np.ones((1, 41), bool)
    lit = replace(_scene(), lights=zone, light_red=red, light_ids=("9",))
    unlit = replace(lit, light_red=~red)
    colors = [_color(picture(scene, [STILL], size=SIZE, dpi=DPI, legend=False), 8.3, 8.1) for scene in (lit, unlit)]
    assert colors[0] != ROAD
    assert colors[1] == ROAD


def test_same_scene_gives_the_same_bytes() -> None:
    plan = Plan("chosen", np.cumsum(np.tile([2.0, 0.3, 0.05], (8, 1)), axis=0))
    candidates = np.stack([plan.poses * scale for scale in (0.8, 1.0, 1.2)])
    moments = [Moment(plan.poses[3], 20, "2.0 s", object_index=0)]
    drawn = [picture(_scene(), [plan], candidates, np.array([0.0, 0.5, 1.0]), moments) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert Image.open(io.BytesIO(drawn[0])).size == (598, 728)


def test_absent_objects_and_far_candidates_do_no_harm() -> None:
    scene = _scene()
    gone = replace(scene, object_pose=np.full_like(scene.object_pose, np.nan))
    wild = np.full((1, 8, 3), 1e4)
    assert picture(gone, [STILL], np.concatenate([np.zeros((30, 8, 3)), wild])).startswith(b"\x89PNG")


def test_only_the_rows_of_one_metric_version_are_seen() -> None:
    scene = _scene(objects=[(ObjectType.VEHICLE, 10.0, 0.0), (ObjectType.VEHICLE, 11.0, 0.0)])
    scene = replace(scene, object_versions=np.array([PDMS, EPDMS], np.uint8))
    assert seen_by(scene, PDMS).object_tokens == ("o0",)
    assert seen_by(scene, EPDMS).object_tokens == ("o1",)
    np.testing.assert_array_equal(seen_by(scene, EPDMS).object_pose, scene.object_pose[1:])


def _cache_folder(folder: Path, change: Callable[[SceneCache], SceneCache] = lambda scene: scene) -> Path:
    from navsim_adapter.cache.log_file import write_log
    from navsim_adapter.cache.store import log_path, write_index

    scenes = [change(_scene("a" * 16)), change(_scene("b" * 16))]
    write_log(log_path(folder, "log"), scenes, {"command": "cache"})
    write_index(folder, {"log": ["a" * 16, "b" * 16]})
    finish(folder, {"command": "cache"})
    return folder


def _run(*words: str | Path | int) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


def test_command_draws_one_picture_per_scene(tmp_path: Path) -> None:
    cache = _cache_folder(tmp_path / "cache")
    trajectories = tmp_path / "plans.npz"
    np.savez(trajectories, token=["a" * 16] * 2, name=["human", "mine"], poses=np.ones((2, 8, 3)))
    assert _run("--cache", cache, "--trajectories", trajectories, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a" * 16 + ".png", "b" * 16 + ".png"]
    assert _run("--cache", cache, "--tokens", "b" * 16, "--out", tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["b" * 16 + ".png"]


def test_a_picture_of_other_plans_is_not_replaced(tmp_path: Path, capsys) -> None:
    cache, out, token = _cache_folder(tmp_path / "cache"), tmp_path / "out", "b" * 16
    for limit in (1, 2):  # what is there already is drawn alike
        assert _run("--cache", cache, "--limit", limit, "--out", out) == 0
    assert "1 picture of 2 scenes" in capsys.readouterr().out
    (out / ("a" * 16 + ".png")).unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    np.savez(tmp_path / "plans.npz", token=["a" * 16, token], name=["mine"] * 2, poses=np.ones((2, 8, 3)))
    with pytest.raises(InputError, match=rf"{token}\.png: is there and holds something else"):
        _run("--cache", cache, "--trajectories", tmp_path / "plans.npz", "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_all_draws_every_scene_and_a_killed_run_draws_the_rest(tmp_path: Path, capsys, monkeypatch) -> None:
    cache, out = _cache_folder(tmp_path / "cache"), tmp_path / "out"
    drawn = []

    def counted(scene: SceneCache, plans: list[Plan]) -> bytes:
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(scene.token)
        return b"first run"

    monkeypatch.setattr("navsim_adapter.commands.render.picture", counted)
    with pytest.raises(KeyboardInterrupt):
        _run("--cache", cache, "--all", "--out", out)
    monkeypatch.setattr("navsim_adapter.commands.render.picture", lambda scene, plans: b"second run")
    for _ in range(2):
        assert _run("--cache", cache, "--all", "--out", out) == 0
        assert "2 pictures in" in capsys.readouterr().out
    rest = ({"a" * 16, "b" * 16} - set(drawn)).pop()
    assert (out / f"{rest}.png").read_bytes() == b"second run"
    assert (out / f"{drawn[0]}.png").read_bytes() == b"first run"
    np.savez(tmp_path / "t.npz", token=["a" * 16], name=["n"], poses=np.ones((1, 8, 3)))
    with pytest.raises(InputError, match="trajectories: this folder was made with None"):
        _run("--cache", cache, "--all", "--trajectories", tmp_path / "t.npz", "--out", out)


def test_command_names_an_unknown_token(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scene nope among 2"):
        _run("--cache", _cache_folder(tmp_path / "cache"), "--tokens", "nope", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_traffic_is_drawn_of_the_version_that_a_scene_has(tmp_path: Path) -> None:
    every = np.array([EPDMS], np.uint8)
    cache = _cache_folder(tmp_path / "cache", lambda scene: replace(scene, versions=EPDMS, object_versions=every))
    assert _run("--cache", cache, "--tokens", "a" * 16, "--out", tmp_path / "out") == 0
    image = Image.open(tmp_path / "out" / ("a" * 16 + ".png")).convert("RGB")
    wanted = tuple(int(OBJECT_COLORS[ObjectType.VEHICLE][i : i + 2], 16) for i in (1, 3, 5))
    assert wanted in {color for _, color in image.getcolors(maxcolors=1 << 20) or []}


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(InputError, match=f"--limit: must be at least 1, got {limit}"):
        _run("--cache", _cache_folder(tmp_path / "cache"), "--limit", str(limit), "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"token": ["c" * 16], "name": ["n"], "poses": np.zeros((1, 8, 3))}, "none of its trajectories is of the 2"),
        ({"token": ["a" * 16], "name": ["n"], "poses": np.array([["x"]])}, "poses holds <U1, expected numbers"),
        ({"token": ["a" * 16], "name": ["n"], "poses": np.full((1, 8, 3), np.nan)}, "poses contain NaN"),
    ],
)
def test_trajectories_that_cannot_be_drawn_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "t.npz", **content)
    cache, out = _cache_folder(tmp_path / "cache"), tmp_path / "out"
    with pytest.raises(InputError, match=rf"t\.npz: .*{message}"):
        _run("--cache", cache, "--trajectories", tmp_path / "t.npz", "--out", out)
    assert not out.exists()


def test_matplotlib_is_not_imported_before_something_is_drawn() -> None:
    code = "import sys, navsim_adapter.commands.render; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_car_park_is_told_from_the_road() -> None:
    far_right = Plan("right", np.tile([0.0, -25.0, 0.0], (8, 1)))
    image = Image.open(io.BytesIO(picture(_scene(), [far_right], size=SIZE, dpi=DPI, legend=False))).convert("RGB")
    wanted = tuple(int(CARPARK[i : i + 2], 16) for i in (1, 3, 5))
    assert wanted in {color for _, color in image.getcolors(maxcolors=1 << 20) or []}
