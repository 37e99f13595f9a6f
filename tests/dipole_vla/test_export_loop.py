"""The sampling loop as ONNX and by torch.export: read without this program, it gives the policy's plans."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_backbone import make_backbone, spread_adapters
from torch import nn

from dipole_vla import Dipole
from dipole_vla.backbones import FAMILIES, backbone_class
from dipole_vla.cli import main
from dipole_vla.export.inputs import observation_of
from dipole_vla.export.program import ABOUT, FILES, write_loop
from dipole_vla.paths import LinearFlow
from dipole_vla.policy import AdapterPair, Guidance, GuidedPolicy
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.separate import SeparatePair
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import finish, verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inference.md"
FORMATS = sorted(FILES)
SLOW = pytest.mark.slow
RUNTIMES = ("onnx", "onnxscript", "onnxruntime")


def needs(form):
    for name in RUNTIMES if form == "onnx" else ():
        pytest.importorskip(name)


def run(*words):
    return main(["export", *map(str, words)])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.see, self.mix, self.out = nn.Linear(3, 16), nn.Linear(4 * 2 + 1, 16), nn.Linear(16, 4 * 2)

    def forward(self, seen, x_t, t):
        hidden = self.mix(torch.cat([x_t.flatten(1), t[:, None]], -1)) + self.see(seen)
        return self.out(torch.tanh(hidden)).unflatten(-1, x_t.shape[1:])


def own_network(**options):
    torch.manual_seed(0)
    dipole = Dipole(
        Net(),
        denoise=lambda net, tensors, x_t, t: net(tensors["seen"], x_t, t),
        schedule=LinearFlow(noise_at=1),
        prediction="velocity",
        adapt="mix|out",
        shape=(4, 2),
        rank=2,
        **options,
    )
    spread_adapters(dipole.pair)
    return dipole


def plans_of_files(folder, form, observation, omega, noise):
    """What the two files give, by torch.export or onnxruntime alone."""
    about = json.loads((folder / ABOUT).read_text())
    encoder, loop = (folder / part["file"] for part in about["files"])
    if form == "program":
        context = torch.export.load(encoder).module()(*observation.values())
        return torch.export.load(loop).module()(*context, omega, noise)
    import onnxruntime

    first, second = onnxruntime.InferenceSession(encoder), onnxruntime.InferenceSession(loop)
    names = [each["name"] for each in about["files"][0]["outputs"]]
    context = dict(zip(names, first.run(names, {name: value.numpy() for name, value in observation.items()})))
    return torch.from_numpy(second.run(None, {**context, "omega": omega.numpy(), "noise": noise.numpy()})[0])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("solver", ["euler", *(pytest.param(name, marks=SLOW) for name in ("dpm++2m", "renoise"))])
def test_a_network_of_ones_own_leaves_with_every_solver(form, solver, tmp_path):
    needs(form)
    dipole = own_network(solver=SolverSpec(solver, 3, clamp=(-3.0, 3.0)))
    one, another, third = ({"seen": torch.randn(1, 3)} for _ in range(3))
    write_loop(dipole.policy, tmp_path, form, candidates=4, observations=(one, another))
    noise = torch.randn(1, 4, 4, 2)
    for omega in (-1.0, 0.0, 1.0, 2.0):
        found = plans_of_files(tmp_path, form, third, torch.full((4,), omega), noise)
        wanted = dipole.sample(third, omega, 4, noise=noise)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    mixed = torch.tensor([-1.0, 0.5, 2.0, 0.0])
    found = plans_of_files(tmp_path, form, third, mixed, noise)
    torch.testing.assert_close(found, dipole.sample(third, mixed[None], 4, noise=noise), rtol=0, atol=1e-4)


def of_family(family, how):
    torch.manual_seed(0)
    backbone = backbone_class(family).tiny().eval()
    if how == "other solver":
        backbone.solver = replace(
            backbone.solver, name={"dp_vla": "dpm++2m", "recogdrive": "ddim"}.get(family, "euler")
        )
    with torch.no_grad():
        for parameter in backbone.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    if how == "separate":
        pair = SeparatePair(backbone)
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
    else:
        pair = AdapterPair(backbone, "all" if how == "all" else "head", rank=2)
        spread_adapters(pair, scale=0.02)
    guidance = Guidance(low=0.3, decay=1.0, power=0.5) if how == "shaped" else Guidance()
    policy = GuidedPolicy(backbone, pair, guidance=guidance)
    if how == "distilled":
        policy.distilled = DistilledPair(pair)
    return policy


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_leaves(form, family, tmp_path):
    needs(form)
    policy = of_family(family, "head")
    if (family, form) == ("recogdrive", "onnx"):  # its language model's check of the pictures is no ONNX operator
        with pytest.raises(InputError, match="_is_all_true"):
            write_loop(policy, tmp_path, form, candidates=2, steps=2)
        return
    about = write_loop(policy, tmp_path, form, candidates=2, steps=2)
    observation, noise = observation_of(policy, 7), torch.randn(1, 2, *policy.noise_shape)
    found = plans_of_files(tmp_path, form, observation, torch.tensor([0.5, 2.0]), noise)
    wanted = policy.sample(observation, torch.tensor([[0.5, 2.0]]), 2, noise, steps=2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=about["allowed_m"])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("how", ["all", "separate", "distilled", "shaped"])
def test_every_kind_of_pair_leaves(form, how, tmp_path):
    needs(form)
    write_loop(of_family("timm", how), tmp_path, form, candidates=2, steps=2)  # refuses files of other plans


def test_the_example_of_the_docs_runs_without_torch(tmp_path):
    needs("onnx")
    scenes = ({"seen": torch.randn(1, 3)}, {"seen": torch.randn(1, 3)})
    write_loop(own_network().policy, tmp_path, "onnx", candidates=3, steps=2, observations=scenes)
    example = PAGE.read_text().split("With numpy and onnxruntime alone:\n```python\n")[1].split("```")[0]
    code = f"import sys; sys.modules['torch'] = None\n{example}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(1, 3, 4, 2)")


@pytest.mark.slow
def test_the_command_writes_files_that_their_description_fits(tmp_path):
    needs("onnx")
    policy = of_family("timm", "head")
    policy.backbone.save_pretrained(tmp_path / "base")
    policy.save_pretrained(tmp_path / "policy", backbone=tmp_path / "base")
    finish(tmp_path / "policy", {"command": "test"})
    out = tmp_path / "onnx"
    assert run(tmp_path / "policy", "--out", out, "--format", "onnx", "--candidates", 3, "--solver-steps", 1) == 0
    verify(out)
    about = json.loads((out / ABOUT).read_text())
    assert about["opset"] >= 18
    assert about["versions"].keys() == {"torch", *RUNTIMES}
    assert all(each["meaning"] and each["unit"] for part in about["files"] for each in part["inputs"])


def test_what_cannot_leave_is_one_line(tmp_path, monkeypatch, capsys):
    from dipole_vla.backbones.dp_vla.model import DPVLA

    policy = GuidedPolicy(make_backbone(), None)
    policy.pair = AdapterPair(policy.backbone, "head", rank=2)
    encode = DPVLA.encode

    def by_data(self, observation):
        shift = float(observation["pixels"].float().mean()) * 0.01
        return encode(self, {**observation, "proprio": observation["proprio"] + shift})

    monkeypatch.setattr(DPVLA, "encode", by_data)
    with pytest.raises(InputError, match="'dp_vla' cannot be written so") as told:
        write_loop(policy, tmp_path, "program")
    assert "\n" not in str(told.value)
    policy.backbone.solver = replace(policy.backbone.solver, eta=1.0)
    with pytest.raises(InputError, match="fresh noise"):
        write_loop(policy, tmp_path, "program")
    fresh = own_network()
    with torch.no_grad():
        for parameter in fresh.pair.parameters():
            parameter.zero_()
    with pytest.raises(InputError, match="two signs predict the same"):
        write_loop(fresh.policy, tmp_path, "program", observations=({"seen": torch.ones(1, 3)},) * 2)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime; pip install 'dipole-vla\[onnx\]'"):
        write_loop(policy, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())
