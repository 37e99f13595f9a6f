"""Is a cache sound, or was it made where the devkit's fit had failed (metric 10.5)?

On some processors the devkit's pinned numpy returns a pseudo-inverse that is none, and the speed fit (metric 5.3) makes
roll-outs of kilometres from any plan. A cache of such a place is refused: by what one scene cannot hold (NaN, absurd
speeds, a human kilometres from the human's own path), and by what most scenes of a split cannot (a human off the road,
or uncomfortable).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.words import counted
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache

FASTEST = 100.0  # m/s; logs have up to 35
FARTHEST = 50.0  # m from the human's path to its simulation; sound scenes have up to 5
ELSEWHERE = 1000.0  # m from the ego to where anybody can be within 4 s, or a route start
FEWEST = 3  # scenes below which "most" says nothing
MOST = 0.5
KEY = "human"  # in what made a log's file: how many scenes have a human, of these off the road, and uncomfortable
REMEDY = (
    "its maker's speed fit had failed; cache the scenes anew with `navsim-adapter cache` from logs and maps, or with "
    "the devkit under numpy 1.26"
)
_INTERVAL = 0.5  # s between the human's poses


@dataclass
class Humans:
    """How the human fares in the scenes seen so far."""

    scenes: int = 0
    off_road: int = 0
    uncomfortable: int = 0

    def see(self, scene: SceneCache) -> None:
        """Count a scene; raises InputError for one that no sound cache holds."""
        ailment = _impossible(scene)
        if ailment is None and scene.versions & EPDMS and scene.human_future is not None and not scene.is_synthetic:
            ailment = self._drive(scene)
        if ailment:
            raise InputError(f"scene {scene.token}: {ailment}; {REMEDY}")

    def add(self, counts: Iterable[int]) -> None:
        scenes, off_road, uncomfortable = counts
        self.scenes, self.off_road, self.uncomfortable = (
            self.scenes + scenes,
            self.off_road + off_road,
            self.uncomfortable + uncomfortable,
        )

    @property
    def counts(self) -> list[int]:
        return [self.scenes, self.off_road, self.uncomfortable]

    def require_sound(self, where: Any) -> None:
        """Raises InputError where the human fails in most scenes."""
        for count, what in ((self.off_road, "off the drivable area"), (self.uncomfortable, "uncomfortable")):
            if self.scenes >= FEWEST and count > MOST * self.scenes:
                raise InputError(
                    f"{where}: the human is {what} in {count} of {counted(self.scenes, 'scene')}; {REMEDY}"
                )

    def _drive(self, scene: SceneCache) -> str | None:
        from navsim_adapter.metric import engine  # brings the compiled scorer
        from navsim_adapter.metric.scene_index import build_index, run
        from navsim_adapter.vehicle import STATES

        index, states = build_index(scene, "epdms"), np.empty((1, STATES, 11))
        path = np.asarray(scene.human_future, np.float64)
        row = run(index, path[None], _INTERVAL, states=states)[0]  # with its past, unlike the filter's human
        every = round(_INTERVAL / 0.1)
        away = np.hypot(*(states[0, every::every, :2][: len(path)] - _in_map(scene.ego_state, path)).T).max()
        if not away <= FARTHEST:
            return f"simulated, the human gets {away:,.0f} m away from the human's own path"
        self.add([1, int(row[engine.RAW + engine.DAC] == 0), int(row[engine.RAW + engine.COMFORT] == 0)])
        return None


def _impossible(scene: SceneCache) -> str | None:
    """What alone shows that a scene's figures are no measurements."""
    start, human = np.asarray(scene.ego_state, np.float64), scene.human_future
    parts = {"ego state": start, "centerline": scene.centerline}
    paths = {}
    if scene.versions & EPDMS:
        parts |= {"past states": scene.past_states, "reference path": scene.reference_epdms}
        paths["reference path"] = (scene.reference_epdms, 0.1)
    if scene.versions & PDMS:
        parts["reference path of PDMS"] = scene.reference_pdms
        paths["reference path of PDMS"] = (scene.reference_pdms, 0.1)
    if human is not None:
        parts["human's path"] = human
        paths["human's path"] = (np.vstack([np.zeros((1, 3)), human]), _INTERVAL)
    for name, part in parts.items():
        if not np.isfinite(part).all():
            return f"its {name} has NaN or infinity"
    speeds = {"ego": np.hypot(*start[3:5])}
    if scene.versions & EPDMS:
        speeds["ego's past"] = np.hypot(*np.asarray(scene.past_states)[:, 3:5].T).max()
    speeds |= {name: np.hypot(*np.diff(path[:, :2], axis=0).T).max() / step for name, (path, step) in paths.items()}
    for name, speed in speeds.items():
        if speed > FASTEST:
            return f"its {name} has {speed:,.0f} m/s"
    for name, (path, _) in paths.items():
        away = np.hypot(*(path[:, :2] - (start[:2] if name.startswith("reference") else 0.0)).T).max()
        if away > ELSEWHERE:
            return f"its {name} is {away:,.0f} m away from the ego"
    return None


def _in_map(ego: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(n, 2) positions in the map's frame of poses (n, 3) in the ego's."""
    cosine, sine = np.cos(ego[2]), np.sin(ego[2])
    return ego[:2] + poses[:, :2] @ np.array([[cosine, sine], [-sine, cosine]])
