"""One small world, made once, and its logs as courses."""

from __future__ import annotations

from pathlib import Path

import pytest

from navsim_adapter.closed_loop.course import Course, set_course
from navsim_adapter.closed_loop.worlds import WorldFolder, remake
from navsim_adapter.nuplan.maps import load_map
from navsim_adapter.synthetic.synthesize import synthesize

STEPS = 80


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three logs: a straight road, a curve, a crossing."""
    out = tmp_path_factory.mktemp("closed_loop") / "world"
    synthesize(out, 7, {"test": 6}, {"test": 2})
    return out


@pytest.fixture(scope="session")
def courses(world: Path) -> list[Course]:
    folder = WorldFolder.open(world)
    made = [remake(folder, *log) for log in folder.logs("test")]
    return [set_course(log, load_map(str(world / "maps"), log.info.city), STEPS) for log in made]
