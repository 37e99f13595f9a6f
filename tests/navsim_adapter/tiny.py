"""A hand-made world: one road of two lanes, a connector, a further road; and logs that drive along it.

Roadblock 1 holds lanes 11 (y = 0) and 12 (y = 4), roadblock 2 lane 13; connector block 5 holds lane connector 51, from
lane 11 to lane 13. Intersection 90 (with a hole), car park 95. x runs along the road, in metres from `ORIGIN`.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import shapely
from pyproj import Transformer

CITY, CRS = "us-ma-boston", "EPSG:32619"
ORIGIN = np.array([330000.0, 4690000.0])
TRACKS = ("a" * 16, "b" * 16, "c" * 16)


def write_maps(root: Path) -> Path:
    folder = root / "maps"
    path = folder / CITY / "v1" / "map.gpkg"
    path.parent.mkdir(parents=True)
    (folder / "nuplan-maps-v1.0.json").write_text(json.dumps({CITY: {"version": "v1"}}))
    nan = np.nan
    roads, link = [_box(-50, 50, -2, 6), _box(60, 400, -2, 2)], [_box(50, 60, -2, 2)]
    lanes = [_box(-50, 50, -2, 2), _box(-50, 50, 2, 6), _box(60, 400, -2, 2)]
    lines = [_line(-50, 50, 0), _line(-50, 50, 4), _line(60, 400, 0), _line(50, 60, 0)]
    _layer(path, "lane_groups_polygons", 1, roads, {"from_edge_fid": [nan, nan]})
    _layer(path, "lane_group_connectors", 5, link, {"from_lane_group_fid": [1], "to_lane_group_fid": [2]})
    columns = {"lane_fid": [11, 12, 13], "lane_group_fid": [1, 1, 2], "speed_limit_mps": [10, nan, 12]}
    _layer(path, "lanes_polygons", 11, lanes, columns)
    columns = {"lane_group_connector_fid": [5], "exit_lane_fid": [11], "entry_lane_fid": [13], "speed_limit_mps": [nan]}
    _layer(path, "lane_connectors", 51, [_line(50, 60, 0)], columns)
    _layer(path, "gen_lane_connectors_scaled_width_polygons", 1, link, {"lane_connector_fid": [51]})
    columns = {"lane_fid": [11, 12, 13, nan], "lane_connector_fid": [nan, nan, nan, 51]}
    _layer(path, "baseline_paths", 1, lines, columns)
    hole = shapely.Polygon(shapely.box(40, -5, 70, 8).exterior, [shapely.box(42, 7, 43, 7.5).exterior])
    _layer(path, "intersections", 90, [_place(hole)], {"is_mini": [0]})
    _layer(path, "carpark_areas", 95, [_box(-20, -10, 10, 20)], {"heading": [0]})
    _layer(path, "meta", 1, None, {"key": ["projectedCoordSystem"], "value": [CRS.lower()]})
    return folder


def frame(index: int, log: str = "log-0", **changes: Any) -> dict[str, Any]:
    """One frame at 2 Hz of an ego that drives along y = 0 at 10 m/s, behind a car, beside a parked one and a cone."""
    boxes = np.array([[20.0, 0, 0, 5, 2, 2, 0], [5, 4, 0, 4, 2, 2, np.pi], [30, -3, 0, 0.5, 0.5, 1, 0]])
    boxes[1:, 0] -= 5.0 * index
    content = {
        "token": f"{log[-1]}{index:015d}",
        "timestamp": 1_600_000_000_000_000 + 500_000 * index,
        "log_name": log,
        "map_location": CITY,
        "roadblock_ids": ["1", "2"],
        "ego2global_translation": np.array([ORIGIN[0] - 40 + 5.0 * index, ORIGIN[1], 0.0]),
        "ego2global_rotation": np.array([1.0, 0, 0, 0]),
        "ego_dynamic_state": [10.0, 0.1, 0.0, 0.0],
        "traffic_lights": [(51, index < 6), (77, True)],
        "driving_command": np.array([0, 1, 0, 0]),
        "cams": {"CAM_F0": {"data_path": f"{log}/CAM_F0/{index}.jpg"}, "CAM_B0": {}},
        "anns": {
            "gt_boxes": boxes,
            "gt_names": np.array(["vehicle", "vehicle", "traffic_cone"]),
            "gt_velocity_3d": np.array([[10.0, 0, 0], [0, 0, 0], [3, 3, 0]]),
            "instance_tokens": list(TRACKS),
            "track_tokens": list(TRACKS),
        },
    }
    return content | changes


def write_log(root: Path, log: str = "log-0", frames: int = 15, split: str = "mini", **changes: Any) -> Path:
    """A log pickle; `changes` replace fields of frame 3, the current frame of the first scene."""
    content = [frame(index, log, **(changes if index == 3 else {})) for index in range(frames)]
    return write_frames(root, content, log, split)


def write_frames(root: Path, frames: list[dict[str, Any]], log: str = "log-0", split: str = "mini") -> Path:
    path = root / "navsim_logs" / split / f"{log}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(frames, protocol=4))
    return path


def _box(x0: float, x1: float, y0: float, y1: float) -> Any:
    return _place(shapely.box(x0, y0, x1, y1))


def _line(x0: float, x1: float, y: float) -> Any:
    return _place(shapely.LineString([(x, y) for x in np.linspace(x0, x1, 11)]))


def _place(shape: Any) -> Any:
    """From local metres to longitude and latitude."""
    to_geographic = Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
    x, y = (shapely.get_coordinates(shape) + ORIGIN).T
    return shapely.set_coordinates(shape, np.column_stack(to_geographic.transform(x, y)))


def _layer(path: Path, layer: str, first_id: int, shapes: list[Any] | None, columns: dict[str, list[Any]]) -> None:
    """Write a layer whose feature ids count up from `first_id` (the driver itself counts from 1)."""
    values = [np.array(value, object if isinstance(value[0], str) else np.float64) for value in columns.values()]
    pyogrio.raw.write(
        path,
        None if shapes is None else shapely.to_wkb(np.array(shapes, object)),
        values,
        np.array(list(columns), object),
        layer=layer,
        driver="GPKG",
        geometry_type=None if shapes is None else shapes[0].geom_type,
        crs=None if shapes is None else "EPSG:4326",
        **({} if shapes is None else {"layer_options": {"SPATIAL_INDEX": "NO"}}),
    )
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE {layer} SET fid = fid + 1000")
        database.execute(f"UPDATE {layer} SET fid = fid - {1001 - first_id}")
