"""Schedules and prediction conversions, against closed forms and round trips in float64."""

from __future__ import annotations

import math

import pytest
import torch

from dipole_vla.paths import (
    CosineTable,
    LinearFlow,
    VPLinear,
    interpolate,
    log_snr,
    noise_level,
    target,
    to_noise,
    to_x0,
)

SCHEDULES = {
    "vp": VPLinear(),
    "cosine": CosineTable(),
    "flow, noise at 1": LinearFlow(noise_at=1),
    "flow, noise at 0": LinearFlow(noise_at=0),
}
CONTINUOUS = {name: schedule for name, schedule in SCHEDULES.items() if name != "cosine"}


def times(schedule, count=64):
    """Inner times, float64 (or integers of a table)."""
    if isinstance(schedule, CosineTable):
        return torch.arange(1, 99).double()
    return torch.linspace(0.02, 0.98, count, dtype=torch.float64)


def pair_like(t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(len(t), 8, 4, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["noise", "sample", "velocity"])
def test_target_converts_back_to_data_and_noise(name, prediction):
    schedule = SCHEDULES[name]
    t = times(schedule)
    x0, noise = pair_like(t)
    x_t = interpolate(schedule, x0, noise, t)
    output = target(prediction, schedule, x0, noise, t)
    # division by the smallest alpha or sigma amplifies the last bit by up to 1e3
    torch.testing.assert_close(to_x0(prediction, schedule, output, x_t, t), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(to_noise(prediction, schedule, output, x_t, t), noise, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["flow, noise at 1", "flow, noise at 0"])
def test_flow_velocity_is_the_derivative_in_its_own_time(name):
    schedule, step = SCHEDULES[name], 1e-4
    t = times(schedule)
    x0, noise = pair_like(t)
    ahead, behind = (interpolate(schedule, x0, noise, t + h) for h in (step, -step))
    velocity = target("velocity", schedule, x0, noise, t)
    torch.testing.assert_close((ahead - behind) / (2 * step), velocity, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_grows_from_the_data_end_to_the_noise_end(name):
    schedule = SCHEDULES[name]
    ends = torch.tensor([schedule.data_time, schedule.noise_time], dtype=torch.float64)
    clean, noisy = noise_level(schedule, ends).tolist()
    assert clean < 0.05
    assert noisy > 0.95
    level = log_snr(schedule, times(schedule))
    slopes = level.diff() * (1 if schedule.noise_time > schedule.data_time else -1)
    assert (slopes < 0).all()


def test_vp_matches_its_published_formula():
    schedule = VPLinear()
    for t in (1e-3, 0.3, 1.0):
        at = torch.tensor([t], dtype=torch.float64)
        integral = 0.1 * t + (20 - 0.1) * t**2 / 2  # of beta over [0, t]
        assert schedule.alpha(at).item() == pytest.approx(math.exp(-integral / 2), rel=1e-12)
        assert schedule.sigma(at).item() == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-9)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_time_of_inverts_log_snr(name):
    schedule = CONTINUOUS[name]
    t = times(schedule)
    torch.testing.assert_close(schedule.time_of(log_snr(schedule, t)), t, rtol=0, atol=1e-10)


def test_cosine_table_is_the_cosine_but_for_its_cut_end():
    table = CosineTable()
    points = torch.arange(101, dtype=torch.float64) / 100
    curve = torch.cos((points + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(table.alpha_bar[:99], (curve / curve[0])[1:100], rtol=1e-12, atol=0)
    assert table.alpha_bar[99].item() == pytest.approx(table.alpha_bar[98].item() * 1e-3, rel=1e-12)


def test_schedules_are_float32_whatever_the_time_came_in():
    t = torch.tensor([0.5], dtype=torch.bfloat16)
    assert VPLinear().alpha(t).dtype == torch.float32
    assert LinearFlow().sigma(t).dtype == torch.float32


def test_training_times_follow_each_familys_recipe():
    generator = torch.Generator().manual_seed(0)
    vp = VPLinear().sample_t(20_000, generator)
    assert 1e-3 <= vp.min() < 0.01
    assert 0.99 < vp.max() <= 1
    assert vp.mean().item() == pytest.approx(0.5, abs=0.01)
    pi0 = LinearFlow(noise_at=1, power=1.5, slope=0.999, floor=0.001).sample_t(20_000, generator)
    assert pi0.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)  # Beta(1.5, 1) has mean 0.6
    gr00t = LinearFlow(noise_at=0, power=1.5, slope=0.999, floor=0.001).sample_t(20_000, generator)
    assert gr00t.mean().item() == pytest.approx(1 - (0.001 + 0.999 * 0.6), abs=0.01)
    cosine = CosineTable().sample_t(20_000, generator)
    assert cosine.unique().tolist() == list(range(100))


def test_stratified_times_cover_the_interval_evenly():
    t = LinearFlow(is_stratified=True).sample_t(10, torch.Generator().manual_seed(3)).sort().values
    torch.testing.assert_close(t.diff(), torch.full((9,), 0.1), atol=1e-4, rtol=0)


def test_network_is_given_the_time_it_was_trained_on():
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    assert LinearFlow(noise_at=0, network_scale=1000).network_time(t).tolist() == [0, 200, 400, 600, 800]
    assert VPLinear().network_time(t).dtype == torch.float32
    assert CosineTable().network_time(torch.tensor([80.0])).dtype == torch.int64
