"""Docstrings as the API page shows them: a line "name: text" about an argument or field becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = r"[a-z]\w*(?:, [a-z]\w*)*"


def markdown(text: str, names: set[str]) -> str:
    """The Markdown of a docstring; lines that say what some of `names` mean become items."""
    item = re.compile(rf"({_NAMES}): +(.*)")
    text = re.sub(r"(?<!^)(?<!\n)(?:\n|(?<=\.) )(?=(?:Raises )?InputError )", "\n\n", text)  # a paragraph of its own

    def broken(gap: re.Match[str]) -> str:
        return "\n" if names.issuperset(gap[1].split(", ")) else gap[0]

    shown: list[str] = []
    is_listing = False
    for line in re.sub(rf"(?<=[.)]) +(?=({_NAMES}): )", broken, text).splitlines():
        found = item.match(line.strip())
        if line.strip() == "Args:":
            continue
        if found and names.issuperset(found[1].split(", ")):
            shown += [] if is_listing else [""]
            shown.append(f"- **`{found[1]}`**: {_plain(found[2])}")
            is_listing = True
        elif is_listing and line.startswith(" "):
            shown[-1] += f" {_plain(line.strip())}"
        else:
            shown += ["", _plain(line)] if is_listing else [_plain(line)]
            is_listing = False
    return "\n".join(shown)


def _plain(text: str) -> str:
    """With its stars, underscores and angle brackets as they are, but in code."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_\[])", r"\\\1", words.replace("<", "&lt;")) for words in parts[::2]]
    return "".join(parts)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        names = set(obj.members)
        described = obj.members.get("__init__", obj)
        if isinstance(described, griffe.Function):
            names |= {parameter.name for parameter in described.parameters}
        obj.docstring.value = markdown(obj.docstring.value, names)
