"""Pictures: read as their file says, and known again wherever they lie."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_backbone import make_backbone
from small_data import train, write_inputs

from dipole_vla.backbones import FAMILIES, backbone_class
from dipole_vla.backbones.base import Showing
from dipole_vla.backbones.example import SCENE, example_observation
from dipole_vla.data.contexts import Encoder, Ranks, make_contexts
from dipole_vla.data.pictures import checksums, pictures_entry, read_picture, sample
from dipole_vla.data.tables import SceneTable
from navsim_adapter.foundation.errors import InputError

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def saved(image: Image.Image, path: Path, **options) -> np.ndarray:
    image.save(path, **options)
    return np.asarray(read_picture(path))


# -- a server's way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_pictures_shown_before_give_the_same_observation(family: str) -> None:
    backbone = backbone_class(family).tiny()
    example_observation(backbone, 1)  # gives it a tokenizer
    processor = backbone.processor()
    assert isinstance(processor, Showing)
    generator = np.random.default_rng(0)
    images = {
        camera: Image.fromarray(generator.integers(0, 256, (54, 96, 3), dtype=np.uint8)) for camera in processor.cameras
    }
    first = next(iter(images))
    mixed = {**images, first: processor.shown(images[first])}  # one came in time, the others did not
    wanted, found = processor(SCENE, images), processor(SCENE, mixed)
    assert wanted.keys() == found.keys()
    assert all(wanted[name].equal(found[name]) for name in wanted)


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [256, 257])
def test_sixteen_bits_of_grey_become_eight(tmp_path: Path, factor: int) -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * factor)
    assert deep.mode == "I;16"
    assert np.array_equal(saved(deep, tmp_path / "x.png"), np.stack([RAMP] * 3, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_other_modes_look_as_they_are_shown(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(saved(image, tmp_path / "x.png"), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_looks_as_it_is_shown(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    found = saved(red, tmp_path / "x.jpg", quality=100)
    np.testing.assert_allclose(found[8, 8], (200, 30, 40), atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_says_it_lies_on_its_side_is_turned(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(image, tmp_path / "x.png", exif=exif.tobytes())
    with Image.open(tmp_path / "x.png") as file:
        assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(file)))


def test_rubbish_in_exif_says_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP).convert("RGB")
    assert np.array_equal(saved(image, tmp_path / "x.png", exif=b"Exif\0\0rubbish"), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_pixels_that_show_what_lies_behind_are_refused_by_name(inputs, tmp_path, mode) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(RAMP))
    options = {"transparency": 3} if mode in ("P", "L") else {}
    table = SceneTable(inputs / "scenes", tmp_path)
    row = {"token": "scene03", "cameras": {"CAM_F0": "x.png"}}
    image.save(tmp_path / "x.png", **options)
    with pytest.raises(InputError, match=r"x\.png: picture of scene scene03 .*transparent"):
        table.images(row, ["CAM_F0"])


# -- whose they are ----------------------------------------------------------------------------------------------------


def invert(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        ImageOps.invert(Image.open(path)).save(path)


@pytest.fixture
def moved(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs / "pictures", tmp_path / "moved")
    return tmp_path / "moved"


def encoder() -> Encoder:
    backbone = make_backbone()
    return Encoder(backbone.encode, backbone.processor(), backbone.fingerprint(), backbone.device)


def test_pictures_that_moved_are_the_same_and_those_that_changed_are_not(inputs, moved) -> None:
    known = SceneTable(inputs / "scenes").pictures
    assert set(known) == {"CAM_F0", "CAM_L0", "CAM_R0"}
    assert SceneTable(inputs / "scenes", moved).pictures == known
    invert(moved / "scene04")
    found = SceneTable(inputs / "scenes", moved).pictures
    assert all(found[name] != known[name] for name in known)


def test_one_picture_edited_in_place_is_seen_in_its_camera(inputs, moved) -> None:
    known = SceneTable(inputs / "scenes").pictures
    path = moved / "scene06" / "CAM_L0.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # as long as before
    path.write_bytes(content)
    found = SceneTable(inputs / "scenes", moved).pictures
    assert [name for name in known if found[name] != known[name]] == ["CAM_L0"]


def test_a_large_table_costs_a_few_hundred_files(tmp_path: Path) -> None:
    asked: list[int] = []

    def cameras(chosen: list[int]) -> list[dict]:
        asked.extend(chosen)
        return [{"CAM_F0": f"{i}.jpg"} for i in chosen]

    tokens = [f"{i:016x}" for i in range(100_000)]
    assert checksums(tmp_path, tokens, cameras) == {"CAM_F0": None}
    assert len(asked) <= 100
    assert {0, 99_999} < set(asked)
    assert max(np.diff(asked)) < 8000  # spread
    assert sample(["one"]) == [0]


def test_what_cannot_be_compared_keeps_what_is_recorded(capsys, tmp_path) -> None:
    now = {"CAM_F0": "new", "CAM_L0": None}
    assert pictures_entry(now, None, tmp_path) == {"pictures": now}
    assert pictures_entry(now, {"pictures": {"CAM_F0": "old", "CAM_L0": "left"}}, tmp_path) == {
        "pictures": {"CAM_F0": "new", "CAM_L0": "left"}
    }
    assert "CAM_L0 are not there" in " ".join(capsys.readouterr().out.split())
    assert pictures_entry(now, {"pictures": {"CAM_F0": None}}, tmp_path) == {"pictures": {"CAM_F0": None}}
    assert pictures_entry(now, {"command": "contexts"}, tmp_path) == {}
    assert "does not say of which pictures" in " ".join(capsys.readouterr().out.split())


def test_contexts_of_other_pictures_are_refused(inputs, tmp_path, moved) -> None:
    train(inputs, 1, {"contexts": tmp_path / "c"})
    train(inputs, 1, {"contexts": tmp_path / "c", "sensors": moved})
    invert(moved)
    with pytest.raises(InputError, match=r"c: pictures\.CAM_"):
        train(inputs, 1, {"contexts": tmp_path / "c", "sensors": moved})


def test_contexts_begun_of_some_pictures_are_not_ended_of_others(inputs, tmp_path, moved) -> None:
    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    scenes = SceneTable(inputs / "scenes")
    with pytest.raises(Killed):
        make_contexts(tmp_path / "c", encoder(), scenes, "model", 3, Ranks(0, 2, kill))
    (tmp_path / "c" / "00000.safetensors").touch()  # with less the folder would be free
    invert(moved)
    for rank in (0, 1):
        with pytest.raises(InputError, match=r"pictures\.CAM_"):
            make_contexts(
                tmp_path / "c", encoder(), SceneTable(inputs / "scenes", moved), "model", 3, Ranks(rank, 2, kill)
            )


def test_a_rank_that_sees_other_pictures_than_the_one_that_began_is_refused(inputs, tmp_path, moved) -> None:
    """Rank 1 comes first, finds nothing to compare with and waits; meanwhile rank 0 begins."""
    invert(moved)

    def wait() -> None:
        if not (tmp_path / "c").exists():
            with pytest.raises(EOFError):
                make_contexts(tmp_path / "c", encoder(), SceneTable(inputs / "scenes"), "model", 3, Ranks(0, 2, stop))

    def stop() -> None:
        raise EOFError

    with pytest.raises(InputError, match=r"pictures\.CAM_"):
        make_contexts(tmp_path / "c", encoder(), SceneTable(inputs / "scenes", moved), "model", 3, Ranks(1, 2, wait))


def test_an_empty_stream_of_bytes_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(io.BytesIO().getvalue())
    with pytest.raises(InputError, match=r"x\.jpg: picture cannot be read"):
        read_picture(tmp_path / "x.jpg")
