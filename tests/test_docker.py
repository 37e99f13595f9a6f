"""The training image's list of packages holds what the extras name that it is made of (docs/clusters.md)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "report", "deepspeed", "drive")


def test_the_images_list_is_of_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(need for extra in EXTRAS for need in project["optional-dependencies"][extra])]
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "docker/requirements.txt").read_text(), re.MULTILINE))
    assert {re.match(r"[\w.-]+", need)[0].lower() for need in wanted} <= pinned
    command = (ROOT / "docs/clusters.md").read_text().partition("uv pip compile")[2].partition("```")[0]
    assert set(re.findall(r"--extra (\w+)", command)) == set(EXTRAS)
