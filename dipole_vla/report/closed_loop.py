"""Whether an open-loop gain survives: a run of `navsim-adapter closed-loop` with the reference's run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navsim_adapter.closed_loop.page import NAMES
from navsim_adapter.closed_loop.summary import said
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json, verify_listed
from navsim_adapter.foundation.statistics import TOO_FEW, certain_sign

SUMMARY = "summary.json"


def read_closed_loop(folder: Path) -> dict[str, Any]:
    """The summary of a finished run that was driven `--beside` another."""
    verify_listed(folder)
    content: dict[str, Any] = read_json(folder / SUMMARY)
    if content.get("command") != "navsim-adapter closed-loop" or "other" not in content:
        raise InputError(
            f"{folder}: is no run of `navsim-adapter closed-loop --beside OTHER`; drive the reference first, then the "
            "policy beside it"
        )
    return content


def lead(content: Mapping[str, Any]) -> str:
    """What was driven, in words."""
    way = "react" if content["traffic"] == "idm" else "replay their log"
    return f"{content['drives']} drives of {content['steps'] / 10:g} s in {content['logs']} logs; the others {way}"


def figures(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(figure, the other's, own, difference drive by drive) of each, × 100."""
    theirs, gain = content["other"]["figures"], content["other"]["gain"]
    return [
        (NAMES[name], said(theirs[name]), said(own), said(gain[name], "+")) for name, own in content["figures"].items()
    ]


def survival(open_loop: Sequence[float] | None, content: Mapping[str, Any]) -> str:
    """Whether the open-loop gain, of which this is the interval, stands in the closed loop, too."""
    closed = content["other"]["gain"]["score"]["ci95"]
    if open_loop is None or closed is None:
        return TOO_FEW
    return _WORDS[_sign(open_loop), _sign(closed)]


_WORDS = {
    (1, 1): "the open-loop gain survives the closed loop",
    (1, 0): "whether the open-loop gain survives the closed loop cannot be told from these drives",
    (1, -1): "the open-loop gain does not survive the closed loop, which is worse beyond chance",
    (0, 1): "better beyond chance in closed loop, where the open loop could not tell",
    (0, 0): "no gain beyond chance in either loop",
    (0, -1): "worse beyond chance in closed loop, where the open loop could not tell",
    (-1, 1): "better beyond chance in closed loop, worse in the open one",
    (-1, 0): "worse in the open loop; the closed loop cannot tell",
    (-1, -1): "worse beyond chance in both loops",
}


def _sign(interval: Sequence[float] | None) -> int:
    return 0 if interval is None else certain_sign(interval)
