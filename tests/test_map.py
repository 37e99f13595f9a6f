"""docs/map.md names every folder of both packages, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "map.md").read_text()


@pytest.mark.parametrize("package", ["dipole_vla", "navsim_adapter"])
def test_every_folder_has_its_line_and_every_line_its_place(package: str) -> None:
    table = PAGE.split(f"## {package}\n")[1].split("\n## ")[0]
    named = {word for line in table.splitlines() for word in re.findall(r"`([\w./]+)`", line.split(" | ")[0])}
    folders = {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
    assert folders <= named
    assert not [word for word in named if not (ROOT / package / word).exists()]
