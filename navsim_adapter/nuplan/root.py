"""Where NAVSIM's files lie: one dataset root, as `OPENSCENE_DATA_ROOT` lays it out (metric 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import local_path

DATA_VARIABLE = "OPENSCENE_DATA_ROOT"
MAPS_VARIABLE = "NUPLAN_MAPS_ROOT"
MAPS_FILE = "nuplan-maps-v1.0.json"  # the index of a map root


@dataclass(frozen=True)
class DataRoot:
    """Where NAVSIM's files lie: `logs`/<split>/<log>.pkl, `sensors`/<split>/<camera path>, and `maps`.

    path: holds navsim_logs and sensor_blobs.
    maps: holds nuplan-maps-v1.0.json and a folder per city.
    """

    path: Path
    maps: Path

    @property
    def logs(self) -> Path:
        return self.path / "navsim_logs"

    @property
    def sensors(self) -> Path:
        return self.path / "sensor_blobs"


def data_root(data: str | Path | None, environment: Mapping[str, str]) -> DataRoot:
    """The root named by `--data` or the environment.

    Maps lie under the root where their index is there; else `NUPLAN_MAPS_ROOT` says where. Without `--data` the
    variable, where set, comes first, as in the devkit. Raises InputError if there is no such folder.
    """
    named = data or environment.get(DATA_VARIABLE)
    if not named:
        raise InputError(f"--data: not given and {DATA_VARIABLE} is not set; name the folder that holds navsim_logs/")
    root = local_path("--data" if data else DATA_VARIABLE, named)
    if not (root / "navsim_logs").is_dir():
        raise InputError(f"{root}: has no folder navsim_logs; name the dataset root with --data or {DATA_VARIABLE}")
    maps = root / "maps"
    variable = environment.get(MAPS_VARIABLE)
    if variable and (data is None or not (maps / MAPS_FILE).is_file()):
        maps = local_path(MAPS_VARIABLE, variable)
    return DataRoot(root, maps)
