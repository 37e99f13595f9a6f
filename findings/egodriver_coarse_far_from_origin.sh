#!/usr/bin/env bash
# Poses of the egodriver contract are float32: in a map's own coordinates they move in steps of a quarter of a metre.
#
# One expects: a pose in UTM or another projected frame, as nuPlan's and most HD maps have it, crosses the wire to the
# centimetre; the contract's own geometry is float64 on both sides of it.
# What happens: Vec3 holds 32-bit numbers. At a northing of 4,000,000 m the nearest two are 0.25 m apart, so a car at a steady
# 3 m/s, told at 10 Hz, seems to drive at 2.5 and 5 m/s by turns.
# Seen with: carla-driver-interface 2.3.1 (wire of AlpaSim's egodriver), Python 3.11.
# Why it matters: speeds, histories and tracking that a driver derives from such poses are noise, and nothing is refused. A
# runtime must put the origin of its local frame near the drive.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "carla-driver-interface==2.3.1" 2>/dev/null
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from carla_driver_interface.geometry import Pose

print("carla-driver-interface", version("carla-driver-interface"))


def speeds(northing):
    there = [Pose(np.array([331000.0, northing + 0.3 * step, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])) for step in range(20)]
    back = [Pose.from_proto(pose.to_proto()).position[1] for pose in there]
    return np.diff(back) / 0.1


for northing in (0.0, 4_000_000.1):
    found = speeds(northing)
    print(f"northing {northing:.1f} m: 3 m/s come back as {found.min():.2f} to {found.max():.2f} m/s")
near, far = speeds(0.0), speeds(4_000_000.1)
step = float(np.spacing(np.float32(4e6)))
print("least step of a float32 there:", step, "m")
there = Pose(np.array([0.0, 4_000_000.1, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]))
lost = abs(Pose.from_proto(there.to_proto()).position[1] - 4_000_000.1)
print(f"a pose at 4000000.1 m comes back {lost:.2f} m off")
assert np.ptp(near) < 1e-3 and np.ptp(far) > 2 and step == 0.25 and lost > 0.05, "the behaviour has changed"
PY
