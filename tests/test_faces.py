"""What the packages offer at their top, and that offering it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFERED = {
    "dipole_vla": (
        "Backbone", "CosineTable", "Dipole", "DipoleModule", "DrivingData", "GuidedPolicy", "LinearFlow", "SolverSpec",
        "VPLinear", "dichotomous_loss", "group_relative", "guide", "load_policy",
        "Poses", "register_backbone",
    ),
    "navsim_adapter": (
        "DataRoot", "SceneFilter", "Scorer", "Scores", "build_cache", "convert", "open_cache", "picture",
        "read_trajectories", "score_rows", "write_submission", "write_trajectories",
    ),
}  # fmt: skip


@pytest.mark.parametrize("package", OFFERED)
def test_importing_a_package_and_listing_it_loads_neither_torch_nor_numba(package: str) -> None:
    program = f"import sys, {package}; dir({package}); print([m for m in ('torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in OFFERED.items() for name in names])
def test_what_is_offered_is_there(package: str, name: str) -> None:
    module = import_module(package)
    assert getattr(module, name).__name__ == {"Poses": "ActionSpec"}.get(name, name)
    assert name in module.__all__
    assert name in dir(module)


@pytest.mark.parametrize("package", OFFERED)
def test_a_type_checker_is_told_what_is_offered(package: str) -> None:
    module = import_module(package)
    folder = Path(module.__file__).parent
    assert (folder / "py.typed").is_file()
    places = module._PLACES
    text = (folder / "__init__.py").read_text()
    assert all(f"from {places[name]} import {name} as {name}\n" in text for name in OFFERED[package])


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Dipol"):
        import_module("dipole_vla").Dipol  # noqa: B018


@pytest.mark.parametrize(("package", "page"), [("dipole_vla", "api.md"), ("navsim_adapter", "api-navsim.md")])
def test_the_api_page_describes_what_is_offered_and_nothing_else(package: str, page: str) -> None:
    described = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    shown = {getattr(import_module(module), name) for module, name in described}
    offered = import_module(package)
    assert len(described) == len(shown)
    assert shown == {getattr(offered, name) for name in OFFERED[package]}
    assert all(entry.__doc__ for entry in shown)
