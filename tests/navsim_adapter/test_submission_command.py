"""`navsim-adapter submission`: tables in, a complete submission out, or a line for everything that is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.commands.submission import add_arguments, expected_tokens, run
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.submission import read_submission

NOW, BEFORE, LATER, LATER_BEFORE = "a" * 16, "b" * 16, "c" * 17, "d" * 17
TEAM = ["--team-name", "T", "--authors", "A", "B", "--email", "a@b.org", "--institution", "I", "--country", "C"]


def command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([*map(str, arguments)]))


def table(path: Path, *tokens: str, names: tuple[str, ...] = ("mine",)) -> Path:
    rows = [(token, name) for token in tokens for name in names]
    token, name = zip(*rows)
    np.savez(path, token=np.array(token), name=np.array(name), poses=np.ones((len(rows), 8, 3)))
    return path


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps([[NOW, BEFORE, [[LATER, LATER_BEFORE]]]]))
    return path


def test_two_tables_make_a_two_stage_submission(
    tmp_path: Path, mapping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = table(tmp_path / "1.npz", NOW, BEFORE), table(tmp_path / "2.npz", LATER, LATER_BEFORE)
    file = tmp_path / "s.pkl"
    command(file, "--trajectories", first, "--second-stage-trajectories", second, "--expect", mapping, *TEAM)
    assert "complete and readable" in capsys.readouterr().out
    content = read_submission(file)
    assert set(content["second_stage_predictions"][0]) == {LATER, LATER_BEFORE}
    command(file, "--check", "--expect", mapping)


def test_an_incomplete_submission_is_not_left_behind(tmp_path: Path, mapping: Path) -> None:
    file = tmp_path / "s.pkl"
    tables = [
        "--trajectories",
        table(tmp_path / "1.npz", NOW),
        "--second-stage-trajectories",
        table(tmp_path / "2.npz", LATER),
    ]
    with pytest.raises(InputError, match="first_stage_predictions: 1 of 2 scenes have no trajectory"):
        command(file, *tables, "--expect", mapping, *TEAM)
    assert not file.exists()


def test_a_refused_submission_leaves_the_earlier_one(tmp_path: Path, mapping: Path) -> None:
    file, first = tmp_path / "s.pkl", table(tmp_path / "1.npz", NOW, BEFORE)
    stages = ["--trajectories", first, "--second-stage-trajectories", table(tmp_path / "2.npz", LATER, LATER_BEFORE)]
    command(file, *stages, "--expect", mapping, *TEAM)
    before = file.read_bytes()
    table(first, NOW)
    with pytest.raises(InputError, match="1 of 2 scenes have no trajectory"):
        command(file, *stages, "--expect", mapping, *TEAM)
    assert file.read_bytes() == before


def test_scenes_that_are_not_asked_for_are_left_out(tmp_path: Path, mapping: Path, capsys) -> None:
    first, second = table(tmp_path / "1.npz", NOW, BEFORE, "e" * 16), table(tmp_path / "2.npz", LATER, LATER_BEFORE)
    stages = ["--trajectories", first, "--second-stage-trajectories", second]
    command(tmp_path / "s.pkl", *stages, "--expect", mapping, *TEAM)
    assert f"left out: 1 of 3 scenes of {first}" in capsys.readouterr().err
    assert set(read_submission(tmp_path / "s.pkl")["first_stage_predictions"][0]) == {NOW, BEFORE}


def test_a_submission_of_other_plans_is_not_replaced(tmp_path: Path) -> None:
    file, first = tmp_path / "s.pkl", table(tmp_path / "1.npz", NOW)
    for _ in range(2):  # the same once more is fine
        command(file, "--trajectories", first, *TEAM)
    before = file.read_bytes()
    with pytest.raises(InputError, match="is there and holds something else; remove it"):
        command(file, "--trajectories", table(tmp_path / "2.npz", BEFORE), *TEAM)
    assert file.read_bytes() == before


def test_a_table_is_not_overwritten_by_its_submission(tmp_path: Path) -> None:
    first = table(tmp_path / "1.npz", NOW)
    before = first.read_bytes()
    with pytest.raises(InputError, match="is an input of this command"):
        command(first, "--trajectories", first, *TEAM)
    assert first.read_bytes() == before


def test_a_check_leaves_the_file_alone(tmp_path: Path, mapping: Path) -> None:
    file = tmp_path / "s.pkl"
    command(file, "--trajectories", table(tmp_path / "1.npz", NOW, BEFORE), *TEAM)
    with pytest.raises(InputError, match="second_stage_predictions: missing"):
        command(file, "--check", "--expect", mapping)
    assert file.exists()


def test_one_planner_is_chosen_by_name(tmp_path: Path) -> None:
    several = table(tmp_path / "1.npz", NOW, names=("mine", "other"))
    with pytest.raises(InputError, match="holds 2 planners"):
        command(tmp_path / "s.pkl", "--trajectories", several, *TEAM)
    with pytest.raises(InputError, match="no trajectory named 'nobody'"):
        command(tmp_path / "s.pkl", "--trajectories", several, "--name", "nobody", *TEAM)
    command(tmp_path / "s.pkl", "--trajectories", several, "--name", "other", *TEAM)
    assert set(read_submission(tmp_path / "s.pkl")["predictions"][0]) == {NOW}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("t.txt", f"{NOW}\n{BEFORE}\n", ({NOW, BEFORE}, None)),
        ("t.txt", f"{NOW}\n{LATER}\n", ({NOW}, {LATER})),
        ("f.yaml", f"tokens: [{NOW}]\n", ({NOW}, None)),
        ("f.yaml", f"tokens: [{NOW}]\nreactive_synthetic_initial_tokens: [{LATER}]\n", ({NOW}, {LATER})),
        ("s.yaml", f"reactive_all_mapping:\n- [{NOW}, {BEFORE}, [[{LATER}, {LATER_BEFORE}]]]\n", "mapping"),
    ],
)
def test_expected_tokens_come_from_the_devkits_files(tmp_path: Path, name: str, text: str, wanted: object) -> None:
    (tmp_path / name).write_text(text)
    found = expected_tokens(tmp_path / name)
    assert found == (({NOW, BEFORE}, {LATER, LATER_BEFORE}) if wanted == "mapping" else wanted)


def test_rendered_scenes_of_either_list_are_expected(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("tokens: ['a']\nsynthetic_scene_tokens: ['b', 'c']\n")
    assert expected_tokens(path) == ({"a"}, {"b", "c"})
    path.write_text(
        "tokens: ['a']\nsynthetic_scene_tokens: ['b', 'c']\nreactive_synthetic_initial_tokens: ['c', 'd']\n"
    )
    assert expected_tokens(path) == ({"a"}, {"c"})
    path.write_text("tokens: ['a', 1234567812345678]\n")
    with pytest.raises(InputError, match="1234567812345678 is read as int"):
        expected_tokens(path)


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(f"\ufeff{NOW}\r\n{BEFORE}\r\n".encode())
    assert expected_tokens(tmp_path / "t.txt") == ({NOW, BEFORE}, None)
    (tmp_path / "w.txt").write_bytes(f"{NOW}\r\n".encode("utf-16"))
    assert expected_tokens(tmp_path / "w.txt") == ({NOW}, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.yaml", "tokens: null\n", "names no tokens"),
        ("f.yaml", "a: [", "cannot be parsed"),
        ("m.json", "[[1, 2]]", "not a list of"),
        ("m.json", "3", "not a list of"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        expected_tokens(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        expected_tokens(tmp_path / "nowhere.yaml")
