"""Slices of logs are the devkit's, in a fixed order; an empty split is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.root import DataRoot, data_root
from navsim_adapter.nuplan.scenes import SceneFilter, every_frame, find_logs, find_scenes, split_filter
from tests.navsim_adapter.tiny import frame, write_frames, write_log


def _root(path: Path) -> DataRoot:
    return DataRoot(path, path / "maps")


def _tokens(path: Path, chosen: SceneFilter) -> list[str]:
    return [scene.token for scene in find_scenes(_root(path), "mini", chosen)]


def test_a_scene_is_history_now_and_future(tmp_path: Path) -> None:
    write_log(tmp_path, frames=15)
    first, second = find_scenes(_root(tmp_path), "mini", SceneFilter())
    assert (first.token, second.token) == ("0000000000000003", "0000000000000004")
    assert [frame.token[-2:] for frame in first.past] == ["00", "01", "02", "03"]
    assert [frame.token[-2:] for frame in first.future] == [f"{i:02d}" for i in range(4, 14)]
    assert first.now.token == first.token


def test_no_interval_means_no_overlap(tmp_path: Path) -> None:
    write_log(tmp_path, frames=30)
    assert _tokens(tmp_path, SceneFilter(frame_interval=None)) == ["0000000000000003", "0000000000000017"]


def test_scenes_without_route_are_left_out_unless_wanted(tmp_path: Path) -> None:
    write_log(tmp_path, frames=15, roadblock_ids=[])
    assert _tokens(tmp_path, SceneFilter()) == ["0000000000000004"]
    assert len(_tokens(tmp_path, SceneFilter(has_route=False))) == 2


def test_logs_come_in_sorted_order_and_max_scenes_stops(tmp_path: Path) -> None:
    for log in ("log-2", "log-0", "log-1"):
        write_log(tmp_path, log)
    assert [token[0] for token in _tokens(tmp_path, SceneFilter())] == list("001122")
    assert len(_tokens(tmp_path, SceneFilter(max_scenes=3))) == 3


def test_tokens_and_log_names_choose(tmp_path: Path) -> None:
    write_log(tmp_path, "log-0")
    write_log(tmp_path, "log-1")
    assert _tokens(tmp_path, every_frame(["1000000000000004"])) == ["1000000000000004"]
    assert _tokens(tmp_path, SceneFilter(log_names=frozenset({"log-1"})))[0] == "1000000000000003"


def test_gaps_in_time_do_not_split_a_scene(tmp_path: Path) -> None:
    write_frames(tmp_path, [frame(index) for index in (*range(6), *range(8, 16))])
    assert _tokens(tmp_path, SceneFilter()) == ["0000000000000003"]


def test_an_empty_split_says_what_was_looked_for(tmp_path: Path) -> None:
    write_log(tmp_path, frames=10)
    with pytest.raises(InputError, match="mini: no scene with 4 history and 10 future frames, a route"):
        _tokens(tmp_path, SceneFilter())
    with pytest.raises(InputError, match="one of 1 token"):
        _tokens(tmp_path, every_frame(["x"]))
    with pytest.raises(InputError, match=r"no log files \(\*\.pkl\) among the 1 names"):
        find_logs(_root(tmp_path), "mini", SceneFilter(log_names=frozenset({"other"})))
    with pytest.raises(InputError, match=r"no such split \(did you mean 'mini'\?\)"):
        find_logs(_root(tmp_path), "minni")


def test_a_filter_of_the_devkit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "navtest.yaml"
    path.write_text(
        "_target_: navsim.common.dataclasses.SceneFilter\n_convert_: 'all'\nnum_history_frames: 4\n"
        "num_future_frames: 8\nframe_interval: null\nhas_route: true\nmax_scenes: null\nlog_names:\n  - 'a'\n"
        "tokens: ['x', 'y']\ninclude_synthetic_scenes: true\n"
    )
    split, chosen = split_filter("navtest", path)
    assert split == "test"
    assert chosen == SceneFilter(4, 8, None, True, None, log_names=frozenset({"a"}), tokens=frozenset({"x", "y"}))
    assert chosen.interval == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_histroy_frames: 4", r"num_histroy_frames: unknown key \(did you mean 'num_history_frames'\?\)"),
        ("num_history_frames: '4'", "num_history_frames: must be int, found '4'"),
        ("has_route: 1", "has_route: must be bool, found 1"),
        ("tokens: abc", "tokens: must be a list of text or null"),
        ("tokens: [a1, 1234567812345678]", "tokens: 1234567812345678 is read as int, not as text; put quotes"),
        ("defaults:\n  - scene_filter: navtest\ndata_split: test", r"give scene_filter/navtest\.yaml"),
        ("defaults: [navtest, _self_]\nmax_scenes: 9", r"give scene_filter/navtest\.yaml .* or a copy"),
        ("defaults: [_self_]", "defaults: this file is put together by Hydra"),
        ("_target_: nuplan.planning.scenario_builder.scenario_filter.ScenarioFilter\nlog_names: null", "is nuPlan's"),
        ("scenario_types: null", "scenario_types: this is nuPlan's scenario filter"),
        ("num_history_frames: 0", "must be at least 1"),
        ("- a", "must be a mapping"),
        ("a: [", "cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_a_bad_filter_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "filter.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        SceneFilter.from_yaml(path)


def test_official_split_names_know_their_folder() -> None:
    assert split_filter("navmini") == ("mini", SceneFilter(frame_interval=None))
    assert split_filter("navtrain")[0] == "trainval"
    assert split_filter("mini") == ("mini", SceneFilter())


def test_the_root_comes_from_the_option_then_the_environment(tmp_path: Path) -> None:
    (tmp_path / "navsim_logs").mkdir()
    (tmp_path / "maps").mkdir()
    named = data_root(tmp_path, {})
    assert (named.logs, named.maps) == (tmp_path / "navsim_logs", tmp_path / "maps")
    variables = {"OPENSCENE_DATA_ROOT": str(tmp_path), "NUPLAN_MAPS_ROOT": str(tmp_path / "elsewhere")}
    assert data_root(None, variables).maps == tmp_path / "elsewhere"
    assert data_root(tmp_path, variables).maps == tmp_path / "elsewhere"  # this folder of maps is not one
    (tmp_path / "maps" / "nuplan-maps-v1.0.json").write_text("{}")
    assert data_root(tmp_path, variables).maps == tmp_path / "maps"
    with pytest.raises(InputError, match="OPENSCENE_DATA_ROOT is not set"):
        data_root(None, {})
    with pytest.raises(InputError, match="has no folder navsim_logs"):
        data_root(tmp_path / "nowhere", {})


def test_a_filter_file_without_interval_means_no_overlap_as_in_the_devkit(tmp_path: Path) -> None:
    path = tmp_path / "filter.yaml"
    path.write_text("num_history_frames: 4\nnum_future_frames: 10\n")
    assert SceneFilter.from_yaml(path).interval == 14
    path.write_text("frame_interval: 1\n")
    assert SceneFilter.from_yaml(path).interval == 1


@pytest.mark.parametrize("typed", ["test/", "./test", " test", "test//", "./test/."])
def test_a_split_has_one_name_however_it_is_typed(typed: str) -> None:
    assert split_filter(typed)[0] == "test"
    assert split_filter(typed.replace("test", "navtest"))[0] == "test"


@pytest.mark.parametrize("typed", ["../test", "a/../test", "/data/navsim_logs/test", ".", "a\\test"])
def test_a_split_is_no_path(typed: str) -> None:
    with pytest.raises(InputError, match="no folder right under navsim_logs"):
        split_filter(typed)


def test_one_file_of_several_logs_gives_the_scenes_of_each(tmp_path: Path) -> None:
    drives = [[frame(index, log) for index in range(15)] for log in ("log-0", "log-1")]
    mixed = [one for both in zip(*drives) for one in both]
    for name, frames in (("whole", drives[0] + drives[1]), ("mixed", mixed)):
        write_frames(tmp_path / name, frames, "meta_data_mini")
        found = list(find_scenes(DataRoot(tmp_path / name, tmp_path), "mini", SceneFilter()))
        assert [scene.token for scene in found] == [f"{log}{index:015d}" for log in (0, 1) for index in (3, 4)]
        assert all(len({one.log_name for one in scene.frames}) == 1 for scene in found)
        assert not any(scene.problem for scene in found)
        chosen = SceneFilter(log_names=frozenset({"log-1"}))
        assert _tokens(tmp_path / name, chosen) == ["1000000000000003", "1000000000000004"]


def test_hidden_scenes_of_five_frames_are_cut_by_their_token(tmp_path: Path) -> None:
    groups = [[frame(index, f"log-{i}", scene_token=str(i), frame_idx=index) for index in range(5)] for i in (0, 1)]
    short = [frame(index, "log-2", scene_token="2", frame_idx=index) for index in range(4)]
    write_frames(tmp_path, [*groups[0][::-1], *groups[1], *short], "x", split="private_test_hard")
    scenes = list(find_scenes(_root(tmp_path), "private_test_hard", SceneFilter(num_future_frames=8)))
    assert [scene.token for scene in scenes] == [f"{log}{index:015d}" for log in (0, 1) for index in (3, 4)]
    assert all(len(scene.frames) == 4 and not scene.problem for scene in scenes)


def test_frames_out_of_order_and_frames_without_numbers_are_named(tmp_path: Path) -> None:
    frames = [frame(index) for index in range(15)]
    frames[6]["timestamp"] = 0
    frames[13]["ego2global_translation"] = np.array([np.nan, 0, 0])
    frames[4]["ego_dynamic_state"] = [np.nan, 0, 0, 0]
    write_frames(tmp_path / "a", frames)
    found = find_scenes(_root(tmp_path / "a"), "mini", SceneFilter(4, 1))
    problems = {scene.token[-2:]: scene.problem for scene in found}
    assert problems["03"] is None
    assert "frame 0000000000000004: the ego's speed" in str(problems["04"])
    assert "frame 0000000000000006 is earlier than frame 0000000000000005" in str(problems["05"])
    assert problems["10"] is None
    assert "frame 0000000000000013: the ego's pose is NaN" in str(problems["12"])


def test_a_filter_with_a_byte_order_mark_and_hidden_files_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfmax_scenes: 3\n")
    (tmp_path / "w.yaml").write_bytes("max_scenes: 3\n".encode("utf-16"))
    assert SceneFilter.from_yaml(tmp_path / "f.yaml").max_scenes == 3
    assert SceneFilter.from_yaml(tmp_path / "w.yaml").max_scenes == 3
    path = write_log(tmp_path)
    (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert find_logs(_root(tmp_path), "mini") == [path]
