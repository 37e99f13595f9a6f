"""Boxes without length or width: GEOS 3.11, which the devkit has, sees no polygon in a line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from numba import njit

from navsim_adapter.cache.build import build_scene
from navsim_adapter.metric import engine
from navsim_adapter.metric.geometry import is_flat, quad_centroid
from navsim_adapter.metric.scene_index import build_index, run
from navsim_adapter.nuplan.boxes import box_corners
from tests.navsim_adapter.built_scenes import city, scene
from tests.shared import SHARED, needs_shared

TOKEN = "a4f7ca1ec2ed21c5"


@njit
def _facts(corners: np.ndarray) -> tuple[float, float, bool]:
    x, y = quad_centroid(corners)
    return x, y, is_flat(corners)


@pytest.mark.parametrize("size", [(0.0, 2.0), (4.0, 0.0), (0.0, 0.0), (4.0, 2.0)])
def test_a_flat_box_has_the_centroid_that_geos_gives_it(size: tuple[float, float]) -> None:
    corners = box_corners(np.array([664500.3, 3998900.2]), np.array(0.7), np.array(size) / 2)
    centroid = shapely.get_coordinates(shapely.centroid(shapely.polygons(corners)))[0]
    x, y, has_no_area = _facts(corners)
    np.testing.assert_allclose([x, y], centroid, rtol=0, atol=1e-8)
    assert has_no_area == (0.0 in size)


@needs_shared
@pytest.mark.parametrize(
    ("size", "progress"),
    [((0.0, None), [0.8933, 0.4844]), ((0.0, 0.0), [0.8933, 0.4844])],
)
def test_ego_progress_beside_flat_boxes_is_the_devkits(
    size: tuple[float | None, float | None], progress: list[float]
) -> None:
    assert SHARED is not None
    logged = scene(SHARED / "navsim_dev", TOKEN)
    frames = []
    for frame in logged.frames:
        assert frame.annotations is not None
        boxes = np.array(frame.annotations.boxes, float)
        for column, value in zip((3, 4), size):
            boxes[:, column] = boxes[:, column] if value is None else value
        frames.append(replace(frame, annotations=replace(frame.annotations, boxes=boxes)))
    cache = build_scene(replace(logged, frames=tuple(frames)), city(SHARED / "navsim_dev", logged.now.map_name))
    poses = np.stack([cache.human_future, np.zeros((8, 3))])  # type: ignore[list-item]
    index = build_index(cache, "epdms")
    np.testing.assert_allclose(run(index, poses)[:, engine.EP], progress, atol=1e-4)
