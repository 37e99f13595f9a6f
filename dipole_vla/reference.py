"""The policy that the demo starts from: a small DP-VLA that comes with the recipes, made by `reference/make.py` there.

Here it is asked whether it is whole, of this version, and a stranger to the demo's world.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json, verify
from navsim_adapter.foundation.words import counted
from navsim_adapter.synthetic.synthesize import VERSION

FACTS = "reference.json"
MADE_FOR = {"format": 1, "generator": VERSION}  # of the facts, and of the worlds it was trained on
_OR = "or run with --from-scratch"


@dataclass(frozen=True)
class Reference:
    """folder: of the backbone.  seeds: of the worlds it was trained on.  scenes: how many."""

    folder: Path
    seeds: tuple[int, ...]
    scenes: int

    def __str__(self) -> str:
        seeds = f"seeds {min(self.seeds)} to {max(self.seeds)}"
        return f"{self.folder}: a policy that has imitated {counted(self.scenes, 'scene')} of other worlds ({seeds})"


def shipped_reference(recipes: Path, seed: int) -> Reference:
    """The one beside the recipes, for a demo on the world of `seed`.

    Raises InputError where it is missing, changed, of another version, or was trained on that very world.
    """
    folder = recipes / "reference"
    path = folder / FACTS
    if not path.is_file():
        raise InputError(f"{folder}: no reference policy here ({FACTS} is missing); `make checkpoint` makes it, {_OR}")
    facts = read_json(path)
    for name, wanted in MADE_FOR.items():
        if not isinstance(facts, dict) or facts.get(name) != wanted:
            found = facts.get(name) if isinstance(facts, dict) else None
            raise InputError(f"{path}: {name} is {found!r}, this version's is {wanted!r}; take both from one, {_OR}")
    verify(folder)
    reference = Reference(folder, tuple(facts["seeds"]), facts["scenes"])
    if seed in reference.seeds:
        raise InputError(f"--seed: the reference policy was trained on the world of seed {seed}; give another, {_OR}")
    return reference
