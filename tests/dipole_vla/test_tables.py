"""Scenes and candidates at the border: the values of the files, and a line that names the scene which is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_from_disk
from small_data import train, write_inputs, write_manifest

from dipole_vla.advantage import group_relative, informative
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.evaluation.choice import _metric
from dipole_vla.policy import load_policy
from dipole_vla.policy.critic import refuse_other_metric
from dipole_vla.training import CriticModule, DipoleModule, ImitationModule
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json, write_json
from navsim_adapter.sampling import Sampling


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def changed(inputs: Path, folder: Path, table: str, change: Callable[[dict], object]) -> Path:
    """A copy of the inputs with `change` made to the columns of one table; `change` may return other columns."""
    shutil.copytree(inputs, folder)
    columns = load_from_disk(str(inputs / table)).to_dict()
    columns = change(columns) or columns
    facts = {path.name: path.read_bytes() for path in (inputs / table).glob("*s.json") if path.name != "manifest.json"}
    shutil.rmtree(folder / table)
    Dataset(columns if isinstance(columns, pa.Table) else pa.table(columns)).save_to_disk(str(folder / table))
    for name, content in facts.items():
        (folder / table / name).write_bytes(content)
    write_manifest(folder / table)
    return folder


def noted(inputs: Path, folder: Path, **facts) -> Path:
    """A copy of the inputs whose candidates.json says more."""
    shutil.copytree(inputs, folder)
    about = folder / "candidates" / "candidates.json"
    write_json(about, {**read_json(about), **facts})
    write_manifest(about.parent)
    return folder


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_file_to_the_bit(inputs: Path) -> None:
    table, truth = CandidateTable(inputs / "candidates"), load_from_disk(str(inputs / "candidates")).to_dict()
    assert table.tokens == list(dict.fromkeys(truth["token"]))
    for name, ours in (("score", table.score), ("return", table.returns), ("advantage", table.advantage)):
        assert ours.dtype == np.float64
        assert ours.ravel().tolist() == truth[name]
    poses = np.asarray(truth["poses"]).astype(np.float32).reshape(8, 4, 8, 3)
    assert table.poses.shape == poses.shape
    assert np.asarray(table.poses).dtype == np.float32
    for key in (0, 7, -1, slice(2, 5), slice(None), slice(6, 99), slice(5, 2), (slice(None), 0)):
        assert np.array_equal(table.poses[key], poses[key]), key
    scenes = load_from_disk(str(inputs / "scenes")).to_dict()
    assert np.array_equal(SceneTable(inputs / "scenes").futures([3, 1]), np.asarray(scenes["future"])[[3, 1]])


def with_variants(columns: dict) -> dict[str, list]:
    """The same with two rows of source variant after each scene's four."""
    picked = [row for start in range(0, len(columns["token"]), 4) for row in (*range(start, start + 4), start, start)]
    found = {name: [values[row] for row in picked] for name, values in columns.items()}
    is_variant = [place % 6 > 3 for place in range(len(picked))]
    marked = {"index": [place % 6 for place in range(len(picked))], "advantage": 99.0, "score": 0.25, "return": 0.25}
    marked |= {"source": "variant", "poses": [[5.0] * 3] * 8}
    for name, value in marked.items():
        values = value if name == "index" else [value] * len(picked)
        found[name] = [new if yes else old for old, new, yes in zip(found[name], values, is_variant)]
    return found


def test_variants_are_for_who_asks(inputs: Path, tmp_path: Path) -> None:
    folder = changed(inputs, tmp_path / "in", "candidates", with_variants) / "candidates"
    plain, plans = CandidateTable(inputs / "candidates"), CandidateTable(folder)
    assert np.array_equal(plans.poses, plain.poses)
    assert np.array_equal(plans.advantage, plain.advantage)
    everything = CandidateTable(folder, with_variants=True)
    assert everything.poses.shape == (8, 6, 8, 3)
    assert (everything.columns["source"] == "variant").sum(1).tolist() == [2] * 8
    assert np.array_equal(everything.score[:, :4], plain.score)
    pickled = pickle.loads(pickle.dumps(plans))  # noqa: S301
    assert np.array_equal(pickled.poses[3], plain.poses[3])


def test_a_table_of_variants_alone_is_refused(inputs: Path, tmp_path: Path) -> None:
    def alone(columns: dict) -> None:
        columns["source"] = ["variant"] * len(columns["source"])

    with pytest.raises(InputError, match="every row is of source variant"):
        CandidateTable(changed(inputs, tmp_path / "in", "candidates", alone) / "candidates")


def batches_of(kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The poses that a training step of that kind gets, of two steps."""
    seen: list[torch.Tensor] = []
    step = kind.training_step

    def watched(self, batch, number):
        seen.append(batch["poses"])
        return step(self, batch, number)

    monkeypatch.setattr(kind, "training_step", watched)
    train(folder, steps=2, module=kind(folder / "backbone"))
    return seen


@pytest.mark.parametrize(("kind", "rows"), [(DipoleModule, 4), (CriticModule, 6)])
def test_variants_reach_the_critic_and_never_the_pairs_loss(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, rows: int
) -> None:
    folder = changed(inputs, tmp_path / "in", "candidates", with_variants)
    seen = batches_of(kind, folder, monkeypatch)
    assert [poses.shape for poses in seen] == [(4, rows, 8, 3)] * 2
    assert all((poses[:, :4] != 5).any() for poses in seen)
    assert all(((poses == 5).all((2, 3)).sum(1) == rows - 4).all() for poses in seen)


@pytest.mark.parametrize("rows", [1, 3, 7, 32])
def test_values_do_not_depend_on_how_the_file_is_cut(inputs: Path, tmp_path: Path, rows: int) -> None:
    whole = CandidateTable(inputs / "candidates")

    def cut(columns: dict) -> pa.Table:
        table = pa.table(columns)
        return pa.concat_tables([pa.Table.from_batches([batch]) for batch in table.to_batches(max_chunksize=rows)])

    found = CandidateTable(changed(inputs, tmp_path / "in", "candidates", cut) / "candidates")
    assert np.array_equal(found.poses, whole.poses)
    assert all(np.array_equal(found.poses[i], whole.poses[i]) for i in range(8))
    assert np.array_equal(found.advantage, whole.advantage)


@pytest.mark.parametrize("kind", ["float", "halffloat", "fixed", "large"])
def test_other_types_of_numbers_and_lists_are_read(inputs: Path, tmp_path: Path, kind: str) -> None:
    types = {
        "float": pa.list_(pa.list_(pa.float32())),
        "halffloat": pa.list_(pa.list_(pa.float16())),
        "fixed": pa.list_(pa.list_(pa.float64(), 3), 8),
        "large": pa.large_list(pa.large_list(pa.float64())),
    }

    def cast(columns: dict) -> pa.Table:
        poses = pa.array(columns["poses"], pa.list_(pa.list_(pa.float64()))).cast(types[kind], safe=False)
        return pa.table({**columns, "poses": poses})

    found = CandidateTable(changed(inputs, tmp_path / "in", "candidates", cast) / "candidates")
    rounding = 1e-2 if kind == "halffloat" else 0.0
    np.testing.assert_allclose(found.poses, np.asarray(CandidateTable(inputs / "candidates").poses), rtol=rounding)


def test_a_loader_process_gets_the_place_of_the_poses_not_the_poses(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, group=40)
    table = CandidateTable(inputs / "candidates")
    sent = pickle.dumps(table)
    assert len(sent) < np.asarray(table.poses).nbytes / 2
    assert np.array_equal(pickle.loads(sent).poses[5], table.poses[5])  # noqa: S301


# -- what is wrong is named --------------------------------------------------------------------------------------------


def put(name: str, row: int, value) -> Callable[[dict], None]:
    def change(columns: dict) -> None:
        columns[name][row] = value

    return change


def bent(row: int, step: int, value: float) -> Callable[[dict], None]:
    def change(columns: dict) -> None:
        columns["poses"][row][step][1] = value

    return change


def rows_moved(order: Callable[[list[int]], list[int]]) -> Callable[[dict], dict]:
    def change(columns: dict) -> dict:
        chosen = order(list(range(32)))
        return {name: [values[i] for i in chosen] for name, values in columns.items()}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bent(13, 7, float("nan")), r"scene scene03: column poses holds NaN"),
        (bent(31, 0, float("inf")), r"scene scene07: column poses holds NaN or infinity"),
        (put("advantage", 9, float("nan")), r"scene scene02: column advantage holds NaN"),
        (put("score", 4, None), r"scene scene01: column score is null"),
        (put("poses", 20, None), r"scene scene05: column poses is null"),
        (put("poses", 21, [[0.0] * 3] * 6), r"scene scene05: column poses holds a list of 6, .* of 8"),
        (put("poses", 22, [[0.0] * 2] * 8), r"scene scene05: column poses holds a list of 2, .* of 3"),
        (put("poses", 23, [[0.0, 0.0, None]] * 8), r"scene scene05: column poses .*null"),
        (put("token", 5, None), r"column token: row 5"),
        (lambda columns: {**columns, "advantage": ["much"] * 32}, r"column advantage holds string, not numbers"),
        (lambda columns: {**columns, "poses": [[[0.0] * 4] * 8] * 32}, r"column poses .*\(8, 4\)"),
        (put("index", 14, 3), r"scene scene03: a candidate is there twice"),
        (rows_moved(lambda rows: rows[:-1]), r"scene scene07 has 3 rows, the first scene 4"),
        (rows_moved(lambda rows: [*rows, *rows[4:8]]), r"scene scene01 is there twice"),
        (rows_moved(lambda rows: [*rows[:8], *rows[4:]]), r"scene scene01 has 8 rows"),
        (rows_moved(lambda rows: [i for k in rows[:8] for i in (k, k)]), r"scene scene00: a candidate is there twice"),
        (
            rows_moved(lambda rows: rows[::2] + rows[1::2]),
            r"scene00 is there twice, or its rows are not together",
        ),
    ],
)
def test_the_scene_of_a_wrong_candidate_is_named(inputs: Path, tmp_path: Path, change, words: str) -> None:
    folder = changed(inputs, tmp_path / "in", "candidates", change) / "candidates"
    with pytest.raises(InputError, match=rf"in/candidates: .*{words}"):
        CandidateTable(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("token", 5, "scene02"), r"scene scene02 is there twice"),
        (put("history", 3, [[0.0, float("nan"), 0.0]] * 4), r"scene scene03: column history holds NaN"),
        (put("velocity", 2, [float("inf"), 0.0]), r"scene scene02: column velocity holds NaN or infinity"),
        (put("acceleration", 6, None), r"scene scene06: column acceleration is null"),
        (put("log_name", 1, None), r"column log_name: row 1"),
        (put("command", 4, None), r"scene scene04: column command is null"),
        (lambda columns: columns.update(history=[rows[1:] for rows in columns["history"]]), r"column history has rows"),
    ],
)
def test_a_scene_that_cannot_be_is_named_when_its_table_is_opened(inputs, tmp_path, change, words) -> None:
    folder = changed(inputs, tmp_path / "in", "scenes", change) / "scenes"
    with pytest.raises(InputError, match=rf"in/scenes: {words}"):
        SceneTable(folder)


def test_a_future_that_is_no_number_is_named_and_not_the_scenes_it_would_spoil(inputs, tmp_path) -> None:
    future = [[float("nan")] * 3] * 8
    folder = changed(inputs, tmp_path / "in", "scenes", put("future", 5, future))
    for fit_action in (True, False):
        with pytest.raises(InputError, match=r"scenes: scene scene05: column future holds NaN"):
            train(folder, 1, {"candidates": None}, module=ImitationModule(inputs / "backbone", fit_action=fit_action))
    assert SceneTable(folder / "scenes").futures([4, 6]).shape == (2, 8, 3)
    with pytest.raises(InputError, match="scene05"):
        SceneTable(folder / "scenes").futures(range(4, 6))


@pytest.mark.parametrize("module", [DipoleModule, CriticModule])
def test_candidates_of_another_length_are_told_with_both_lengths(inputs, tmp_path, module) -> None:
    def shorter(columns: dict) -> None:
        columns["poses"] = [poses[:6] for poses in columns["poses"]]

    folder = changed(inputs, tmp_path / "in", "candidates", shorter)
    with pytest.raises(InputError, match=r"in/candidates: candidates have 6 poses, the backbone's plans have 8"):
        train(folder, 1, module=module(inputs / "backbone"))


def test_futures_of_another_length_are_told_with_both_lengths(inputs, tmp_path) -> None:
    def shorter(columns: dict) -> None:
        columns["future"] = [poses[:6] for poses in columns["future"]]

    folder = changed(inputs, tmp_path / "in", "scenes", shorter)
    with pytest.raises(InputError, match=r"in/scenes: human futures have 6 poses, the backbone's plans have 8"):
        train(folder, 1, {"candidates": None}, module=ImitationModule(inputs / "backbone"))
    with pytest.raises(InputError, match=r"have 6 poses, .* have 8"):  # beside what a policy drew
        SceneTable(folder / "scenes").futures_at(Sampling(8), range(4))


def test_futures_are_brought_to_the_times_of_the_plans(inputs) -> None:
    table = SceneTable(inputs / "scenes")
    logged = table.futures()
    assert np.array_equal(table.futures_at(Sampling(4, 1.0)), logged[:, 1::2])
    dense = table.futures_at(Sampling(16, 0.25), [2])
    assert np.array_equal(dense[:, 1::2], logged[2:3])
    np.testing.assert_allclose(dense[0, 0, :2], logged[2, 0, :2] / 2)


@pytest.mark.parametrize("module", [DipoleModule, CriticModule])
def test_candidates_of_another_interval_are_refused(inputs, tmp_path, module) -> None:
    folder = noted(inputs, tmp_path / "in", interval=0.25)
    with pytest.raises(InputError, match=r"candidates have 8 poses every 0.25 s, .* have 8 poses every 0.5 s"):
        train(folder, 1, module=module(inputs / "backbone"))


@pytest.mark.parametrize("interval", [0, -1, "0.5", None])
def test_an_interval_that_is_none_is_named(inputs, tmp_path, interval) -> None:
    folder = noted(inputs, tmp_path / "in", interval=interval)
    with pytest.raises(InputError, match=r"candidates.json: interval: must be seconds"):
        CandidateTable(folder / "candidates")


# -- who drove, and by which metric ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [DipoleModule, CriticModule])
def test_candidates_that_another_base_drove_are_refused(inputs, tmp_path, module) -> None:
    folder = noted(inputs, tmp_path / "in", omega=None, policy_fingerprint="0" * 64)
    with pytest.raises(InputError, match=r"in/candidates: was driven by base 0{12}…, this training's is "):
        train(folder, 1, module=module(inputs / "backbone"))


@pytest.mark.parametrize(("rule", "routing"), [("dichotomous", "bernoulli"), ("indicator", "both")])
def test_in_every_rule(inputs, tmp_path, rule, routing) -> None:
    folder = noted(inputs, tmp_path / "in", omega=None, policy_fingerprint="0" * 64)
    with pytest.raises(InputError, match="was driven by base"):
        train(folder, 1, rule=rule, routing=routing)


def test_the_reference_of_a_policy_is_its_base(inputs, tmp_path, capsys) -> None:
    """`collect --policy POLICY --omega null` switches the adapters off: the policy's own fingerprint is another."""
    own = load_policy(inputs / "backbone", device="cpu").fingerprint
    train(noted(inputs, tmp_path / "a", policy_fingerprint="1" * 64, base_fingerprint=own), 1)
    assert "drove" not in capsys.readouterr().out
    train(noted(inputs, tmp_path / "b", policy_fingerprint="1" * 64, base_fingerprint=own, omega=1.5), 1)
    assert "was driven with omega 1.5 by a guided policy, not by the base" in capsys.readouterr().out
    train(noted(inputs, tmp_path / "c", policy_fingerprint="1" * 64, base_fingerprint="2" * 64, omega=1.5), 1)
    assert "a guided policy of another base" in capsys.readouterr().out
    train(inputs, 1)
    assert "does not say which policy drove" in capsys.readouterr().out


def test_a_critic_of_another_metric_is_refused_and_a_start_is_said_and_recorded(inputs, tmp_path, capsys) -> None:
    for name, module in (("critic", CriticModule(inputs / "backbone")), ("policy", None)):
        train(inputs, 1, module=module)[0].export(tmp_path / name, {})
    assert json.loads((tmp_path / "critic" / "provenance.json").read_text())["metric"] == "pdms-v1.1"
    other = noted(inputs, tmp_path / "in", metric="epdms-v2.2")
    with pytest.raises(InputError, match=r"critic: learned scores by pdms-v1\.1, .* is scored by epdms-v2\.2"):
        train(other, 1, critic=tmp_path / "critic")
    train(inputs, 1, critic=tmp_path / "critic", start=tmp_path / "policy")
    assert "pdms" not in capsys.readouterr().out
    further, _ = train(other, 1, start=tmp_path / "policy")
    assert "policy: was trained on pdms-v1.1, " in capsys.readouterr().out
    further.export(tmp_path / "further", {})
    made = json.loads((tmp_path / "further" / "policy.json").read_text())["provenance"]
    assert (made["metric"], made["start_metric"]) == ("epdms-v2.2", "pdms-v1.1")


def test_a_critic_from_before_metrics_were_noted_is_one_line(tmp_path) -> None:
    assert "old: does not say by which metric" in str(refuse_other_metric("old", {}, tmp_path, "pdms-v1.1"))
    assert "new: does not say" in str(refuse_other_metric("c", {"metric": "pdms-v1.1"}, Path("new"), None))


def test_two_scorers_without_a_metric_of_their_own_are_two_metrics() -> None:
    mine, theirs = {"class": "a.Mine", "metric": None}, {"class": "b.Theirs", "metric": None}
    assert _metric(mine) != _metric(theirs)
    assert _metric({"class": "a.A", "metric": "pdms"}) == _metric({"class": "b.B", "metric": "pdms"})


# -- no preference -----------------------------------------------------------------------------------------------------


def test_scores_and_the_advantages_made_of_them_name_the_same_scenes() -> None:
    import torch

    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(400, 17))
    scores[::4] = scores[::4, :1]  # alike
    scores[1::4] = scores[1::4, :1] + rng.uniform(0, 1e-7, size=(100, 17))  # by rounding only
    scores[2::4, 1:] = scores[2::4, :1] - 2e-6  # one stands out, just
    advantage = group_relative(torch.from_numpy(scores)).numpy()
    assert informative(scores).sum() == 200
    assert np.array_equal(informative(scores), informative(advantage))
