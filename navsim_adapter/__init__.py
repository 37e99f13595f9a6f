"""NAVSIM's files and scores, without the devkit and without torch."""

from typing import TYPE_CHECKING

from navsim_adapter.foundation.faces import face

if TYPE_CHECKING:
    from navsim_adapter.cache.folder import build_cache as build_cache
    from navsim_adapter.cache.store import open_cache as open_cache
    from navsim_adapter.dataset import convert as convert
    from navsim_adapter.nuplan.root import DataRoot as DataRoot
    from navsim_adapter.nuplan.scenes import SceneFilter as SceneFilter
    from navsim_adapter.render import picture as picture
    from navsim_adapter.scoring.rows import score_rows as score_rows
    from navsim_adapter.scoring.scorer import Scorer as Scorer
    from navsim_adapter.scoring.scorer import Scores as Scores
    from navsim_adapter.submission import write_submission as write_submission
    from navsim_adapter.trajectories import read_trajectories as read_trajectories
    from navsim_adapter.trajectories import write_trajectories as write_trajectories

__version__ = "0.1.0"
_PLACES = {
    "DataRoot": "navsim_adapter.nuplan.root",
    "SceneFilter": "navsim_adapter.nuplan.scenes",
    "Scorer": "navsim_adapter.scoring.scorer",
    "Scores": "navsim_adapter.scoring.scorer",
    "build_cache": "navsim_adapter.cache.folder",
    "convert": "navsim_adapter.dataset",
    "open_cache": "navsim_adapter.cache.store",
    "picture": "navsim_adapter.render",
    "read_trajectories": "navsim_adapter.trajectories",
    "score_rows": "navsim_adapter.scoring.rows",
    "write_submission": "navsim_adapter.submission",
    "write_trajectories": "navsim_adapter.trajectories",
}
__all__ = list(_PLACES)
__getattr__, __dir__ = face(__name__, _PLACES)
