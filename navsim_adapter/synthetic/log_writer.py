"""A recording to one NAVSIM log: the pickle of frame dicts (metric 2.1) and the pictures it names.

Pictures are made for every frame that can be a scene's current one. The log's pictures appear at once (a folder
renamed into place) and before the pickle, so a pickle that exists means that the log is complete.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.files import atomic_path
from navsim_adapter.synthetic.cameras import CAMERAS, COLOURS, PAINTS, PICTURED, Box, Lamp, Light, picture
from navsim_adapter.synthetic.geometry import wrap
from navsim_adapter.synthetic.ground import Ground, lamp_places
from navsim_adapter.synthetic.roads import Network
from navsim_adapter.synthetic.world import EgoState, Instant, Object, Recording

Array = np.ndarray
HISTORY, FUTURE = 4, 10  # frames of a scene; current is the last of the history
SIGHT = 90.0  # metres within which objects are annotated
PICTURE_SIGHT = 80.0
COMMANDS = {"left": 0, "straight": 1, "right": 2}


@dataclass(frozen=True)
class LogInfo:
    """What a log is called and where and when it was driven."""

    name: str
    city: str
    vehicle: str
    start_us: int


@dataclass(frozen=True)
class Look:
    """What a log's pictures share. `paints`: the order in which vehicles get their colours."""

    paints: Array
    light: Light


def write_log(
    folder: Path, pictures: Path, info: LogInfo, recording: Recording, ground: Ground, seed: list[int]
) -> None:
    """`folder`/<name>.pkl and `pictures`/<name>/CAM_*/*.jpg."""
    frames, look = draw_log(info, recording, seed)
    aside = pictures / f".{info.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(pictures / info.name, ignore_errors=True)
    for index in range(HISTORY - 1, len(frames) - FUTURE):
        shown = pictures_of(recording.frames[index], recording.setting.site.net, ground, look)
        for name, content in shown.items():
            path = aside / Path(frames[index]["cams"][name]["data_path"]).relative_to(info.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    os.replace(aside, pictures / info.name)
    with atomic_path(folder / f"{info.name}.pkl") as path, open(path, "wb") as file:
        pickle.dump(frames, file, protocol=4)


def draw_log(info: LogInfo, recording: Recording, seed: list[int]) -> tuple[list[dict[str, Any]], Look]:
    """The log's frame dicts, with their sensor noise, and the look of its pictures."""
    rng = np.random.default_rng(seed)
    frames = _frames(rng, info, recording)
    paints = rng.permutation(len(PAINTS))
    return frames, Look(paints, _light(rng))


def _token(*parts: object) -> str:
    """16 hex digits, the same for the same parts."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def track_token(log: str, number: int) -> str:
    """What identifies an object over a log."""
    return _token(log, "track", number)


def _frames(rng: np.random.Generator, info: LogInfo, recording: Recording) -> list[dict[str, Any]]:
    tokens = [_token(info.name, "frame", i) for i in range(len(recording.frames))]
    altitude = rng.uniform(5, 600)
    frames = []
    for i, now in enumerate(recording.frames):
        ego = now.ego
        jitter = int(np.clip(rng.normal() * 120, -290, 290))
        frame = {
            "token": tokens[i],
            "frame_idx": i,
            "timestamp": info.start_us + i * 500_000 + jitter,
            "log_name": info.name,
            "log_token": _token(info.name, "log"),
            "scene_name": f"log-{info.name}-scene-0000",
            "scene_token": _token(info.name, "scene"),
            "map_location": info.city,
            "roadblock_ids": list(recording.setting.path.blocks),
            "vehicle_name": info.vehicle,
            **_ego(rng, ego, altitude + rng.normal() * 0.02, jitter * 1e-6),
            "lidar_path": f"{info.name}/MergedPointCloud/{_token(tokens[i], 'lidar')}.pcd",  # the devkit wants a name
            "traffic_lights": traffic_lights(now, recording.setting.site.net),
            "driving_command": _command(recording, ego),
            "cams": _cams(info.name, tokens[i]),
            "sample_prev": tokens[i - 1] if i else None,
            "sample_next": tokens[i + 1] if i + 1 < len(tokens) else None,
            "anns": annotated(info.name, tokens[i], ego, now.objects),
            "occ_gt_final_path": None,
            "flow_gt_final_path": None,
        }
        frames.append(frame)
    return frames


def _ego(rng: np.random.Generator, ego: EgoState, z: float, late: float) -> dict[str, Any]:
    """Pose and motion at `late` seconds after the nominal time; sensor noise on velocity and acceleration."""
    heading = ego.heading + ego.yaw_rate * late
    x = ego.x + ego.velocity[0] * late * np.cos(ego.heading)
    y = ego.y + ego.velocity[0] * late * np.sin(ego.heading)
    quaternion = np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)])
    moving = 1.0 if ego.velocity[0] > 0.05 else 0.0
    vx, vy = (np.array(ego.velocity) + moving * rng.normal(size=2) * 0.015).tolist()
    ax, ay = (np.array(ego.acceleration) + moving * rng.normal(size=2) * 0.04).tolist()
    can_bus = np.zeros(18)
    can_bus[:3], can_bus[3:7] = (x, y, z), quaternion
    can_bus[7:10], can_bus[10:13], can_bus[15] = (ax, ay, 0.0), (vx, vy, 0.0), ego.yaw_rate
    c, s = np.cos(heading), np.sin(heading)
    to_global = np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1.0]])
    return {
        "can_bus": can_bus,
        "lidar2ego_translation": np.zeros(3),
        "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
        "lidar2ego": np.eye(4),
        "lidar2global": to_global.copy(),
        "ego2global_translation": can_bus[:3].copy(),
        "ego2global_rotation": quaternion,
        "ego2global": to_global,
        "ego_dynamic_state": [vx, vy, ax, ay],
    }


def _command(recording: Recording, ego: EgoState) -> Array:
    """One-hot (left, straight, right, unknown): where the route is 20 m on, seen from where it is now (metric 2.2)."""
    path = recording.setting.site.paths[recording.setting.route]
    x, y, heading = path.at(ego.s)
    ahead_x, ahead_y, _ = path.at(ego.s + 20.0)
    left = (ahead_y - y) * np.cos(heading) - (ahead_x - x) * np.sin(heading)
    command = np.zeros(4, dtype=np.int64)
    command[COMMANDS["left" if left >= 2 else "right" if left <= -2 else "straight"]] = 1
    return command


def traffic_lights(now: Instant, net: Network) -> list[tuple[int, bool]]:
    """(lane connector, is red) of all connectors with lights."""
    states = now.lights
    return (
        [] if states is None else [(c.id, states[c.signal] == "red") for c in net.connectors() if c.signal is not None]
    )


def _cams(log: str, token: str) -> dict[str, dict[str, Any]]:
    return {
        camera.name: {
            "data_path": f"{log}/{camera.name}/{_token(token, camera.name)}.jpg",
            "sensor2lidar_rotation": camera.rotation,
            "sensor2lidar_translation": np.array(camera.position),
            "cam_intrinsic": camera.intrinsic,
            "distortion": np.zeros(5),
        }
        for camera in CAMERAS
    }


def annotated(log: str, token: str, ego: EgoState, objects: list[Object]) -> dict[str, Any]:
    """Boxes (x, y, z, length, width, height, yaw) and velocities in the ego frame; yaw is not wrapped (metric 2.1)."""
    c, s = np.cos(ego.heading), np.sin(ego.heading)
    near = [o for o in objects if np.hypot(o.x - ego.x, o.y - ego.y) < SIGHT]
    boxes, speeds = np.zeros((len(near), 7)), np.zeros((len(near), 3))
    for row, o in enumerate(near):
        dx, dy = o.x - ego.x, o.y - ego.y
        boxes[row] = (dx * c + dy * s, dy * c - dx * s, o.size[2] / 2, *o.size, o.heading - ego.heading)
        speeds[row, :2] = (o.velocity[0] * c + o.velocity[1] * s, o.velocity[1] * c - o.velocity[0] * s)
    return {
        "gt_boxes": boxes,
        "gt_names": np.array([o.name for o in near], dtype=str if near else "<U1"),
        "gt_velocity_3d": speeds,
        "instance_tokens": [_token(token, "instance", o.id) for o in near],
        "track_tokens": [track_token(log, o.id) for o in near],
    }


def _light(rng: np.random.Generator) -> Light:
    brightness, grey = rng.uniform(0.8, 1.12), rng.uniform(0, 1)
    sky = (1 - grey) * np.array([96, 150, 214]) + grey * np.array([168, 176, 186])
    haze = (1 - grey) * np.array([196, 214, 232]) + grey * np.array([204, 206, 208])
    return Light(float(brightness), tuple((sky * brightness).tolist()), tuple((haze * brightness).tolist()))


def pictures_of(now: Instant, net: Network, ground: Ground, look: Look) -> dict[str, bytes]:
    """Camera -> JPEG, of every camera that is pictured."""
    ego = now.ego
    c, s = np.cos(ego.heading), np.sin(ego.heading)

    def local(x: float, y: float) -> tuple[float, float]:
        dx, dy = x - ego.x, y - ego.y
        return float(dx * c + dy * s), float(dy * c - dx * s)

    boxes = []
    for o in now.objects:
        if np.hypot(o.x - ego.x, o.y - ego.y) < PICTURE_SIGHT:
            heading = float(wrap(o.heading - ego.heading))
            colour = COLOURS.get(o.name) or PAINTS[look.paints[o.id % len(PAINTS)]]
            is_car = o.name == "vehicle"
            rear = ((255, 24, 24) if o.braking else (110, 20, 24)) if is_car else None
            boxes.append(Box(*local(o.x, o.y), heading, o.size, colour, rear, (255, 250, 220) if is_car else None))
    lamps = []
    if now.lights is not None:
        for group, foot, direction in lamp_places(net):
            if np.cos(direction - ego.heading) > 0.3:  # seen from its own approach only
                lamps.append(Lamp(*local(foot[0], foot[1]), now.lights[group]))
    pose = (ego.x, ego.y, ego.heading)
    return {
        camera.name: picture(camera, ground, pose, boxes, lamps, look.light)
        for camera in CAMERAS
        if camera.name in PICTURED
    }
