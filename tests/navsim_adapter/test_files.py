"""Files appear whole or not at all; folders know whether they are finished and by what."""

import pytest

from navsim_adapter.errors import InputError
from navsim_adapter.files import atomic_path, begin, finish, is_complete, stamp, verify, write_text


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
