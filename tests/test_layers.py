"""Imports point one way: down the picture in CONTRIBUTING.md, and never round a circle of folders.

A room is a folder, or a module that lies beside the folders of its package. Every import counts, those inside
functions and those for type checkers too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dipole_vla", "navsim_adapter")
Arrows = Mapping[tuple[str, str], str]  # (importing room, imported room) -> the first place it happens


def room_of(module: str, folders: set[str]) -> str:
    """The innermost folder a module lies in; itself, where that is the package's own."""
    words = module.split(".")
    return module if module in folders or len(words) == 2 else ".".join(words[:-1])


def arrows_of(sources: Mapping[str, str], folders: set[str]) -> dict[tuple[str, str], str]:
    """sources: module name -> its text. Packages' own faces (`dipole_vla/__init__.py`) are no rooms."""
    arrows: dict[tuple[str, str], str] = {}
    for module, text in sources.items():
        for line, target in imports(text, sources):
            here, there = room_of(module, folders), room_of(target, folders)
            if here != there and not {module, target} & set(PACKAGES):
                arrows.setdefault((here, there), f"{module} line {line} imports {target}")
    return arrows


def imports(text: str, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in known else node.module for name in named]
            yield from ((node.lineno, target) for target in targets if target in known)


def layers_in(page: str) -> dict[str, int]:
    """Room -> its line in the page's picture, counted from the top."""
    layers, package = {}, ""
    for height, line in enumerate(re.search(r"```layers\n(.*?)```", page, re.DOTALL)[1].splitlines()):
        words = line.split()
        package = package if line.startswith(" ") else words.pop(0)
        layers.update({f"{package}.{word}": height for word in words})
    return layers


def upward(arrows: Arrows, layers: Mapping[str, int]) -> list[str]:
    """Arrows against the picture; a folder within a folder has the line of the outer one."""
    height = {room: layers.get(".".join(room.split(".")[:2])) for arrow in arrows for room in arrow}
    unknown = [
        f"{room}: is not in the picture of CONTRIBUTING.md; add it" for room, line in height.items() if line is None
    ]
    return unknown or [place for (here, there), place in arrows.items() if height[here] > height[there]]


def circle(arrows: Arrows) -> list[str]:
    """The rooms that a circle of imports passes through or joins; none where there is no circle."""
    rooms = {room for arrow in arrows for room in arrow}
    while True:
        ends = {room for room in rooms if not any(a == room and b in rooms for a, b in arrows)}
        ends |= {room for room in rooms if not any(b == room and a in rooms for a, b in arrows)}
        if not ends:
            return sorted(rooms)
        rooms -= ends


@pytest.fixture(scope="module")
def tree() -> tuple[dict[str, str], set[str]]:
    """Text of every module, and the folders."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    folders = {name.removesuffix(".__init__") for name in names if name.endswith(".__init__")}
    return {name.removesuffix(".__init__"): file.read_text() for name, file in zip(names, files)}, folders


def test_imports_point_down_the_picture(tree: tuple[dict[str, str], set[str]]) -> None:
    assert upward(arrows_of(*tree), layers_in((ROOT / "CONTRIBUTING.md").read_text())) == []


def test_folders_import_each_other_in_no_circle(tree: tuple[dict[str, str], set[str]]) -> None:
    assert circle(arrows_of(*tree)) == []


@pytest.mark.parametrize("text", ["import dipole_vla.high.a", "def f():\n    from dipole_vla.high import a"])
def test_an_arrow_up_is_found_wherever_it_stands(text: str) -> None:
    sources = {"dipole_vla.high": "", "dipole_vla.high.a": "from dipole_vla import low", "dipole_vla.low": text}
    arrows = arrows_of(sources, {"dipole_vla.high"})
    place = f"dipole_vla.low line {text.count(chr(10)) + 1} imports dipole_vla.high.a"
    assert upward(arrows, {"dipole_vla.high": 0, "dipole_vla.low": 1}) == [place]
    assert circle(arrows) == ["dipole_vla.high", "dipole_vla.low"]


def test_a_room_that_the_picture_lacks_is_named() -> None:
    arrows = {("dipole_vla.new", "dipole_vla.low"): ""}
    assert "dipole_vla.new: is not in the picture" in upward(arrows, {"dipole_vla.low": 0})[0]


def test_the_picture_of_a_page_is_read_line_by_line() -> None:
    page = "…\n```layers\ndipole_vla  cli\n            rl  data\nnavsim_adapter  cli\n```"
    assert layers_in(page) == {"dipole_vla.cli": 0, "dipole_vla.rl": 1, "dipole_vla.data": 1, "navsim_adapter.cli": 2}
