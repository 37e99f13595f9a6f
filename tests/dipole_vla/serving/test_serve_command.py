"""`dipole-vla serve` as it is typed: over a port and a Unix socket, in both modes, to its end by a signal."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import yaml
from carla_driver_interface.policies import load_policy
from carla_driver_interface.protocol import EgodriverServiceStub, Empty, channel_options
from carla_driver_interface.testing import FakeCamera, FakeLoop, LoopResult

from dipole_vla.cli import EXTRA_OF, main
from dipole_vla.commands.serve import driver
from dipole_vla.policy import GuidedPolicy
from dipole_vla.serving import check
from dipole_vla.serving.driver import PolicyDriver
from dipole_vla.serving.server import opened
from tests.dipole_vla.serving.sessions import CAMERAS, Client
from tests.refusals import refused

RIG = [FakeCamera(name, 96, 54, 64.0, yaw_left_deg=yaw) for name, yaw in zip(CAMERAS, (55.0, 0.0, -55.0))]
STEPS = 8


@contextmanager
def serving(policy: Path, *more: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command in a process of its own, and its address."""
    line = [sys.executable, "-m", "dipole_vla.cli", "serve", "--policy", policy, "--device", "cpu", "--batch", 4, *more]
    process = subprocess.Popen([str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline()  # type: ignore[union-attr]
        assert said.startswith("serving"), process.communicate()[1]
        yield process, re.search(r" at (\S+) \(", said)[1]  # type: ignore[index]
    finally:
        process.kill()
        process.communicate()


def loop(
    address: str, seed: int = 3, steps: int = STEPS, rig: Sequence[FakeCamera] = RIG, speed: float = 6.0
) -> LoopResult:
    with FakeLoop(address, rig, initial_speed_mps=speed) as runtime:
        return runtime.run(steps, seed=seed)


def path(result: LoopResult) -> np.ndarray:
    return result.ego.positions[:, :2]


@pytest.mark.parametrize("steps", [STEPS, pytest.param(200, marks=pytest.mark.slow)])
def test_over_a_port_the_fake_loop_is_driven_and_the_seed_decides(small_policy: Path, steps: int) -> None:
    with serving(small_policy, "--port", 0, "--candidates", 2) as (process, address):
        first, again, other = (loop(address, seed, steps) for seed in (3, 3, 4))
        assert first.steps == steps
        np.testing.assert_array_equal(path(first), path(again))
        assert np.abs(path(first) - path(other)).max() > 1e-3
        assert path(first)[-1, 0] > 0.5
        debug = first.debug[0]
        assert debug is not None
        assert re.fullmatch(r"dipole-vla-[0-9a-f]{12}-(omega[\d.]+|reference)-n\d+", debug.policy_name)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "told to stop" in out
        assert "Traceback" not in error


@pytest.mark.parametrize("steps", [STEPS, pytest.param(200, marks=pytest.mark.slow)])
def test_over_a_unix_socket_in_alpasims_mode(small_policy: Path, steps: int) -> None:
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        name = Path(folder) / "p.sock"
        with serving(small_policy, "--socket", name, "--mode", "alpasim", "--replan", 0.5) as (process, address):
            assert address == f"unix:{name}"
            first, again = (loop(address, steps=steps) for _ in range(2))
            np.testing.assert_array_equal(path(first), path(again))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert not name.exists()


@pytest.fixture(scope="module")
def in_this_process(small_policy: Path) -> Iterator[str]:
    """The same server, without the cost of another process."""
    with opened(driver(small_policy, candidates=2, device="cpu"), "localhost", 0, "carla", 8) as address:
        yield address


def test_sessions_at_once_drive_as_each_does_alone(in_this_process: str) -> None:
    alone = [path(loop(in_this_process, seed, speed=4.0 + seed)) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: path(loop(in_this_process, seed, speed=4.0 + seed)), range(3)))
    for one, other in zip(alone, together):
        # a pass of three rounds otherwise than one of one, and random weights treble it plan by plan
        np.testing.assert_allclose(one[:5], other[:5], atol=1e-3)
        np.testing.assert_allclose(one, other, atol=0.1)  # another session's drive is metres away


def test_it_answers_who_it_is(in_this_process: str) -> None:
    with grpc.insecure_channel(in_this_process) as channel:
        assert EgodriverServiceStub(channel).get_version(Empty()).version_id.startswith("dipole-vla-")


def test_a_foreign_rig_is_mapped(small_policy: Path) -> None:
    wide = {"size": [96, 54], "focal": 60, "center": [48, 27]}
    cameras = {"CAM_F0": {"source": "front_wide", **wide}, "CAM_L0": "left", "CAM_R0": "right"}
    names = ("left", "front_wide", "right")
    rig = [FakeCamera(name, 96, 54, 100.0, yaw_left_deg=yaw) for name, yaw in zip(names, (55.0, 0.0, -55.0))]
    with opened(driver(small_policy, cameras=cameras, device="cpu"), "localhost", 0, "carla", 8) as address:
        assert loop(address, steps=2, rig=rig).steps == 2
        with pytest.raises(
            grpc.RpcError, match=r"FAILED_PRECONDITION[\s\S]*cameras.CAM_L0: the rig has no camera 'left'"
        ):
            loop(address, steps=2)


def test_a_drive_under_way_is_finished_first(small_policy: Path) -> None:
    served = driver(small_policy, device="cpu")
    begun, act = threading.Event(), served.policy.act

    def slow(*arguments, **options):
        begun.set()
        time.sleep(2.0)
        return act(*arguments, **options)

    served.policy.act = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        with opened(served, "localhost", 0, "carla", 2) as address:
            drive = pool.submit(loop, address, 0, 1)
            assert begun.wait(20)
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):  # the close after the drive, which was answered
            drive.result(20)
    assert next(iter(served._drives.values())).made == 1


# -- the check and the image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "code", "verdict"), [(1e9, 0, "fits"), (0.0, 1, "a drive takes more than")])
def test_the_check_prints_its_verdict(
    small_policy: Path, budget: float, code: int, verdict: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(check, "BUDGET", budget)
    assert main(["serve", "--policy", str(small_policy), "--check", "--steps", "3", "--device", "cpu"]) == code
    out = capsys.readouterr().out
    assert re.search(r"latency +p50 \d+ ms, p99 \d+ ms", out)
    assert f"verdict   {verdict}" in out


def test_the_image_holds_the_policy_and_starts_as_it_was_asked(small_policy: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "context"
    line = ["serve", "--policy", small_policy, "--image", "my-driver:1", "--out", out, "--omega", 0.5, "--replan", 0.5]
    assert main([str(word) for word in [*line, "--cameras", "{CAM_F0: front}"]]) == 0
    assert f"docker build --tag my-driver:1 {out}" in capsys.readouterr().out
    recipe = yaml.safe_load((out / "serve.yaml").read_text())
    assert (recipe["omega"], recipe["replan"], recipe["cameras"], recipe["mode"]) == (
        0.5,
        0.5,
        {"CAM_F0": "front"},
        "alpasim",
    )
    placed = {**recipe, "policy": str(out / "policy"), "backbone": str(out / "backbone")}
    served = load_policy("dipole_vla.commands.serve:driver", **placed)  # as `carla-driver-interface serve` does
    assert isinstance(served, PolicyDriver)
    assert served.setting.omega == 0.5
    assert {view.name: view.source for view in served.views} == {**dict(zip(CAMERAS, CAMERAS)), "CAM_F0": "front"}
    (tmp_path / "placed.yaml").write_text(yaml.safe_dump(placed))
    assert main(["serve", "--config", str(tmp_path / "placed.yaml"), "--check", "--steps", "2"]) in (0, 1)

    dockerfile = (out / "Dockerfile").read_text()
    package = next(out.glob("packages/*dipole-vla*"))
    assert (package / "dipole_vla" / "serving" / "server.py").is_file()
    assert {each.name for each in package.iterdir()} >= {"navsim_adapter", "recipes", "pyproject.toml"}
    assert not list(out.rglob("__pycache__"))
    [command] = [text for text in dockerfile.splitlines() if text.startswith("CMD")][-1:]
    assert "dipole-vla serve --config /opt/dipole-vla/serve.yaml" in command
    assert "ALPASIM_DRIVER_PORT" in command
    assert "dipole_vla.commands.serve:driver" in dockerfile
    refused([*line], capsys, "is there; remove it")


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_a_taken_address_is_one_line(small_policy: Path, capsys, tmp_path: Path) -> None:
    line = ["serve", "--policy", small_policy, "--device", "cpu"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host in ("127.0.0.1", "localhost"):  # also where another of its addresses is free
            place = ["--host", host, "--port", taken.getsockname()[1]]
            refused([*line, *place], capsys, "cannot be opened", "Address already in use")
    with tempfile.TemporaryDirectory(prefix="s-") as folder, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"{folder}/s")
        taken.listen()
        refused([*line, "--socket", f"{folder}/s"], capsys, "is another server's")
    file = tmp_path / "file"
    file.write_text("x")
    refused([*line, "--socket", file], capsys, "is no socket")
    refused([*line, "--socket", "/" + 120 * "x"], capsys, "longer than 107 bytes")
    refused([*line, "--host", "no.such.host.invalid"], capsys, "no.such.host.invalid:6789 cannot be opened")
    assert file.read_text() == "x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port: must be 0 to 65535"),
        (["--replan", "-1"], "--replan: must be at least 0"),
        (["--sessions", "0"], "--sessions: must be at least 1"),
        (["--mode", "carlos"], "mode: must be one of carla, alpasim, got carlos (did you mean 'carla'?)"),
        (["--cameras", "{CAM_X: a}"], "cameras.CAM_X: the policy does not see it"),
        (["--image", "My Driver"], "is no NAME:TAG"),
        (["--image", "a:1", "--check"], "are two commands"),
        (["--candidates", "0"], "--candidates: must be at least 1"),
        (["--policy", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_is_one_line(small_policy: Path, options: list[str], message: str, capsys) -> None:
    refused(["serve", "--policy", small_policy, "--device", "cpu", *options], capsys, message)


def test_a_pass_that_does_not_fit_is_one_line(small_policy: Path, capsys, monkeypatch) -> None:
    act = GuidedPolicy.act

    def bounded(policy, observation, omega, candidates, noise, *arguments, **options):
        if len(noise) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return act(policy, observation, omega, candidates, noise, *arguments, **options)

    monkeypatch.setattr(GuidedPolicy, "act", bounded)
    refused(["serve", "--policy", small_policy, "--device", "cpu"], capsys, "--batch: 16 sessions of 2 candidates")
    assert driver(small_policy, batch=4, device="cpu").setting.batch == 4


def test_without_the_extra_it_is_one_line(small_policy: Path, capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("dipole_vla.serving", "dipole_vla.commands.serve"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "carla_driver_interface", None)
    for name in [name for name in sys.modules if name.startswith("carla_driver_interface.")]:
        monkeypatch.setitem(sys.modules, name, None)
    refused(["serve", "--policy", small_policy], capsys, "pip install 'dipole-vla[drive]'")
    assert EXTRA_OF["carla_driver_interface"] == "drive"


def test_a_session_by_hand_over_the_port(in_this_process: str) -> None:
    with grpc.insecure_channel(in_this_process, options=channel_options()) as channel:
        client = Client(channel)
        assert len(client.go(0)) > 10
        client.close()
