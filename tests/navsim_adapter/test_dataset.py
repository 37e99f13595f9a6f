"""Scenes as an Arrow table: types, frames of reference, completeness."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.dataset import Contents, convert
from navsim_adapter.dataset_123d import convert_123d
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter
from tests.navsim_adapter.tiny import CITY, frame, write_frames, write_log


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    turned = np.array([np.cos(0.25), 0, 0, np.sin(0.25)])
    write_log(tmp_path, "log-0", ego2global_rotation=turned)
    write_log(tmp_path, "log-1", frames=14)
    return DataRoot(tmp_path, tmp_path / "maps")


def test_rows_hold_what_a_planner_sees_and_what_the_human_did(root: DataRoot, tmp_path: Path) -> None:
    from datasets import load_from_disk

    out = tmp_path / "scenes"
    content = convert(root, "mini", SceneFilter(), out)
    table = load_from_disk(str(out))
    assert len(table) == content["count"] == 3
    row = table[0]
    assert (row["token"], row["log_name"], row["map"], row["split"]) == ("0000000000000003", "log-0", CITY, "mini")
    assert row["timestamp_us"] == 1_600_000_001_500_000
    assert row["command"] == "straight"
    assert row["cameras"] == {"CAM_F0": "log-0/CAM_F0/3.jpg", "CAM_L0": None, "CAM_R0": None}
    np.testing.assert_array_equal(np.float32(row["velocity"]), np.float32([10, 0.1]))
    cosine, sine = np.cos(0.5), np.sin(0.5)
    for j, pose in enumerate(row["history"][:3]):
        np.testing.assert_allclose(pose, [-5.0 * (3 - j) * cosine, 5.0 * (3 - j) * sine, -0.5], atol=1e-8)
    assert row["history"][3] == [0, 0, 0]
    for j, pose in enumerate(row["future"]):
        np.testing.assert_allclose(pose, [5.0 * (j + 1) * cosine, -5.0 * (j + 1) * sine, -0.5], atol=1e-8)
    assert np.shape(row["history_velocity"]) == np.shape(row["history_acceleration"]) == (4, 2)
    assert len(row["future"]) == 8


def test_one_frame_without_a_speed_costs_the_scenes_that_see_it(tmp_path: Path) -> None:
    root, frames = DataRoot(tmp_path, tmp_path), [frame(index) for index in range(20)]
    frames[5]["ego_dynamic_state"] = [np.nan, 0, 0, 0]
    write_frames(tmp_path, frames)
    content = convert(root, "mini", SceneFilter(), tmp_path / "scenes")
    assert content["count"] == 3
    assert [item["token"][-2:] for item in content["skipped"]] == ["05", "06", "07", "08"]
    assert "frame 0000000000000005: the ego's speed" in content["skipped"][0]["reason"]
    every = [frame(index, ego_dynamic_state=[np.nan, 0, 0, 0]) for index in range(15)]
    write_frames(tmp_path / "none", every)
    with pytest.raises(InputError, match="none of 2 scenes can be converted; first: scene 0000000000000003"):
        convert(DataRoot(tmp_path / "none", tmp_path), "mini", SceneFilter(), tmp_path / "other")


def test_a_log_that_ends_has_no_future(root: DataRoot, tmp_path: Path) -> None:
    from datasets import load_from_disk

    convert(root, "mini", SceneFilter(num_future_frames=3), tmp_path / "scenes")
    assert load_from_disk(str(tmp_path / "scenes"))[0]["future"] is None


def test_the_folder_says_what_made_it_and_is_not_made_twice(
    root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scenes"
    convert(root, "mini", SceneFilter(), out)
    content = json.loads((out / "scenes.json").read_text())
    assert content["split"] == "mini"
    assert content["count"] == 3
    assert content["filter"]["num_history_frames"] == 4
    made_by = json.loads((out / "manifest.json").read_text())["made_by"]
    assert made_by["command"] == "navsim-adapter convert"
    monkeypatch.setattr("navsim_adapter.dataset.find_scenes", None)
    assert convert(root, "mini", SceneFilter(), out) == content


def test_another_filter_is_refused_and_a_new_log_is_seen(root: DataRoot, tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    first = convert(root, "mini", SceneFilter(max_scenes=2), out)
    assert first["count"] == 2
    with pytest.raises(InputError, match=r"filter.max_scenes: this folder was made with 2, now None"):
        convert(root, "mini", SceneFilter(), out)
    whole = tmp_path / "whole"
    before = convert(root, "mini", SceneFilter(), whole)["count"]
    (root.logs / "mini" / "log-1.pkl").unlink()
    again = convert(root, "mini", SceneFilter(), whole)
    assert 0 < again["count"] < before
    assert json.loads((whole / "scenes.json").read_text()) == again


def test_what_the_filter_names_and_the_split_lacks_is_listed(root: DataRoot, tmp_path: Path) -> None:
    chosen = SceneFilter(log_names=frozenset({"log-1", "log-x"}), tokens=frozenset({"1000000000000003", "f" * 16}))
    content = convert(root, "mini", chosen, tmp_path / "scenes")
    assert content["count"] == 1
    assert content["absent"] == {"log_names": ["log-x"], "tokens": ["f" * 16]}


def test_an_empty_or_ambiguous_split_makes_no_table(root: DataRoot, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scene with"):
        convert(root, "mini", SceneFilter(num_future_frames=40), tmp_path / "empty")
    copy = root.logs / "mini" / "copy.pkl"
    copy.write_bytes((root.logs / "mini" / "log-1.pkl").read_bytes())
    with pytest.raises(InputError, match="token 1000000000000003: occurs twice, in log log-1 and log log-1"):
        convert(root, "mini", SceneFilter(), tmp_path / "scenes")
    assert not list((tmp_path / "scenes").glob("*.arrow"))


def test_a_foreign_folder_is_not_overwritten(root: DataRoot, tmp_path: Path) -> None:
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("x")
    with pytest.raises(InputError, match="holds files of something else"):
        convert(root, "mini", SceneFilter(), precious.parent)
    assert precious.read_text() == "x"


def test_without_the_package_logs_of_123d_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "logs" / "toy_val" / "drive"
    log.mkdir(parents=True)
    (log / "sync.arrow").touch()
    monkeypatch.setitem(sys.modules, "py123d", None)
    for name in [name for name in sys.modules if name.startswith("py123d.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"needs the package py123d .* extra 123d"):
        convert_123d(tmp_path, "toy_val", SceneFilter(), tmp_path / "out")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"cameras": ("CAM_X0",)}, "--cameras: 'CAM_X0' is none of NAVSIM's"),
        ({"interval": 0.1}, "--interval: NAVSIM's logs have a frame every 0.5 s"),
        ({"future": 0.0}, "--future: must be"),
        ({"future": float("nan")}, "--future: must be"),
    ],
)
def test_what_the_logs_do_not_have_is_one_line(root: DataRoot, tmp_path: Path, contents: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        convert(root, "mini", SceneFilter(), tmp_path / "scenes", contents=Contents(**contents))


def test_a_table_holds_as_much_of_the_drive_and_the_cameras_that_are_asked_for(root: DataRoot, tmp_path: Path) -> None:
    from datasets import load_from_disk

    convert(root, "mini", SceneFilter(num_future_frames=8), tmp_path / "usual")
    more = Contents(cameras=("CAM_B0", "CAM_F0"), future=4.6)
    convert(root, "mini", SceneFilter(num_future_frames=8), tmp_path / "more", contents=more)
    usual, longer = (load_from_disk(str(tmp_path / name)).to_list() for name in ("usual", "more"))
    kept = {row["token"]: row for row in longer}
    assert 0 < len(kept) < len(usual)
    for row in (row for row in usual if row["token"] in kept):
        own = kept[row["token"]]
        assert own["future"][:8] == row["future"]
        assert len(own["future"]) == 10
        assert own["cameras"] == {"CAM_B0": None, "CAM_F0": row["cameras"]["CAM_F0"]}
