#!/usr/bin/env bash
# Two egodriver servers of carla-driver-interface on one TCP port: both start, and clients reach either.
#
# One expects: the second server on a port that is taken fails to bind; its builder raises RuntimeError where binding fails.
# What happens: gRPC binds with SO_REUSEPORT on Linux unless told not to, so nothing fails. The kernel gives each new
# connection to one of the two, and one client's connections meet different drivers.
# Seen with: carla-driver-interface 2.3.1, grpcio 1.85.3, Python 3.11, Linux.
# Why it matters: a forgotten server of an older policy drives a share of the sessions of a newer one, in one evaluation, and
# no log says so. The channel option grpc.so_reuseport=0 on the server restores the error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "carla-driver-interface==2.3.1" "grpcio==1.85.3" 2>/dev/null
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import grpc
from carla_driver_interface.contract import negotiate
from carla_driver_interface.driver import BaseDriver, DriveResult
from carla_driver_interface.geometry import Trajectory
from carla_driver_interface.protocol import EgodriverServiceStub, channel_options
from carla_driver_interface.server import build_server


def driver(called):
    class Driver(BaseDriver):
        name = called

        def drive(self, ctx):
            return DriveResult(Trajectory.empty())

    return Driver()


print("carla-driver-interface", version("carla-driver-interface"), "grpcio", grpc.__version__)
old, port = build_server(driver("old"), port=0, host="127.0.0.1")
old.start()
new, again = build_server(driver("new"), port=port, host="127.0.0.1")
new.start()
answers = []
for _ in range(40):
    options = [*dict(channel_options()).items(), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        answers.append(str(negotiate(EgodriverServiceStub(channel), timeout=10)[0].version_id))
counts = {name: sum(name in answer for answer in answers) for name in ("old", "new")}
print("second server bound:", again == port, "| connections that met each driver:", counts)
old.stop(0)
new.stop(0)
assert again == port and min(counts.values()) > 0, "the behaviour has changed"
PY
