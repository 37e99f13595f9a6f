"""`dipole-vla serve`: a policy as the driver of a closed loop, for AlpaSim, CARLA or `navsim-adapter closed-loop`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Literal

from dipole_vla.commands.driving import greed_and_count, require_critic
from dipole_vla.policy import load_policy
from dipole_vla.progress import console
from dipole_vla.serving.cameras import views
from dipole_vla.serving.check import preflight
from dipole_vla.serving.driver import PolicyDriver, Setting
from dipole_vla.serving.image import write_context
from dipole_vla.serving.server import opened, until_told
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range


def serve(
    policy: Path,
    backbone: Path | None = None,
    omega: float | Literal["default"] | None = "default",
    candidates: int | None = None,
    variants: int | None = None,
    start_scale: float | None = None,
    guidance: dict[str, Any] | None = None,
    cameras: dict[str, Any] | None = None,
    replan: float = 0.0,
    seed: int = 1,
    device: str = "auto",
    mode: Literal["carla", "alpasim"] = "carla",
    host: str = "localhost",
    port: int = 6789,
    socket: Path | None = None,
    sessions: int = 32,
    batch: int = 16,
    check: bool = False,
    steps: int = 100,
    image: str | None = None,
    out: Path | None = None,
) -> None:
    """Answer the egodriver contract with a policy's plans, until SIGTERM.

    Args:
        policy: policy folder written by `dipole-vla fit`, or a backbone folder (the reference).
        backbone: of a policy folder, where its backbone is no longer at the place that the policy names.
        omega: greed; null is the reference policy, default what the policy's own folder says.
        candidates: plans drawn per drive, of which the critic keeps the best; default what the policy's folder says.
        variants: copies of each plan among which the critic chooses, too; default what the policy's folder says.
        start_scale: standard deviation of the start noise; default the backbone's own, 0 gives one plan.
        guidance: low, high, clamp, distance, power, early, decay where they differ from the policy's own.
        cameras: where a rig is not NAVSIM's: the policy's camera -> the rig's name of it, or keys source, size, focal,
            center, distortion, yaw, pitch, roll of the camera to resample its pictures to.
        replan: seconds for which a plan is kept and followed; 0 plans at every drive.
        seed: start noise, beside the seed of each session.
        device: auto, cpu, cuda.
        mode: alpasim for an AlpaSim runtime, carla for all others.
        host: address to listen at; 0.0.0.0 for other machines, who need no password.
        port: to listen at; 0 takes a free one.
        socket: path of a Unix socket to listen at instead.
        sessions: at once; one more closes the one that was silent the longest.
        batch: sessions in one forward pass, at most.
        check: drive the contract's fake loop instead, print latency and memory, and whether they fit the challenge.
        steps: drives of the check.
        image: NAME:TAG; write the build context of the challenge's container instead.
        out: folder of the build context; default is named as the image.
    """
    for name, value, least in (("--sessions", sessions, 1), ("--steps", steps, 2)):
        check_range(name, value, least)
    check_range("--port", port, 0, 65535)
    if check and image:
        raise InputError("--image: and --check are two commands; check first, then write the image's context")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    settings: dict[str, Any] = {
        "omega": omega, "candidates": candidates, "variants": variants, "start_scale": start_scale,
        "guidance": guidance, "cameras": cameras, "replan": replan, "seed": seed, "batch": batch,
    }  # fmt: skip
    served = driver(policy, backbone, device=device, **settings)
    if image:
        settings["sessions"] = sessions
        out = write_context(image, out, f"{__name__}:driver", policy, backbone, settings)
        return console.print(f"docker build --tag {image} {out}", markup=False, soft_wrap=True)
    if check:
        return preflight(served, mode, steps)
    address = f"unix:{socket.absolute()}" if socket else host
    with opened(served, address, port, mode, sessions) as dialled:
        console.print(f"serving {policy} at {dialled} ({mode} mode)", markup=False, soft_wrap=True)
        sys.stdout.flush()
        until_told()
        console.print("told to stop; drives under way end first", markup=False)


def driver(
    policy: str | Path,
    backbone: str | Path | None = None,
    omega: float | str | None = "default",
    candidates: int | None = None,
    variants: int | None = None,
    start_scale: float | None = None,
    guidance: dict[str, Any] | None = None,
    cameras: dict[str, Any] | None = None,
    replan: float = 0.0,
    seed: int = 1,
    batch: int = 16,
    device: str = "auto",
    **_: Any,
) -> PolicyDriver:
    """The driver that `serve` serves, warmed up; arguments as there.

    `carla-driver-interface serve --policy dipole_vla.commands.serve:driver --policy-arg policy=FOLDER` serves it too,
    without the border.
    """
    check_range("--candidates", candidates, 1)
    check_range("--variants", variants, 0)
    check_range("--omega", None if isinstance(omega, str) else omega)
    check_range("--start_scale", start_scale, 0)
    check_range("--replan", replan, 0)
    check_range("--batch", batch, 1)
    actor = load_policy(policy, backbone, device, guidance)
    greed, count = greed_and_count(Path(policy), actor, omega, candidates)
    copies = actor.guidance.variants if variants is None else variants
    require_critic(actor, Path(policy), count, copies)
    shown = views(actor.processor.cameras, cameras or {})
    found = PolicyDriver(actor, shown, Setting(greed, count, copies, start_scale, seed, replan, batch))
    found.warm_up()
    return found
