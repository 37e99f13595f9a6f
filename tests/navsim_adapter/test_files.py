"""Files appear whole or not at all; folders know whether they are finished and by what."""

from pathlib import Path

import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import (
    atomic_path,
    begin,
    differs,
    finish,
    is_complete,
    stamp,
    verify,
    write_once,
    write_text,
)
from navsim_adapter.foundation.option_checks import local_path


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def killed() -> None:
        with atomic_path(tmp_path / "a.txt") as aside:
            aside.write_text("half of the ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        killed()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_stage_runs_once_and_goes_on_when_unfinished(tmp_path):
    out, made_by = tmp_path / "out", {"command": "x", "seed": 0}
    assert begin(out, made_by)
    assert begin(out, made_by), "unfinished: goes on"
    write_text(out / "a.txt", "content")
    finish(out, made_by)
    assert not begin(out, made_by), "finished: nothing to do"


def test_a_folder_whose_inputs_changed_is_unfinished_from_then_on(tmp_path):
    out, made_by = tmp_path / "out", {"command": "x"}
    assert begin(out, made_by, {"inputs": "old"})
    finish(out, {**made_by, "inputs": "old"})
    assert not begin(out, made_by, {"inputs": "old"})
    assert begin(out, made_by, {"inputs": "new"})
    assert not is_complete(out), "nobody takes it for whole while it is made anew"


def test_a_folder_of_another_run_is_refused_with_both_values(tmp_path):
    begin(tmp_path / "out", {"command": "x", "model": {"seed": 0}})
    write_text(tmp_path / "out" / "parts" / "0", "made")
    with pytest.raises(InputError, match=r"model\.seed.*0.*1"):
        begin(tmp_path / "out", {"command": "x", "model": {"seed": 1}})


def test_a_folder_that_holds_nothing_but_its_stamp_is_anybodys(tmp_path):
    out = tmp_path / "out"
    begin(out, {"seed": 0})
    (out / ".lock").touch()
    (out / ".a.part").write_text("half")  # of a writer that was killed
    (out / "parts").mkdir()
    write_text(out / "recipe.yaml", "seed: 0")
    with pytest.raises(InputError, match=r"seed: .* 0, now 1"):
        begin(out, {"seed": 1})
    assert begin(out, {"seed": 1}, passing=("recipe.yaml",))
    assert not (out / "recipe.yaml").exists(), "nothing of the other run is left"
    assert begin(out, {"seed": 2})


def test_what_both_records_have_explains_the_difference():
    one, two = {"candidates": 1, "format": "peft"}, {"format": "torchscript", "omega": None}
    assert differs("this folder", two, one).startswith("format: this folder was made with 'torchscript', now 'peft'")


def test_a_file_without_record_is_written_once(tmp_path):
    write_once(tmp_path / "a", b"one")
    write_once(tmp_path / "a", b"one")
    with pytest.raises(InputError, match=r"/a: is there and holds something else"):
        write_once(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


NO_PATHS = ["s3://b/r", "S3:/b/r", "gs://b", "hdfs:///r", "hdfs:r", "file:///r", "user@host:/r", "host:/r"]


@pytest.mark.parametrize("text", [*NO_PATHS, "~/r", "~", "~me/r", "$HOME/r", "a/$X", "${oc.env:HOME}/r"])
def test_what_is_no_path_of_this_machine_is_told(text):
    for path in (text, Path(text)):
        with pytest.raises(InputError, match=r"^--out: "):
            local_path("--out", path)


@pytest.mark.parametrize("text", ["runs/a", "/r", "a~b", "run:1", "2026-01-01T10:00", "a b/ä", "../r", "."])
def test_other_names_are_paths(text):
    assert local_path("--out", text) == Path(text)


def test_a_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="something else"):
        begin(tmp_path, {"command": "x"})


def test_damage_is_noticed(tmp_path):
    begin(tmp_path / "out", {"command": "x"})
    write_text(tmp_path / "out" / "a.txt", "content")
    finish(tmp_path / "out", {"command": "x"})
    verify(tmp_path / "out")
    first = stamp(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("c0ntent")
    assert is_complete(tmp_path / "out"), "same size: the cheap check cannot see it"
    with pytest.raises(InputError, match=r"a\.txt"):
        verify(tmp_path / "out")
    (tmp_path / "out" / "a.txt").unlink()
    assert not is_complete(tmp_path / "out")
    assert len(first) == 16


def test_excluded_entries_are_not_part_of_the_result(tmp_path):
    begin(tmp_path / "out", {})
    write_text(tmp_path / "out" / "logs" / "log.csv", "1")
    write_text(tmp_path / "out" / "a.txt", "1")
    finish(tmp_path / "out", {}, exclude=("logs",))
    write_text(tmp_path / "out" / "logs" / "log.csv", "1,2,3")
    assert is_complete(tmp_path / "out")
