"""How G is formed, by the keys of `data.advantage`: their arithmetic, their border, and what reaches the loss."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_from_disk
from small_data import adapters, train, write_inputs
from test_objective import ROWS, TwoLinearPolicies, batch, loss_of, with_base
from test_tables import changed

from dipole_vla import objective
from dipole_vla.advantage import formed, group_relative, returns_of
from dipole_vla.data.own_candidates import write_candidates
from dipole_vla.data.tables import CandidateTable
from dipole_vla.forming import AS_RECORDED, Advantage, Reward
from dipole_vla.objective import RULES, negative_weight, positive_weight
from dipole_vla.paths import VPLinear
from dipole_vla.training import CriticModule, ImitationModule
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json

HERE = Path("candidates")
SIGNS = torch.tensor([1.0, 0.0, -1.0, 0.0])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def table(scenes: int = 5, group: int = 4, **more) -> dict[str, np.ndarray]:
    """Columns (scenes, K): the human first, then the reference's plans."""
    rng = np.random.default_rng(1)
    returns = rng.uniform(size=(scenes, group))
    source = np.tile(["human"] + ["reference"] * (group - 1), (scenes, 1)).astype(object)
    token = np.repeat([[f"s{i}"] for i in range(scenes)], group, axis=1).astype(object)
    columns = {"token": token, "source": source, "score": returns, "return": returns}
    return {**columns, "advantage": group_relative(torch.from_numpy(returns)).numpy(), **more}


# -- normalise, quantile, reward ---------------------------------------------------------------------------------------


def test_std_is_what_it_was_to_the_bit() -> None:
    returns = torch.rand(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    returns[::5] = returns[::5, :1]
    before = (returns - returns.mean(1, keepdim=True)) / (returns.std(1, correction=0, keepdim=True) + 1e-6)
    before[::5] = 0
    assert torch.equal(group_relative(returns), before)
    assert torch.equal(group_relative(returns, "std"), before)


def test_mean_does_not_see_an_offset_and_scales_with_the_returns() -> None:
    returns = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offsets = torch.randn(20, 1, dtype=torch.float64)
    centred = group_relative(returns, "mean")
    torch.testing.assert_close(group_relative(returns + offsets, "mean"), centred, atol=1e-12, rtol=0)
    torch.testing.assert_close(group_relative(3.5 * returns, "mean"), 3.5 * centred)
    torch.testing.assert_close(centred.mean(1), torch.zeros(20, dtype=torch.float64), atol=1e-15, rtol=0)
    assert torch.equal(group_relative(returns, "none"), returns)


def test_an_unknown_way_is_one_line() -> None:
    with pytest.raises(InputError, match="normalise: must be one of std, mean, none"):
        group_relative(torch.rand(2, 3), "max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data\.advantage\.normalise"):
        Advantage(normalise="max")  # type: ignore[arg-type]


def test_the_defaults_take_the_column_itself() -> None:
    columns = table()
    found = formed(AS_RECORDED, columns, HERE)
    assert found.advantage is columns["advantage"]
    assert found.returns is columns["return"]
    assert found.sign is found.weight is None
    assert found.kept.all()


@pytest.mark.parametrize("group", [2, 5, 10])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 1.0])
def test_the_indicator_takes_those_at_or_above_the_scenes_quantile(group: int, quantile: float) -> None:
    columns = table(group=group)
    found = formed(Advantage(quantile=quantile), columns, HERE)
    positive = RULES["indicator"].positive(torch.from_numpy(found.advantage.astype(np.float32)), 2.0).numpy()
    for scene, returns in enumerate(columns["return"]):
        wanted = returns >= np.quantile(returns, quantile)
        assert np.array_equal(positive[scene] == 1, wanted)
    if group == 10 and quantile == 0.7:
        assert (positive.sum(1) == 3).all()  # the best 30 %


def test_a_return_of_ones_own_is_gates_times_a_weighted_mean() -> None:
    rng = np.random.default_rng(3)
    parts = {name: rng.uniform(size=(5, 4)) for name in ("nc", "dac", "ttc", "ep")}
    columns = table(**parts)
    found = returns_of(Reward({"ttc": 5, "ep": 2}, ["nc", "dac"]), columns, HERE)
    wanted = parts["nc"] * parts["dac"] * (5 * parts["ttc"] + 2 * parts["ep"]) / 7
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    gates = returns_of(Reward(gates=["nc", "score"]), columns, HERE)
    np.testing.assert_allclose(gates, parts["nc"] * columns["score"], rtol=1e-14)
    assert returns_of(Reward(), columns, HERE) is columns["return"]
    how = Advantage(reward=Reward({"ttc": 5, "ep": 2}, ["nc", "dac"]))
    np.testing.assert_allclose(
        formed(how, columns, HERE).advantage, group_relative(torch.from_numpy(wanted)).numpy(), rtol=1e-9
    )
    assert "nc x dac x (5 ttc + 2 ep) / 7" in how.told("recorded")


def test_a_sub_score_that_is_not_there_is_named_with_those_that_are() -> None:
    columns = table(comfort=np.ones((5, 4)), ttc=np.ones((5, 4)))
    with pytest.raises(InputError, match=r"no sub-score 'comfrot'.*'comfort'.*there are score, comfort, ttc"):
        formed(Advantage(reward=Reward({"comfrot": 1.0})), columns, HERE)


def test_the_metrics_own_formula_is_the_metrics_own_score(loop: Path) -> None:
    """PDMS v1.1 of the synthetic world, from its recorded parts."""
    candidates = CandidateTable(loop / "candidates")
    reward = Reward(
        {"ego_progress": 5, "time_to_collision_within_bound": 5, "comfort": 2},
        ["no_at_fault_collisions", "drivable_area_compliance"],
    )
    np.testing.assert_allclose(returns_of(reward, candidates.columns, HERE), candidates.score, atol=1e-12)


# -- scenes, rows ------------------------------------------------------------------------------------------------------


def test_scenes_are_kept_where_the_references_plans_are_poor_on_average() -> None:
    columns = table()
    columns["return"][:, 0] = 99  # the human's does not count
    mean = columns["return"][:, 1:].mean(1)
    bound = float(np.median(mean))
    found = formed(Advantage(reference_below=bound), columns, HERE)
    assert np.array_equal(found.kept, mean < bound)
    with pytest.raises(InputError, match=r"data\.advantage\.reference_below: 0\.0 leaves no scene"):
        formed(Advantage(reference_below=0.0), columns, HERE)
    columns["source"][:] = "guided"
    with pytest.raises(InputError, match="reference_below: candidates has no row of source reference"):
        formed(Advantage(reference_below=bound), columns, HERE)


def test_the_humans_row_counts_as_asked() -> None:
    columns = table()
    found = formed(Advantage(human_weight=4.0, human_sign=1), columns, HERE)
    assert np.array_equal(found.weight, np.where(columns["source"] == "human", 4.0, 1.0))
    assert np.array_equal(found.sign, np.where(columns["source"] == "human", 1, 0))
    columns["source"][:] = "reference"
    for key in ("human_weight", "human_sign"):
        with pytest.raises(InputError, match=rf"data\.advantage\.{key}: .*no row of source human"):
            formed(Advantage(**{key: 0 if key == "human_weight" else 1}), columns, HERE)


def test_a_scene_is_kept_for_its_fixed_rows_and_the_others_of_it_count_nothing() -> None:
    sign = np.zeros((5, 4))
    sign[1, 2] = -1
    columns = table(sign=sign)
    columns["advantage"] = columns["advantage"].copy()
    columns["advantage"][[1, 3]] = 0  # all alike
    found = formed(AS_RECORDED, columns, HERE)
    assert found.kept.tolist() == [True, True, True, False, True]
    assert found.weight[1].tolist() == [0, 0, 1, 0]
    assert (found.weight[[0, 2, 4]] == 1).all()


@pytest.mark.parametrize("value", [2, 0.5, -3])
def test_a_sign_that_is_neither_is_named_by_its_scene(value: float) -> None:
    sign = np.zeros((5, 4))
    sign[3, 1] = value
    with pytest.raises(InputError, match=rf"scene s3: column sign holds {value:g}"):
        formed(AS_RECORDED, table(sign=sign), HERE)


def test_a_critics_g_is_not_formed_of_returns() -> None:
    for how, key in ((Advantage("mean"), "normalise"), (Advantage(reward=Reward({"score": 1})), "reward")):
        with pytest.raises(InputError, match=rf"data\.advantage\.{key}: .*critic's G"):
            formed(how, table(), HERE, is_critics=True)
    assert formed(Advantage(quantile=0.5), table(), HERE, is_critics=True).kept.all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Advantage(quantile=1.2), r"advantage\.quantile: must be 0\.?0? to 1"),
        (lambda: Advantage(human_weight=-1.0), r"advantage\.human_weight: must be at least 0"),
        (lambda: Advantage(human_sign=3), r"advantage\.human_sign: must be 1, -1 or 0"),
        (lambda: Advantage(reference_below=float("nan")), r"advantage\.reference_below"),
        (lambda: Reward({"ttc": -1.0}), r"reward\.weights\.ttc"),
        (lambda: Reward({"ttc": 0.0}), r"reward\.weights: are all 0"),
        (lambda: Reward({"ttc": 1.0}, ["ttc"]), r"reward: ttc is there twice"),
        (lambda: Reward({"ttc": "much"}), r"reward\.weights\.ttc: must be at least 0, got much"),
        (lambda: Reward(["ttc"]), r"reward\.weights: must be"),
        (lambda: Reward(gates="comfort"), r"reward\.gates: must be a list"),
        (lambda: Advantage(normalise=["std"]), r"advantage\.normalise: must be one of"),
        (lambda: Advantage.of(["mean"]), r"data\.advantage: must be a mapping"),
        (lambda: Advantage.of({"reward": [1]}), r"data\.advantage\.reward: must be a mapping"),
        (lambda: Advantage.of({"normalize": "mean"}), r"no key 'normalize' \(did you mean 'normalise'\?\)"),
    ],
)
def test_values_that_cannot_be_meant_are_one_line(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


# -- shift and signs in the loss ---------------------------------------------------------------------------------------


def test_no_shift_and_no_signs_change_no_bit() -> None:
    for rule in RULES:
        policies = TwoLinearPolicies()
        found = []
        for more in ({}, {"shift": 0.0, "sign": torch.zeros(ROWS), "sample_weight": torch.ones(ROWS)}):
            losses, _ = objective.dichotomous_loss(
                with_base(policies), VPLinear(), "noise", *batch(), beta=2.0, rule=rule, **more
            )
            found.append(losses)
        assert torch.equal(*found), rule


def test_the_shift_is_the_sigmoids_and_moves_no_log_odds() -> None:
    advantage = torch.linspace(-3, 3, 7, dtype=torch.float64)
    positive, negative = positive_weight(advantage, 2.0, 0.8), negative_weight(advantage, 2.0, 0.8)
    torch.testing.assert_close(positive, 1 / (1 + torch.exp(-2.0 * advantage - 0.8)))
    torch.testing.assert_close(positive + negative, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close((positive / negative).log(), 2.0 * advantage + 0.8)
    for name in ("dichotomous", "positive_only", "implicit"):
        torch.testing.assert_close(RULES[name].weights(advantage, 2.0, 0.8)["positive"], positive)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_fixed_sign_has_exactly_no_weight_on_the_other_side(rule: str) -> None:
    advantage = torch.tensor([-50.0, 0.3, 50.0, -0.2])
    weights = RULES[rule].weights(advantage, 2.0, 0.5, SIGNS)
    free = RULES[rule].weights(advantage, 2.0, 0.5)
    for role, fixed in (("positive", [1.0, 0.0]), ("negative", [0.0, 1.0])):
        if role in weights:
            assert weights[role][[0, 2]].tolist() == fixed
            assert torch.equal(weights[role][[1, 3]], free[role][[1, 3]])


def test_a_fixed_row_moves_its_own_policy_alone() -> None:
    for sign, own in ((1.0, 0), (-1.0, 1)):
        policies = TwoLinearPolicies()
        loss, _ = loss_of(policies, sign=torch.full((ROWS,), sign))
        gradients = policies.gradients(loss)
        assert gradients[own].any()
        assert torch.equal(gradients[1 - own], torch.zeros(4, 4, dtype=torch.float64))


def test_bernoulli_with_fixed_signs_and_a_shift_has_the_gradient_of_both_in_expectation(monkeypatch) -> None:
    options = {"sign": SIGNS, "shift": -0.4, "sample_weight": torch.tensor([3.0, 1.0, 1.0, 2.0])}
    policies = TwoLinearPolicies()
    wanted = policies.gradients(loss_of(policies, **options)[0])
    probability = RULES["dichotomous"].weights(batch()[1], 2.0, -0.4, SIGNS)["positive"]
    expected = [torch.zeros_like(gradient) for gradient in wanted]
    for routing in itertools.product([True, False], repeat=ROWS):
        route = torch.tensor(routing)
        monkeypatch.setattr(objective, "_routes", lambda p, g, route=route: route)
        chance = torch.where(route, probability, 1 - probability).prod()
        for total, gradient in zip(expected, policies.gradients(loss_of(policies, routing="bernoulli", **options)[0])):
            total += chance * gradient
    for total, gradient in zip(expected, wanted):
        torch.testing.assert_close(total, gradient)


def test_bernoulli_sends_a_fixed_row_to_its_own_side_every_time() -> None:
    policies, generator = TwoLinearPolicies(), torch.Generator().manual_seed(0)
    for _ in range(50):
        policies.calls.clear()
        loss_of(policies, routing="bernoulli", generator=generator, sign=SIGNS)
        routes = dict(policies.calls)
        assert 0 in routes["positive"]
        assert 2 in routes["negative"]


# -- from a table to a policy ------------------------------------------------------------------------------------------


def scored(inputs: Path, folder: Path, **columns) -> Path:
    """The inputs with more columns in the candidates, and the human in every first row."""

    def more(before: dict) -> pa.Table:
        source = ["human" if i == 0 else "reference" for i in before["index"]]
        return pa.table({**before, "source": source, **columns})

    return changed(inputs, folder, "candidates", more)


def test_all_keys_at_once_are_trained_with_and_recorded(inputs, tmp_path, capsys) -> None:
    rows = len(load_from_disk(str(inputs / "candidates")))
    rng = np.random.default_rng(0)
    folder = scored(inputs, tmp_path / "in", sign=[0, 0, 0, -1] * (rows // 4), ttc=rng.uniform(size=rows).tolist())
    how = Advantage("mean", 0.4, 0.8, 3.0, 1, Reward({"ttc": 2.0, "score": 1.0}))
    for routing in ("both", "bernoulli"):
        module, logged = train(folder, 2, {"advantage": how}, rule="dichotomous", routing=routing, shift=0.3, draws=2)
        assert np.isfinite(logged[-1]["loss"])
    said = capsys.readouterr().out
    assert re.search(r"G: group-relative: return - group mean; .*; \d+ of 8 scenes", said)
    module.export(tmp_path / "policy", {})
    made = read_json(tmp_path / "policy" / "policy.json")["provenance"]
    assert made["shift"] == 0.3
    assert Advantage.of(made["formed"]) == how
    for words in ("(2 ttc + 1 score) / 3", "quantile 0.4", "less than 0.8", "count 3", "positive only", "fixed sign"):
        assert words in made["advantage"]


def test_keys_that_say_what_is_the_default_change_no_bit(inputs, tmp_path) -> None:
    rows = len(load_from_disk(str(inputs / "candidates")))
    signless = scored(inputs, tmp_path / "in", sign=[0] * rows)
    plain = adapters(train(inputs, 2)[0])
    for folder, keys in ((signless, AS_RECORDED), (inputs, Advantage("std", human_weight=1.0))):
        other = adapters(train(folder, 2, {"advantage": keys}, shift=0.0)[0])
        assert all(torch.equal(other[name], tensor) for name, tensor in plain.items())


def test_a_critic_learns_a_return_of_ones_own(inputs, tmp_path) -> None:
    rows = len(load_from_disk(str(inputs / "candidates")))
    folder = scored(inputs, tmp_path / "in", ttc=[0.25, 0.5, 0.75, 1.0] * (rows // 4))
    module, _ = train(
        folder, 1, {"advantage": Advantage(reward=Reward({"ttc": 1.0}))}, module=CriticModule(inputs / "backbone")
    )
    dataset = module.trainer.datamodule.dataset
    assert dataset[0]["score"].tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_key_that_a_training_does_not_read_is_refused(inputs) -> None:
    how = {"advantage": Advantage("mean")}
    with pytest.raises(InputError, match=r"data\.advantage\.normalise: means nothing to CriticModule"):
        train(inputs, 1, how, module=CriticModule(inputs / "backbone"))
    with pytest.raises(InputError, match=r"data\.advantage\.normalise: means nothing to ImitationModule"):
        train(inputs, 1, {**how, "candidates": None}, module=ImitationModule(inputs / "backbone"))


def test_a_column_of_signs_is_checked(inputs, tmp_path) -> None:
    rows = len(load_from_disk(str(inputs / "candidates")))
    for name, signs, words in (
        ("a", [0] * (rows - 1) + [None], "scene07: column sign is null"),
        ("b", ["+"] * rows, "column sign holds string, not numbers"),
        ("c", [0] * (rows - 1) + [7], "scene07: column sign holds 7"),
    ):
        with pytest.raises(InputError, match=words):
            train(scored(inputs, tmp_path / name, sign=signs), 1)


# -- a table of one's own ----------------------------------------------------------------------------------------------


def test_take_overs_are_trained_on_by_sign_alone(inputs, tmp_path) -> None:
    rng = np.random.default_rng(0)
    tokens = ["scene02", "scene05"]
    columns = {
        "token": np.repeat(tokens, 2),
        "poses": rng.normal(size=(4, 8, 3)),
        "source": ["human", "own"] * 2,
        "sign": [1, -1] * 2,
    }
    found = write_candidates(tmp_path / "takeovers", inputs / "scenes", columns)
    assert found.tokens == tokens
    assert found.about["logs"] == ["scene0"]
    module, logged = train(inputs, 3, {"candidates": tmp_path / "takeovers", "batch_size": 2})
    assert logged[0]["weight_positive"] == logged[0]["weight_negative"] == 0.5
    assert logged[-1]["sign_distance"] > 0
    assert "4 rows of a fixed sign" in module.trainer.datamodule.dataset.advantage_told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": ["scene00", "nowhere"]}, "scene nowhere is not in"),
        ({"sign": [1, 4]}, "scene scene00: column sign holds 4"),
        ({"sign": [1]}, "column sign has 1 rows, token 2"),
        ({"poses": np.full((2, 8, 3), np.nan)}, "scene scene00: column poses holds NaN"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_written(inputs, tmp_path, change, words) -> None:
    columns = {"token": ["scene00"] * 2, "poses": np.zeros((2, 8, 3)), "sign": [1, -1], **change}
    with pytest.raises(InputError, match=words):
        write_candidates(tmp_path / "own", inputs / "scenes", columns)
    assert not (tmp_path / "own").exists()


def test_the_example_of_the_page_runs_as_it_stands(inputs, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    code = re.search(r"```python own-table\n(.*?)```", page, re.DOTALL)
    (tmp_path / "scenes").symlink_to(inputs / "scenes")
    monkeypatch.chdir(tmp_path)
    plans = dict(zip(("human_2", "policy_2", "human_5", "policy_5"), np.zeros((4, 8, 3))))
    exec(code[1], {**plans})
    assert CandidateTable(tmp_path / "takeovers").columns["sign"].tolist() == [[1, -1], [1, -1]]
