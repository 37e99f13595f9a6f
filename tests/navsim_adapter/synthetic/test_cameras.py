"""Pictures agree with the intrinsics and extrinsics that the log states."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from navsim_adapter.synthetic.cameras import CAMERAS, COLOURS, HEIGHT, LAMPS, WIDTH, Box, Lamp, Light, picture
from navsim_adapter.synthetic.ground import GRASS, PALETTE, ROAD, YELLOW, Ground, paint
from navsim_adapter.synthetic.layouts import build

LIGHT = Light(1.0, (100.0, 150.0, 210.0), (200.0, 210.0, 220.0))
PLAIN = Ground(np.full((10, 10), GRASS, np.uint8), np.zeros(2))
BY_NAME = {camera.name: camera for camera in CAMERAS}


def render(camera, boxes=(), lamps=(), ground=PLAIN, pose=(0.0, 0.0, 0.0)):
    content = picture(camera, ground, pose, list(boxes), list(lamps), LIGHT)
    return np.asarray(Image.open(io.BytesIO(content))).astype(float)


def project(camera, point):
    """Pixel of an ego-frame point by the log's own numbers: K R^T (p - t)."""
    seen = camera.intrinsic @ camera.rotation.T @ (np.array(point) - np.array(camera.position))
    return seen[:2] / seen[2]


def test_camera_rotations_are_proper_and_look_where_they_should():
    for camera in CAMERAS:
        assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
        assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3))
        assert np.allclose(camera.rotation[:, 2], (np.cos(camera.yaw), np.sin(camera.yaw), 0))
    assert BY_NAME["CAM_L0"].rotation[1, 2] > 0.7
    assert BY_NAME["CAM_R0"].rotation[1, 2] < -0.7


@pytest.mark.parametrize(("name", "x", "y"), [("CAM_F0", 14.0, 2.0), ("CAM_L0", 9.0, 11.0), ("CAM_R0", 8.0, -9.0)])
def test_a_box_appears_where_the_log_says_it_is(name, x, y):
    camera = BY_NAME[name]
    box = Box(x, y, 0.3, (1.2, 1.2, 1.6), COLOURS["traffic_cone"])
    image = render(camera, [box])
    colour = np.array(COLOURS["traffic_cone"])
    like = (image[..., 0] > 150) & (image[..., 2] < 70) & (image[..., 1] < 0.6 * colour[0])
    rows, columns = np.nonzero(like)
    u, v = project(camera, (x, y, 0.85))
    assert columns.mean() == pytest.approx(u, abs=2.0)
    assert rows.mean() == pytest.approx(v, abs=2.5)


def test_nothing_behind_the_camera_is_drawn():
    empty = render(BY_NAME["CAM_F0"])
    assert np.array_equal(empty, render(BY_NAME["CAM_F0"], [Box(-8.0, 0.0, 0.0, (4.5, 1.8, 1.5), (255, 0, 0))]))


def test_a_near_body_that_crosses_the_image_plane_is_clipped_not_mirrored():
    image = render(BY_NAME["CAM_F0"], [Box(2.5, 3.0, 0.0, (10.0, 2.0, 3.0), (255, 0, 0))])
    red = (image[..., 0] > 120) & (image[..., 1] < 60)
    assert red[:, : WIDTH // 2].any()
    assert not red[:, WIDTH // 2 + 10 :].any()


def test_the_lamp_shows_its_state():
    for state, colour in LAMPS.items():
        image = render(BY_NAME["CAM_F0"], lamps=[Lamp(18.0, -3.0, state)])
        u, v = project(BY_NAME["CAM_F0"], (18.0, -3.0, 3.2))
        assert np.abs(image[round(v), round(u)] - colour).max() < 60


def test_the_road_lies_where_the_map_has_it():
    net = build("straight", np.random.default_rng(0), 0, np.array([1000.0, 2000.0]))
    ground = paint(net)
    lane = net.lanes()[0]
    middle = lane.baseline[100]
    assert ground.at(middle[:1], middle[1:]) == ROAD
    assert (ground.at(lane.left[80:120, 0], lane.left[80:120, 1]) != GRASS).all()
    far = middle + 500.0
    assert ground.at(far[:1], far[1:]) == GRASS
    beside = lane.left[60:160] * 0.96 + lane.right[60:160] * 0.04
    assert (ground.at(beside[:, 0], beside[:, 1]) == YELLOW).mean() > 0.8


def test_road_and_grass_differ_in_the_picture():
    net = build("straight", np.random.default_rng(0), 0, np.array([1000.0, 2000.0]))
    line = net.lanes()[0].baseline
    heading = float(np.arctan2(*(line[101] - line[100])[::-1]))
    image = render(BY_NAME["CAM_F0"], ground=paint(net), pose=(line[100, 0], line[100, 1], heading))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image[HEIGHT - 12, WIDTH // 2] - PALETTE[ROAD]).max() < 25
