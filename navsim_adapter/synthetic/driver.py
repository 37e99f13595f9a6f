"""The human at the wheel: competent, comfortable, and now and then not quite there.

Lapses begin at random and last a few seconds; nothing before their beginning announces them. So the same situation
is driven well in one log and badly in another, and a policy that imitates the logs inherits the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from navsim_adapter.synthetic.geometry import wrap
from navsim_adapter.synthetic.traffic import FAR

Array = np.ndarray
Rng = np.random.Generator
WHEELBASE, AXLE_TO_CENTER, LENGTH, WIDTH = 3.089, 1.461, 5.176, 2.297
MAX_STEERING, STEERING_RATE = 0.6, 0.9
FRONT_OVERHANG = 4.05  # rear axle to front bumper
HARDEST_BRAKING = 7.0


@dataclass(frozen=True)
class LapseKind:
    """How often (weight among others and alone on the road) and how long, in seconds."""

    busy: float
    quiet: float
    shortest: float
    longest: float


LAPSES: dict[str, LapseKind] = {
    "drift": LapseKind(3.5, 5.0, 2.4, 4.5),  # wanders sideways
    "distracted": LapseKind(4.0, 0.8, 2.2, 4.5),  # sees leaders, walkers, lights and other streams too late
    "tailgate": LapseKind(2.0, 0.4, 3.0, 5.0),  # keeps hardly any distance
    "slow": LapseKind(2.0, 2.5, 2.5, 5.0),  # dawdles for no reason
    "fast": LapseKind(1.0, 2.5, 2.5, 4.5),  # over the limit, wide in bends
}


@dataclass(frozen=True)
class Lapse:
    kind: str
    start: float
    end: float
    size: float  # of drift: metres to the left; else 0 (mild) to 1 (grave)

    def strength(self, time: float, ramp: float = 1.1) -> float:
        """0 outside, 1 in the middle, smooth ramps of `ramp` seconds."""
        x = min(max(min(time - self.start, self.end - time) / ramp, 0.0), 1.0)
        return x * x * (3 - 2 * x)


@dataclass
class Driver:
    """One log's human: lasting traits and the lapses to come. Times count from the world's beginning."""

    pace: Array  # (T,) factor on the comfortable speed; it changes for no visible reason
    headway: float
    accel: float
    wander: Array  # (T,) metres sideways, every tenth of a second
    lapses: tuple[Lapse, ...]
    steering: float = 0.0
    acceleration: float = 0.0

    def active(self, kind: str, time: float) -> Lapse | None:
        return next((x for x in self.lapses if x.kind == kind and x.start <= time < x.end), None)

    def lateral_target(self, time: float, v: float, curvature: float) -> float:
        """Metres to the left of the path at which the driver now aims."""
        target = self.wander[min(int(time * 10), len(self.wander) - 1)]
        target += curvature * FRONT_OVERHANG**2 / 4  # the nose swings out: keep inside by half of that
        target += sum(lapse.size * lapse.strength(time) for lapse in self.lapses if lapse.kind == "drift")
        if lapse := self.active("fast", time):
            excess = max(0.0, v * v * abs(curvature) - 2.4)
            target -= np.sign(curvature) * min(1.6, 0.8 * excess) * lapse.strength(time)
        return float(target)

    def accelerate(self, time: float, v: float, comfortable: float, gaps: dict[str, tuple[float, float]]) -> float:
        """The acceleration the driver wants; `gaps`: what lies ahead -> (metres, its speed)."""
        pace = float(self.pace[min(int(time * 10), len(self.pace) - 1)])
        headway, accel, standing = self.headway, self.accel, 2.0
        if lapse := self.active("slow", time):
            pace *= 1 - (0.45 + 0.45 * lapse.size) * lapse.strength(time, 0.6)
        if lapse := self.active("fast", time):
            pace *= 1 + (0.25 + 0.3 * lapse.size) * lapse.strength(time, 0.6)
            accel *= 1.25
        if self.active("tailgate", time):
            headway, standing, pace, accel = 0.35, 1.0, pace * 1.12, accel * 1.2
        distracted = self.active("distracted", time)
        target = max(comfortable * pace, 0.3)
        wanted = accel * max(1 - (v / target) ** 4, -1.3)
        for gap, lead in gaps.values():
            if gap >= FAR:
                continue
            needed = max(v - lead, 0.0) ** 2 / (2 * max(gap - 0.5, 0.2)) if v > lead else 0.0
            if distracted is not None and needed < 4.0 + 5.0 * distracted.size:
                continue
            wish = standing + max(0.0, v * headway + v * (v - lead) / (2 * np.sqrt(accel * 2.2)))
            wanted = min(
                wanted, accel * (1 - (v / target) ** 4 if v < target else 0.0) - accel * (wish / max(gap, 0.3)) ** 2
            )
            if needed > 3.5:
                wanted = min(wanted, -1.15 * needed)
        return float(np.clip(wanted, -HARDEST_BRAKING, accel))

    def pedal(self, wanted: float, v: float, dt: float) -> float:
        """Acceleration after foot and engine: limited jerk, quicker in an emergency; never backwards."""
        jerk = 2.5 if wanted > -3.0 else 14.0
        step = np.clip(wanted - self.acceleration, -jerk * dt, 2.5 * dt if wanted < 0 else 4.0 * dt)
        self.acceleration += float(step)
        if v + self.acceleration * dt < 0:
            self.acceleration = -v / dt
        return self.acceleration

    def steer(self, pose: Array, target: Array, dt: float) -> float:
        """Front wheel angle that aims the rear axle's arc at `target` (x, y), turned no faster than an arm can."""
        dx, dy = target - pose[:2]
        distance = max(float(np.hypot(dx, dy)), 1.0)
        angle = float(wrap(np.arctan2(dy, dx) - pose[2]))
        wanted = np.arctan(WHEELBASE * 2 * np.sin(angle) / distance)
        wanted = float(np.clip(wanted, -MAX_STEERING, MAX_STEERING))
        self.steering += float(np.clip(wanted - self.steering, -STEERING_RATE * dt, STEERING_RATE * dt))
        return self.steering


@dataclass(frozen=True)
class Window:
    """When a log's scenes begin (first, last current frame) and when the human meets its event; seconds.

    is_busy: the event is about other road users.
    """

    first: float
    last: float
    event: float
    is_busy: bool


def draw_driver(rng: Rng, window: Window, lapses: float) -> Driver:
    """A random human; `lapses`: how many to expect per ten seconds."""
    steps = int((window.last + 6) * 10)
    noise = rng.normal(size=steps)
    wander, value = np.zeros(steps), rng.normal() * 0.12
    for i in range(steps):
        value += -0.04 * value + 0.035 * noise[i]
        wander[i] = value
    count = rng.poisson(lapses * (window.last - window.first + 4) / 10)
    return Driver(
        pace=_draw_pace(rng, steps),
        headway=rng.uniform(1.0, 1.7),
        accel=rng.uniform(1.2, 1.8),
        wander=wander,
        lapses=tuple(sorted((_draw_lapse(rng, window) for _ in range(count)), key=lambda lapse: lapse.start)),
    )


def _draw_pace(rng: Rng, steps: int) -> Array:
    """Steady stretches of some seconds, each with its own pace, joined over about a second."""
    pace, at = np.empty(steps), 0
    while at < steps:
        length = int(rng.uniform(2.5, 8.0) * 10)
        pace[at : at + length] = rng.uniform(0.78, 1.06)
        at += length
    return np.convolve(np.pad(pace, 5, mode="edge"), np.ones(11) / 11, mode="valid")


def _draw_lapse(rng: Rng, window: Window) -> Lapse:
    """What fits the situation, when it can matter; a grave drift only where no scene begins in the middle of it."""
    kinds = list(LAPSES)
    weights = np.array([LAPSES[kind].busy if window.is_busy else LAPSES[kind].quiet for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    size, start = rng.uniform(0, 1), rng.uniform(window.first - 1.0, window.last + 2.2)
    if kind == "drift":
        size = rng.uniform(0.6, 2.6) * (1 if rng.random() < 0.4 else -1)
        if abs(size) > 0.7:
            start = rng.uniform(window.last - 0.7, window.last + 2.2)
    elif kind != "slow" and window.is_busy and rng.random() < 0.75:
        start = float(np.clip(window.event - rng.uniform(0.3, 3.0), window.first - 0.5, window.last + 2.2))
    return Lapse(kind, start, start + rng.uniform(LAPSES[kind].shortest, LAPSES[kind].longest), size)
