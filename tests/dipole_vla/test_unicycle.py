"""A unicycle's controls: the published code's numbers both ways, the equations of motion, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipole_vla.backbones.unicycle import Unicycle
from navsim_adapter.foundation.errors import InputError

FACTS = Path(__file__).resolve().parents[1] / "data" / "parity" / "alpamayo" / "facts.safetensors"
CODEC = Unicycle(offset=(0.03125, 2.0**-12), scale=(0.6875, 2.0**-5))


@pytest.fixture(scope="module")
def facts():
    return {name.removeprefix("codec."): value for name, value in load_file(FACTS).items() if name.startswith("codec.")}


def test_the_published_numbers_both_ways(facts):
    poses = facts["poses"]
    speed = CODEC.speed_of(poses[:, :16])
    torch.testing.assert_close(speed, facts["speed"], rtol=0, atol=1e-9)
    torch.testing.assert_close(CODEC.encode(poses[:, 16:], speed), facts["action"], rtol=0, atol=1e-6)
    decoded = CODEC.decode(facts["action"], facts["speed"])
    torch.testing.assert_close(decoded, facts["decoded"], rtol=0, atol=1e-6)


def test_a_plan_is_the_motion_of_its_controls(facts):
    """A thousand small steps of dx = v cos h, dv = a, dh = curvature v for each of ours."""
    action, speed = facts["action"], facts["speed"]
    acceleration, curvature = (action * torch.tensor(CODEC.scale).double() + torch.tensor(CODEC.offset)).unbind(-1)
    parts = 1000
    fine = CODEC.interval / parts
    a, k = (control.repeat_interleave(parts, -1) for control in (acceleration, curvature))
    v = speed[:, None] + torch.nn.functional.pad((a * fine).cumsum(-1), (1, 0))
    middle = v[:, :-1] + a * fine / 2
    h = torch.nn.functional.pad((k * middle * fine).cumsum(-1), (1, 0))
    along = h[:, :-1] + k * middle * fine / 2
    xy = torch.stack([(middle * along.cos() * fine).cumsum(-1), (middle * along.sin() * fine).cumsum(-1)], dim=-1)
    decoded = CODEC.decode(action, speed)
    turned = decoded[..., 2] - h[:, parts::parts]
    torch.testing.assert_close(turned.sin(), torch.zeros_like(turned), rtol=0, atol=1e-9)  # exact, but for whole turns
    torch.testing.assert_close(
        decoded[..., :2], xy[:, parts - 1 :: parts], rtol=0, atol=0.01
    )  # trapezoids: a centimetre


def test_controls_come_back_from_their_plan():
    """A gentle drive, at any leading shape and interval, is its own fit; heading may pass half a turn."""
    time = torch.arange(16) * 0.4
    for turn, start in ((0.05, 8.0), (-0.2, 6.0), (0.0, 0.5)):
        codec = Unicycle(horizon=16, interval=0.4)
        controls = torch.stack([0.3 * torch.ones(16), turn * torch.ones(16)], dim=-1).double().expand(2, 3, 16, 2)
        speed = torch.full((2, 3), start).double()
        poses = codec.decode(controls, speed)
        assert poses.shape == (2, 3, *codec.raw_shape)
        assert poses[..., 2].abs().max() <= torch.pi
        again = codec.decode(codec.encode(poses, speed), speed)
        assert (again - poses)[..., :2].norm(dim=-1).max() < 0.02 + 0.002 * start * time[-1]


def test_standing_still_is_no_control():
    poses = torch.zeros(1, 64, 3)
    torch.testing.assert_close(Unicycle().encode(poses, torch.zeros(1)), torch.zeros(1, 64, 2))
    assert not Unicycle().decode(torch.zeros(1, 64, 2), torch.zeros(1)).any()


def test_a_float32_plan_keeps_its_type():
    speed, action = torch.tensor([5.0]), torch.randn(1, 64, 2)
    poses = Unicycle().decode(action, speed)
    assert poses.dtype == Unicycle().encode(poses, speed).dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 2}, r"action\.horizon"),
        ({"interval": 0.0}, r"action\.interval"),
        ({"scale": (1.0, 0.0)}, r"action\.scale"),
        ({"offset": (1.0,)}, r"action\.offset"),
        ({"speed": (float("nan"), 1.0)}, r"action\.speed"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        Unicycle(**fields)


def test_poses_of_another_horizon_are_refused():
    with pytest.raises(InputError, match=r"poses: must end in \(64, 3\)"):
        Unicycle().encode(torch.zeros(2, 8, 3), torch.zeros(2))
    with pytest.raises(InputError, match=r"model\.fit_action"):
        Unicycle().fitted(torch.zeros(4, 64, 3))
