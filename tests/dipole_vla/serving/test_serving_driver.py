"""When the driver plans, what it answers when it cannot, and whose plan a session gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from carla_driver_interface.driver import SessionState

from dipole_vla.serving.batching import Batcher
from tests.dipole_vla.serving.sessions import CAMERAS, Client, Straight, in_process, jpeg, straight_driver

STEP = 100_000


@pytest.fixture
def driver():
    return straight_driver(replan=0.0)


def policy_of(driver) -> Straight:
    return driver.policy


def ends(plan) -> float:
    """Metres of x at the end of a plan, in the local frame."""
    return float(plan.positions[-1, 0])


def test_a_plan_begins_at_the_ego_and_ends_at_its_horizon(driver) -> None:
    plan = Client(in_process(driver)).go(1_000_000, speed=8.0)
    assert plan.timestamps_us[0] == 1_000_000
    assert plan.timestamps_us[-1] == 5_000_000
    np.testing.assert_allclose(plan.positions[:, 0], 8.0 * np.array(plan.timestamps_us) * 1e-6, atol=1e-4)


LACKS: dict[str, tuple[str, Callable[[Client, int], None]]] = {
    "no egomotion": ("no egomotion yet", lambda c, t: c.pictures(t)),
    "no picture": ("no picture of CAM_L0 yet", lambda c, t: c.pose(t, velocity=[(8, 0)])),
    "one picture missing": (
        "no picture of CAM_R0",
        lambda c, t: (c.pose(t, velocity=[(8, 0)]), c.picture(t, "CAM_L0"), c.picture(t, "CAM_F0")),
    ),
    "late pictures": ("picture of CAM_L0 is 1.20 s old", lambda c, t: (c.pose(t), c.pictures(t - 1_200_000))),
    "pictures to come": (r"picture of CAM_L0 is -1.20 s old", lambda c, t: (c.pose(t), c.pictures(t + 1_200_000))),
    "late egomotion": ("the latest pose is of", lambda c, t: (c.pose(t - 1_200_000), c.pictures(t))),
    "a picture cut short": (
        "a picture of CAM_F0 cannot be read",
        lambda c, t: (c.pose(t), c.pictures(t), c.picture(t, "CAM_F0", jpeg(256, 256)[:-30])),
    ),
}


@pytest.mark.parametrize("lack", LACKS)
def test_a_first_drive_that_lacks_something_stands_still_and_says_so_once(driver, lack: str, caplog) -> None:
    message, give = LACKS[lack]
    client = Client(in_process(driver))
    for moment in (3_000_000, 3_100_000, 3_200_000):
        give(client, moment)
        plan = client.drive(moment)
        assert len(plan) < 2  # the contract's word for holding
    assert [message in record.getMessage() for record in caplog.records] == [True]
    assert not policy_of(driver).rows
    assert driver.held == 3
    assert len(client.go(4_000_000)) > 2  # and the next that lacks nothing is planned


def test_a_later_lack_follows_the_plan_before_while_it_lasts(driver) -> None:
    client = Client(in_process(driver))
    first = client.go(0, speed=8.0)
    for moment in range(STEP, 1_500_001, STEP):
        client.pose(moment, 8.2 * moment * 1e-6, 0.3, velocity=[(8.2, 0.0)])
        plan = client.drive(moment)  # pictures are late from 1.1 s on
    assert len(policy_of(driver).rows) == 11
    assert ends(plan) == pytest.approx(8.2 * 1.0 + 4 * 8.2, abs=1e-3)  # the plan of 1 s, where it was put
    np.testing.assert_allclose(plan.positions[1:, 1], 0.3, atol=1e-4)
    assert plan.timestamps_us[1] > 1_500_000
    client.pose(5_100_000, 40.0)
    assert len(client.drive(5_100_000)) == 1  # it has ended: stand still
    assert len(first) > 2


def test_nan_of_a_policy_is_a_hold(driver, caplog) -> None:
    client = Client(in_process(driver))
    client.go(0)
    policy_of(driver).broken = True
    assert ends(client.go(STEP)) == pytest.approx(32.0, abs=1e-3)
    assert "holds NaN" in caplog.text


def test_a_pass_that_fails_is_a_hold(driver, caplog) -> None:
    client = Client(in_process(driver))
    client.go(0)

    def fails(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    driver.policy.act, act = fails, driver.policy.act
    assert ends(client.go(STEP)) == pytest.approx(32.0, abs=1e-3)
    assert "the policy failed (out of memory)" in caplog.text
    driver.policy.act = act
    assert ends(client.go(2 * STEP)) == pytest.approx(8.0 * 4.2, abs=1e-3)


def test_a_plan_is_kept_for_as_long_as_asked() -> None:
    driver = straight_driver(replan=0.5)
    client = Client(in_process(driver))
    plans = [client.go(moment, speed=8.0 + moment * 1e-6) for moment in range(0, 1_100_001, STEP)]
    assert len(policy_of(driver).rows) == 3
    assert [round(ends(plan), 2) for plan in plans[:5]] == [32.0] * 5
    assert ends(plans[5]) == pytest.approx(8.5 * 0.5 + 4 * 8.5, abs=1e-3)


def test_noise_belongs_to_the_sessions_seed_and_the_number_of_its_plan(driver) -> None:
    channel = in_process(driver)
    for seed in (7, 7, 8):
        client = Client(channel, seed=seed)
        client.go(0)
        client.go(STEP)
    first, second, again, and_again, other, _ = policy_of(driver).noise
    assert torch.equal(first, again)
    assert torch.equal(second, and_again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_time_goes_forward(driver) -> None:
    client = Client(in_process(driver))
    client.go(2_000_000)
    with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT[\s\S]*time_now_us: 1900000 is before"):
        client.drive(1_900_000)
    client.pose(1_000_000, 999.0)  # resent poses of before are known already
    assert ends(client.go(2_100_000)) == pytest.approx(8.0 * 6.1, abs=1e-3)


def test_memory_of_a_session_does_not_grow(driver) -> None:
    """After 3,000 drives a session holds what it held after 100."""
    kept: list[SessionState] = []
    begun = driver.on_session_start
    driver.on_session_start = lambda session: (kept.append(session), begun(session))
    client = Client(in_process(driver), cameras=("CAM_L0", "CAM_F0", "CAM_R0", "CAM_B0"))
    sizes = []
    for i in range(3_000):
        client.pose(i * 10_000, i * 0.1, velocity=[(8.0, 0.0)])
        if i % 100 == 0:
            client.picture(i * 10_000, "CAM_B0")
            client.pictures(i * 10_000)
            client.drive(i * 10_000)
            policy_of(driver).rows.clear()
            [session] = kept
            sizes.append(
                (len(session.ego_trajectory), len(session.dynamic_states), len(session.frame_history["CAM_B0"]))
            )
    assert sizes[3] == sizes[-1]
    assert sizes[-1] == (201, 201, 0)


def test_sessions_that_ask_together_share_a_pass() -> None:
    driver = straight_driver()
    channel, gate, act = in_process(driver), threading.Event(), driver.policy.act

    def slow(*arguments, **options):
        gate.wait(5)
        return act(*arguments, **options)

    driver.policy.act = slow
    clients = [Client(channel) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        drives = [pool.submit(client.go, STEP, 3.0 + i) for i, client in enumerate(clients)]
        while sum(each.is_planning for each in driver._drives.values()) < 5:
            time.sleep(0.01)
        time.sleep(0.2)
        gate.set()
        plans = [drive.result() for drive in drives]
    assert (len(policy_of(driver).passes), sum(policy_of(driver).passes)) == (2, 5)
    for i, plan in enumerate(plans):
        assert ends(plan) == pytest.approx((3.0 + i) * 4.1, abs=1e-3)


def test_pictures_are_shown_as_they_come() -> None:
    driver = straight_driver()
    noted: list[tuple[int, int]] = []
    driver.policy.shown = lambda image: torch.tensor(noted.append(image.size) or image.size)  # type: ignore[attr-defined]
    client = Client(in_process(driver))
    client.pose(STEP, velocity=[(8.0, 0.0)])
    client.pictures(STEP)
    assert noted == [(32, 18)] * 3
    client.drive(STEP)
    assert noted == [(32, 18)] * 3
    [seen] = policy_of(driver).pictures
    assert {name: tuple(shown) for name, shown in seen.items()} == dict.fromkeys(seen, (32, 18))  # type: ignore[arg-type]


def test_who_has_sent_all_pictures_is_waited_for_a_second(driver, monkeypatch) -> None:
    client = Client(in_process(driver))
    client.pose(STEP, velocity=[(8.0, 0.0)])
    for camera, expected in zip(CAMERAS, (0, 0, 1)):
        client.picture(STEP, camera)
        assert driver._expected() == expected
    client.drive(STEP)
    assert driver._expected() == 0
    client.pictures(2 * STEP)
    assert driver._expected() == 1
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now + 1.5)
        assert driver._expected() == 0


def test_what_one_asker_breaks_the_others_do_not_feel() -> None:
    def answer(asks: Sequence[int]) -> list[int]:
        if 3 in asks:
            raise ValueError("three")
        return [2 * ask for ask in asks]

    gate = threading.Event()
    batcher: Batcher[int, int] = Batcher(lambda asks: (gate.wait(5), answer(asks))[1], 8, lambda: 1)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(batcher, i) for i in range(5)]
        time.sleep(0.1)
        gate.set()
        assert [answers[i].result() for i in (0, 1, 2, 4)] == [0, 2, 4, 8]
        with pytest.raises(ValueError, match="three"):
            answers[3].result()
