"""Networks to a nuPlan map: a GeoPackage with the layers and columns of the real ones, and the versions file.

A GeoPackage is an SQLite file with three bookkeeping tables; written directly, because feature ids must be ours
and the same seed must give the same bytes (GDAL writes the time of day into it).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from navsim_adapter.foundation.files import atomic_path, write_json
from navsim_adapter.synthetic.layers import LAYERS, Feature, features
from navsim_adapter.synthetic.places import CITIES, City
from navsim_adapter.synthetic.roads import Network

GEOGRAPHIC = 4326
_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,'
    'AUTHORITY["EPSG","9122"]],AXIS["Latitude",NORTH],AXIS["Longitude",EAST],AUTHORITY["EPSG","4326"]]'
)
_BOOKKEEPING = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
  organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
  description TEXT DEFAULT '', last_change DATETIME NOT NULL, min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
  srs_id INTEGER);
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL PRIMARY KEY, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL);
"""


def write_maps(root: Path, networks: dict[str, list[Network]]) -> None:
    """`maps/` of a data root: the four cities, those without networks with empty layers."""
    for city in CITIES.values():
        write_map(root / city.name / city.version / "map.gpkg", city, networks.get(city.name, []))
    write_json(root / "nuplan-maps-v1.0.json", {name: _version_entry(city) for name, city in sorted(CITIES.items())})


def write_map(path: Path, city: City, networks: Sequence[Network]) -> None:
    """One city's `map.gpkg`; geometry in WGS 84, longitude first."""
    from pyproj import Transformer

    to_geographic = Transformer.from_crs(city.epsg, GEOGRAPHIC, always_xy=True)

    def reproject(points: np.ndarray) -> np.ndarray:
        return np.stack(to_geographic.transform(points[:, 0], points[:, 1]), axis=1)

    by_layer: dict[str, list[Feature]] = {name: [] for name in LAYERS}
    for net in networks:
        for layer, feature in features(net):
            by_layer[layer].append(feature)
    with atomic_path(path) as aside:
        aside.unlink()
        connection = sqlite3.connect(aside)
        connection.execute("PRAGMA page_size = 4096")
        connection.executescript("PRAGMA application_id = 1196444487; PRAGMA user_version = 10200;" + _BOOKKEEPING)
        connection.execute(
            "INSERT INTO gpkg_spatial_ref_sys VALUES ('WGS 84', 4326, 'EPSG', 4326, ?, 'longitude/latitude')", (_WGS84,)
        )
        for name, (geometry, columns) in LAYERS.items():
            _write_layer(connection, name, geometry, columns, by_layer[name], reproject)
        _write_meta(connection, city)
        connection.commit()
        connection.close()


def _write_layer(
    connection: sqlite3.Connection,
    name: str,
    geometry_type: str,
    columns: dict[str, str],
    rows: Sequence[Feature],
    reproject: Any,
) -> None:
    definition = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
    connection.execute(
        f'CREATE TABLE "{name}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom {geometry_type}, {definition})'
    )
    geometries = shapely.transform([row.geometry for row in rows], reproject) if rows else []
    box = shapely.total_bounds(geometries).tolist() if rows else [None] * 4
    _register(connection, name, "features", box, GEOGRAPHIC)
    connection.execute(
        "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?, ?, 0, 0)", (name, geometry_type, GEOGRAPHIC)
    )
    connection.executemany(
        f'INSERT INTO "{name}" VALUES ({", ".join("?" * (2 + len(columns)))})',
        [
            (row.id, _blob(geometry), *[row.columns.get(column) for column in columns])
            for row, geometry in zip(rows, geometries)
        ],
    )


def _write_meta(connection: sqlite3.Connection, city: City) -> None:
    connection.execute("CREATE TABLE meta (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key TEXT, value TEXT)")
    _register(connection, "meta", "attributes", [None] * 4, 0)
    rows = [
        ("geographicCoordSystem", f"epsg:{GEOGRAPHIC}"),
        ("projectedCoordSystem", f"epsg:{city.epsg}"),
        ("version", city.version),
    ]
    connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", rows)


def _register(connection: sqlite3.Connection, name: str, kind: str, box: Iterable[float | None], srs: int) -> None:
    connection.execute(
        "INSERT INTO gpkg_contents VALUES (?, ?, ?, '', '2021-01-01T00:00:00.000Z', ?, ?, ?, ?, ?)",
        (name, kind, name, *box, srs),
    )


def _blob(geometry: Any) -> bytes:
    """GeoPackage geometry: magic, version 0, little endian without envelope, srs id, WKB."""
    return b"GP\x00\x01" + GEOGRAPHIC.to_bytes(4, "little") + shapely.to_wkb(geometry, byte_order=1)


def _version_entry(city: City) -> dict[str, Any]:
    x, y = city.center
    raster = {
        "shape": [1, 1],
        "transform_matrix": [[10.0, 0, 0, -10 * x], [0, -10.0, 0, 10 * y], [0, 0, 1.0, 0], [0, 0, 0, 1.0]],
    }
    return {"version": city.version, "layers": dict.fromkeys(("drivable_area", "semantic_prior", "walkway"), raster)}
