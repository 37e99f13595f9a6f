"""DIPOLE on somebody else's network: the example, resumption, adapters in plain PEFT, every refusal in one line."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dipole_vla import preemption
from dipole_vla.backbones.action import Plain, Poses
from dipole_vla.guidance import SIGNS
from dipole_vla.objective import RULES
from dipole_vla.paths import CosineTable, LinearFlow, VPLinear
from dipole_vla.plugin import Dipole
from dipole_vla.solvers import SolverSpec
from dipole_vla.training.callbacks import FiniteGradients
from dipole_vla.training.checkpoints import AdapterCheckpoints, newest_checkpoint
from navsim_adapter.foundation.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "own_network.py"


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = imported(EXAMPLE)


def arm(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return example.Arm(width=16, depth=2)


def own(**changes: Any) -> dict[str, Any]:
    """The example's arguments, some replaced."""
    return {
        "encode": lambda net, observation: {"token": net.state(observation["goal"])},
        "denoise": lambda net, context, x_t, t: net.velocity(context["token"], x_t, t),
        "schedule": LinearFlow(noise_at=1),
        "prediction": "velocity",
        "adapt": r"blocks\.\d+\.fc[12]",
        "shape": (8, 7),
        "beta": 2.0,
        "rank": 4,
        **changes,
    }


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(dipole: Dipole) -> Dipole:
    """As training would leave it: two signs that differ."""
    with torch.no_grad():
        for number, parameter in enumerate(dipole.pair.parameters()):
            parameter += 0.3 * draw(*parameter.shape, seed=number)
    return dipole


GOAL = {"goal": draw(3, 7, seed=1)}
ACTION, ADVANTAGE = draw(3, 4, 8, 7, seed=2), draw(3, 4, seed=3)


# what it computes


@pytest.mark.parametrize("pair", ["lora", "separate"])
@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_fresh_one_is_the_network_for_every_omega(pair: str, scope: str) -> None:
    net, noise = arm(), draw(3, 2, 8, 7)
    dipole = Dipole(net, **own(pair=pair, scope=scope))
    reference = dipole.sample(GOAL, None, 2, noise=noise)
    assert reference.shape == (3, 2, 8, 7)
    for omega in (-1.0, 0.0, 1.0):
        torch.testing.assert_close(dipole.sample(GOAL, omega, 2, noise=noise), reference)
    again, x, step = arm(), noise.flatten(0, 1), 0.1  # the flow by hand, from noise at 1 to data at 0
    token = again.state(GOAL["goal"]).repeat_interleave(2, 0)
    for number in range(10):
        with torch.no_grad():
            x = x - step * again.velocity(token, x, torch.full((6,), 1 - number * step))
    torch.testing.assert_close(reference.flatten(0, 1), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("routing", ["both", "bernoulli"])
@pytest.mark.parametrize("pair", ["lora", "separate"])
def test_every_rule_and_routing_trains_what_it_should_and_nothing_else(rule: str, routing: str, pair: str) -> None:
    if routing == "bernoulli" and len(RULES[rule].trained) != 2:
        with pytest.raises(InputError, match="routing"):
            Dipole(arm(), **own(rule=rule, routing=routing))
        return
    dipole = moved(Dipole(arm(), **own(rule=rule, routing=routing, pair=pair, draws=2)))
    before = {name: tensor.clone() for name, tensor in dipole.state_dict().items()}
    loss, scalars = dipole.loss(GOAL, ACTION, ADVANTAGE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scalars["loss"], loss.detach())
    optimizer = torch.optim.AdamW(dipole.parameters(), lr=1e-2)
    loss.backward()
    optimizer.step()
    changed = {name for name, tensor in dipole.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {name for name, parameter in dipole.named_parameters() if parameter.requires_grad}
    assert changed == trained
    assert all(("negative" in name) <= ("negative" in RULES[rule].trained) for name in trained)
    assert dipole.sample(GOAL, 1.0, 2).isfinite().all()


def test_with_equal_advantages_the_loss_is_half_imitation_for_either_sign() -> None:
    net, zeros = arm(), torch.zeros(3, 4)
    _, scalars = Dipole(net, **own()).loss(GOAL, ACTION, zeros, generator=torch.Generator().manual_seed(0))
    generator, x0 = torch.Generator().manual_seed(0), ACTION.flatten(0, 1)
    noise, t = torch.randn(12, 8, 7, generator=generator), torch.rand(12, generator=generator)
    x_t = x0 + t[:, None, None] * (noise - x0)
    plain = (arm().velocity(arm().state(GOAL["goal"]).repeat_interleave(4, 0), x_t, t) - (noise - x0)).square().mean()
    for sign in SIGNS:
        torch.testing.assert_close(scalars[f"loss_{sign}"], plain.detach() / 2)


def test_one_candidate_needs_no_axis_and_a_weight_of_zero_leaves_a_sample_out() -> None:
    dipole = Dipole(arm(), **own())

    def loss(rows: slice, **options: Any) -> Tensor:
        goal = {"goal": GOAL["goal"][rows]}
        return dipole.loss(goal, ACTION[rows, 0], ADVANTAGE[rows, 0], **options)[0]

    assert loss(slice(0, 3)).isfinite()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    weighed = loss(slice(0, 3), sample_weight=torch.tensor([1.0, 0.0, 0.0]), generator=generators[0])
    changed = GOAL["goal"].clone()
    changed[1:] = 9
    other = dipole.loss(
        {"goal": changed}, ACTION[:, 0], ADVANTAGE[:, 0], sample_weight=torch.tensor([1.0, 0.0, 0.0]),
        generator=generators[1],
    )[0]  # fmt: skip
    assert torch.equal(weighed, other)


def test_a_sample_of_a_fixed_sign_weighs_on_its_own_side_alone() -> None:
    plain, shifted = Dipole(arm(), **own()), Dipole(arm(), **own(shift=0.7))

    def scalars(dipole: Dipole, **options: Any) -> dict[str, Tensor]:
        return dipole.loss(GOAL, ACTION, ADVANTAGE, generator=torch.Generator().manual_seed(0), **options)[1]

    assert scalars(plain, sign=torch.ones(3))["loss_negative"] == 0
    assert scalars(plain, sign=-torch.ones(3, dtype=torch.int64))["loss_positive"] == 0
    assert torch.equal(scalars(plain, sign=torch.zeros(3))["loss"], scalars(plain)["loss"])
    wanted = torch.sigmoid(2.0 * ADVANTAGE + 0.7).mean()
    torch.testing.assert_close(scalars(shifted)["weight_positive"], wanted)
    with pytest.raises(InputError, match="shift"):
        Dipole(arm(), **own(shift=float("nan")))


class Turned(nn.Module):
    """Its layer sees time first and rows second, as transformers of torch do by default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(7, 16), nn.Linear(16, 7)

    def forward(self, x_t: Tensor) -> Tensor:
        return self.out(self.layer(x_t.transpose(0, 1)).tanh()).transpose(0, 1)


@pytest.mark.parametrize("net", [arm, Turned])
def test_one_pass_of_both_signs_only_where_it_is_two_passes(net: Any, capsys: pytest.CaptureFixture[str]) -> None:
    turned = {"denoise": lambda net, context, x_t, t: net(x_t), "encode": None, "adapt": "layer|out"}
    dipole = Dipole(net(), **own(**(turned if net is Turned else {})))
    noise = draw(3, 2, 8, 7)
    dipole.sample(GOAL, 1.0, 2, noise=noise)
    assert dipole.pair.mixes_rows is None  # fresh signs are alike: nothing can be told
    moved(dipole)
    first, second = (dipole.sample(GOAL, 1.0, 2, noise=noise) for _ in range(2))
    assert dipole.pair.mixes_rows is (net is not Turned)
    assert ("rows first" in capsys.readouterr().out) == (net is Turned)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    dipole.pair.mixes_rows = False
    torch.testing.assert_close(dipole.sample(GOAL, 1.0, 2, noise=noise), first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "schedule", [VPLinear(), CosineTable(36), LinearFlow(noise_at=0), LinearFlow(network_scale=10)]
)
def test_the_network_is_given_rows_and_times_it_can_take(schedule: Any) -> None:
    seen: set[Any] = set()

    def denoise(net: nn.Module, context: Any, x_t: Tensor, t: Tensor) -> Tensor:
        seen.update((x_t.dtype, t.dtype))
        return net.velocity(context["token"], x_t, t.float())

    dipole = moved(Dipole(arm(), **own(schedule=schedule, denoise=denoise)))
    torch.set_default_dtype(torch.float64)
    try:
        dipole.loss(GOAL, ACTION.double(), ADVANTAGE.double())
        dipole.sample(GOAL, 1.0, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen <= {torch.float32, torch.int64}


def test_the_best_of_n_is_by_any_callable() -> None:
    dipole, noise = moved(Dipole(arm(), **own())), draw(3, 5, 8, 7)
    rate = lambda observation, actions: -example.distance(observation["goal"], actions)  # noqa: E731
    best = dipole.act(GOAL, critic=rate, candidates=5, noise=noise)
    distances = example.distance(GOAL["goal"], dipole.sample(GOAL, 1.0, 5, noise=noise))
    torch.testing.assert_close(example.distance(GOAL["goal"], best[:, None])[:, 0], distances.min(1).values)
    with pytest.raises(InputError, match="critic"):
        dipole.act(GOAL, critic=lambda observation, actions: actions)


def test_the_network_stays_in_evaluation_mode_whoever_holds_it() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = arm()
            self.dipole = Dipole(net, **own())
            self.net = net

    outer = Outer().train()
    outer.dipole.sample(GOAL)
    assert not outer.net.training


# saving


@pytest.mark.parametrize("pair", ["lora", "separate"])
def test_saved_adapters_come_back_and_other_networks_are_refused(pair: str, tmp_path: Path) -> None:
    dipole, noise = moved(Dipole(arm(), **own(pair=pair))), draw(3, 2, 8, 7)
    dipole.save(tmp_path)
    for again in (Dipole(arm(), **own(pair=pair)), Dipole(arm(), **own(pair=pair, seed=1))):
        again.load(tmp_path)
        assert torch.equal(again.sample(GOAL, 1.0, 2, noise=noise), dipole.sample(GOAL, 1.0, 2, noise=noise))
    other = Dipole(arm(), **own(pair=pair))
    other.load_adapter_state(dipole.adapter_state())
    assert torch.equal(other.sample(GOAL, -1.0, 2, noise=noise), dipole.sample(GOAL, -1.0, 2, noise=noise))
    with pytest.raises(InputError, match="base"):
        Dipole(arm(seed=1), **own(pair=pair)).load(tmp_path)
    with pytest.raises(InputError, match="adapter state"):
        other.load_adapter_state({})
    base = sum(parameter.numel() for parameter in arm().parameters())
    assert sum(tensor.numel() for tensor in dipole.adapter_state().values()) < 2 * base


@pytest.mark.parametrize("sign", SIGNS)
def test_plain_peft_reads_a_saved_sign(sign: str, tmp_path: Path) -> None:
    dipole = moved(Dipole(arm(), **own()))
    dipole.save(tmp_path)
    plain = peft.PeftModel.from_pretrained(arm(), str(tmp_path / sign)).base_model.model.eval()
    x_t, t = draw(3, 8, 7), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        ours = dipole.pair.denoise(dipole.pair.encode(GOAL)[sign], x_t, t, sign)
        torch.testing.assert_close(plain.velocity(plain.state(GOAL["goal"]), x_t, t), ours)


# refusals


NAN = torch.full((3, 4), float("nan"))
REFUSED_AT_ONCE = {
    "beta": [{"beta": 0}, {"beta": -1.0}, {"beta": float("nan")}, {"beta": float("inf")}, {"beta": "2"}],
    "draws": [{"draws": 0}, {"draws": 1.5}],
    "rank": [{"rank": 0}, {"rank": 2.5}],
    "alpha": [{"alpha": -1.0}],
    "prediction": [{"prediction": "velosity"}, {"prediction": None}],
    "schedule": [{"schedule": "linear"}, {"schedule": LinearFlow}, {"schedule": None}],
    "solver": [{"solver": SolverSpec("ddim", steps=10)}, {"solver": "euler"}],
    "scope": [{"scope": "heads"}],
    "pair": [{"pair": "lara"}],
    "rule": [{"rule": "dichotomos"}],
    "routing": [{"routing": "bernouli"}],
    "adapt": [
        {"adapt": r"blocks\.\d+\.(norm|fc1)"},
        {"adapt": r"block\.\d+\.fc1"},
        {"adapt": "("},
        {"adapt": ["fc1"]},
        {"adapt": None},
        {"adapt": "nothing", "pair": "separate"},
        {"adapt": ".*", "pair": "separate"},
    ],
    "shape": [{"shape": None}, {"shape": 8}, {"shape": (8, 0)}, {"shape": (8, 7.0)}, {"action": Plain((8, 7))}],
    "action": [{"action": (8, 7), "shape": None}],
    "denoise": [{"denoise": None}, {"denoise": "velocity"}],
    "encode": [{"encode": "state"}],
}


@pytest.mark.parametrize(
    ("word", "changes"), [(word, changes) for word, several in REFUSED_AT_ONCE.items() for changes in several]
)
def test_an_argument_that_cannot_be_meant_is_named_in_one_line(word: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=word) as refusal:
        Dipole(arm(), **own(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("noise_at", [2, "1", None])
def test_a_flow_has_its_noise_at_one_end(noise_at: Any) -> None:
    with pytest.raises(ValueError, match="noise_at"):
        LinearFlow(noise_at=noise_at)


@pytest.mark.parametrize(
    ("word", "action", "advantage", "options"),
    [
        ("action", ACTION[..., :3], ADVANTAGE, {}),
        ("action", ACTION[:, :, :4], ADVANTAGE, {}),
        ("action", ACTION.long(), ADVANTAGE, {}),
        ("action", ACTION.numpy(), ADVANTAGE, {}),
        ("action", ACTION * NAN[..., None, None], ADVANTAGE, {}),
        ("advantage", ACTION, ADVANTAGE[:, :2], {}),
        ("advantage", ACTION, ADVANTAGE[:, 0], {}),
        ("advantage", ACTION, ADVANTAGE > 0, {}),
        ("advantage", ACTION, NAN, {}),
        ("action", ACTION[:2], ADVANTAGE[:2], {}),
        ("action", ACTION[:0], ADVANTAGE[:0], {}),
        ("sample_weight", ACTION, ADVANTAGE, {"sample_weight": ADVANTAGE[:, :3]}),
        ("sample_weight", ACTION, ADVANTAGE, {"sample_weight": -torch.ones(3)}),
        ("sample_weight", ACTION, ADVANTAGE, {"sample_weight": NAN}),
        ("sign", ACTION, ADVANTAGE, {"sign": 2 * torch.ones(3)}),
        ("sign", ACTION, ADVANTAGE, {"sign": NAN}),
        ("sign", ACTION, ADVANTAGE, {"sign": torch.ones(2)}),
    ],
)
def test_a_loss_of_what_does_not_fit_is_refused(word: str, action: Any, advantage: Any, options: Any) -> None:
    with pytest.raises(InputError, match=word) as refusal:
        Dipole(arm(), **own()).loss(GOAL, action, advantage, **options)
    assert "\n" not in str(refusal.value)


def test_seven_joints_are_no_poses() -> None:
    with pytest.raises(InputError, match="is_padded"):
        Dipole(arm(), **own(shape=None, action=Poses(dim=7)))
    padded = Dipole(arm(), **own(shape=None, action=Poses(dim=7, is_padded=True)))
    with pytest.raises(InputError, match="action"):
        padded.loss(GOAL, ACTION, ADVANTAGE)
    with pytest.raises(InputError, match="poses"):
        padded.backbone.action.encode(ACTION)


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("encode", {"encode": lambda net, observation: net.state(observation["goal"])}),
        ("encode", {"encode": lambda net, observation: {"token": torch.zeros(2, 16), "more": torch.zeros(3)}}),
        ("encode", {"encode": lambda net, observation: {"token": torch.tensor(0.0)}}),
        ("encode", {"encode": None, "denoise": lambda net, context, x_t, t: x_t, "shape": (8, 3)}),
        ("denoise", {"denoise": lambda net, context, x_t, t: x_t[..., :3]}),
        ("denoise", {"denoise": lambda net, context, x_t, t: None}),
        ("blocks", {"adapt": r"blocks\.0\.fc1|unused", "denoise": lambda net, context, x_t, t: x_t}),
        ("denoise", {"pair": "separate", "denoise": lambda net, context, x_t, t: x_t}),
    ],
)
def test_functions_that_return_something_else_are_named(word: str, changes: dict[str, Any]) -> None:
    observation = [1] if changes.get("shape") else GOAL
    with pytest.raises(InputError, match=word) as refusal:
        Dipole(arm(), **own(**changes)).loss(observation, ACTION[..., : changes.get("shape", (8, 7))[1]], ADVANTAGE)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("pair", ["lora", "separate"])
def test_a_head_that_reaches_into_encode_is_refused_with_the_layer_and_the_remedy(pair: str) -> None:
    with pytest.raises(InputError, match=r'encode runs state.*scope="all"'):
        Dipole(arm(), **own(adapt="state|out", pair=pair)).loss(GOAL, ACTION, ADVANTAGE)
    loss, _ = Dipole(arm(), **own(adapt="state|out", pair=pair, scope="all")).loss(GOAL, ACTION, ADVANTAGE)
    assert loss.requires_grad


def test_a_second_pair_on_one_network_is_refused() -> None:
    net = arm()
    Dipole(net, **own())
    with pytest.raises(InputError, match="already carries adapters"):
        Dipole(net, **own())


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("omega", {"omega": float("nan")}),
        ("omega", {"omega": torch.zeros(2)}),
        ("candidates", {"candidates": 0}),
        ("noise", {"noise": draw(3, 1, 8, 3)}),
        ("steps", {"steps": 0}),
    ],
)
def test_sampling_refuses_what_cannot_be_meant(word: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=word):
        Dipole(arm(), **own()).sample(GOAL, **options)


# in a trainer of somebody's


class Killed(Exception):
    pass


class Training(L.LightningModule):
    """Holds the network twice, has a trained part with buffers beside it, and draws from the global generator."""

    def __init__(self, killed_at: int = -1):
        super().__init__()
        net = arm()
        self.net, self.dipole, self.killed_at = net, Dipole(net, **own()), killed_at
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
            for parameter in self.head.parameters():
                nn.init.constant_(parameter, 0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == self.killed_at:
            raise Killed
        goal, action = batch
        loss, _ = self.dipole.loss({"goal": goal}, action, goal[:, 0])
        return loss + self.head(goal).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(folder: Path, killed_at: int = -1, seed: int | None = None, every: int = 1) -> dict[str, Tensor]:
    """Three epochs of four shuffled batches; what trained, and its running mean."""
    module, saved = Training(killed_at), AdapterCheckpoints(folder, every, ema_decay=0.9)
    data = DataLoader(TensorDataset(draw(8, 7, seed=4), draw(8, 8, 7, seed=5)), batch_size=2, shuffle=True)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=3, callbacks=[FiniteGradients(), saved], enable_model_summary=False, **quiet)
    if seed is not None:
        torch.manual_seed(seed)
    trainer.fit(module, data, ckpt_path=saved.newest)
    trained = {name: tensor.clone() for name, tensor in module.state_dict().items() if "net." not in name[:4]}
    with saved.averaged():
        return trained | {f"mean.{name}": x.clone() for name, x in module.dipole.adapter_state().items()}


@pytest.mark.parametrize("killed_at", [(1, 2), (3, 4), (4, 5, 8), (8, 11), (11,)])  # an epoch has four steps
def test_a_resumed_run_of_a_foreign_trainer_is_the_undisturbed_one(killed_at: tuple[int], tmp_path: Path) -> None:
    wanted = fit(tmp_path / "whole", seed=7)
    for step in killed_at:
        with pytest.raises(Killed):
            fit(tmp_path / "killed", step, seed=7)
    for seed in (1, 2):  # another seed: the checkpoint's counts; the second time all is done
        found = fit(tmp_path / "killed", seed=seed)
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_a_schedulers_signal_saves_the_step_and_ends_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fit(tmp_path / "whole", seed=7)
    monkeypatch.setattr(preemption, "_noted", [])
    monkeypatch.setattr(Training, "on_before_optimizer_step", lambda self, _: stop_at(self, 5))
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path / "stopped", seed=7, every=100)
    assert stop.value.code == preemption.EXIT_CODE
    assert newest_checkpoint(tmp_path / "stopped").name == "step=00000006.ckpt"
    preemption._noted.clear()
    monkeypatch.undo()
    found = fit(tmp_path / "stopped", seed=1)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def stop_at(module: L.LightningModule, step: int) -> None:
    if module.trainer.global_step == step:
        os.kill(os.getpid(), signal.SIGTERM)


def test_checkpoints_hold_what_trains_alone_and_say_what_is_missing(tmp_path: Path) -> None:
    fit(tmp_path, seed=0)
    path = newest_checkpoint(tmp_path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert {name for name in state if "lora_" not in name} == {
        name for name in Training().state_dict() if name.startswith("head.")
    }
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    with pytest.raises(InputError, match="ema_decay"):
        AdapterCheckpoints(tmp_path, 1, ema_decay=1.0)


def test_a_gradient_that_is_not_finite_names_the_batch_of_a_foreign_loader(tmp_path: Path) -> None:
    class Broken(Training):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 2:
                next(self.dipole.pair.parameters()).grad.fill_(float("nan"))

    data = DataLoader(TensorDataset(draw(8, 7, seed=4), draw(8, 8, 7, seed=5)), batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with pytest.raises(InputError, match=r"step 2: the gradient is not finite on .*batch 2"):
        L.Trainer(max_epochs=1, callbacks=[FiniteGradients()], **quiet).fit(Broken(), data)


# the example


def example_in_a_process(out: Path, killed: bool) -> int:
    """Fork a shorter run of the example; kill it as soon as a checkpoint is there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            example.pretrained.__defaults__ = (5,)
            if killed:
                step = example.MyTraining.training_step

                def dying(module: Any, batch: Any, index: int) -> Tensor:
                    if module.trainer.global_step == 41:  # one step past the second checkpoint
                        os.kill(os.getpid(), signal.SIGKILL)
                    return step(module, batch, index)

                example.MyTraining.training_step = dying
            example.main(out, epochs=12, goals=128)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_example_killed_and_started_again_saves_the_same_adapters(tmp_path: Path) -> None:
    assert example_in_a_process(tmp_path / "whole", killed=False) == 0
    assert example_in_a_process(tmp_path / "killed", killed=True) == -signal.SIGKILL
    assert newest_checkpoint(tmp_path / "killed" / "checkpoints").name == "step=00000040.ckpt"
    assert example_in_a_process(tmp_path / "killed", killed=False) == 0
    for sign in SIGNS:
        files = [tmp_path / run / "adapters" / sign / "adapter_model.safetensors" for run in ("whole", "killed")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_example_runs_as_it_stands_and_greed_brings_the_arm_nearer(tmp_path: Path) -> None:
    line = [sys.executable, str(EXAMPLE), str(tmp_path)]
    said = subprocess.run(
        line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600
    )
    assert said.returncode == 0, said.stderr
    found = {name: float(value) for name, value in re.findall(r"^(omega -?\d|reference) +([\d.]+)$", said.stdout, re.M)}
    assert found["omega -1"] > found["reference"] > found["omega 0"] >= found["omega 1"]
    ours = sum("# dipole" in text for text in EXAMPLE.read_text().splitlines() if not text.startswith(("same", "the")))
    assert ours <= 25
