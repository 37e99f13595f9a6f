"""The benchmark of keys: the command lines it would run, and its arithmetic."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def keys():
    spec = importlib.util.spec_from_file_location("keys_benchmark", BENCHMARKS / "keys.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_lists_one_training_a_variant_and_seed_and_one_drive_each(keys, tmp_path, capsys) -> None:
    keys.main(["--demo", str(tmp_path), "--dry_run", "--seeds", "0", "7", "--trainer.max_steps", "3"])
    lines = capsys.readouterr().out.splitlines()
    own = [name for name, variant in keys.VARIANTS.items() if variant.guidance is None]
    assert sum(line.startswith("dipole-vla fit") for line in lines) == 2 * len(own)
    assert sum(line.startswith("dipole-vla evaluate") for line in lines) == 2 * len(keys.VARIANTS)
    assert all(line.endswith("--trainer.max_steps 3") for line in lines if " fit " in line)
    assert not list(tmp_path.iterdir())
    keys.main(["--demo", str(tmp_path), "--dry_run", "--seeds", "0", "--keys", "indicator, quantile 0.7"])
    outs = [line.split("--out ")[1].split()[0] for line in capsys.readouterr().out.splitlines() if " fit " in line]
    assert [Path(out).parts[-3] for out in outs] == ["plain", "indicator", "indicator__quantile_0.7"]


def test_every_key_of_a_training_is_one_that_fit_knows(keys) -> None:
    from dipole_vla.commands.early import check

    for name, variant in keys.VARIANTS.items():
        if variant.guidance is None:
            check(keys.fit_line(Path("runs/demo"), name, 0, []))


def test_differences_are_paired_by_scene_and_averaged_over_seeds(keys, monkeypatch) -> None:
    monkeypatch.setattr(keys, "VARIANTS", {"plain": keys.Variant(), "a": keys.Variant()})
    index = pd.MultiIndex.from_tuples([(f"log{i}", f"s{i}") for i in range(6)], names=["log_name", "token"])
    base = pd.DataFrame({1.0: np.random.default_rng(0).uniform(size=6)}, index=index)
    found = {("plain", 0): base, ("plain", 1): base, ("a", 0): base + 0.02, ("a", 1): base + 0.04}
    (row,) = keys.differences(found, ["plain", "a"])
    assert row["gain"] == pytest.approx(3)
    assert row["by_seed"] == pytest.approx([2, 4])
    assert row["ci95"] == pytest.approx((3, 3))
    assert row["verdict"] == "better beyond chance"


def test_no_benchmark_hides_a_package_that_numba_looks_for() -> None:
    """A script's folder comes first on its path: one named coverage.py was taken for the package of that name."""
    done = subprocess.run([sys.executable, "-c", "import numba"], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
