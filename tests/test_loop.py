"""The main loop through the real command lines: what it leaves, what a second run does, what a kill costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file

from dipole_vla.cli import main
from dipole_vla.commands.fit import newest_checkpoint
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.guidance import SIGNS
from dipole_vla.policy import load_policy
from dipole_vla.training import DipoleModule
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import verify
from navsim_adapter.scoring.scorer import Scorer
from tests.same_numbers import MAGNIFIED, assert_same_numbers
from tests.small_loop import small_steps

STAGES = ("imitation", "candidates", "critic", "dipole", "validation", "evaluation", "report")


def test_every_stage_ends_with_a_manifest_that_holds(loop: Path) -> None:
    for stage in STAGES:
        verify(loop / stage)


def test_summary_has_the_promised_fields(loop: Path) -> None:
    summary = json.loads((loop / "evaluation" / "summary.json").read_text())
    assert summary["metric"] == "pdms-v1.1"
    assert (summary["split"], summary["rl_split"], summary["rl_on_eval_split"]) == ("test", "trainval", False)
    assert (summary["chosen"]["on"], summary["chosen"]["on_these_scenes"]) == ("mini", False)
    validation = json.loads((loop / "validation" / "summary.json").read_text())
    for name in ("omega", "candidates", "start_scale", "references", "standard_error", "within_one_error"):
        assert summary["chosen"][name] == validation["chosen"][name]
    rows = {(row["policy"], row["omega"], row["candidates"]) for row in summary["rows"]}
    assert {("human", None, 1), ("reference", None, 1), ("reference", None, 2)} < rows
    assert {("dipole", omega, n) for omega in (-1.0, 0.0, 1.0) for n in (1, 2)} < rows
    for row in summary["rows"]:
        low, high = row["ci95"]
        assert low <= row["score"] <= high  # of three logs: a t interval may reach beyond 0 and 1
        assert 0 <= row["score"] <= 1
        assert set(summary["sub_scores"]) < row.keys()


def test_evaluation_rows_carry_the_scorers_own_figures(loop: Path) -> None:
    rows = pd.read_parquet(loop / "evaluation" / "rows.parquet")
    of_reference, of_pair = 1 + 2 + 1, 3 * (1 + 2)  # one plan at start noise 0, N = 1 and 2 at 1, the mean of three
    assert len(rows) == 6 * (1 + of_reference + of_pair + 1)
    scorer = Scorer(loop / "cache" / "test")
    for _, row in rows.sample(10, random_state=0).iterrows():
        poses = np.stack([np.asarray(pose) for pose in row["poses"]])
        again = scorer.score([row["token"]], poses[None, None])
        assert again.score[0, 0] == row["score"]


def test_the_navsim_csv_ends_with_the_average(loop: Path) -> None:
    table = pd.read_csv(loop / "evaluation" / "scores.csv", index_col=0)
    assert list(table.columns)[:3] == ["token", "valid", "no_at_fault_collisions"]
    assert table.iloc[-1]["token"] == "average"
    assert table.iloc[-1]["score"] == pytest.approx(table["score"][:-1].mean())


def test_candidates_hold_the_human_and_group_relative_advantages(loop: Path) -> None:
    table = CandidateTable(loop / "candidates")
    scenes = SceneTable(loop / "scenes" / "train")
    assert table.poses.shape == (12, 4, 8, 3)
    assert np.allclose(table.poses[:, 0], scenes.futures(), atol=1e-5)
    for advantage, score in zip(table.advantage, table.score):
        spread = score.std()
        expected = (score - score.mean()) / (spread + 1e-6) if np.ptp(score) > 1e-6 else 0 * score
        assert np.allclose(advantage, expected)


def test_a_finished_loop_runs_again_without_doing_anything(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (loop / stage).rglob("*") if path.is_file()}
    for line in small_steps(loop):
        if line[0] == "dipole-vla":
            assert main(line[1:]) == 0
    after = {path: path.stat().st_mtime_ns for stage in STAGES for path in (loop / stage).rglob("*") if path.is_file()}
    assert before == after


def test_a_round_collects_with_the_guided_policy_and_trains_on_what_it_drove(loop: Path) -> None:
    for line in small_steps(loop, rounds=1)[len(small_steps(loop)) :]:
        assert main(line[1:]) == 0, line
    folder = loop / "round-1"
    for stage in STAGES[1:]:
        verify(folder / stage)
    rows, earlier = (load_from_disk(str(place / "candidates")).to_pandas() for place in (folder, loop))
    assert set(rows["source"]) == {"human", "guided"}
    assert set(earlier["source"]) == {"human", "reference"}

    scenes = SceneTable(loop / "scenes" / "train")
    policy = load_policy(loop / "dipole", device="cpu")
    batch = next(batches(scenes, range(len(scenes)), policy.processor, 32, policy.device))
    noise = start_noise(batch.tokens, 3, policy.noise_shape, 0)
    with torch.inference_mode():
        driven = policy.sample(batch.observation, omega=1.0, candidates=3, noise=noise).numpy()
    found = np.stack([np.stack(pose) for pose in rows[rows["source"] == "guided"]["poses"]])
    assert_same_numbers(found.reshape(driven.shape).astype(driven.dtype), driven, MAGNIFIED)

    further = DipoleModule(loop / "imitation", start=loop / "dipole", rank=4, seed=9)  # where the round began
    for role in SIGNS:
        for name, value in load_file(loop / "dipole" / role / "adapter_model.safetensors").items():
            assert torch.equal(further.pair.state(role)[name], value)
    with pytest.raises(InputError, match="make the pair with this rank"):
        DipoleModule(loop / "imitation", start=loop / "dipole", rank=8)


def test_a_training_killed_after_a_checkpoint_ends_in_the_same_weights(loop: Path, tmp_path: Path) -> None:
    """The folder as a kill would leave it after step 2 of 4: same command, bit-identical adapters."""
    out = tmp_path / "dipole"
    shutil.copytree(loop / "dipole", out)
    for name in ("manifest.json", "policy.json", "rl_tokens.json"):
        (out / name).unlink()
    for folder in ("positive", "negative", "critic"):
        shutil.rmtree(out / folder)
    (out / "checkpoints" / "step=00000004.ckpt").unlink()
    line = next(
        line for line in small_steps(loop) if line[:2] == ["dipole-vla", "fit"] and line[5] == str(loop / "dipole")
    )
    assert main([*line[1:4], "--out", str(out), *line[6:]]) == 0
    for sign in ("positive", "negative"):
        name = f"{sign}/adapter_model.safetensors"
        resumed, undisturbed = load_file(out / name), load_file(loop / "dipole" / name)
        assert resumed.keys() == undisturbed.keys()
        assert all(torch.equal(resumed[key], undisturbed[key]) for key in resumed)


def test_a_damaged_newest_checkpoint_is_skipped(loop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(loop / "dipole" / "checkpoints", folder)
    older, newer = sorted(folder.glob("*.ckpt"))
    newer.write_bytes(newer.read_bytes()[: newer.stat().st_size // 2])
    assert newest_checkpoint(folder) == older


def test_training_checkpoints_hold_adapters_and_no_backbone(loop: Path) -> None:
    state = torch.load(next((loop / "dipole" / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in name for name in state)


def test_an_interrupted_collection_goes_on_and_ends_alike(loop: Path, tmp_path: Path, monkeypatch) -> None:
    import dipole_vla.commands.collect as collection
    from dipole_vla.commands import parts

    monkeypatch.setattr(parts, "PART", 5)
    line = next(line for line in small_steps(loop) if line[1] == "collect")
    arguments = [*line[1:], "--out", str(tmp_path / "candidates")]
    scored, score_part = [], collection._score_part

    def killed_at_the_second_part(*args):
        if len(scored) == 1:
            raise KeyboardInterrupt
        scored.append(args[2])
        return score_part(*args)

    monkeypatch.setattr(collection, "_score_part", killed_at_the_second_part)
    assert main(arguments) == 130
    assert [path.name for path in (tmp_path / "candidates" / "parts").iterdir()] == ["00000000.parquet"]
    monkeypatch.setattr(collection, "_score_part", lambda *args: scored.append(args[2]) or score_part(*args))
    assert main(arguments) == 0
    assert [list(part) for part in scored] == [list(range(0, 5)), list(range(5, 10)), list(range(10, 12))]
    assert main([*line[1:], "--out", str(tmp_path / "undisturbed")]) == 0
    resumed, undisturbed = CandidateTable(tmp_path / "candidates"), CandidateTable(tmp_path / "undisturbed")
    assert np.array_equal(resumed.poses, undisturbed.poses)
    assert np.array_equal(resumed.advantage, undisturbed.advantage)
    more = [*line[1:], "--variants", "2", "--out", str(tmp_path / "variants")]
    assert main(more) == 0
    assert np.array_equal(CandidateTable(tmp_path / "variants").poses, undisturbed.poses)
    assert np.array_equal(CandidateTable(tmp_path / "variants").advantage, undisturbed.advantage)
    everything = CandidateTable(tmp_path / "variants", with_variants=True)
    plans = undisturbed.poses.shape[1]
    assert everything.poses.shape[1] == 3 * plans
    assert set(everything.columns["source"][:, plans:].ravel()) == {"variant"}
    in_one_part = CandidateTable(loop / "candidates")  # where products of other sizes may round otherwise
    assert_same_numbers(resumed.poses, in_one_part.poses, MAGNIFIED)
