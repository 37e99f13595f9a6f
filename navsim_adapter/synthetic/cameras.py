"""The eight cameras of the car and a cheap picture from each: ground by inverse perspective, bodies as shaded boxes.

Camera axes: x right, y down, z forward. `sensor2lidar_*` give camera points in the LiDAR frame, which here is the
ego frame (rear axle on the ground, x forward, y left, z up).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from navsim_adapter.synthetic.geometry import box_corners
from navsim_adapter.synthetic.ground import PALETTE, Ground

Array = np.ndarray
WIDTH, HEIGHT = 160, 90
FINE = 2  # drawn this much larger, then averaged
FOCAL = 120.0  # pixels: 67 degrees across
HORIZON = 40  # row of the horizon
NEAR = 0.4
FARTHEST = 130.0  # metres of ground drawn


@dataclass(frozen=True)
class Camera:
    name: str
    position: tuple[float, float, float]
    yaw: float  # to the left

    @property
    def rotation(self) -> Array:
        """(3, 3) camera axes in the ego frame, as columns."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])

    @property
    def intrinsic(self) -> Array:
        return np.array([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, float(HORIZON)], [0.0, 0.0, 1.0]])


CAMERAS = (
    Camera("CAM_F0", (1.7, 0.0, 1.6), 0.0),
    Camera("CAM_L0", (1.5, 0.5, 1.6), np.radians(55)),
    Camera("CAM_L1", (1.2, 0.6, 1.6), np.radians(110)),
    Camera("CAM_L2", (-0.8, 0.5, 1.6), np.radians(150)),
    Camera("CAM_R0", (1.5, -0.5, 1.6), np.radians(-55)),
    Camera("CAM_R1", (1.2, -0.6, 1.6), np.radians(-110)),
    Camera("CAM_R2", (-0.8, -0.5, 1.6), np.radians(-150)),
    Camera("CAM_B0", (-0.9, 0.0, 1.6), np.pi),
)
PICTURED = ("CAM_F0", "CAM_L0", "CAM_R0")

COLOURS = {
    "pedestrian": (232, 120, 40),
    "bicycle": (60, 170, 90),
    "traffic_cone": (255, 110, 0),
    "barrier": (230, 60, 50),
    "czone_sign": (250, 170, 20),
    "generic_object": (120, 100, 150),
}
PAINTS = ((200, 205, 212), (40, 60, 140), (150, 30, 36), (30, 34, 40), (110, 130, 150), (240, 240, 240), (60, 110, 120))
GLASS = (38, 46, 56)
LAMPS = {"green": (40, 240, 90), "yellow": (255, 205, 40), "red": (255, 30, 30)}


@dataclass(frozen=True)
class Box:
    """Something solid: ego-frame centre (x, y), heading, length, width, height, colours of body and rear."""

    x: float
    y: float
    heading: float
    size: tuple[float, float, float]
    colour: tuple[int, int, int]
    rear: tuple[int, int, int] | None = None
    front: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Lamp:
    x: float
    y: float
    state: str


@dataclass(frozen=True)
class Light:
    """Weather and time of day of a log: factor on all colours, sky at the top and at the horizon."""

    brightness: float
    sky: tuple[float, float, float]
    haze: tuple[float, float, float]


def picture(
    camera: Camera, ground: Ground, pose: tuple[float, float, float], boxes: list[Box], lamps: list[Lamp], light: Light
) -> bytes:
    """A JPEG of what the camera sees; pose: the ego's x, y, heading on the map."""
    image = Image.fromarray(_background(camera, ground, pose, light))
    draw = ImageDraw.Draw(image)
    shapes: list[Box | Lamp] = [*boxes, *lamps]
    for depth, shape in sorted(((_depth(camera, x.x, x.y), x) for x in shapes), key=lambda pair: -pair[0]):
        if depth < -6 or depth > FARTHEST:
            continue
        if isinstance(shape, Box):
            _draw_box(draw, camera, shape, light)
        elif depth > NEAR:
            _draw_lamp(draw, camera, shape)
    small = image.reduce(FINE)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return out.getvalue()


def _rays() -> tuple[Array, Array]:
    """For every fine pixel below the horizon: metres ahead and metres to the right, per metre of camera height."""
    rows = (np.arange(HEIGHT * FINE) + 0.5) / FINE - HORIZON
    columns = (np.arange(WIDTH * FINE) + 0.5) / FINE - WIDTH / 2
    below = rows[rows > 0]
    ahead = FOCAL / below
    return np.repeat(ahead[:, None], len(columns), axis=1), columns[None] / below[:, None]


_AHEAD, _RIGHT = _rays()


def _background(camera: Camera, ground: Ground, pose: tuple[float, float, float], light: Light) -> Array:
    x, y, height = camera.position
    ahead, right = _AHEAD * height, _RIGHT * height
    c, s = np.cos(camera.yaw), np.sin(camera.yaw)
    ego_x, ego_y = x + ahead * c + right * s, y + ahead * s - right * c
    c, s = np.cos(pose[2]), np.sin(pose[2])
    surface = ground.at(pose[0] + ego_x * c - ego_y * s, pose[1] + ego_x * s + ego_y * c)
    rows = len(surface)
    haze, sky = np.array(light.haze, np.float32), np.array(light.sky, np.float32)
    part = np.clip(ahead[:, :1, None] / FARTHEST, 0, 1) ** 1.5  # a row is one distance: colours per row and surface
    colours = np.clip(PALETTE * light.brightness * (1 - part) + haze * part, 0, 255).astype(np.uint8)
    up = np.linspace(0, 1, HEIGHT * FINE - rows, dtype=np.float32)[:, None] ** 1.5
    image = np.empty((HEIGHT * FINE, WIDTH * FINE, 3), np.uint8)
    image[:-rows] = np.clip(sky * (1 - up) + haze * up, 0, 255).astype(np.uint8)[:, None]
    image[-rows:] = colours[np.arange(rows)[:, None], surface]
    return image


def _depth(camera: Camera, x: float, y: float) -> float:
    return float((x - camera.position[0]) * np.cos(camera.yaw) + (y - camera.position[1]) * np.sin(camera.yaw))


def _draw_box(draw: ImageDraw.ImageDraw, camera: Camera, box: Box, light: Light) -> None:
    """Visible sides, then the top; each side shaded by the way it faces."""
    length, width, height = box.size
    corners = box_corners(np.array([box.x, box.y]), np.array(box.heading), np.array(length), np.array(width))
    low, high = _in_camera(camera, corners, 0.15), _in_camera(camera, corners, height)
    eye = np.array(camera.position[:2])
    c, s = np.cos(box.heading), np.sin(box.heading)
    sides = (
        ((0, 1), (-s, c), 0.8, None),  # left
        ((1, 2), (-c, -s), 0.66, box.rear),
        ((2, 3), (s, -c), 0.9, None),  # right
        ((3, 0), (c, s), 0.74, box.front),
    )
    for (a, b), normal, shade, own in sides:
        if (eye - corners[a]) @ np.array(normal) <= 0:
            continue
        _fill(draw, np.stack([low[a], low[b], high[b], high[a]]), box.colour, shade * light.brightness)
        if box.rear is not None and height < 2.4:  # windows
            glass = np.stack([low[a] * 0.35 + high[a] * 0.65, low[b] * 0.35 + high[b] * 0.65])
            edge = np.stack([low[b] * 0.06 + high[b] * 0.94, low[a] * 0.06 + high[a] * 0.94])
            _fill(draw, np.concatenate([glass, edge]), GLASS, light.brightness)
        if own is not None:  # lights: a band in the lower half of the side
            part = [low[a] * 0.75 + high[a] * 0.25, low[b] * 0.75 + high[b] * 0.25]
            part += [low[b] * 0.45 + high[b] * 0.55, low[a] * 0.45 + high[a] * 0.55]
            left, right = np.stack(part), np.stack(part)
            left[1], left[2] = part[0] * 0.72 + part[1] * 0.28, part[3] * 0.72 + part[2] * 0.28
            right[0], right[3] = part[0] * 0.28 + part[1] * 0.72, part[3] * 0.28 + part[2] * 0.72
            _fill(draw, left, own, 1.0)
            _fill(draw, right, own, 1.0)
    if height < camera.position[2]:
        _fill(draw, high, box.colour, 1.05 * light.brightness)


def _in_camera(camera: Camera, points: Array, height: float) -> Array:
    """(N, 3) ego-frame ground points lifted to `height`, in camera axes."""
    lifted = np.column_stack([points, np.full(len(points), height)]) - np.array(camera.position)
    return lifted @ camera.rotation


def _fill(draw: ImageDraw.ImageDraw, points: Array, colour: tuple[int, int, int], shade: float) -> None:
    points = _clip_near(points)
    if len(points) < 3:
        return
    u = (points[:, 0] / points[:, 2] * FOCAL + WIDTH / 2) * FINE
    v = (points[:, 1] / points[:, 2] * FOCAL + HORIZON) * FINE
    shaded = tuple(int(min(255, value * shade)) for value in colour)
    draw.polygon([(float(a), float(b)) for a, b in zip(u, v)], fill=shaded)


def _clip_near(points: Array) -> Array:
    """The part of a polygon in front of the near plane."""
    if points[:, 2].min() >= NEAR:
        return points
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)


def _draw_lamp(draw: ImageDraw.ImageDraw, camera: Camera, lamp: Lamp) -> None:
    """A post with a large lamp of the light's colour."""
    foot, middle = (_in_camera(camera, np.array([[lamp.x, lamp.y]]), h)[0] for h in (0.0, 3.2))
    u = (middle[0] / middle[2] * FOCAL + WIDTH / 2) * FINE
    v = (middle[1] / middle[2] * FOCAL + HORIZON) * FINE
    ground = (foot[1] / foot[2] * FOCAL + HORIZON) * FINE
    scale = FOCAL / middle[2] * FINE
    draw.line([(u, v), (u, ground)], fill=(50, 50, 54), width=max(1, int(0.15 * scale)))
    half, radius = 0.65 * scale, max(0.5 * scale, 1.5)
    draw.rectangle([u - half, v - half, u + half, v + half], fill=(20, 20, 22))
    draw.ellipse([u - radius, v - radius, u + radius, v + radius], fill=LAMPS[lamp.state])
