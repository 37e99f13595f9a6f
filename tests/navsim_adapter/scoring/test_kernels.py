"""The kernels' machine code: what the source says, made once, and without numba."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.metric import engine, machine_code
from navsim_adapter.metric.scene_index import SceneIndex, build_index, run
from tests.navsim_adapter.scoring.scenes import roots, scenes_of, trajectories_of

needs_scenes = pytest.mark.skipif(not roots(), reason="no data with official figures beside or inside this clone")


def interpreted(index: SceneIndex, poses: np.ndarray) -> np.ndarray:
    """`run` by Python itself, one operation after the other."""
    table, scratch = np.empty((len(poses), engine.COLUMNS)), np.empty(100_000)
    rest = (poses, 0.5, False, np.empty((0, 0)), table, np.empty((0, 41, 11)), scratch)
    with np.errstate(all="ignore"):
        assert engine.score_trajectories.py_func(index.block.address, *rest) == engine.DONE
    return table


@needs_scenes
@pytest.mark.parametrize("metric", ["pdms", "epdms"])
def test_machine_code_gives_the_bits_that_its_source_gives_in_python(metric: str) -> None:
    root = roots()[-1]
    token, scene = next(iter(scenes_of(root).items()))
    poses = np.array([poses for (own, _), (poses, _) in trajectories_of(root).items() if own == token])[::12]
    index = build_index(scene, metric)  # type: ignore[arg-type]
    np.testing.assert_array_equal(run(index, poses), interpreted(index, poses))


def test_a_process_that_finds_the_kernels_never_imports_numba() -> None:
    program = """
import sys
import numpy as np
from navsim_adapter.metric import two_frame
from navsim_adapter.scoring import scorer
comfort = np.empty(1)
two_frame.compare_plans(np.zeros((1, 2, 41)), np.zeros((1, 2, 41)), np.array([5]), np.empty((4, 41, 2)), comfort)
print(comfort[0], "numba" in sys.modules)
"""
    machine_code.function("compare_plans")  # made, if they are not
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "False"]


def test_a_torn_or_foreign_file_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / machine_code.file_name()
    assert machine_code._read(path) is None
    for content in (b"", b"x" * 100):
        path.write_bytes(content)
        assert machine_code._read(path) is None


def test_the_file_is_named_by_what_the_sources_hold_and_not_by_their_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name_of(text: str) -> str:
        (tmp_path / "kernel.py").write_text(text)
        monkeypatch.setattr(machine_code, "_SOURCES", (tmp_path / "kernel.py",))
        machine_code.file_name.cache_clear()
        return machine_code.file_name()

    try:
        assert name_of("1") == name_of("1") != name_of("2")
    finally:
        monkeypatch.undo()
        machine_code.file_name.cache_clear()


@pytest.mark.parametrize("table", [np.empty((2, 3), np.float32), np.empty((3, 2)).T, np.empty(6)])
def test_a_kernel_takes_only_the_arrays_that_it_was_compiled_for(table: np.ndarray) -> None:
    with pytest.raises(TypeError, match="combine_rows"):
        engine.combine_rows(table, False, 0.0, np.empty(3), np.empty(2))
