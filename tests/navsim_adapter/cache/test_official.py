"""Import of official metric caches. `tests/data/official_cache` holds the cache files of one scene of navsim_quirks,
written by devkit 1.1 and 2.2, and what the devkit's objects say of it (facts.npz)."""

from __future__ import annotations

import lzma
import os
import pickle
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from navsim_adapter.baselines import pdm_closed
from navsim_adapter.cache.official import (
    _box_pose,
    _lights,
    _official_order,
    combine,
    find_official,
    read_official,
    read_wkb,
)
from navsim_adapter.cache.official_folder import import_official
from navsim_adapter.cache.store import open_cache
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.boxes import box_corners
from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, ObjectType, SceneCache
from navsim_adapter.traffic.scene import read_traffic_scene
from tests.shared import SHARED, needs_shared

DATA = Path(__file__).resolve().parents[2] / "data" / "official_cache"
TOKEN = "92ae69b7fb571593"
FACTS = dict(np.load(DATA / "facts.npz"))


def cache_file(version: str) -> Path:
    return next((DATA / version).rglob("metric_cache.pkl"))


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def corners(scene: SceneCache, rows: np.ndarray, k: int) -> np.ndarray:
    """Front left, rear left, rear right, front right by the rotation of a box (metric 2.5)."""
    x, y, heading = scene.object_pose[rows, k].T
    half = scene.object_size[rows] / 2
    along, left = np.array([np.cos(heading), np.sin(heading)]).T, np.array([-np.sin(heading), np.cos(heading)]).T
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    offsets = signs[:, :1] * (half[:, :1] * along)[:, None] + signs[:, 1:] * (half[:, 1:] * left)[:, None]
    return np.column_stack([x, y])[:, None] + offsets


def test_an_official_cache_gives_what_its_objects_say(version: str) -> None:
    scene = read_official(cache_file(version))
    assert (scene.token, scene.time_us) == (TOKEN, int(FACTS["time_us"]))
    assert scene.versions == (PDMS if version == "v1" else EPDMS)
    np.testing.assert_allclose(scene.ego_state, FACTS["ego_state"], rtol=0, atol=1e-12)
    reference = scene.reference_pdms if version == "v1" else scene.reference_epdms
    np.testing.assert_allclose(reference, FACTS[f"reference_{version}"], rtol=0, atol=1e-9)
    assert len(scene.centerline) == FACTS["centerline_size"]
    np.testing.assert_allclose(scene.centerline[[0, 1, -2, -1]], FACTS["centerline"], rtol=0, atol=1e-12)
    assert scene.route_lane_ids == tuple(FACTS["route_lane_ids"])
    assert scene.area_ids == tuple(FACTS["area_ids"])
    assert [AreaType(kind).name for kind in scene.area_type] == list(FACTS["area_types"])


def test_objects_are_where_the_official_boxes_are(version: str) -> None:
    scene = read_official(cache_file(version))
    present = ~np.isnan(scene.object_pose[..., 0])
    steps = (0, 20, 40, 50) if version == "v1" else (0, 20, 40)
    for k in steps:
        here = FACTS["box_step"] == k
        rows = np.flatnonzero(present[:, k])
        assert [scene.object_tokens[row] for row in rows] == list(FACTS["box_token"][here])
        np.testing.assert_allclose(corners(scene, rows, k), FACTS["box_coords"][here][:, :4], rtol=0, atol=2e-9)
    if version == "v2":
        assert not present[:, 41:].any()
    of_token = {token: row for row, token in enumerate(FACTS["object_token"])}
    rows = [of_token[token] for token in scene.object_tokens]
    np.testing.assert_allclose(scene.object_velocity, FACTS["object_velocity"][rows], rtol=0, atol=1e-12)
    assert [ObjectType(kind).name for kind in scene.object_type] == list(FACTS["object_type"][rows])


def test_what_only_the_second_version_knows() -> None:
    first, second = read_official(cache_file("v1")), read_official(cache_file("v2"))
    np.testing.assert_allclose(second.human_future, FACTS["human"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(second.past_states, FACTS["past"], rtol=0, atol=1e-12)
    assert second.past_time_us.tolist() == FACTS["past_time_us"].tolist()
    assert second.map_name == "us-pa-pittsburgh-hazelwood"
    assert first.human_future is None
    assert np.isnan(first.past_states).all()
    assert np.isnan(first.reference_epdms).all()
    with pytest.raises(InputError, match="no EPDMS reference"):
        pdm_closed(first, EPDMS)


@needs_shared
def test_with_the_map_a_scene_can_have_simulated_traffic() -> None:
    """As the builder: one traffic vehicle for each vehicle of the current frame, in its order."""
    assert SHARED is not None
    maps = SHARED / "navsim_quirks" / "maps"
    scene = read_official(cache_file("v2"), maps)
    traffic = read_traffic_scene(scene)
    vehicles = [row for row in range(len(scene.object_tokens)) if scene.object_type[row] == ObjectType.VEHICLE]
    now = [row for row in vehicles if not np.isnan(scene.object_pose[row, 0, 0])]
    assert traffic.current[: len(now)] == tuple(scene.object_tokens[row] for row in now)
    np.testing.assert_array_equal(traffic.vehicle_pose, scene.object_pose[now, 0])
    assert not read_official(cache_file("v2")).extras
    assert not read_official(cache_file("v1"), maps).extras
    with pytest.raises(InputError, match="no arrays for simulated traffic"):
        read_traffic_scene(read_official(cache_file("v2")))


@pytest.mark.parametrize(("metric", "version"), [("pdms", "v1"), ("epdms", "v2"), ("pdms", "both"), ("epdms", "both")])
def test_imported_scenes_have_the_official_scores(metric: str, version: str) -> None:
    """31 trajectories; the scene has no predecessor, so two-frame comfort does not enter."""
    from navsim_adapter.scoring.scorer import Scorer

    files = [cache_file(name) for name in (("v1", "v2") if version == "both" else (version,))]
    scenes = [read_official(file) for file in files]
    scene = combine(*scenes) if version == "both" else scenes[0]
    with np.load(DATA / "scores.npz") as official:
        scores = Scorer({TOKEN: scene}, metric=metric).score([TOKEN], official["poses"][None])  # type: ignore[arg-type]
        for name in official.files:
            if name.startswith(metric + "_"):
                found = scores[name.removeprefix(metric + "_")][0]
                np.testing.assert_allclose(found, official[name], rtol=0, atol=1e-6, err_msg=name)


def test_two_caches_of_a_scene_combine_in_either_order() -> None:
    first, second = read_official(cache_file("v1")), read_official(cache_file("v2"))
    both = combine(second, first)
    assert both.versions == PDMS | EPDMS
    for bit, one in ((PDMS, first), (EPDMS, second)):
        rows = np.flatnonzero(both.object_versions & bit)
        assert tuple(both.object_tokens[row] for row in rows) == one.object_tokens
        np.testing.assert_array_equal(both.object_pose[rows], one.object_pose)
    np.testing.assert_array_equal(both.reference_pdms, first.reference_pdms)
    np.testing.assert_array_equal(both.reference_epdms, second.reference_epdms)
    with pytest.raises(InputError, match=r"one cache must be of devkit 1\.1"):
        combine(first, first)


def test_a_tree_becomes_a_cache_folder_and_is_not_made_twice(tmp_path: Path) -> None:
    content = import_official(DATA / "v1", tmp_path / "cache", DATA / "v2")
    assert content["count"] == 1
    with_both = open_cache(tmp_path / "cache")[TOKEN]
    wanted = combine(read_official(cache_file("v1")), read_official(cache_file("v2")))
    np.testing.assert_array_equal(with_both.object_pose, wanted.object_pose)
    assert with_both.area_ids == wanted.area_ids
    file = next((tmp_path / "cache" / "logs").iterdir())
    before = file.stat().st_mtime_ns
    (tmp_path / "cache" / "manifest.json").unlink()  # as after a kill at the very end
    assert import_official(DATA / "v1", tmp_path / "cache", DATA / "v2") == content
    assert file.stat().st_mtime_ns == before


def test_scenes_that_only_the_index_has_are_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(DATA / "v2", tree)
    own = "/".join(cache_file("v2").parts[-4:])
    rows = [f"/made/elsewhere/{own}", "/made/elsewhere/log-9/unknown/0011223344556677/metric_cache.pkl"]
    (tree / "metadata").mkdir()
    (tree / "metadata" / "metric_cache_metadata_node_0.csv").write_text("\n".join(["file_name", *rows]))
    content = import_official(tree, tmp_path / "cache")
    assert content["count"] == 1
    assert [(item["token"], item["log_name"]) for item in content["skipped"]] == [("0011223344556677", "log-9")]


def test_an_empty_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no <log>/<type>/<token>/metric_cache\.pkl"):
        find_official(tmp_path)


# -- damaged and hostile files -----------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    whole = cache_file("v2").read_bytes()
    with pytest.raises(InputError, match="cut short"):
        read_official(write(tmp_path / "log/unknown/token/metric_cache.pkl", whole[: len(whole) // 2]))
    with pytest.raises(InputError, match="not an LZMA file"):
        read_official(write(tmp_path / "log/unknown/token/metric_cache.pkl", b"plain text"))
    with pytest.raises(InputError, match="cannot be read"):
        read_official(tmp_path / "nowhere")


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navsim_adapter.cache.official.LARGEST_PICKLE", 2**23)
    bomb = write(tmp_path / "a/b/c/metric_cache.pkl", lzma.compress(bytes(2**25), preset=0))
    with pytest.raises(InputError, match="larger than"):
        read_official(bomb)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /should/not/run",)


@pytest.mark.parametrize("content", [_Runs(), {"a": 1}, [np.zeros(3)]])
def test_other_pickles_are_refused(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "a/b/c/metric_cache.pkl", lzma.compress(pickle.dumps(content), preset=0))
    with pytest.raises(InputError, match=r"metric cache|asks for"):
        read_official(path)


def test_a_metric_cache_without_its_parts_says_what_is_wrong(tmp_path: Path) -> None:
    stream = b"\x80\x04\x8c+navsim.planning.metric_caching.metric_cache\x8c\x0bMetricCache\x93)\x81}b."
    path = write(tmp_path / "a/b/c/metric_cache.pkl", lzma.compress(stream, preset=0))
    with pytest.raises(InputError, match="not laid out as devkit"):
        read_official(path)


# -- parts -------------------------------------------------------------------------------------------------------------

_SQUARE = shapely.Polygon(shapely.box(0, 0, 9, 9).exterior, [shapely.box(1, 1, 2, 2).exterior])


@pytest.mark.parametrize(
    "geometry",
    [
        shapely.box(0, 0, 1, 1),
        _SQUARE,
        shapely.MultiPolygon([_SQUARE, shapely.box(20, 0, 21, 1)]),
        shapely.set_srid(_SQUARE, 4326),
        shapely.force_3d(shapely.MultiPolygon([_SQUARE]), 5.0),
    ],
    ids=["plain", "hole", "parts", "srid", "height"],
)
def test_polygons_are_read_as_geos_reads_them(geometry: shapely.Geometry) -> None:
    rings = read_wkb(shapely.to_wkb(geometry, include_srid=True)).rings
    wanted = shapely.get_rings(shapely.get_parts(geometry))
    assert len(rings) == len(wanted)
    for ring, line in zip(rings, wanted):
        np.testing.assert_array_equal(ring, shapely.get_coordinates(line))


@pytest.mark.parametrize("flavor", ["extended", "iso"])
@pytest.mark.parametrize("axes", ["", "Z", "M", "ZM"])
def test_heights_and_measures_are_left_out(axes: str, flavor: str) -> None:
    """Either way of writing them, in a polygon and in the parts of several."""
    more = " 9" * len(axes)
    outer = ", ".join(f"{x} {y}{more}" for x, y in ((0, 0), (4, 0), (4, 4), (0, 4), (0, 0)))
    inner = ", ".join(f"{x} {y}{more}" for x, y in ((1, 1), (2, 1), (2, 2), (1, 1)))
    for text in (
        f"POLYGON {axes} (({outer}), ({inner}))",
        f"MULTIPOLYGON {axes} ((({outer}), ({inner})), (({outer})))",
    ):
        geometry = shapely.from_wkt(text)
        rings = read_wkb(shapely.to_wkb(geometry, output_dimension=4, flavor=flavor)).rings
        wanted = shapely.get_rings(shapely.get_parts(geometry))
        assert len(rings) == len(wanted)
        for ring, line in zip(rings, wanted):
            np.testing.assert_array_equal(ring, shapely.get_coordinates(line))


def test_other_geometries_are_refused() -> None:
    nested = b"\x01" + struct.pack("<II", 6, 1)
    unknown = [b"\x01" + struct.pack("<I", kind) + shapely.to_wkb(_SQUARE)[5:] for kind in (4003, 0x10000003)]
    for content in (shapely.to_wkb(shapely.Point(1, 2)), nested * 3, shapely.to_wkb(_SQUARE)[:-4], b"", *unknown):
        with pytest.raises((ValueError, struct.error)):
            read_wkb(content)


def test_a_pose_found_from_corners_has_those_very_corners() -> None:
    """To the last bit: whether an object is straight behind can hang on it."""
    random = np.random.default_rng(0)
    for _ in range(300):
        size = random.uniform(0.2, 12.0, 2)
        heading = random.choice([0.0, np.pi / 2, np.pi, random.uniform(-np.pi, np.pi)])
        center = np.array([random.uniform(3e5, 7e5), random.uniform(1e5, 5e6)])
        corners = box_corners(center, np.array(heading), size / 2)
        x, y, found = _box_pose(corners, size)
        np.testing.assert_array_equal(box_corners(np.array([x, y]), np.array(found), size / 2), corners)
        assert abs(np.angle(np.exp(1j * (found - heading)))) < 1e-8


def test_the_order_of_objects_agrees_with_every_step() -> None:
    """d is seen in one late frame only: present at all steps, but behind what was discovered before (metric 4.2)."""
    steps = [["a", "d", "p"], ["a", "b", "d", "p"], ["b", "c", "d", "p"], ["c", "d", "e", "p"]]
    order = _official_order(steps, {**dict.fromkeys("abcde", 0), "p": 1})
    assert order == tuple("abcdep")


def test_lights_are_red_at_the_steps_that_list_them() -> None:
    shape = read_wkb(shapely.to_wkb(_SQUARE))
    steps = [(["red_light_7"], [shape])] * 5 + [(["red_light_7", "red_light_8"], [shape, shape])] * 5 + [([], [])] * 31
    found = _lights(SimpleNamespace(_occupancy_maps_tl=steps))  # type: ignore[arg-type]
    assert found["light_ids"] == ("7", "8")
    assert np.flatnonzero(found["light_red"][0]).tolist() == list(range(10))
    assert np.flatnonzero(found["light_red"][1]).tolist() == list(range(5, 10))
    assert len(found["lights"]) == 2
