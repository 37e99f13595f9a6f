"""The build context of the challenge's container: `carla_driver_interface`'s image, with the policy in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from carla_driver_interface.alpasim import ImageSpec, write_build_context

from dipole_vla import __version__
from dipole_vla.policy.folder import POLICY
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json

ROOT = Path(__file__).resolve().parents[2]  # of a checkout
HOME = "/opt/dipole-vla"
SOURCES = ("dipole_vla", "navsim_adapter", "recipes", "pyproject.toml", "README.md", "LICENSE")
UNNEEDED = shutil.ignore_patterns("checkpoints", "logs", "__pycache__", "*.part*")
ENVIRONMENT = {
    "ALPASIM_DRIVER_HOST": "0.0.0.0",
    "ALPASIM_DRIVER_PORT": "6789",
    "HF_HUB_OFFLINE": "1",
    **{name: f"/tmp/{name.lower()}" for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")},
    "HOME": "/tmp",  # the challenge's root is read-only but for /tmp and /run
}
NOBODY = "65534"


def write_context(
    image: str, out: Path | None, factory: str, policy: Path, backbone: Path | None, settings: Mapping[str, Any]
) -> Path:
    """A folder for `docker build`; returns it. It holds the policy, its backbone and this package.

    factory: module:function that makes the driver of `settings`, for `carla-driver-interface serve`, which a wizard's
    configuration may start in place of `dipole-vla serve`. settings: options of `serve` other than where things are.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/-]*(:[\w.-]+)?", image):
        raise InputError(f"--image: {image!r} is no NAME:TAG of lower-case letters, digits, dots and dashes")
    out = out or Path(re.sub(r"[^\w.-]", "-", image))
    if out.exists():
        raise InputError(f"{out}: is there; remove it, or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        context = Path(aside) / "context"
        context.mkdir()
        places = _copy_policy(context, policy, backbone)
        recipe = {**{name: f"{HOME}/{name}" for name in places}, **settings}
        (context / "serve.yaml").write_text(yaml.safe_dump({**recipe, "mode": "alpasim"}, sort_keys=False))
        _write_dockerfile(context, factory, recipe, places)
        os.replace(context, out)
    return out


def _copy_policy(context: Path, policy: Path, backbone: Path | None) -> list[str]:
    """Names of the folders that were copied."""
    folders = {"policy": policy}
    if (policy / POLICY).is_file():
        folders["backbone"] = backbone or (policy / read_json(policy / POLICY)["backbone"]).resolve()
    for name, folder in folders.items():
        shutil.copytree(folder, context / name, ignore=UNNEEDED)
    return list(folders)


def _write_dockerfile(context: Path, factory: str, recipe: Mapping[str, Any], places: list[str]) -> None:
    with tempfile.TemporaryDirectory() as aside:
        base = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
        spec = ImageSpec(factory, dict(recipe), _requirements(Path(aside)), base_image=base)
        dockerfile = write_build_context(spec, context)
    command = f"exec dipole-vla serve --config {HOME}/serve.yaml"
    command += ' --host "$ALPASIM_DRIVER_HOST" --port "$ALPASIM_DRIVER_PORT"'
    lines = [
        *(f"COPY {name}/ {HOME}/{name}/" for name in places),
        f"COPY serve.yaml {HOME}/serve.yaml",
        *(f"ENV {name}={value}" for name, value in ENVIRONMENT.items()),
        f"EXPOSE {ENVIRONMENT['ALPASIM_DRIVER_PORT']}",
        f"USER {NOBODY}",
        f"CMD {json.dumps(['sh', '-c', command])}",
    ]
    dockerfile.write_text(dockerfile.read_text() + "\n".join(lines) + "\n")


def _requirements(aside: Path) -> list[str]:
    """This package for pip: a copy of the checkout without runs and data, or its version where it was installed."""
    if not (ROOT / "pyproject.toml").is_file():
        return [f"dipole-vla[train,drive]=={__version__}"]
    source = aside / "dipole-vla"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=UNNEEDED)
        else:
            shutil.copy2(ROOT / name, source / name)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [str(source), *extras["train"], *extras["drive"]]
