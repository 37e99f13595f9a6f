"""Caches come back bit for bit, lazily, and damage is never a number."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.cache import folder, log_file, store
from navsim_adapter.cache.folder import build_cache, build_scenes, skipped_in
from navsim_adapter.cache.inspect import describe_cache, describe_scene, verify_cache
from navsim_adapter.cache.log_file import LogFile, read_facts, write_log
from navsim_adapter.cache.store import CacheFolder, log_path, open_cache, write_index
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter
from navsim_adapter.scene_cache import Polygons, SceneCache
from navsim_adapter.scoring.job import Source
from tests.navsim_adapter.tiny import write_log as write_log_pickle
from tests.navsim_adapter.tiny import write_maps


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    path = tmp_path_factory.mktemp("world")
    write_maps(path)
    for log in ("log-0", "log-1", "log-2"):
        write_log_pickle(path, log, frames=16)
    return DataRoot(path, path / "maps")


@pytest.fixture(scope="module")
def scenes(root: DataRoot) -> list[SceneCache]:
    return list(build_scenes(root, "mini", SceneFilter())[0].values())


@pytest.fixture
def cache(root: DataRoot, tmp_path: Path) -> Path:
    build_cache(root, "mini", SceneFilter(), tmp_path / "cache")
    return tmp_path / "cache"


def test_scenes_come_back_bit_for_bit(scenes: list[SceneCache], tmp_path: Path) -> None:
    rich = replace(scenes[0], extras={"grid": np.arange(12, dtype=np.uint16).reshape(3, 4), "none": np.empty(0)})
    plain = replace(scenes[1], object_knots=None, human_future=None, is_synthetic=True, versions=2)
    bare = replace(scenes[2], area_ids=(), areas=_no_polygons(), area_type=np.empty(0, np.int8))
    write_log(tmp_path / "x.cache", [rich, plain, bare], {"by": "test"})
    for row, scene in enumerate((rich, plain, bare)):
        _same(LogFile(tmp_path / "x.cache").scene(row), scene)
    facts = read_facts(tmp_path / "x.cache")
    assert facts.made_by == {"by": "test"}
    assert [scene[0] for scene in facts.scenes] == [scene.token for scene in (rich, plain, bare)]


def test_arrays_are_aligned_and_shared_content_is_kept_once(scenes: list[SceneCache], tmp_path: Path) -> None:
    write_log(tmp_path / "one.cache", scenes[:1], {})
    write_log(tmp_path / "many.cache", [replace(scenes[0], token=str(i)) for i in range(50)], {})
    log = LogFile(tmp_path / "many.cache")
    assert (log.table[..., 0] % 64 == 0).all()
    one, many = ((tmp_path / name).stat().st_size for name in ("one.cache", "many.cache"))
    assert many - one < 50 * 2000  # a table row and a name


def test_what_is_read_does_not_depend_on_the_file(scenes: list[SceneCache], tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    write_log(path, scenes[:1], {})
    scene = LogFile(path).scene(0)
    path.write_bytes(b"gone")
    _same(scene, scenes[0])


def test_a_folder_is_a_lazy_mapping(cache: Path, scenes: list[SceneCache]) -> None:
    opened = open_cache(cache)
    assert len(opened) == len(scenes) == 9
    assert sorted(opened) == sorted(scene.token for scene in scenes)
    assert not opened._open
    for scene in scenes:
        assert scene.token in opened
        _same(opened[scene.token], scene)
        assert opened.log_of(scene.token) == scene.log_name
    assert "nothing" not in opened
    assert opened.get("nothing") is None
    with pytest.raises(KeyError):
        _ = opened["nothing"]


def test_a_folder_travels_to_workers_and_threads(cache: Path, scenes: list[SceneCache]) -> None:
    opened: CacheFolder = pickle.loads(pickle.dumps(open_cache(cache)))  # noqa: S301
    problems: list[Exception] = []

    def read() -> None:
        try:
            for scene in scenes * 5:
                assert opened[scene.token].time_us == scene.time_us
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_many_logs_do_not_exhaust_open_files(scenes: list[SceneCache], tmp_path: Path) -> None:
    names = [f"log{i:03d}" for i in range(3 * store._OPEN_FILES)]
    for name in names:
        write_log(log_path(tmp_path, name), [replace(scenes[0], token=name)], {})
    write_index(tmp_path, {name: [name] for name in names})
    finish(tmp_path, {})
    before = len(os.listdir("/proc/self/fd"))  # what other tests left open is not counted
    opened = open_cache(tmp_path)
    kept = [opened[name] for name in names]
    assert len(opened._open) == store._OPEN_FILES
    assert len(os.listdir("/proc/self/fd")) < before + 2 * store._OPEN_FILES
    assert [scene.token for scene in kept] == names


def test_a_hundred_thousand_scenes_open_without_reading_them(tmp_path: Path, scenes: list[SceneCache]) -> None:
    names = [f"log{i:03d}" for i in range(100)]
    write_log(tmp_path / "x.cache", scenes[:1], {})
    (tmp_path / "logs").mkdir()
    for name in names:
        os.link(tmp_path / "x.cache", log_path(tmp_path, name))
    (tmp_path / "x.cache").unlink()
    write_index(tmp_path, {name: [f"{name}-{i:04d}" for i in range(1000)] for name in names})
    (tmp_path / "manifest.json").write_text("{}")
    opened = open_cache(tmp_path)
    assert len(opened) == 100_000
    assert opened._tokens.nbytes + opened._file.nbytes + opened._row.nbytes < 3e6
    assert opened.log_of("log042-0999") == "log042"


def test_repeated_tokens_are_refused_with_their_number(scenes: list[SceneCache], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_log(log_path(tmp_path, name), scenes[:2], {})
    tokens = [scene.token for scene in scenes[:2]]
    with pytest.raises(InputError, match=f"2 tokens occur in more than one scene .*{tokens[0]}"):
        write_index(tmp_path, {"a": tokens, "b": tokens})
    assert not (tmp_path / store.INDEX).exists()


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed_or_harmless(scenes: list[SceneCache], tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    write_log(path, scenes[:2], {})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for position in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            for row, scene in enumerate(scenes[:2]):
                _same(LogFile(path).scene(row), scene)  # alignment gaps hold nothing
        except InputError:
            noticed += 1
    assert noticed > 100


@pytest.mark.parametrize("size", [0, 10, 64, 1000, -1])
def test_cut_files_are_refused(scenes: list[SceneCache], tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.cache"
    write_log(path, scenes[:1], {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"x\.cache: "):
        LogFile(path).scene(0)


def test_other_formats_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next((cache / "logs").iterdir())
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", 99)
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"made in cache format 99, this program reads {log_file.FORMAT}"):
        verify_or_read(cache, path)
    monkeypatch.setattr(log_file, "FORMAT", 7)
    with pytest.raises(InputError, match="made in cache format 2, this program reads 7"):
        open_cache(cache)


def verify_or_read(cache: Path, path: Path) -> None:
    opened = open_cache(cache)
    for token in opened:
        if opened.log_of(token) == path.stem:
            _ = opened[token]


def test_an_unfinished_folder_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_cache(tmp_path / "nowhere")
    (cache / "manifest.json").unlink()
    with pytest.raises(InputError, match="cache is not finished"):
        open_cache(cache)


@pytest.mark.parametrize("content", ["{}", "[]", '{"split": "mini", "data_root": "d", "skipped": [1]}'])
def test_an_emptied_list_of_scenes_is_refused(cache: Path, content: str) -> None:
    (cache / "scenes.json").write_text(content)
    for use in (describe_cache, skipped_in, lambda folder: Source(cache=str(folder)).describe()):
        with pytest.raises(InputError, match=r"scenes\.json: lacks its split"):
            use(cache)


def test_a_damaged_index_is_refused(cache: Path) -> None:
    path = cache / store.INDEX
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="index cannot be read"):
            open_cache(cache)


def test_a_replaced_log_file_is_refused(cache: Path, scenes: list[SceneCache]) -> None:
    write_log(log_path(cache, "log-0"), scenes[:1], {})
    with pytest.raises(InputError, match=r"log-0\.cache: it has \d+ bytes, the index says \d+"):
        _ = open_cache(cache)[scenes[0].token]


# -- building folders --------------------------------------------------------------------------------------------------


def test_a_finished_folder_is_left_alone(cache: Path, root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(folder, "run_logs", None)
    content = build_cache(root, "mini", SceneFilter(), cache)
    assert content["count"] == 9
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_an_interrupted_run_goes_on(root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cache"

    class Killed(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        build_cache(root, "mini", SceneFilter(), out, progress=stop)
    with pytest.raises(InputError, match="not finished"):
        open_cache(out)
    kept = sorted((out / "logs").iterdir())
    assert [path.stem for path in kept] == ["log-0", "log-1"]
    kept[1].write_bytes(kept[1].read_bytes()[:-5])  # and one torn by something else
    times = kept[0].stat().st_mtime_ns
    build_cache(root, "mini", SceneFilter(), out)
    assert kept[0].stat().st_mtime_ns == times
    assert verify_cache(out) == 9


def test_a_changed_log_is_cached_anew(tmp_path: Path) -> None:
    write_maps(tmp_path)
    root, out = DataRoot(tmp_path, tmp_path / "maps"), tmp_path / "cache"
    write_log_pickle(tmp_path, frames=14)
    build_cache(root, "mini", SceneFilter(), out)
    (out / "manifest.json").unlink()
    write_log_pickle(tmp_path, frames=14, ego_dynamic_state=[3.0, 0, 0, 0])
    build_cache(root, "mini", SceneFilter(), out)
    assert open_cache(out)["0000000000000003"].ego_state[3] == 3.0


def test_another_filter_is_refused(cache: Path, root: DataRoot) -> None:
    with pytest.raises(InputError, match=r"filter.log_names: this folder was made with None, now \['log-1'\]"):
        build_cache(root, "mini", SceneFilter(log_names=frozenset({"log-1"})), cache)
    assert len(open_cache(cache)) == 9


def test_changed_logs_are_cached_again_and_vanished_ones_removed(tmp_path: Path) -> None:
    write_maps(tmp_path)
    for log in ("log-0", "log-1", "log-2"):
        write_log_pickle(tmp_path, log, frames=16)
    root, cache = DataRoot(tmp_path, tmp_path / "maps"), tmp_path / "cache"
    build_cache(root, "mini", SceneFilter(), cache)
    logs = sorted((root.logs / "mini").glob("*.pkl"))
    kept = (cache / "logs" / f"{logs[1].stem}.cache").stat().st_mtime_ns
    logs[0].unlink()
    logs[-1].touch()
    content = build_cache(root, "mini", SceneFilter(), cache)
    assert {path.stem for path in (cache / "logs").iterdir()} == {path.stem for path in logs[1:]}
    assert content["count"] == len(open_cache(cache)) < 9
    assert (cache / "logs" / f"{logs[1].stem}.cache").stat().st_mtime_ns == kept, "same content: not done again"


def test_what_the_filter_names_and_the_split_lacks_is_listed(root: DataRoot, tmp_path: Path) -> None:
    token = next(iter(build_scenes(root, "mini", SceneFilter(max_scenes=1))[0]))
    content = build_cache(root, "mini", SceneFilter(tokens=frozenset({token, "f" * 16})), tmp_path / "cache")
    assert content["count"] == 1
    assert content["absent"] == {"log_names": [], "tokens": ["f" * 16]}


def test_workers_write_the_same_files(cache: Path, root: DataRoot, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from navsim_adapter.cache.folder import build_cache\n"
        "from navsim_adapter.nuplan.root import DataRoot; from navsim_adapter.nuplan.scenes import SceneFilter\n"
        "if __name__ == '__main__':\n"
        "    root = Path(sys.argv[1])\n"
        "    build_cache(DataRoot(root, root / 'maps'), 'mini', SceneFilter(), sys.argv[2], workers=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    here = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, script, root.path, tmp_path / "other"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"},
    )
    for path in (cache / "logs").iterdir():
        assert (tmp_path / "other" / "logs" / path.name).read_bytes() == path.read_bytes()


def test_scenes_that_cannot_be_cached_are_listed(tmp_path: Path) -> None:
    write_maps(tmp_path)
    root = DataRoot(tmp_path, tmp_path / "maps")
    write_log_pickle(tmp_path, frames=15, roadblock_ids=["1", "404"])
    content = build_cache(root, "mini", SceneFilter(), tmp_path / "cache")
    assert content["count"] == 1
    (skipped,) = content["skipped"]
    assert skipped["token"] == "0000000000000003"
    assert "has no roadblock 404" in skipped["reason"]
    assert "0000000000000003" not in open_cache(tmp_path / "cache")
    assert any("roadblock 404" in line for line in describe_cache(tmp_path / "cache"))
    write_log_pickle(tmp_path, frames=14, roadblock_ids=["1", "404"])
    with pytest.raises(InputError, match="none of 1 scene can be cached; first: scene 0000000000000003"):
        build_cache(root, "mini", SceneFilter(), tmp_path / "none")
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_tokens_in_two_logs_are_refused(tmp_path: Path) -> None:
    write_maps(tmp_path)
    root = DataRoot(tmp_path, tmp_path / "maps")
    content = write_log_pickle(tmp_path, "log-0", frames=14).read_bytes()
    (tmp_path / "navsim_logs" / "mini" / "copy.pkl").write_bytes(content)
    with pytest.raises(InputError, match="1 tokens occur in more than one scene"):
        build_cache(root, "mini", SceneFilter(), tmp_path / "cache")
    with pytest.raises(InputError, match="token 0000000000000003: occurs in logs"):
        build_scenes(root, "mini", SceneFilter())


def test_inspection_says_what_is_there(cache: Path) -> None:
    assert "9 scenes of 3 logs" in describe_cache(cache)[0]
    assert any("1 traffic_cone, 2 vehicle" in line for line in describe_scene(cache, "0000000000000003"))
    with pytest.raises(InputError, match=r"has no scene 0000000000000013 \(did you mean"):
        describe_scene(cache, "0000000000000013")


def _no_polygons() -> Polygons:
    return Polygons(np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))


def _same(left: SceneCache, right: SceneCache) -> None:
    for field in fields(SceneCache):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(other, Polygons):
            parts = [(getattr(one, name), getattr(other, name)) for name in ("vertices", "ring_start", "polygon_start")]
        elif isinstance(other, np.ndarray):
            parts = [(one, other)]
        elif field.name == "extras":
            assert one.keys() == other.keys()
            parts = [(one[name], other[name]) for name in other]
        else:
            assert one == other, field.name
            continue
        for first, second in parts:
            assert first.dtype == second.dtype, field.name
            np.testing.assert_array_equal(first, second)
