"""The backbone that docs/add-a-backbone.md shows is one: its text is run as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from identities import check_identities

from dipole_vla.backbones import FAMILIES, load_backbone
from dipole_vla.commands.init import init

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-backbone.md"


@pytest.fixture(scope="module")
def page():
    """The page's Python as a module."""
    module = types.ModuleType("my_vla")
    module.check_identities = check_identities
    sys.modules["my_vla"] = module
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    yield module
    del sys.modules["my_vla"]


def test_the_pages_own_test_passes(page, tmp_path):
    page.test_my_vla(tmp_path)


def test_a_line_in_the_table_makes_it_a_family(page, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "my_vla", ("my_vla", "MyVLA"))
    init("my_vla", tmp_path / "out", sizes={"width": 16})
    assert load_backbone(tmp_path / "out").config.width == 16


def test_the_page_lists_every_family():
    listed = set(re.findall(r"^\| `(\w+)/`", PAGE.read_text(), re.MULTILINE))
    assert listed == {module.split(".")[2] for module, _ in FAMILIES.values()}
