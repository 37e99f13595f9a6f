"""SIGKILL at three moments of an `rl` run: after a restart the files are those of an undisturbed run."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dipole_vla.commands import rl as command
from dipole_vla.commands.fit import CHECKPOINTS
from tests.dipole_vla.rl.line_world import Line, line_data
from tests.faults.processes import LIMIT, Process, result

pytestmark = pytest.mark.faults

OFFLINE, EVERY = 100, 10
RECIPE = {
    "task": "line",
    "data": "line",
    "updates": OFFLINE,
    "batch_size": 8,
    "checkpoint_every": EVERY,
    "learner": {"hidden": 8, "layers": 1, "heads": ["bc", "positive", "negative"]},
    "evaluation": {"methods": ["bc", "dipole"], "omega": [0.0, 1.0], "candidates": [1, 2], "episodes": 3, "fleet": 6},
    "online": {"rounds": 2, "episodes": 2, "updates": 2 * EVERY, "policy": "dipole:1:2"},
}
MOMENTS = {"offline": EVERY, "evaluation": OFFLINE, "online": OFFLINE + EVERY}  # killed once this step is saved


class SlowLine(Line):
    """Playing takes a second or two, so that a kill meets it."""

    def step(self, action):
        time.sleep(0.01)
        return super().step(action)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str | Path]]:
    """The command, in a world that the forked processes inherit."""
    recipe = tmp_path_factory.mktemp("line") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "make_environment", lambda task: SlowLine())
        patch.setattr(command, "data_identity", lambda task, folder: "line")
        patch.setattr(command, "load_data", lambda task, folder, learner: line_data())
        patch.setattr(command, "commit", lambda: "0" * 12)
        yield ["dipole-vla", "rl", "--config", recipe, "--seed", "[0,3]", "--out", recipe.parent / "run"]


@pytest.fixture(scope="module")
def undisturbed(line: list[str | Path]) -> dict[str, str]:
    out = Path(line[-1])
    log = out.parent / "whole.said"
    assert Process(line, log).wait() == 0, log.read_text()
    found = result(out)
    shutil.rmtree(out)  # the recipe kept with a run names its folder
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_rl_run(line: list[str | Path], undisturbed: dict[str, str], tmp_path: Path, moment: str) -> None:
    out, log = Path(line[-1]), tmp_path / "said"
    shutil.rmtree(out, ignore_errors=True)
    saved, measured = out / CHECKPOINTS, out / command.MEASURED / f"{OFFLINE:08d}.json"
    process, ends = Process(line, log), time.monotonic() + LIMIT
    while time.monotonic() < ends:
        if any(int(path.stem.removeprefix("step=")) >= MOMENTS[moment] for path in saved.glob("step=*.ckpt")):
            break
        time.sleep(0.002)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.said()
    assert (saved / f"step={OFFLINE:08d}.ckpt").exists() == (moment != "offline")
    assert measured.is_file() == (moment == "online")
    assert Process(line, log).wait() == 0, log.read_text()
    assert "resuming from" in log.read_text()
    assert result(out) == undisturbed
    assert not list(out.rglob("*.part"))
