"""The adapters' training as a run: what it logs, averages, resumes, refuses; and each rule from training to driving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from checkpoints import same
from safetensors.torch import load_file
from small_backbone import make_backbone, make_observation
from small_data import Kept, adapters, data_of, train, write_inputs, write_manifest

from dipole_vla.backbones import load_backbone
from dipole_vla.data.module import collate
from dipole_vla.data.splits import check_not_trained_on
from dipole_vla.data.stream import StepStream
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.guidance import SIGNS
from dipole_vla.members import Member
from dipole_vla.objective import RULES, dichotomous_loss
from dipole_vla.plugin import Dipole
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.policy.critic import CriticConfig, OneStepCritic, scene_features
from dipole_vla.training import CriticModule, DipoleModule, ImitationModule
from dipole_vla.training.base import suspects
from dipole_vla.training.ema import WeightMean
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import FORWARD, SAMPLED, assert_same_numbers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


LOGGED = {"loss", "sign_distance"} | {
    f"{what}_{sign}" for what in ("loss", "weight", "ess", "grad_norm") for sign in ("positive", "negative")
}


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_every_step_logs_what_tells_a_good_run_from_a_bad_one(inputs, routing):
    _, rows = train(inputs, routing=routing, steps=3)
    for row in rows:
        assert row.keys() >= LOGGED | {"base_distance"}
        assert np.isfinite(list(row.values())).all()
        assert row["loss"] == pytest.approx(row["loss_positive"] + row["loss_negative"])
        assert row["weight_positive"] + row["weight_negative"] == pytest.approx(1)
        assert 0 < row["ess_positive"] <= 1
    assert rows[0]["sign_distance"] == rows[0]["base_distance"] == 0  # a fresh pair is the base
    assert rows[-1]["sign_distance"] > 0


def test_gradient_norms_are_those_before_clipping(inputs):
    found = []

    class Norms(L.Callback):
        def on_after_backward(self, trainer, module):
            found.append([torch.cat([p.grad.flatten() for p in module.pair.parameters(s)]).norm() for s in SIGNS])

    train(inputs, steps=2, trainer={"gradient_clip_val": 1e-3, "callbacks": [Norms(), kept := Kept()]})
    for row, norms in zip(kept.rows, found, strict=True):
        assert [row["grad_norm_positive"], row["grad_norm_negative"]] == pytest.approx(
            [float(n) for n in norms], rel=2**-FORWARD
        )
        assert max(norms) > 1e-3


def test_one_step_of_the_run_is_the_step_of_the_formula(inputs):
    """The same loss from the objective alone: whole batch, both signs in one graph, nothing shared or taken early."""
    module, rows = train(inputs, steps=1, lr=0.0, draws=2)
    data = module.trainer.datamodule
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    first = data.dataset
    assert batch["poses"].dtype == torch.float32
    items = [first[i] for i in _first_batch(data)]
    x0 = module.backbone.action.encode(torch.from_numpy(np.stack([item["poses"] for item in items])))
    x0 = x0.repeat_interleave(2, 1).flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator)
    t = module.backbone.schedule.sample_t(len(x0), generator=generator)
    advantage = torch.from_numpy(np.stack([item["advantage"] for item in items])).repeat_interleave(2, 1).flatten()
    observation = {name: torch.stack([item["observation"][name] for item in items]) for name in items[0]["observation"]}
    pair = module.pair
    loss, _ = dichotomous_loss(
        pair.denoiser(pair.encode(observation), 8), module.backbone.schedule, "noise", x0, advantage, noise, t
    )
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=2**-FORWARD)


@pytest.mark.parametrize("options", [{}, {"pair": "separate"}, {"rule": "implicit"}, {"draws": 2}])
def test_the_module_is_the_plugin_fed_by_driving_data(inputs, options):
    """The step of somebody who holds a `Dipole`, opens the data for it and has no trainer at all."""
    _, rows = train(inputs, steps=1, **options)
    dipole, data = Dipole(load_backbone(inputs / "backbone"), rank=4, **options), data_of(inputs)
    dataset = data.open(dipole.backbone)
    batch = data.on_before_batch_transfer(collate([dataset[i] for i in _first_batch(data)]), 0)
    actions, generator = (batch["poses"], batch["advantage"]), torch.Generator().manual_seed(0)
    loss, scalars = dipole.loss(batch["observation"], *actions, generator=generator)
    assert rows[0]["loss"] == loss.item()
    assert rows[0]["ess_positive"] == scalars["ess_positive"].item()


def test_data_that_nobody_opened_says_so(inputs):
    class Foreign(L.LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return None

    with pytest.raises(InputError, match="open"):
        train(inputs, 1, module=Foreign())


def _first_batch(data) -> list[int]:
    return StepStream(len(data.dataset), data.batch_size, data.seed).batch(0)


@pytest.mark.parametrize("options", [{"routing": "bernoulli"}, {"pair": "separate"}, {"scope": "all"}])
def test_recomputation_changes_no_weight(inputs, options):
    plain, _ = train(inputs, steps=2, **options)
    recomputed, _ = train(inputs, steps=2, checkpointing=True, **options)
    for name, tensor in adapters(plain).items():
        # kept activations let rows of both signs share a pass; Adam's first steps magnify what rounding that leaves
        assert (adapters(recomputed)[name] - tensor).norm() < 1e-2 * tensor.norm(), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_bfloat16_losses_are_those_of_float32_to_its_rounding(inputs, precision, routing):
    _, plain = train(inputs, steps=3, routing=routing, lr=1e-3)
    module, half = train(inputs, steps=3, routing=routing, lr=1e-3, trainer={"precision": precision})
    for row, other in zip(plain, half):
        assert other["loss"] == pytest.approx(row["loss"], rel=0.03)
        assert other["weight_positive"] == pytest.approx(row["weight_positive"], rel=1e-5)  # weights stay exact
    assert all(parameter.dtype == torch.float32 for parameter in module.pair.parameters())
    base = next(p for p in module.backbone.parameters() if not p.requires_grad)
    assert base.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


def test_half_precision_rounds_no_adapter_at_a_resume_or_a_start(inputs, tmp_path):
    half = {"precision": "bf16-true"}
    saver = _SaveAt(2, tmp_path)
    whole, _ = train(inputs, steps=4, trainer={**half, "callbacks": [saver, kept := Kept()]})
    resumed, rest = train(inputs, steps=4, trainer=half, resume=saver.path)
    assert [row["loss"] for row in rest] == [row["loss"] for row in kept.rows[2:]]
    for name, tensor in adapters(whole).items():
        assert torch.equal(adapters(resumed)[name], tensor)
        assert not torch.equal(tensor.bfloat16().float(), tensor)
    whole.export(tmp_path / "policy", {})
    started, _ = train(inputs, steps=1, lr=0.0, start=tmp_path / "policy", trainer=half)
    for name, tensor in adapters(whole).items():
        assert torch.equal(adapters(started)[name], tensor)


def test_a_critic_trains_in_float32_on_a_backbone_in_half_precision(inputs, tmp_path):
    losses, critics = [], []
    for precision in ("32-true", "bf16-true"):
        module = CriticModule(inputs / "backbone", expectile=0.7, warmup_steps=0)
        _, rows = train(inputs, steps=3, module=module, trainer={"precision": precision})
        losses.append([row["loss"] for row in rows])
        critics.append(module.critic)
    assert losses[0] == losses[1]
    assert same(*(critic.state_dict() for critic in critics))
    module.export(tmp_path / "critic", {})
    DipoleModule(inputs / "backbone", critic=tmp_path / "critic", rank=2)  # its backbone is the one on disk


def test_imitation_in_bfloat16(inputs):
    losses = []
    for how in ("32-true", "bf16-mixed"):
        module = ImitationModule(inputs / "backbone", lr=1e-4)
        _, rows = train(inputs, steps=2, module=module, trainer={"precision": how})
        losses.append([row["loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_alone_are_refused(inputs, precision):
    """Near losses prove little: of steps of 1e-5 in bfloat16 most change no weight."""
    with pytest.raises(InputError, match=f"trainer.precision: {precision} keeps no float32 copy"):
        train(inputs, module=ImitationModule(inputs / "backbone"), trainer={"precision": precision})


def test_a_future_that_is_not_finite_is_named_by_the_normaliser(inputs, tmp_path, monkeypatch):
    def futures(self):
        table = np.zeros((len(self), 8, 3), np.float32)
        table[2, 3] = np.nan
        return table

    monkeypatch.setattr(SceneTable, "futures", futures)
    with pytest.raises(InputError, match="future of scene scene02"):
        train(inputs, module=ImitationModule(inputs / "backbone", fit_action=True))


@pytest.mark.parametrize(("precision", "words"), [("16-true", "without trainer.precision 16-true"), ("32-true", "")])
def test_a_number_that_is_not_finite_may_be_the_precisions(precision, words):
    said = suspects(SimpleNamespace(precision=precision))
    assert "check these scenes" in said
    assert words in said
    assert ("precision" in said) == bool(words)


def test_a_pose_far_ahead_keeps_its_centimetres_in_half_precision(inputs):
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch["poses"])

    module, _ = train(inputs, steps=1, trainer={"precision": "bf16-true", "callbacks": [Look()]})
    dataset = module.trainer.datamodule.dataset
    wanted = np.stack([dataset[i]["poses"] for i in _first_batch(module.trainer.datamodule)])
    assert seen[0].dtype == torch.float32
    assert np.array_equal(seen[0].numpy(), wanted)


def test_the_mean_follows_its_formula():
    parameter = torch.nn.Parameter(torch.tensor([0.0], dtype=torch.bfloat16))
    mean, wanted = WeightMean([("w", parameter)], 0.5), 0.0
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]):
        parameter.data.fill_(value)
        mean.update()
        keep = min(0.5, (1 + step) / (10 + step))
        wanted = keep * wanted + (1 - keep) * value
    assert mean.mean["w"].dtype == torch.float32
    assert mean.mean["w"].item() == pytest.approx(wanted, rel=1e-6)
    with mean.in_place():
        assert parameter.item() == pytest.approx(wanted, rel=1e-6)
    assert parameter.item() == 11.0
    with pytest.raises(InputError, match="ema_decay"):
        WeightMean([("w", parameter)], 1.5)


def test_the_mean_is_exported_and_resumes_to_the_bit(inputs, tmp_path):
    whole, _ = train(inputs, steps=4, ema_decay=0.9, trainer={"callbacks": [saver := _SaveAt(2, tmp_path)]})
    assert saver.path.is_file()
    state = torch.load(saver.path, weights_only=True)["weight_mean"]
    assert all(tensor.dtype == torch.float32 for tensor in state["mean"].values())
    resumed, _ = train(inputs, steps=4, ema_decay=0.9, resume=saver.path)
    assert resumed.mean.updates == whole.mean.updates == 4
    for name, tensor in whole.mean.mean.items():
        assert torch.equal(resumed.mean.mean[name], tensor)
    for name, tensor in adapters(whole).items():
        assert torch.equal(adapters(resumed)[name], tensor)
        assert not torch.equal(whole.mean.mean[name], tensor)
    whole.export(tmp_path / "policy", {})
    exported = load_file(tmp_path / "policy" / "positive" / "adapter_model.safetensors")
    with whole.averaged():
        wanted = whole.pair.state("positive")
    assert all(torch.equal(exported[name], tensor) for name, tensor in wanted.items())
    train(inputs, steps=2, trainer={"callbacks": [plain := _SaveAt(1, tmp_path / "plain")]})
    with pytest.raises(InputError, match=r"made without model\.ema_decay"):
        train(inputs, steps=2, ema_decay=0.9, resume=plain.path)


class _SaveAt(L.Callback):
    def __init__(self, step: int, folder: Path):
        self.step, self.path = step, folder / "step.ckpt"

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_gradients_taken_sign_by_sign_survive_accumulation(inputs):
    early, whole = (DipoleModule(inputs / "backbone", rank=4, lr=1e-2, warmup_steps=1) for _ in range(2))
    whole._on_role_loss = lambda role, loss: loss
    for module in (early, whole):
        train(inputs, 2, module=module, data={"batch_size": 2}, trainer={"accumulate_grad_batches": 2})
        assert module.trainer.global_step == 2
    for name, tensor in adapters(whole).items():
        assert_same_numbers(adapters(early)[name], tensor, SAMPLED)


def test_a_loss_that_is_not_finite_names_the_scene_and_takes_no_step(inputs):
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 1:
                self.token, self.before = batch["token"][2], adapters(module)
                batch["observation"]["proprio"][2] = float("nan")

    poison = Poison()
    module = DipoleModule(inputs / "backbone", rank=4, lr=1e-2, warmup_steps=1)
    with pytest.raises(InputError, match="step 1: loss is nan") as told:
        train(inputs, module=module, trainer={"callbacks": [poison]})
    assert f"on tokens {poison.token};" in str(told.value)
    assert "\n" not in str(told.value)
    for name, tensor in adapters(module).items():
        assert torch.equal(tensor, poison.before[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_one_line_from_a_loader_process_too(tmp_path, workers):
    inputs = write_inputs(tmp_path)
    for picture in (inputs / "pictures").rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(InputError, match=r"\.jpg: picture of scene scene\d\d cannot be read") as told:
        train(inputs, steps=1, data={"workers": workers})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_trains_is_exported_and_drives(inputs, tmp_path, rule):
    module, rows = train(inputs, steps=3, rule=rule)
    assert rows[-1].keys() >= {"loss", "ess_positive", "grad_norm_positive", "sign_distance"}
    module.export(tmp_path / "policy", {})
    policy = GuidedPolicy.from_pretrained(tmp_path / "policy")
    assert policy.guidance.rule == rule
    negative = load_file(tmp_path / "policy" / "negative" / "adapter_model.safetensors")
    trained = any(tensor.any() for name, tensor in negative.items() if "lora_B" in name)
    assert trained == ("negative" in RULES[rule].trained)
    noise = torch.randn(3, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    plans = {w: policy.sample(make_observation(), w, 2, noise) for w in (None, 0.0, 1.0)}
    assert all(torch.isfinite(plan).all() for plan in plans.values())
    assert not torch.allclose(plans[0.0], plans[None])
    assert not torch.allclose(plans[1.0], plans[0.0])


def test_a_rule_that_trains_one_adapter_leaves_the_other_out_of_the_optimiser(inputs):
    module, rows = train(inputs, steps=1, rule="implicit")
    assert all(name.startswith("positive.") for name, _ in module.named_trained())
    assert not any(parameter.requires_grad for parameter in module.pair.parameters("negative"))
    assert "grad_norm_negative" not in rows[0]
    with pytest.raises(InputError, match="bernoulli needs two policies"):
        DipoleModule(inputs / "backbone", rule="implicit", routing="bernoulli")
    with pytest.raises(InputError, match="did you mean 'implicit'"):
        DipoleModule(inputs / "backbone", rule="implict")


def test_the_exponential_rule_blows_up_where_ours_does_not(inputs):
    """At beta 3 on unit-variance G few samples carry its loss, and what it asks of the weights jumps."""
    runs = {}
    for rule in ("dichotomous", "exponential"):
        _, rows = train(inputs, steps=8, rule=rule, beta=3.0, lr=0.0)
        runs[rule] = {
            key: np.array([row[key] for row in rows]) for key in ("loss", "grad_norm_positive", "ess_positive")
        }
    ours, theirs = runs["dichotomous"], runs["exponential"]
    assert (theirs["ess_positive"] < 0.7 * ours["ess_positive"]).all()
    assert (theirs["loss"] > 8 * ours["loss"]).all()
    assert (theirs["grad_norm_positive"] > 15 * ours["grad_norm_positive"]).all()


def test_a_further_round_remembers_what_the_rounds_before_and_the_critic_saw(inputs, tmp_path):
    """Each stage's record is rewritten to other scenes, as if it had been trained elsewhere."""
    made = {
        "policy": train(inputs, steps=1)[0],
        "critic": train(inputs, 1, module=CriticModule(inputs / "backbone"))[0],
    }
    candidates = sorted(CandidateTable(inputs / "candidates").tokens)
    for name, record in (("policy", "policy.json"), ("critic", "provenance.json")):
        made[name].export(tmp_path / name, {})
        assert json.loads((tmp_path / name / "rl_tokens.json").read_text()) == candidates
        (tmp_path / name / "rl_tokens.json").write_text(json.dumps([f"of the {name}"]))
        text = (tmp_path / name / record).read_text()
        assert text.count('"rl_split": "trainval"') == 1
        (tmp_path / name / record).write_text(text.replace("trainval", f"split of the {name}"))
    further, _ = train(inputs, steps=1, start=tmp_path / "policy", critic=tmp_path / "critic")
    further.export(tmp_path / "further", {})
    policy = GuidedPolicy.from_pretrained(tmp_path / "further")
    assert sorted(policy.rl_tokens) == ["of the critic", "of the policy", *candidates]
    for split in ("trainval", "split of the policy", "split of the critic"):
        with pytest.raises(InputError, match="were used for RL"):
            check_not_trained_on(split, ["new"], ["new log"], policy.seen, allow_eval_split=False)
    assert not check_not_trained_on("test", ["new"], ["new log"], policy.seen, allow_eval_split=False)


def test_a_critic_that_reads_other_features_is_refused_before_the_first_step(inputs, tmp_path):
    module = CriticModule(inputs / "backbone")
    train(inputs, 1, module=module)
    module.export(tmp_path / "critic", {})
    DipoleModule(inputs / "backbone", critic=tmp_path / "critic", rank=2)
    make_backbone(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"critic: reads features of backbone .*other is .*; pass the matching one"):
        DipoleModule(tmp_path / "other", critic=tmp_path / "critic", rank=2)
    with pytest.raises(InputError, match="backbone: no critic"):
        DipoleModule(inputs / "backbone", critic=inputs / "backbone", rank=2)
    config = CriticConfig(module.critic.config.feature_dim, horizon=6)
    OneStepCritic(config).save_pretrained(tmp_path / "critic")
    with pytest.raises(InputError, match=r"plans of 6 poses, .*backbone makes 8"):
        DipoleModule(inputs / "backbone", critic=tmp_path / "critic", rank=2)


def test_one_member_of_a_critic_is_the_critic(inputs):
    plain, member = (CriticModule(inputs / "backbone", members=members) for members in ((), [Member("pooled")]))
    told = [train(inputs, 2, module=module)[1] for module in (plain, member)]
    assert told[0] == told[1]
    for name, value in plain.critic.state_dict().items():
        assert torch.equal(member.critic.state_dict()[name], value)


def test_unlike_members_train_and_choose_in_the_policys_folder(inputs, tmp_path):
    members = [Member("pooled", hidden=8), Member("tokens", hidden=16, ensemble=1, lr=3e-3)]
    module = CriticModule(inputs / "backbone", members=members, warmup_steps=0)
    rates = {group["lr"] for group in (train(inputs, 2, module=module), module.parameter_groups())[1]}
    assert rates == {1e-3, 3e-3}
    module.export(tmp_path / "critic", {})
    assert {path.parent.name for path in (tmp_path / "critic").rglob("model.safetensors")} == {"0", "1"}
    pair, _ = train(inputs, 1, critic=tmp_path / "critic")
    pair.export(tmp_path / "policy", {})
    policy = load_policy(tmp_path / "policy", inputs / "backbone", "cpu")
    plans = policy.sample(make_observation(), 1.0, 4)
    context = policy.backbone.encode(make_observation())
    scenes = scene_features(policy.backbone, context, True)
    assert torch.equal(policy.value(make_observation(), plans), module.critic.eval()(scenes, plans))


@pytest.mark.parametrize("rule", RULES)
def test_what_a_guided_policy_drove_needs_a_negative_of_its_own(inputs, tmp_path, rule):
    """mu is what drove. Whoever has the frozen base in its formulas would tilt a policy that did not."""
    shutil.copytree(inputs, tmp_path / "inputs")
    about = tmp_path / "inputs" / "candidates" / "candidates.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "omega": 1.0}))
    write_manifest(about.parent)
    if RULES[rule].trained == ("positive", "negative"):
        _, rows = train(tmp_path / "inputs", steps=1, rule=rule)
        assert "sign_distance" in rows[0]
        assert "base_distance" not in rows[0]
    else:
        with pytest.raises(InputError, match=rf"candidates: was driven with omega 1, but model\.rule {rule}"):
            train(tmp_path / "inputs", steps=1, rule=rule)


def test_checkpointing_that_would_save_nothing_is_refused(inputs, monkeypatch):
    monkeypatch.setattr("dipole_vla.training.dipole.recomputes", lambda pair: False)
    with pytest.raises(InputError, match=r"model\.checkpointing: family"):
        train(inputs, steps=1, checkpointing=True)
