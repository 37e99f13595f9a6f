"""`dipole-vla doctor` looks at scenes of the scoring cache that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipole_vla.commands import doctor
from navsim_adapter.cache.official_folder import import_official
from navsim_adapter.cache.store import CacheFolder

OFFICIAL = Path(__file__).resolve().parents[1] / "data" / "official_cache" / "v2"


def test_a_sick_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_official(OFFICIAL, tmp_path / "cache")
    case = doctor.Case({"scorer": {"init_args": {"cache": str(tmp_path / "cache")}}}, tmp_path, ["--config", "x.yaml"])
    levels = {finding.text: finding.level for finding in doctor._inputs(case)}
    assert levels["cache: 1 of 1 scene read and sound"] == "ok"
    read = CacheFolder.__getitem__

    def sick(self: CacheFolder, token: str):
        scene = read(self, token)
        return replace(scene, past_states=scene.past_states * np.nan)

    monkeypatch.setattr(CacheFolder, "__getitem__", sick)
    [found] = [finding for finding in doctor._inputs(case) if finding.level == "FAIL"]
    assert "past states has NaN" in found.text
    assert "cache the scenes anew" in found.text
