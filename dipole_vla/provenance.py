"""What made a result: versions, commit, recipe. Written beside every output and printed in every report."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("dipole-vla", "torch", "lightning", "transformers", "peft", "numpy", "numba", "shapely", "pyproj")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str | None:
    """The commit of the source tree with `+` when it has changes; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]


def provenance(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready record: versions, commit, the resolved recipe and its hash."""
    plain = json.loads(json.dumps(dict(recipe), default=str))
    return {"versions": versions(), "commit": commit(), "recipe": plain, "recipe_hash": recipe_hash(plain)}
